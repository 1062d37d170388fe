"""Plots of descents with matplotlib (the extra ``plot``): contours, paths and loss curves.

The functions draw on the caller's axes, in the style in force; `style` is fastgd's own, for light
and for dark pages.

>>> import numpy as np, fastgd
>>> from fastgd import plot
>>> from matplotlib.figure import Figure
>>> beale = fastgd.surfaces.SURFACES["beale"]
>>> w = np.array(beale.start)
>>> opt, points = fastgd.Adam(w, lr=0.1), [w.copy()]
>>> for _ in range(200):
...     _ = opt.step(beale.gradient(w))
...     points.append(w.copy())
>>> with plot.style():
...     figure = Figure(layout="constrained")
...     axes = figure.subplots()
...     _ = plot.contours(axes, beale)
...     line = plot.path(axes, points, label="Adam")
>>> line.get_xydata().shape
(201, 2)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.averages import ewma
from fastgd.core.domains import flag, integer
from fastgd.surfaces.base import Surface

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.colors import to_rgb
    from matplotlib.contour import QuadContourSet
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import Normal, Stroke
    from matplotlib.ticker import MaxNLocator

    from fastgd.plot.style import THEMES, Theme, line_style, style
except ModuleNotFoundError as error:
    hint = 'fastgd.plot needs matplotlib: pip install "fastgd[plot]"'
    raise ModuleNotFoundError(hint, name=error.name) from error

__all__ = [
    "THEMES",
    "Theme",
    "contours",
    "curve",
    "line_style",
    "loss_curves",
    "path",
    "style",
]

Array = NDArray[Any]
Interval = tuple[float, float]


# ----------------------------------------------------------------------------------- surfaces


def contours(
    axes: Axes,
    surface: Surface,
    *,
    domain: Sequence[Interval] | None = None,
    levels: int = 24,
    resolution: int = 240,
    marks: bool = True,
) -> QuadContourSet:
    """Draw the contours of a surface over two variables.

    Levels are quantiles of the values, low ones a little denser: so valleys show on steep surfaces,
    too, and neighbouring lines don't stand for equal differences in height.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        The axes to draw on.
    surface : Surface
        A surface of `fastgd.surfaces`, over two variables.
    domain : ((float, float), (float, float)), optional
        The intervals of the variables; the surface's own if left out.
    levels, resolution : int
        The number of levels, and of points in each direction at which the surface is evaluated.
    marks : bool
        Mark the known minima (★) and saddles (×).

    Returns
    -------
    matplotlib.contour.QuadContourSet
        The filled contours.

    Raises
    ------
    TypeError, ValueError
        If `surface` isn't a surface over two variables, or an option is not valid.
    """
    _check(axes, surface, 2)
    flag(marks, "marks")
    across, along = _intervals(surface, domain)
    for name, count in (("levels", levels), ("resolution", resolution)):
        integer(count, name, 2)
    x, y = np.linspace(*across, resolution), np.linspace(*along, resolution)
    z = surface.value(np.stack(np.meshgrid(x, y), axis=-1))
    heights = np.unique(np.quantile(z, np.linspace(0, 1, levels + 1) ** 1.5))
    # Faint shades between paper and ink, the lines a little stronger than the fill between them, so
    # that what is drawn over them stands out.
    paper, ink = (np.array(to_rgb(mpl.rcParams[key])) for key in ("axes.facecolor", "text.color"))
    strength = np.linspace(0.0, 0.24, len(heights) - 1)[:, None]
    ground, lines = (paper + (strength + more) * (ink - paper) for more in (0.0, 0.1))
    filled = axes.contourf(x, y, z, heights, colors=[tuple(c) for c in ground.tolist()])
    drawn = [tuple(c) for c in lines[1:].tolist()]
    axes.contour(x, y, z, heights[1:-1], colors=drawn, linewidths=0.6)
    axes.set(xlim=across, ylim=along)
    if marks:
        for known, marker, size in ((surface.minima, "*", 11), (surface.saddles, "x", 7)):
            inside = [
                v.point
                for v in known
                if across[0] <= v.point[0] <= across[1] and along[0] <= v.point[1] <= along[1]
            ]
            if inside:
                axes.plot(
                    *np.transpose(inside), marker, color=tuple(ink), markersize=size,
                    markeredgecolor=mpl.rcParams["axes.facecolor"] if marker == "*" else tuple(ink),
                    markeredgewidth=0.8 if marker == "*" else 1.6, zorder=2.5,
                )  # fmt: skip
    return filled


def curve(
    axes: Axes, surface: Surface, *, domain: Sequence[Interval] | None = None, **line: Any
) -> Line2D:
    """Draw a surface over one variable as a curve.

    Parameters
    ----------
    axes, surface, domain
        As for `contours`, but of one variable.
    **line
        Keyword arguments of matplotlib's ``Axes.plot``.

    Returns
    -------
    matplotlib.lines.Line2D
        The curve.

    Raises
    ------
    TypeError, ValueError
        As for `contours`.
    """
    _check(axes, surface, 1)
    (interval,) = _intervals(surface, domain)
    x = np.linspace(*interval, 500)
    settings = {"color": mpl.rcParams["text.color"], "linestyle": "-", "linewidth": 1.4, **line}
    (drawn,) = axes.plot(x, surface.value(x[:, None]), **settings)
    return drawn


def _check(axes: Any, surface: Any, dim: int) -> None:
    if not isinstance(axes, Axes):
        raise TypeError(f"axes: expected matplotlib axes, found {type(axes).__name__}")
    if not isinstance(surface, Surface):
        raise TypeError(f"surface: expected a Surface, found {type(surface).__name__}")
    if surface.dim != dim:
        wanted = "variable" if dim == 1 else "variables"
        raise ValueError(f"surface: expected {dim} {wanted}, {surface.name} has {surface.dim}")


def _intervals(surface: Surface, domain: Any) -> list[Interval]:
    """The intervals of the variables to draw, validated."""
    found = np.array(surface.domain if domain is None else domain, np.float64)
    if found.shape != (surface.dim, 2):
        raise ValueError(f"domain: expected {surface.dim} intervals, found shape {found.shape}")
    if not (np.isfinite(found).all() and (found[:, 0] < found[:, 1]).all()):
        raise ValueError(f"domain: expected finite intervals (low, high), found {domain}")
    return [(low, high) for low, high in found.tolist()]


# ------------------------------------------------------------------------------ paths and losses


def drawable(points: Array) -> Array:
    """Points, with NaN for those farther off than 1e30.

    Where a descent diverges, matplotlib would draw dashes as far as 1e100 for ever.
    """
    return np.where(np.abs(points) < 1e30, points, np.nan)


def path(
    axes: Axes, points: object, *, label: str | None = None, halo: bool = True, **line: Any
) -> Line2D:
    """Draw the path of a descent: its start as a ring, its end as a dot.

    Where contours were drawn before, the axes keep their limits: the path is clipped there.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        The axes to draw on.
    points : array_like, shape (steps + 1, 2)
        The start, and the point after each step.  Points that aren't finite, or farther off than
        1e30, break the line.
    label : str, optional
        The label in the legend.
    halo : bool
        Draw an outline in the background's colour around the line.
    **line
        Keyword arguments of matplotlib's ``Axes.plot``; by default the style's cycle.

    Returns
    -------
    matplotlib.lines.Line2D
        The path.

    Raises
    ------
    TypeError, ValueError
        If `points` is of another shape.
    """
    if not isinstance(axes, Axes):
        raise TypeError(f"axes: expected matplotlib axes, found {type(axes).__name__}")
    flag(halo, "halo")
    at = np.asarray(points)
    if at.dtype.kind not in "iuf":
        raise TypeError(f"points: expected numbers, found dtype {at.dtype}")
    if at.ndim != 2 or at.shape[1] != 2 or not len(at):
        raise ValueError(f"points: expected shape (steps + 1, 2), found {at.shape}")
    at = drawable(at)
    (drawn,) = axes.plot(*at.T, label=label, **line)
    colour, paper = drawn.get_color(), mpl.rcParams["axes.facecolor"]
    if halo:
        width = drawn.get_linewidth()
        drawn.set_path_effects([Stroke(linewidth=width + 1.6, foreground=paper), Normal()])
    ends: dict[str, Any] = {
        "color": colour, "marker": "o", "linestyle": "none", "zorder": 3, "markeredgewidth": 1.6,
    }  # fmt: skip
    axes.plot(*at[0], markersize=6, markerfacecolor=paper, **ends)
    arrived = at[~np.isnan(at).any(axis=1)]
    if len(arrived):
        axes.plot(*arrived[-1], markersize=4.5, **ends)
    return drawn


def loss_curves(
    axes: Axes,
    losses: Mapping[str, object],
    *,
    beta: float | None = None,
    unit: str = "step",
    first: int = 0,
    scale: str = "log",
) -> dict[str, Line2D]:
    """Draw loss curves, each in the next colour and dashes of the style's cycle.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        The axes to draw on.
    losses : dict of array_like, shape (n,)
        The losses of each curve by its label.
    beta : float, optional
        β of an exponentially weighted average (`fastgd.averages.ewma`) of the losses, which is then
        drawn over the losses themselves, these faint.
    unit : str
        The label of the horizontal axis.
    first : int
        The number of the first loss on it.
    scale : {"log", "linear"}
        The scale of the vertical axis.

    Returns
    -------
    dict of matplotlib.lines.Line2D
        The curves by their labels.

    Raises
    ------
    TypeError, ValueError
        If losses are not series of numbers, or an option is not valid; nothing is drawn then.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> lines = loss_curves(Figure().subplots(), {"SGD": [2.3, 1.1, 0.7]}, beta=0.5)
    >>> lines["SGD"].get_ydata().round(2)
    array([2.3 , 1.5 , 1.04])
    """
    if not isinstance(axes, Axes):
        raise TypeError(f"axes: expected matplotlib axes, found {type(axes).__name__}")
    if scale not in ("log", "linear"):
        raise ValueError(f"scale: expected 'log' or 'linear', found {scale!r}")
    if not isinstance(losses, Mapping):
        raise TypeError(f"losses: expected a dict of series, found {type(losses).__name__}")
    series: dict[str, tuple[Array, Array]] = {}
    for name, values in losses.items():
        y = np.asarray(values)
        if y.dtype.kind not in "iuf":
            raise TypeError(f"losses[{name!r}]: expected numbers, found dtype {y.dtype}")
        if y.ndim != 1 or not len(y):
            raise ValueError(f"losses[{name!r}]: expected shape (n,), found {y.shape}")
        y = y.astype(np.float64)
        series[name] = (y, y if beta is None else ewma(y, beta)[0])
    drawn = {}
    for name, (y, shown) in series.items():
        x = np.arange(first, first + len(y))
        (line,) = axes.plot(x, shown, label=name, marker="o" if len(y) == 1 else None)
        if beta is not None:
            axes.plot(x, y, color=line.get_color(), linestyle="-", alpha=0.25, linewidth=0.8)
        drawn[name] = line
    axes.set_yscale(scale)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    axes.set(xlabel=unit, ylabel="loss")
    axes.grid(visible=True)
    return drawn

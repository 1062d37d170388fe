"""Picture 1: convex and non-convex curves, and where descents from several starts end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

import fastgd
from fastgd import plot
from fastgd.commands.descents import Array, descend
from fastgd.commands.figures.picture import Picture, number
from fastgd.surfaces import Surface, double_well, quadratic

STARTS = (-1.9, -0.4, 0.5, 1.9)


class Curve(NamedTuple):
    """A curve, and a descent from each start, of shape (steps + 1, 1)."""

    surface: Surface
    paths: tuple[Array, ...]


class Result(NamedTuple):
    """Both curves."""

    convex: Curve
    wells: Curve


def run() -> Result:
    """60 steps of plain descent from each start on each curve."""

    def on(surface: Surface, lr: float) -> Curve:
        return Curve(surface, tuple(descend(fastgd.SGD, surface, [x], 60, lr=lr) for x in STARTS))

    return Result(on(quadratic([2.0]), 0.15), on(double_well(), 0.03))


def draw(axes: Axes, curve: Curve) -> None:
    surface = curve.surface
    plot.curve(axes, surface, domain=((-2.1, 2.1),))
    for k, path in enumerate(curve.paths):
        look = plot.line_style(k)
        points = np.column_stack([path[:, 0], surface.value(path)])
        plot.path(axes, points, **look, marker="osD^"[k], markersize=4, halo=False)
    for known in surface.minima:
        lowest = known.value == surface.minimum.value
        word = ("global" if lowest else "local") if len(surface.minima) > 1 else "the"
        axes.annotate(
            f"{word} minimum",
            (known.point[0], known.value),
            (0, -24),
            textcoords="offset points",
            ha="center",
            arrowprops={"arrowstyle": "-", "color": axes.spines["left"].get_edgecolor()},
        )
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.16 * (high - low), high)
    axes.set(xlabel="weight w", ylabel="loss")


def draw_convex(axes: Axes, result: Result) -> None:
    draw(axes, result.convex)
    axes.set_title("Convex: w²")


def draw_wells(axes: Axes, result: Result) -> None:
    draw(axes, result.wells)
    axes.set_title(f"Not convex: {result.wells.surface.formula.replace('x', 'w')}")


def ends(curve: Curve) -> str:
    """The starts and ends of the descents on a curve, in words."""
    return ", ".join(
        f"{x:g} to {round(float(path[-1, 0]), 2) + 0:g}".replace("-", "−")
        for x, path in zip(STARTS, curve.paths, strict=True)
    )


def caption(result: Result) -> str:
    return (
        "Plain gradient descent from four starts (rings), a mark for each step. "
        f"On the convex curve from {ends(result.convex)}; on the other from {ends(result.wells)}."
    )


def alt(result: Result) -> str:
    lowest, other = sorted(result.wells.surface.minima, key=lambda known: known.value)
    return (
        "Two curves with descents from four starts. On the parabola all four end in its one "
        f"minimum. On the double well, descents go from {ends(result.wells)}: two reach the global "
        f"minimum of loss {number(lowest.value, 3)}, two are caught in the local one of loss "
        f"{number(other.value, 3)}."
    )


def words(result: Result) -> tuple[str, ...]:
    return (
        "A convex curve has one valley, so every start leads to the same place, and only the pace "
        "is in question.",
        "On a curve with several valleys the start decides: descent follows the slope where it "
        "stands, and never climbs the hill between a local minimum and the global one. Note also "
        "how steps shrink as the slope does, with the learning rate the same throughout.",
    )


PICTURE = Picture(
    "curves",
    "Where descents end: convex and non-convex curves",
    run,
    (draw_convex, draw_wells),
    2,
    caption,
    alt,
    words,
)

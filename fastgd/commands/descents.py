"""Descents on surfaces by each optimizer, for the gallery and the race."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastgd
from fastgd.commands.choice import CLASSIC
from fastgd.kernels.reference import RULES
from fastgd.optimizers import GENERAL
from fastgd.surfaces import Surface

Array = NDArray[Any]
Maker = Callable[..., fastgd.Optimizer]


def contestants(names: Iterable[str] = CLASSIC) -> dict[str, Maker]:
    """Optimizers with their defaults, and beside SGD its heavy ball, by name."""
    makers: dict[str, Maker] = {}
    for name in names:
        makers[name] = GENERAL[name]
        if name == "SGD":
            makers["heavy ball"] = partial(fastgd.SGD, momentum=0.9)
    return makers


def descend(
    make: Maker,
    surface: Surface,
    start: Sequence[float],
    steps: int,
    *,
    noise: Array | None = None,
    **hyper: Any,
) -> Array:
    """The path of a descent: the start, and the point after each step; shape (steps + 1, d).

    The point of an optimizer that averages its iterates is the average, which is what it learns.
    `noise`, of shape (steps, d), is added to the gradients.
    A descent that diverges goes on with infinities and NaNs, without a warning.
    """
    w = np.array(start, np.float64)
    path = np.empty((steps + 1, len(w)))
    path[0] = w
    opt = make(w, **hyper)
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(1, steps + 1):
            gradient = surface.gradient(w)
            opt.step(gradient if noise is None else gradient + noise[t - 1])
            path[t] = learned(opt, w)
    return path


def learned(opt: fastgd.Optimizer, w: Array) -> Array:
    """The weights to evaluate of an optimizer whose only parameter is `w`."""
    return w if opt.average is None else opt.average.averages[0]


def adaptive(make: Maker) -> bool:
    """Whether an optimizer scales each weight's step by the size of that weight's own gradients.

    It steps along two gradients of very different size until it knows them, as RAdam does from the
    sixth step on: an adaptive optimizer then moves both weights by about as much.

    >>> import fastgd
    >>> adaptive(fastgd.SGD), adaptive(fastgd.Adam)
    (False, True)
    """
    w = np.zeros(2)
    opt = make(w)
    for _ in range(8):
        before = w.copy()
        opt.step(np.array([1.0, 1000.0]))
    first, second = np.abs(w - before)
    return bool(second < 10 * first)


def family(make: Maker) -> str:
    """What the length of an optimizer's steps follows from, in a few words.

    >>> import fastgd
    >>> family(fastgd.Momentum), family(fastgd.Adam), family(fastgd.LAMB)
    ('the rate given', "each weight's gradients", 'norms of tensors')
    """
    opt = make(np.zeros((2, 2)))
    rule = RULES[opt.stepper.rules[0]]
    if rule.shared:
        return "the whole model"
    if opt.average is not None:
        return "averaged iterates"
    if rule.pair_states:
        return "the axes of matrices"
    if rule.line_states:
        return "each row's gradients" if rule.columns is None else "rows and columns"
    if rule.sums:
        return "norms of tensors"
    return "each weight's gradients" if adaptive(make) else "the rate given"


# The distance from a minimum that counts as arrival, unless told.
TOLERANCE = 0.05
# From far too small to far too large for any of the surfaces: powers of √10.
RATES = tuple(10 ** (k / 2) for k in range(-10, 3))


class Run(NamedTuple):
    """A descent of one optimizer, and its measurements.

    Attributes
    ----------
    lr : float
        The learning rate.
    path : ndarray of float64, shape (steps + 1, d)
        The start, and the point after each step.
    values, distances : ndarray, shape (steps + 1,)
        The surface's values there, and the distances to the nearest known minimum.
    arrival : int or None
        The first step from which on the distance stayed within the tolerance.
    """

    lr: float
    path: Array
    values: Array
    distances: Array
    arrival: int | None


def measure(surface: Surface, lr: float, path: Array, tolerance: float) -> Run:
    """Measure a descent."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = surface.value(path)
        minima = np.array([known.point for known in surface.minima])
        distances = np.sqrt(((path[:, None] - minima) ** 2).sum(axis=-1)).min(axis=1)
    values, distances = (np.where(np.isnan(a), np.inf, a) for a in (values, distances))
    outside = np.flatnonzero(~(distances <= tolerance))
    arrival = int(outside[-1]) + 1 if outside.size else 0
    return Run(lr, path, values, distances, arrival if arrival < len(path) else None)


def tuned(
    make: Maker,
    surface: Surface,
    steps: int,
    *,
    rates: Sequence[float] = RATES,
    tolerance: float = TOLERANCE,
    start: Sequence[float] | None = None,
    noise: Array | None = None,
) -> Run:
    """The best descent of an optimizer among some learning rates.

    That is, of those that stay within the surface's domain, the one that arrives at a minimum with
    the fewest steps; or, if none does, the one with the lowest final value.
    """
    begin = surface.start if start is None else start
    runs = [
        measure(surface, lr, descend(make, surface, begin, steps, noise=noise, lr=lr), tolerance)
        for lr in rates
    ]
    low, high = np.transpose(surface.domain)

    def order(run: Run) -> tuple[bool, float, float]:
        strays = not ((run.path >= low) & (run.path <= high)).all()
        return strays, steps + 1 if run.arrival is None else run.arrival, run.values[-1]

    return min(runs, key=order)


def race(
    surface: Surface,
    steps: int,
    *,
    names: Iterable[str] = CLASSIC,
    rates: Sequence[float] = RATES,
    tolerance: float = TOLERANCE,
    advance: Callable[[str], object] = lambda name: None,
) -> Mapping[str, Run]:
    """The best descents of contestants on a surface, from its suggested start."""
    runs = {}
    for name, make in contestants(names).items():
        runs[name] = tuned(make, surface, steps, rates=rates, tolerance=tolerance)
        advance(name)
    return runs

"""Forward differences, for functions that come without a gradient."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# The precisions that a function may compute in, from the finest: rounding errors relative to 1.
PRECISIONS = tuple(float(np.finfo(kind).eps) for kind in (np.float64, np.float32, np.float16))


class Differences:
    """The gradient of a function by one more evaluation for each variable.

    A step is the root of the precision, of that of x, of the function's result, or the one that
    the function turns out to compute in.  It goes up where there is room within the bounds, else
    down, and is as short as the larger room; a variable that its bounds leave no room stays.

    Parameters
    ----------
    fun : callable
        From x to its value, a float.
    x : ndarray
        An array of the shape and dtype of x.
    low, high : float or array
        The bounds.
    relative : float or array, optional
        Steps relative to x, instead of those that follow from the precision.
    """

    def __init__(
        self, fun: Callable[[Array], float], x: Array, low: Any, high: Any, relative: Any
    ) -> None:
        self._fun = fun
        self._low, self._high = np.broadcast_to(low, x.shape), np.broadcast_to(high, x.shape)
        self._relative = None if relative is None else np.broadcast_to(relative, x.shape)
        self._precision = np.full(x.shape, float(np.finfo(x.dtype).eps))
        self._looked = False

    def __call__(self, x: Array, f: float, precision: float) -> Array:
        """The gradient at x, where the value is f, rounded to this precision."""
        np.maximum(self._precision, precision, out=self._precision)
        g = np.zeros_like(x)
        at = x.copy()
        flat = []
        for k in np.ndindex(x.shape):
            at[k], length = self._other(x, k, self._step(x, k))
            if length:
                value = self._fun(at)
                g[k] = (value - f) / length
                if value == f:
                    flat.append(k)
            at[k] = x[k]
        # Before a slope of 0 is believed, at the start and wherever it would end the descent.
        if flat and self._relative is None and not (self._looked and np.any(g)):
            self._looked = True
            for k in flat:
                g[k] = self._slope_of_a_coarse_function(x, at, f, k)
        return g

    def _step(self, x: Array, k: tuple[int, ...]) -> float:
        value, least = float(x[k]), sqrt(self._precision[k])
        if self._relative is not None:
            step = float(self._relative[k]) * value
            return step if value + step != value else least * max(1.0, abs(value))
        large = value + least == value or self._precision[k] > PRECISIONS[0]
        return least * max(1.0, abs(value)) if large else least

    def _other(self, x: Array, k: tuple[int, ...], step: float) -> tuple[Any, float]:
        """A point a step away, or as far as the bounds let it, and how far that is."""
        low, high = self._low[k], self._high[k]
        there = x.dtype.type(x[k] + step)
        if not low <= there <= high:
            there = x.dtype.type(x[k] - step)
        if not low <= there <= high:
            there = high if high - x[k] >= x[k] - low else low
        return there, float(there) - float(x[k])

    def _slope_of_a_coarse_function(
        self, x: Array, at: Array, f: float, k: tuple[int, ...]
    ) -> float:
        """The slope, by wider steps where the function rounds off those taken; they are kept.

        That it does shows in a slope, of a parabola through three points, by which its value should
        have changed by several roundings over the step taken.  Where it did not change forwards
        but does backwards, there may be a minimum amid: then the slope is no more than that of the
        parabola over such a step.
        """

        def rise(point: Any) -> float:
            at[k] = point
            value = self._fun(at)
            at[k] = x[k]
            return value - f

        taken = self._step(x, k)
        back, length = self._other(x, k, -taken)
        change = rise(back) if length else 0.0
        if change and self._precision[k] <= PRECISIONS[0]:
            return change / length / 2  # also of a coarse function that jumps just here
        for precision in PRECISIONS:
            if precision <= self._precision[k]:
                continue
            step = sqrt(precision) * max(1.0, abs(float(x[k])))
            (one, a), (two, b) = self._other(x, k, step), self._other(x, k, -step)
            if a == b:  # there is room on one side alone
                two, b = self._other(x, k, 2 * a)
            if 0.0 in (a, b) or a == b:
                return 0.0
            rise_a, rise_b = rise(one), rise(two)
            slope = (rise_a / a * b - rise_b / b * a) / (b - a)
            least = 8 * self._precision[k] * max(abs(f), abs(f + rise_a))
            if change:
                least = 2 * abs((rise_a / a - rise_b / b) / (a - b)) * taken * taken
            if abs(slope * taken) > least:
                self._precision[k] = precision
                return slope
        return 0.0

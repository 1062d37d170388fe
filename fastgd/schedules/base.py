"""The base class of schedules, and schedules made of others or of given values.

The public names are in `fastgd.schedules`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from fastgd.core.domains import integer, number
from fastgd.kernels.memory.checks import shown


def several(values: Any, name: str, check: Callable[[Any, str], Any]) -> tuple[Any, ...]:
    """A tuple of values, each checked."""
    try:
        if isinstance(values, (str, dict)):
            raise TypeError
        values = tuple(values)
    except TypeError:
        raise TypeError(f"{name}: expected a list or tuple, found {shown(values)}") from None
    return tuple(check(value, f"{name}[{k}]") for k, value in enumerate(values))


def milestones_of(values: Any, name: str) -> tuple[int, ...]:
    """Steps in rising order."""
    steps = several(values, name, lambda value, label: integer(value, label))
    if any(a >= b for a, b in pairwise(steps)):
        raise ValueError(f"{name}: expected steps in rising order, found {list(steps)}")
    return steps


def schedule_of(value: Any, name: str) -> Callable[[int], Any]:
    """A schedule; a number becomes a constant one."""
    return value if callable(value) else Constant(number(value, name))


def line(start: float, end: float, share: float) -> float:
    """Linear interpolation from start to end, exact at a share of 0 and 1."""
    return start * (1.0 - share) + end * share


def numbers(values: Any, name: str) -> tuple[float, ...]:
    """Several numbers."""
    return several(values, name, number)


def schedules_of(values: Any, name: str) -> tuple[Callable[[int], Any], ...]:
    """Several schedules."""
    return several(values, name, schedule_of)


def _check_count(name: str, values: tuple[Any, ...], expected: int) -> None:
    if len(values) != expected:
        raise ValueError(f"{name}: expected {expected} to fit the milestones, found {len(values)}")


class Schedule:
    """A callable from the step, counted from 0, to a value.

    Not for direct use: each subclass is a frozen dataclass that checks its arguments when it is
    made, and whose formula is its method `value`.

    Raises
    ------
    TypeError, ValueError
        If an argument, or the step of a call, is not valid; the message names it.
    """

    def __call__(self, step: int) -> float:
        """The value at a step, counted from 0."""
        step = integer(step, "step")
        try:
            return self.value(step)
        except OverflowError:
            found = shown(step)
            raise ValueError(f"step: expected one with a finite value, found {found}") from None

    def value(self, step: int) -> float:
        """The formula, for a valid step."""
        raise NotImplementedError

    def _clean(self, **checks: Callable[[Any, str], Any]) -> None:
        for name, check in checks.items():
            object.__setattr__(self, name, check(getattr(self, name), name))


def at_least(least: int) -> Callable[[Any, str], int]:
    """A check for integers."""
    return lambda value, name: integer(value, name, least)


@dataclass(frozen=True)
class Constant(Schedule):
    """A constant: :math:`a_t = a`.

    Parameters
    ----------
    initial : float
        a.
    """

    initial: float

    def __post_init__(self) -> None:
        self._clean(initial=number)

    def value(self, step: int) -> float:
        return self.initial


@dataclass(frozen=True)
class Warmup(Schedule):
    """Linear warm-up, and then another schedule, or a number.

    Parameters
    ----------
    total_iters : int
        The number of steps from `start` to the first value of `then`.
    then : float or callable
        The schedule that follows; its steps are counted from the end of the warm-up.
    start : float
        The first value.  With 0, the default, the first step moves nothing, so that its batch is
        wasted but for the states; ``start=then/total_iters``, or any value above 0, takes it.

    References
    ----------
    Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017.

    Examples
    --------
    >>> from fastgd.schedules import Exponential, Warmup
    >>> [Warmup(4, Exponential(1.0, 0.5))(t) for t in range(7)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 0.5, 0.25]
    >>> [Warmup(3, 1.0, start=0.25)(t) for t in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    total_iters: int
    then: Callable[[int], float]
    start: float = 0.0

    def __post_init__(self) -> None:
        self._clean(total_iters=at_least(1), then=schedule_of, start=number)

    def value(self, step: int) -> float:
        if step >= self.total_iters:
            return self.then(step - self.total_iters)
        return line(self.start, self.then(0), step / self.total_iters)


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Piecewise constant: steps between given values; torch's ConstantLR is one with two values.

    Parameters
    ----------
    milestones : sequence of int
        The first steps with a new value, in rising order.
    values : sequence of float
        One more than milestones: ``values[k]`` holds from the k-th milestone on.

    Examples
    --------
    >>> from fastgd.schedules import Piecewise
    >>> [Piecewise([2, 3], [0.0, 0.9, 0.5])(t) for t in range(5)]
    [0.0, 0.0, 0.9, 0.5, 0.5]
    """

    milestones: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        self._clean(milestones=milestones_of, values=numbers)
        _check_count("values", self.values, len(self.milestones) + 1)

    def value(self, step: int) -> float:
        return self.values[bisect_right(self.milestones, step)]


@dataclass(frozen=True)
class Interpolated(Schedule):
    """Linear interpolation between given points; constant before the first and after the last.

    Parameters
    ----------
    milestones : sequence of int
        The steps of the points, in rising order.
    values : sequence of float
        The values at these steps.

    Examples
    --------
    >>> from fastgd.schedules import Interpolated
    >>> [Interpolated([0, 2, 4], [0.0, 1.0, 0.5])(t) for t in range(6)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.5]
    """

    milestones: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        self._clean(milestones=milestones_of, values=numbers)
        if not self.milestones:
            raise ValueError("milestones: expected at least one, found none")
        _check_count("values", self.values, len(self.milestones))

    def value(self, step: int) -> float:
        k = bisect_right(self.milestones, step)
        if k in {0, len(self.milestones)}:
            return self.values[max(k - 1, 0)]
        before, after = self.milestones[k - 1 : k + 1]
        share = (step - before) / (after - before)
        return line(self.values[k - 1], self.values[k], share)


@dataclass(frozen=True)
class Sequential(Schedule):
    """One schedule after another, each with steps counted from its own start; torch's SequentialLR.

    Parameters
    ----------
    schedules : sequence of float or callable
        The schedules, or numbers.
    milestones : sequence of int
        The first steps of the second schedule, the third and so on, in rising order.

    Examples
    --------
    >>> from fastgd.schedules import Linear, Sequential
    >>> rising, falling = Linear(0.5, 0.9, 2), Linear(0.9, 0.5, 2)
    >>> [Sequential([rising, falling], [3])(t) for t in range(6)]
    [0.5, 0.7, 0.9, 0.9, 0.7, 0.5]
    """

    schedules: tuple[Callable[[int], float], ...]
    milestones: tuple[int, ...]

    def __post_init__(self) -> None:
        self._clean(schedules=schedules_of, milestones=milestones_of)
        _check_count("schedules", self.schedules, len(self.milestones) + 1)

    def value(self, step: int) -> float:
        k = bisect_right(self.milestones, step)
        return self.schedules[k](step - self.milestones[k - 1] if k else step)


@dataclass(frozen=True)
class Product(Schedule):
    """The product of schedules, as torch's ChainedScheduler multiplies the factors of several.

    Parameters
    ----------
    factors : sequence of float or callable
        The schedules, or numbers.

    Examples
    --------
    >>> from fastgd.schedules import Linear, Product, Step
    >>> [Product([0.5, Linear(0.0, 1.0, 2), Step(1.0, 3, 0.5)])(t) for t in range(4)]
    [0.0, 0.25, 0.5, 0.25]
    """

    factors: tuple[Callable[[int], float], ...]

    def __post_init__(self) -> None:
        self._clean(factors=schedules_of)
        if not self.factors:
            raise ValueError("factors: expected at least one, found none")

    def value(self, step: int) -> float:
        return prod(factor(step) for factor in self.factors)

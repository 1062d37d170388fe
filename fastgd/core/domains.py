"""Validators: the values that hyper-parameters and arguments may take, and errors for others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from operator import index
from typing import Any, TypeVar

import numpy as np

from fastgd.kernels.memory.checks import shown

# Validates a hyper-parameter: from its value and its name, for errors, to the clean value.
Domain = Callable[[Any, str], Any]

# The types of a hyper-parameter: a number, or a schedule, from a step to a number.
Scalar = float | Callable[[int], float]
Pair = tuple[Scalar, Scalar] | Callable[[int], tuple[float, float]]
Triple = tuple[Scalar, Scalar, Scalar] | Callable[[int], tuple[float, float, float]]
Floors = tuple[Scalar | None, Scalar] | Callable[[int], tuple[float | None, float]]

# The domains of values that every step reads anew, which may therefore be schedules.
SCHEDULABLE: set[Domain] = set()
_D = TypeVar("_D", bound=Domain)


def schedulable(domain: _D) -> _D:
    """Let the hyper-parameters of a domain be schedules; of pairs, (0, 0) has to be in it."""
    SCHEDULABLE.add(domain)
    return domain


def number(value: Any, name: str) -> float:
    """Any finite number."""
    try:
        if isinstance(value, (bool, np.bool, str)):
            raise TypeError
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, found {shown(value)}") from None
    except OverflowError:
        raise ValueError(f"{name}: expected a finite number, found {shown(value)}") from None
    if not math.isfinite(result):
        raise ValueError(f"{name}: expected a finite number, found {value}")
    return result


@schedulable
def nonnegative(value: Any, name: str) -> float:
    """A finite number of at least 0."""
    result = number(value, name)
    if result < 0:
        raise ValueError(f"{name}: expected a number of at least 0, found {value}")
    return result


@schedulable
def nonpositive(value: Any, name: str) -> float:
    """A finite number of at most 0."""
    result = number(value, name)
    if result > 0:
        raise ValueError(f"{name}: expected a number of at most 0, found {value}")
    return result


@schedulable
def at_least_one(value: Any, name: str) -> float:
    """A finite number of at least 1."""
    result = number(value, name)
    if result < 1:
        raise ValueError(f"{name}: expected a number of at least 1, found {value}")
    return result


def positive(value: Any, name: str) -> float:
    """A finite number above 0."""
    result = number(value, name)
    if result <= 0:
        raise ValueError(f"{name}: expected a number above 0, found {value}")
    return result


def integer(value: Any, name: str, low: int = 0, end: int | None = None) -> int:
    """An integer of at least `low`, below `end` if there is one; True and False are none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        result = index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, found {shown(value)}") from None
    if end is not None and not low <= result < end:
        expected = f"a number from {low} to below {end}"
        raise ValueError(f"{name}: expected {expected}, found {shown(result)}")
    if result < low:
        raise ValueError(f"{name}: expected an integer of at least {low}, found {shown(result)}")
    return result


def unlimited(value: Any, name: str) -> float:
    """A number of at least 1; infinity for no limit."""
    infinite = isinstance(value, (float, np.floating)) and value == math.inf
    return math.inf if infinite else at_least_one(value, name)


@schedulable
def limit(value: Any, name: str) -> float | None:
    """A finite number above 0, or None for no limit."""
    return None if value is None else positive(value, name)


def duration(value: Any, name: str) -> float | None:
    """A finite number of steps above 0, or None for none."""
    return None if value is None else positive(value, name)


def start(value: Any, name: str) -> float:
    """A finite number of at least 0 that is used once, so that a schedule makes no sense."""
    return nonnegative(value, name)


@schedulable
def fraction(value: Any, name: str) -> float:
    """The weight of an exponential average: at least 0, below 1."""
    result = number(value, name)
    if not 0 <= result < 1:
        raise ValueError(f"{name}: expected a number from 0 to below 1, found {value}")
    return result


def _is_list(value: Any) -> bool:
    """Whether a value is some in a row."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str)


def two(value: Any, name: str) -> tuple[Any, Any]:
    """Two values of any kind."""
    if not _is_list(value):
        raise TypeError(f"{name}: expected two numbers, found {shown(value)}")
    if len(value) != 2:
        raise ValueError(f"{name}: expected two numbers, found {len(value)}")
    return value[0], value[1]


@schedulable
def some_fraction(value: Any, name: str) -> float | None:
    """A fraction, or None for one that follows from the others."""
    return None if value is None else fraction(value, name)


@schedulable
def two_fractions(value: Any, name: str) -> tuple[float, float]:
    """The weights of two exponential averages."""
    first, second = two(value, name)
    return fraction(first, f"{name}[0]"), fraction(second, f"{name}[1]")


@schedulable
def three_fractions(value: Any, name: str) -> tuple[float, float, float]:
    """The weights of three exponential averages."""
    first, second, third = three_numbers(value, name)
    return (
        fraction(first, f"{name}[0]"),
        fraction(second, f"{name}[1]"),
        fraction(third, f"{name}[2]"),
    )


def shrink_and_grow(value: Any, name: str) -> tuple[float, float]:
    """Two factors, one above 0 and below 1, and one above 1."""
    first, second = two(value, name)
    shrink, grow = number(first, f"{name}[0]"), number(second, f"{name}[1]")
    if not 0 < shrink < 1 < grow:
        raise ValueError(f"{name}: expected numbers as 0 < a < 1 < b, found {(first, second)}")
    return shrink, grow


@schedulable
def bounds(value: Any, name: str) -> tuple[float, float]:
    """Two finite numbers of at least 0, the second no less than the first."""
    first, second = two(value, name)
    low, high = nonnegative(first, f"{name}[0]"), nonnegative(second, f"{name}[1]")
    if low > high:
        raise ValueError(f"{name}: expected numbers as a <= b, found {(first, second)}")
    return low, high


@schedulable
def share(value: Any, name: str) -> float:
    """A number from 0 to 1."""
    result = number(value, name)
    if not 0 <= result <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, found {value}")
    return result


@schedulable
def two_shares(value: Any, name: str) -> tuple[float, float]:
    """Two numbers from 0 to 1."""
    first, second = two(value, name)
    return share(first, f"{name}[0]"), share(second, f"{name}[1]")


def proper_fraction(value: Any, name: str) -> float:
    """A number above 0 and below 1, the same at all steps."""
    result = number(value, name)
    if not 0 < result < 1:
        raise ValueError(f"{name}: expected a number above 0 and below 1, found {value}")
    return result


def proper_fractions(value: Any, name: str) -> tuple[float, float]:
    """A number above 0 and below 1, and the weight of an exponential average."""
    first, second = two(value, name)
    return proper_fraction(first, f"{name}[0]"), fraction(second, f"{name}[1]")


@schedulable
def floors(value: Any, name: str) -> tuple[float | None, float]:
    """Two numbers of at least 0, the first of which may be None: that of the machine."""
    first, second = two(value, name)
    return (
        None if first is None else nonnegative(first, f"{name}[0]"),
        nonnegative(second, f"{name}[1]"),
    )


def three_numbers(value: Any, name: str) -> tuple[float, float, float]:
    """Three finite numbers."""
    if not _is_list(value):
        raise TypeError(f"{name}: expected three numbers, found {shown(value)}")
    values = tuple(number(v, f"{name}[{k}]") for k, v in enumerate(value))
    if len(values) != 3:
        raise ValueError(f"{name}: expected three numbers, found {len(values)}")
    return values


def count(value: Any, name: str) -> int:
    """A number of iterations: from 0 to below 100."""
    return integer(value, name, end=100)


def period(value: Any, name: str) -> int:
    """A number of steps: an integer of at least 1."""
    return integer(value, name, low=1, end=2**53)


def dimension(value: Any, name: str) -> int:
    """The length of an axis."""
    return integer(value, name, end=2**53)


@schedulable
def own_fraction(value: Any, name: str) -> float:
    """A fraction, or a negative number for one that follows from the others."""
    result = number(value, name)
    if result >= 1:
        raise ValueError(f"{name}: expected a number below 1, found {value}")
    return result


def adjustment(value: Any, name: str) -> str | None:
    """How Muon's step follows from the shape of a matrix, by torch's words."""
    return None if value is None else one_of(("original", "match_rms_adamw"), value, name)


def flag(value: Any, name: str) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool)):
        raise TypeError(f"{name}: expected True or False, found {shown(value)}")
    return bool(value)


# The annotations of a domain's values in signatures, with schedules and without.
ANNOTATIONS: dict[Domain, tuple[str, str]] = {
    nonnegative: ("Scalar", "float"),
    fraction: ("Scalar", "float"),
    two_fractions: ("Pair", "tuple[float, float]"),
    three_fractions: ("Triple", "tuple[float, float, float]"),
    shrink_and_grow: ("tuple[float, float]", "tuple[float, float]"),
    bounds: ("Pair", "tuple[float, float]"),
    share: ("Scalar", "float"),
    two_shares: ("Pair", "tuple[float, float]"),
    proper_fraction: ("float", "float"),
    proper_fractions: ("tuple[float, float]", "tuple[float, float]"),
    limit: ("Scalar | None", "float | None"),
    duration: ("float | None", "float | None"),
    some_fraction: ("Scalar | None", "float | None"),
    positive: ("float", "float"),
    unlimited: ("float", "float"),
    nonpositive: ("Scalar", "float"),
    at_least_one: ("Scalar", "float"),
    floors: ("Floors", "tuple[float | None, float]"),
    start: ("float", "float"),
    flag: ("bool", "bool"),
    three_numbers: ("tuple[float, float, float]", "tuple[float, float, float]"),
    count: ("int", "int"),
    period: ("int", "int"),
    dimension: ("int", "int"),
    own_fraction: ("Scalar", "float"),
    adjustment: ("str | None", "str | None"),
}
# A value of each domain that is no usual default; of a flag it is the other one.
OTHER: dict[Domain, Any] = {
    nonnegative: 0.25,
    fraction: 0.5,
    two_fractions: (0.8, 0.95),
    three_fractions: (0.8, 0.7, 0.95),
    shrink_and_grow: (0.25, 1.5),
    bounds: (1e-3, 1.5),
    share: 0.4,
    two_shares: (0.6, 0.3),
    proper_fraction: 0.75,
    proper_fractions: (0.8, 0.95),
    limit: 1.0,
    duration: 4.5,
    some_fraction: 0.75,
    positive: 0.125,
    unlimited: 1.5,
    nonpositive: -0.5,
    at_least_one: 1.5,
    floors: (1e-4, 0.01),
    start: 0.1,
    three_numbers: (2.0, -1.5, 0.5),
    count: 3,
    period: 2,
    dimension: 3,
    own_fraction: 0.75,
    adjustment: "match_rms_adamw",
}


def one_of(choices: Iterable[str], value: object, name: str) -> str:
    """One of several words."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, found {shown(value)}")
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, found {shown(value)}")
    return str(value)


def is_schedule(value: Any) -> bool:
    """Whether a value, or one of a tuple or list, is a schedule: a callable."""
    return callable(value) or (isinstance(value, (tuple, list)) and any(map(callable, value)))


def check_schedule(value: Any, domain: Domain, name: str) -> Any:
    """Check the numbers of a pair of which others are schedules; these are checked at each step."""
    if callable(value):
        return value
    checked = domain([0 if callable(v) else v for v in value], name)
    return tuple(v if callable(v) else c for v, c in zip(value, checked, strict=True))

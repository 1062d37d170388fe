"""Hyper-parameters: what values they may take, and the groups that hold them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import index
from typing import Any, NoReturn, TypeVar

import numpy as np

from fastgd.kernels.checks import shown as shown

# From a hyper-parameter's value and what to call it to the clean value; raises if it isn't one.
Domain = Callable[[Any, str], Any]

# What a hyper-parameter may be given as: a number, or a schedule, from a step to a number.
Scalar = float | Callable[[int], float]
Pair = tuple[Scalar, Scalar] | Callable[[int], tuple[float, float]]

# The domains of what every step uses afresh, which may therefore change from step to step.
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


def positive(value: Any, name: str) -> float:
    """A finite number above 0."""
    result = number(value, name)
    if result <= 0:
        raise ValueError(f"{name}: expected a number above 0, found {value}")
    return result


def whole(value: Any, name: str, end: int) -> int:
    """An integer from 0 to below `end`."""
    try:
        result = index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, found {shown(value)}") from None
    if not 0 <= result < end:
        raise ValueError(f"{name}: expected a number from 0 to below {end}, found {shown(value)}")
    return result


@schedulable
def limit(value: Any, name: str) -> float | None:
    """A finite number above 0, or None for no limit."""
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


@schedulable
def two_fractions(value: Any, name: str) -> tuple[float, float]:
    """The weights of two exponential averages."""
    if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, str):
        raise TypeError(f"{name}: expected two numbers, found {shown(value)}")
    values = tuple(fraction(v, f"{name}[{k}]") for k, v in enumerate(value))
    if len(values) != 2:
        raise ValueError(f"{name}: expected two numbers, found {len(values)}")
    return values


def flag(value: Any, name: str) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool)):
        raise TypeError(f"{name}: expected True or False, found {shown(value)}")
    return bool(value)


def one_of(choices: Sequence[str], value: object, name: str) -> str:
    """One of several words."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, found {shown(value)}")
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, found {shown(value)}")
    return str(value)


def not_an_attribute(name: str) -> AttributeError:
    """Why a hyper-parameter can't be set as an attribute of an optimizer."""
    hint = f"opt.param_groups[0][{name!r}] = …"
    return AttributeError(f"{name}: hyper-parameters but lr are set in groups: {hint}")


def is_schedule(value: Any) -> bool:
    """Whether a value, or one of several, has to be worked out for each step."""
    return callable(value) or (isinstance(value, (tuple, list)) and any(map(callable, value)))


def _check_schedule(value: Any, domain: Domain, name: str) -> Any:
    """Check what can be checked of a schedule before its steps: the numbers beside it."""
    if callable(value):
        return value
    checked = domain([0 if callable(v) else v for v in value], name)
    return tuple(v if callable(v) else c for v, c in zip(value, checked, strict=True))


class ParamGroup(dict[str, Any]):
    """Parameters that share hyper-parameters: a dict that refuses what its optimizer can't use.

    ``group["lr"] = 0.01`` takes effect with the next step, and so does a schedule, say
    ``group["lr"] = lambda step: 0.1 / (1 + step)``, which the group then holds as it is.
    ``group["params"]`` is the flat tuple of arrays and ``group["param_names"]`` their names in the
    group; these two are fixed.

    Parameters
    ----------
    fixed : dict
        The entries that may not be set.
    hyper : dict
        Name and value of every hyper-parameter.
    domains : dict
        Name and `Domain` of every hyper-parameter.
    consistent : callable
        Raises ValueError if entries contradict each other.
    name : str
        What to call the group in an error.

    Attributes
    ----------
    scheduled : tuple of str
        The hyper-parameters that are schedules, or hold one.
    """

    def __init__(
        self,
        fixed: Mapping[str, Any],
        hyper: Mapping[str, Any],
        domains: Mapping[str, Domain],
        consistent: Callable[[Mapping[str, Any]], None],
        name: str = "",
    ) -> None:
        self._domains, self._consistent, self._name = domains, consistent, name
        super().__init__(fixed)
        super().update(self.checked(hyper))
        self._note_schedules()

    def checked(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The cleaned changes, if the group may take them; changes nothing yet."""
        clean = {}
        for key, value in changes.items():
            if key in {"params", "param_names"}:
                raise TypeError(f"{self._name}{key}: is fixed; add_param_group adds parameters")
            if key not in self._domains:
                known = ", ".join(self._domains)
                raise KeyError(f"{self._name}{key}: no such hyper-parameter; there are {known}")
            domain, name = self._domains[key], f"{self._name}{key}"
            check = domain in SCHEDULABLE and is_schedule(value)
            clean[key] = _check_schedule(value, domain, name) if check else domain(value, name)
        self._consistent({**self, **clean})
        return clean

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, self.checked({key: value})[key])
        self._note_schedules()

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take several changes, or none if one of them is refused."""
        super().update(self.checked(dict(*args, **kwargs)))
        self._note_schedules()

    def _note_schedules(self) -> None:
        # Kept, as every step asks.
        self.scheduled = tuple(key for key in self._domains if is_schedule(self[key]))

    def __ior__(self, other: Any) -> ParamGroup:  # type: ignore[override,misc]
        self.update(other)
        return self

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError("a parameter group always has all its entries: set them, don't remove them")

    __delitem__ = pop = popitem = clear = _refuse

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The entry of that name; there is nothing to add."""
        return self[key]

    def hyper(self) -> dict[str, Any]:
        """The hyper-parameters alone."""
        return {key: self[key] for key in self._domains}

    def at(self, step: int) -> dict[str, Any]:
        """The hyper-parameters as the numbers that they are at a step, counted from 0."""
        return self.hyper() | {key: self.value(key, step) for key in self.scheduled}

    def value(self, key: str, step: int) -> Any:
        """What a hyper-parameter is at a step, counted from 0.

        Raises
        ------
        TypeError, ValueError
            If a schedule's value is not in the hyper-parameter's domain.
        Exception
            What a schedule raises itself, with a note of the hyper-parameter and the step.
        """
        value, name = self[key], f"{self._name}{key}"
        if key not in self.scheduled:
            return value
        try:
            if callable(value):
                value = value(step)
            else:
                value = tuple(v(step) if callable(v) else v for v in value)
        except Exception as error:
            error.add_note(f"{name}: raised by its schedule at step {step}")
            raise
        try:
            return self._domains[key](value, name)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}, from its schedule at step {step}") from None

    def __reduce__(self) -> Any:
        fixed = {key: self[key] for key in ("params", "param_names")}
        return ParamGroup, (fixed, self.hyper(), self._domains, self._consistent, self._name)

"""Hyper-parameters: what values they may take, and the groups that hold them."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

# From a hyper-parameter's value and what to call it to the clean value; raises if it isn't one.
Domain = Callable[[Any, str], Any]


def number(value: Any, name: str) -> float:
    """Any finite number."""
    try:
        if isinstance(value, (bool, np.bool, str)):
            raise TypeError
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, found {reprlib.repr(value)}") from None
    except OverflowError:
        raise ValueError(f"{name}: expected a finite number, found {reprlib.repr(value)}") from None
    if not math.isfinite(result):
        raise ValueError(f"{name}: expected a finite number, found {value}")
    return result


def nonnegative(value: Any, name: str) -> float:
    """A finite number of at least 0."""
    result = number(value, name)
    if result < 0:
        raise ValueError(f"{name}: expected a number of at least 0, found {value}")
    return result


def fraction(value: Any, name: str) -> float:
    """The weight of an exponential average: at least 0, below 1."""
    result = number(value, name)
    if not 0 <= result < 1:
        raise ValueError(f"{name}: expected a number from 0 to below 1, found {value}")
    return result


def two_fractions(value: Any, name: str) -> tuple[float, float]:
    """The weights of two exponential averages."""
    if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, str):
        raise TypeError(f"{name}: expected two numbers, found {reprlib.repr(value)}")
    values = tuple(fraction(v, f"{name}[{k}]") for k, v in enumerate(value))
    if len(values) != 2:
        raise ValueError(f"{name}: expected two numbers, found {len(values)}")
    return values


def flag(value: Any, name: str) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool)):
        raise TypeError(f"{name}: expected True or False, found {value!r}")
    return bool(value)


class ParamGroup(dict[str, Any]):
    """Parameters that share hyper-parameters: a dict that refuses what its optimizer can't use.

    ``group["lr"] = 0.01`` takes effect with the next step.  ``group["params"]`` is the flat tuple
    of arrays and ``group["param_names"]`` their names in the group; these two are fixed.

    Parameters
    ----------
    fixed : dict
        The entries that may not be set.
    hyper : dict
        Name and value of every hyper-parameter.
    domains : dict
        Name and `Domain` of every hyper-parameter.
    consistent : callable
        Raises ValueError if hyper-parameters contradict each other.
    name : str
        What to call the group in an error.
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
        super().__init__({**fixed, **self.checked(hyper)})

    def checked(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The cleaned changes, if the group may take them; changes nothing yet."""
        clean = {}
        for key, value in changes.items():
            if key in {"params", "param_names"}:
                raise TypeError(f"{self._name}{key}: is fixed; add_param_group adds parameters")
            if key not in self._domains:
                known = ", ".join(self._domains)
                raise KeyError(f"{self._name}{key}: no such hyper-parameter; there are {known}")
            clean[key] = self._domains[key](value, f"{self._name}{key}")
        self._consistent({**self, **clean})
        return clean

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, self.checked({key: value})[key])

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take several changes, or none if one of them is refused."""
        super().update(self.checked(dict(*args, **kwargs)))

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

    def __reduce__(self) -> Any:
        fixed = {key: self[key] for key in ("params", "param_names")}
        return ParamGroup, (fixed, self.hyper(), self._domains, self._consistent, self._name)

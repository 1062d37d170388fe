"""Which rules a class of optimizers can pick, and sets of hyper-parameters that reach all of it.

Found out from what the class declares, by trying: for tables, tests and benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from fastgd.core import domains
from fastgd.core.contract import Contract, HyperParameter
from fastgd.core.options import HYPER

# What all optimizers have: of these no rule depends.
COMMON = {"lr", "weight_decay", "maximize"}


def _other(declared: HyperParameter) -> Any:
    """Another value than the default, or the default where none is known."""
    if declared.domain is domains.flag:
        return not declared.default
    return domains.OTHER.get(declared.domain, declared.default)


def _changes(cls: type[Contract]) -> dict[str, Any]:
    """Another value for each hyper-parameter that only some optimizers have."""
    others = {key: _other(h) for key, h in cls.hypers.items() if key not in COMMON}
    return {key: value for key, value in others.items() if value != cls.hypers[key].default}


def _picked(cls: type[Contract], changes: dict[str, Any]) -> str | None:
    """The rule that hyper-parameters pick, or None if they contradict each other."""
    h = {key: declared.default for key, declared in cls.hypers.items()}
    h |= dict.fromkeys(HYPER) | changes
    try:
        cls.consistent(h)
    except ValueError:
        return None
    return cls.rule(h)


def rules_of(cls: type[Contract]) -> dict[str, dict[str, Any]]:
    """The rules that a class can pick, each with the fewest hyper-parameters to change for it.

    Examples
    --------
    >>> import fastgd
    >>> rules_of(fastgd.SGD)
    {'sgd': {}, 'momentum': {'momentum': 0.25}, 'nesterov': {'momentum': 0.25, 'nesterov': True}}
    """
    changes = _changes(cls)
    found: dict[str, dict[str, Any]] = {}
    for n in range(min(len(changes), 3) + 1):
        for keys in combinations(changes, n):
            given = {key: changes[key] for key in keys}
            if (rule := _picked(cls, given)) is not None:
                found.setdefault(rule, given)
    return found


def variants(cls: type[Contract]) -> list[dict[str, Any]]:
    """Sets of hyper-parameters that reach every rule of a class, and change each of them.

    The defaults; each hyper-parameter changed alone; what reaches further rules; as many changed
    together as go together.
    """

    def together(keys: Iterator[str]) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for key in keys:
            if _picked(cls, {**given, key: changes[key]}) is not None:
                given[key] = changes[key]
        return given

    changes = _changes(cls)
    alone = [{key: changes[key]} for key in changes if _picked(cls, {key: changes[key]})]
    sets = [{}, *alone, *rules_of(cls).values(), together(iter(changes))]
    return [given for k, given in enumerate(sets) if given not in sets[:k]]

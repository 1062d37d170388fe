"""Which rules a class of optimizers can pick, and sets of hyper-parameters that reach all of it.

Found out from what the class declares, by trying: for tables, tests and benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple

from fastgd.core import domains
from fastgd.core.contract import Contract, HyperParameter
from fastgd.core.options import HYPER
from fastgd.kernels.spec.registry import RULES

# What all optimizers have: of these no rule depends.
COMMON = {"lr", "weight_decay", "maximize"}
# Shapes of parameters to try: a vector, a high and a wide matrix.
SHAPES = ((3,), (4, 3), (3, 4))


class Pick(NamedTuple):
    """What picks a rule."""

    changes: dict[str, Any]  # hyper-parameters that are not the defaults
    shape: tuple[int, ...] | None  # of a parameter; None: of any


def _other(declared: HyperParameter) -> Any:
    """Another value than the default, or the default where none is known."""
    if declared.domain is domains.flag:
        return not declared.default
    return domains.OTHER.get(declared.domain, declared.default)


def _changes(cls: type[Contract]) -> dict[str, Any]:
    """Another value for each hyper-parameter that only some optimizers have."""
    others = {key: _other(h) for key, h in cls.hypers.items() if key not in COMMON}
    return {key: value for key, value in others.items() if value != cls.hypers[key].default}


def _picked(cls: type[Contract], changes: dict[str, Any]) -> dict[tuple[int, ...], str]:
    """The rules that hyper-parameters pick for those of SHAPES that the class takes.

    None if they contradict each other.
    """
    h = {key: declared.default for key, declared in cls.hypers.items()}
    h |= dict.fromkeys(HYPER) | changes
    try:
        cls.consistent(h)
    except ValueError:
        return {}
    found: dict[tuple[int, ...], str] = {}
    for shape in SHAPES:
        try:
            found[shape] = cls.rule(h, shape)
        except ValueError:
            continue
    return found


def is_general(cls: type[Contract]) -> bool:
    """Whether a class has rules of its own for all shapes, and not for matrices or tables alone.

    Examples
    --------
    >>> import fastgd
    >>> is_general(fastgd.Adafactor), is_general(fastgd.Muon)
    (True, False)
    """
    if cls.sparse:
        return False
    h = {key: declared.default for key, declared in cls.hypers.items()} | dict.fromkeys(HYPER)
    try:
        return not any(RULES[cls.rule(h, shape)].matrix for shape in ((), *SHAPES))
    except ValueError:
        return False


def rules_of(cls: type[Contract]) -> dict[str, Pick]:
    """The rules that a class can pick, each with the fewest hyper-parameters to change for it.

    Examples
    --------
    >>> import fastgd
    >>> {rule: pick.changes for rule, pick in rules_of(fastgd.SGD).items()}
    {'sgd': {}, 'momentum': {'momentum': 0.25}, 'nesterov': {'momentum': 0.25, 'nesterov': True}}
    """
    changes = _changes(cls)
    found: dict[str, Pick] = {}
    for n in range(min(len(changes), 3) + 1):
        for keys in combinations(changes, n):
            given = {key: changes[key] for key in keys}
            rules = _picked(cls, given)
            for shape, rule in rules.items():
                of_any = [*rules.values()] == [rule] * len(SHAPES)
                found.setdefault(rule, Pick(given, None if of_any else shape))
    return found


def states_of(cls: type[Contract]) -> tuple[str, ...]:
    """The states, of a number for each element, that the rules of a class can have.

    Examples
    --------
    >>> import fastgd
    >>> states_of(fastgd.Adam)
    ('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq')
    """
    rules = [RULES[name] for name in rules_of(cls)]
    return tuple(sorted({key for r in rules for key in r.states if key not in r.line_states}))


def variants(cls: type[Contract]) -> list[dict[str, Any]]:
    """Sets of hyper-parameters that reach every rule of a class, and change each of them.

    They do so with vectors and matrices among the parameters.

    The defaults; each hyper-parameter changed alone; what reaches further rules; as many changed
    together as go together.
    """

    def together(keys: Iterator[str]) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for key in keys:
            if _picked(cls, {**given, key: changes[key]}):
                given[key] = changes[key]
        return given

    changes = _changes(cls)
    alone = [{key: changes[key]} for key in changes if _picked(cls, {key: changes[key]})]
    reaching = [pick.changes for pick in rules_of(cls).values()]
    sets = [{}, *alone, *reaching, together(iter(changes))]
    return [given for k, given in enumerate(sets) if given not in sets[:k]]

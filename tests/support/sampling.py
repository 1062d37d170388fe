"""How much of what grows with the number of rules is tested: FASTGD_TESTS says it.

``quick``: one rule for each shape of rule, and every value of an axis once (`make quick`);
``pairs``, the default: every value, and every pair of values of two axes;
``whole``: the product of all axes (`make test-all`).

What isn't chosen is no test at all, rather than a skipped one.  The choice is the same in every
process, as workers of pytest-xdist have to collect the same tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, product
from math import prod
from typing import Any

import pytest

from fastgd.kernels.reference import RULES

HOW_MUCH = os.environ.get("FASTGD_TESTS", "pairs")
if HOW_MUCH not in ("quick", "pairs", "whole"):
    raise pytest.UsageError(f"FASTGD_TESTS: expected quick, pairs or whole, found {HOW_MUCH!r}")


def by_level(quick: Any, pairs: Any, whole: Any) -> Any:
    """What this run takes of three: numbers of examples, lists of sizes."""
    return {"quick": quick, "pairs": pairs, "whole": whole}[HOW_MUCH]


def first_of_each(things: Iterable[Any], shape: Callable[[Any], object]) -> list[Any]:
    """In a quick run the first thing of each shape; else all of them."""
    things = list(things)
    if HOW_MUCH != "quick":
        return things
    firsts: dict[object, Any] = {}
    for thing in things:
        firsts.setdefault(shape(thing), thing)
    return list(firsts.values())


def shape_of(rule: str) -> tuple[object, ...]:
    """What makes loops of rules alike: how many states, how many coefficients, a root or none."""
    row = RULES[rule]
    return len(row.states), len(row.coefficients), "eps" in row.coefficients


def rules() -> list[str]:
    """The rules to test."""
    return first_of_each(RULES, shape_of)


def sampled(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test by combinations of the values of some axes, in the order of the product.

    A value that its own marks skip here, such as a backend that this processor can't run, takes part
    in a whole product alone: elsewhere one combination has it, so that no pair depends on it.
    """
    choices = [[_param(value) for value in values] for values in axes.values()]
    rows = product(*choices) if HOW_MUCH == "whole" else _chosen(choices)
    params = [
        pytest.param(
            *(value for p in row for value in p.values),
            marks=[mark for p in row for mark in p.marks],
            id="-".join(_id(p) for p in row),
        )
        for row in rows
    ]
    return pytest.mark.parametrize(list(axes), params)


def covering(lengths: Sequence[int], strength: int = 2) -> list[tuple[int, ...]]:
    """Rows of indices, one for each axis, in which every pair of indices of two axes occurs.

    With a strength of 1 every index occurs.  Greedy: each row begins with the first pair that is
    missing and takes along as many others as it can, the index that was used least among equals.
    """
    axes = range(len(lengths))
    strength = min(strength, len(lengths))
    missing = dict.fromkeys(
        (of, values)
        for of in sorted(combinations(axes, strength), key=lambda of: -prod(lengths[i] for i in of))
        for values in product(*(range(lengths[i]) for i in of))
    )
    used = [[0] * n for n in lengths]
    rows = []
    while missing:
        of, values = next(iter(missing))
        row = dict(zip(of, values, strict=True))
        for i in sorted(set(axes) - set(row), key=lambda i: -lengths[i]):

            def gain(value: int, i: int = i) -> tuple[int, int, int]:
                if strength == 1:
                    new = ((i,), (value,)) in missing
                else:
                    new = sum(_pair(i, value, j, row[j]) in missing for j in row)
                return new, -used[i][value], -value

            row[i] = max(range(lengths[i]), key=gain)
        chosen = tuple(row[i] for i in axes)
        for i in axes:
            used[i][chosen[i]] += 1
        for of in combinations(axes, strength):
            missing.pop((of, tuple(chosen[i] for i in of)), None)
        rows.append(chosen)
    return sorted(rows)


def _pair(i: int, value: int, j: int, other: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return ((i, j), (value, other)) if i < j else ((j, i), (other, value))


def _chosen(choices: list[list[Any]]) -> Iterable[tuple[Any, ...]]:
    """A row for each value that is skipped here, after rows that cover all others."""
    able = [[p for p in axis if not _skipped(p)] for axis in choices]
    if all(able):
        for row in covering([len(axis) for axis in able], 1 if HOW_MUCH == "quick" else 2):
            yield tuple(axis[k] for axis, k in zip(able, row, strict=True))
    for i, axis in enumerate(choices):
        for skipped in filter(_skipped, axis):
            others = [(kept or whole)[0] for kept, whole in zip(able, choices, strict=True)]
            yield (*others[:i], skipped, *others[i + 1 :])


def _param(value: Any) -> Any:
    """A value of an axis with its marks, as `pytest.param` makes it."""
    return value if hasattr(value, "marks") and hasattr(value, "values") else pytest.param(value)


def _skipped(param: Any) -> bool:
    return any(
        mark.name == "skip" or (mark.name == "skipif" and mark.args and mark.args[0])
        for mark in param.marks
    )


def _id(param: Any) -> str:
    (value,) = param.values
    return param.id or getattr(value, "__name__", None) or str(value)

"""How much of what grows with the number of rules is tested: FASTGD_TESTS says it.

``quick``: one rule for each shape of rule, and every value of an axis once (`make quick`);
``pairs``, the default: every value, and every pair of values of two axes;
``whole``: the product of all axes (`make test-all`), or where that has more than `MOST` rows, every
pair and `MOST` rows drawn from the product, the same in every run.

What a whole run has beyond pairs is marked `more`: after a run of pairs, ``-m more`` runs the rest.

What isn't chosen is no test at all, rather than a skipped one.  The choice is the same in every
process, as workers of pytest-xdist have to collect the same tests.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import combinations, product
from math import prod
from typing import Any

import numpy as np
import pytest

from fastgd.core.variants import rules_of
from fastgd.kernels.reference import RULES
from fastgd.optimizers import GENERAL, OPTIMIZERS

HOW_MUCH = os.environ.get("FASTGD_TESTS", "pairs")
if HOW_MUCH not in ("quick", "pairs", "whole"):
    raise pytest.UsageError(f"FASTGD_TESTS: expected quick, pairs or whole, found {HOW_MUCH!r}")

MOST = 100


def by_level(quick: Any, pairs: Any, whole: Any) -> Any:
    """What this run takes of three: numbers of examples, lists of sizes.

    A test for which a whole run takes more than pairs is to be marked `more`.
    """
    return {"quick": quick, "pairs": pairs, "whole": whole}[HOW_MUCH]


def first_of_each(
    things: Iterable[Any], shape: Callable[[Any], object], slow: bool = False
) -> list[Any]:
    """In a quick run the first thing of each shape, as in all but whole runs if slow; else all."""
    things = list(things)
    if not slow and HOW_MUCH != "quick":
        return things
    firsts: dict[object, Any] = {}
    for thing in things:
        firsts.setdefault(shape(thing), thing)
    return beyond(things, list(firsts.values())) if HOW_MUCH == "whole" else list(firsts.values())


def beyond(things: Iterable[Any], usual: Container[Any]) -> list[Any]:
    """Values for parametrization, those marked `more` that a run of pairs doesn't have."""
    return [v if v in usual else pytest.param(v, marks=pytest.mark.more) for v in things]


# The rules that treat all elements of a tensor alike, wherever they lie.
BY_ELEMENT = [name for name, row in RULES.items() if not row.line_states]


def shape_of(rule: str) -> tuple[object, ...]:
    """What makes loops of rules alike: their kind, how many coefficients, a root or none."""
    row = RULES[rule]
    return kind_of(rule), len(row.coefficients), "eps" in row.coefficients


def kind_of(rule: str) -> tuple[object, ...]:
    """What the engine does for a rule: sweeps, what is kept and worked out for each tensor."""
    row = RULES[rule]
    parts = [getattr(row, key) is not None for key in ("before", "begin", "settle")]
    lined = bool(row.line_states)
    return (*parts, row.after.gradient, row.sums, row.numbers, len(row.states), lined)


def work_of(rule: str) -> tuple[object, ...]:
    """What the engine does for a rule, without how much of each."""
    before, begin, settle, gradient, sums, numbers, states, lined = kind_of(rule)
    return before, begin, settle, gradient, bool(sums), bool(numbers), states, lined


def kinds_of_rules() -> list[Any]:
    """Params (name, options): an optimizer that picks a rule of each kind."""
    found: dict[object, Any] = {}
    for name, cls in GENERAL.items():
        for rule, pick in rules_of(cls).items():
            case = pytest.param(name, pick.changes, id=rule)
            found.setdefault(kind_of(rule), case)
    return list(found.values())


def rules(slow: bool = False) -> list[str]:
    """The rules to test, of those that know nothing of rows and columns; slowly, if that is so."""
    return first_of_each(BY_ELEMENT, work_of if slow else shape_of, slow)


def picked_shape(name: str, options: Mapping[str, Any]) -> tuple[object, ...]:
    """The shape of the rule that an optimizer picks for some options."""
    opt = OPTIMIZERS[name](np.zeros(1), **options)
    return shape_of(opt.stepper.rules[0])


def optimizers(names: Iterable[str] = tuple(GENERAL)) -> list[str]:
    """The optimizers to test."""
    return first_of_each(names, lambda name: picked_shape(name, {}))


def sweeps_of(name: str) -> tuple[object, ...]:
    """What an optimizer's rule does besides stepping elements: sums, numbers, rows and columns."""
    before, begin, settle, *_, lined = kind_of(OPTIMIZERS[name](np.zeros(1)).stepper.rules[0])
    return before, begin, settle, lined


def optimizers_by_sweeps() -> list[str]:
    """One of each of these, in whole runs all optimizers: for what takes seconds for each."""
    return first_of_each(GENERAL, sweeps_of, slow=True)


def optimizer_cases(
    options: Mapping[str, Sequence[dict[str, Any]]], common: Sequence[dict[str, Any]], **always: Any
) -> list[Any]:
    """Params (name, options): each optimizer with each of its options and each common one.

    Whole runs have each option with each common one.
    """
    found = []
    for name, own in options.items():
        sizes = [len(own), len(common)]
        usual = covering(sizes, 1)
        found += [
            pytest.param(
                name, {**always, **own[i], **common[j]}, id=f"{name}-{i}-{j}",
                marks=[] if (i, j) in usual else [pytest.mark.more],
            )
            for i, j in (product(*map(range, sizes)) if HOW_MUCH == "whole" else usual)
        ]  # fmt: skip
    return first_of_each(found, lambda case: picked_shape(*case.values))


def sampled(axes: Mapping[str, Iterable[Any]]) -> pytest.MarkDecorator:
    """Parametrize a test by combinations of the values of some axes, in the order of the product.

    As with `pytest.mark.parametrize`, an axis "name, options" has pairs for its values.

    A value that its own marks skip here, such as a backend that this processor can't run, takes part
    in a whole product alone: elsewhere one combination has it, so that no pair depends on it.
    """
    choices = [[_param(value, "," in names) for value in values] for names, values in axes.items()]
    usual = list(_chosen([[p for p in axis if not _more(p)] for axis in choices]))
    if HOW_MUCH != "whole":
        rows: Iterable[Sequence[Any]] = usual
    elif prod(map(len, choices)) <= MOST:
        rows = product(*choices)
    else:
        rows = _drawn(choices)
    params = [
        pytest.param(
            *(value for p in row for value in p.values),
            marks=[
                *([] if row in usual else [pytest.mark.more]),
                *(mark for p in row for mark in p.marks),
            ],
            id="-".join(_id(p) for p in row),
        )
        for row in rows
    ]
    return pytest.mark.parametrize(",".join(axes), params)


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
            new = [_new(missing, row, i, value, strength) for value in range(lengths[i])]
            row[i] = max(range(lengths[i]), key=lambda v, i=i, new=new: (new[v], -used[i][v], -v))
        chosen = tuple(row[i] for i in axes)
        for i in axes:
            used[i][chosen[i]] += 1
        for of in combinations(axes, strength):
            missing.pop((of, tuple(chosen[i] for i in of)), None)
        rows.append(chosen)
    return sorted(rows)


def _new(missing: Container[Any], row: dict[int, int], i: int, value: int, strength: int) -> int:
    """How many that are missing a row takes along if it has a value at place i."""
    if strength == 1:
        return ((i,), (value,)) in missing
    pairs = (sorted([(i, value), (j, other)]) for j, other in row.items())
    return sum(((a, b), (v, w)) in missing for (a, v), (b, w) in pairs)


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


def _drawn(choices: list[list[Any]]) -> Iterable[tuple[Any, ...]]:
    """The rows of every pair, and `MOST` of the product."""
    sizes = [len(axis) for axis in choices]
    chance = random.Random(0)
    drawn = {*covering(sizes)}
    for i in chance.sample(range(prod(sizes)), MOST):
        drawn.add(tuple(map(int, np.unravel_index(i, sizes))))
    for row in sorted(drawn):
        yield tuple(axis[k] for axis, k in zip(choices, row, strict=True))


def _param(value: Any, several: bool) -> Any:
    """A value of an axis with its marks, as `pytest.param` makes it."""
    if hasattr(value, "marks") and hasattr(value, "values"):
        return value
    return pytest.param(*value) if several else pytest.param(value)


def _skipped(param: Any) -> bool:
    return any(
        mark.name == "skip" or (mark.name == "skipif" and mark.args and mark.args[0])
        for mark in param.marks
    )


def _more(param: Any) -> bool:
    return any(mark.name == "more" for mark in param.marks)


def _id(param: Any) -> str:
    return param.id or "-".join(getattr(v, "__name__", None) or str(v) for v in param.values)

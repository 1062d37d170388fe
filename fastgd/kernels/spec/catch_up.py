"""What rows of a table missed while they had no gradient, in closed form.

A step without a gradient changes the elements of a row alike, and linearly: where V is the state
that moves the parameter, and λ that of an L2 penalty, p ← ap + bV and V ← cp + dV.  So k of them
are the k-th power of a matrix of two rows and columns; of other states each is multiplied by a
number.  The numbers of one step are found by asking the rule what it does to 1 and 0: the formula
stands in one place.  Signs stay what they are while their momentum shrinks: there sign(m) is in the
place of V, and does not change, where no product of it is rounded to 0.

The *numbers* of a step are a, and b, c, d of each state; of these b and c are 0 but for one state.
Where the rule takes signs, the first state is the sign, and the second the momentum itself.  Powers
are products of those by the digits of k to the base 256, each in float64, whose bits are the same
everywhere; their relative error is about k·2⁻⁵² at most.  They are applied by the rules below,
rounded once to the type that is computed with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastgd.kernels.spec.coded_array import CodedArray, as_coded
from fastgd.kernels.spec.registry import Array, Rule, Scalar, rounded, rule, weighed
from fastgd.kernels.spec.rows import row_of
from fastgd.kernels.spec.steps import TensorStep

# What rules declare, where rows can catch up: see `registry.rule`.
LINEAR, WITHOUT_L2, SIGNS = "linear", "linear without L2 decay", "signs"
KNOWN = (LINEAR, WITHOUT_L2, SIGNS)

DIGITS = 256  # values of a digit of k,
LEVELS = 4  # and how many digits it has

Numbers = tuple[float, ...]


def n_states(rule: Rule) -> int:
    """The states of a rule that have numbers: those with an element for each of the parameter."""
    own = len(rule.states) - len(rule.line_states)
    return own + (rule.catch_up == SIGNS)


def width(rule: Rule) -> int:
    """How many numbers a step of a rule has."""
    return 1 + 3 * n_states(rule)


def numbers_of(
    rule: Rule, coefficients: Sequence[float], l2: float, decoupled: float, dtype: DTypeLike
) -> Numbers | str:
    """The numbers of a step without a gradient; or why it has none.

    Parameters
    ----------
    rule : Rule
        One that can catch up.
    coefficients : sequence of float
        Those of the step.
    l2, decoupled : float
        λ of L2 decay, and the factor of decoupled decay.
    dtype : dtype
        That is computed with, to which all of these are rounded first.

    Examples
    --------
    >>> from fastgd.kernels.reference import RULES
    >>> numbers_of(RULES["momentum"], (0.5, 0.75, 1.0), 0.25, 1.0, np.float64)
    (0.875, -0.375, 0.25, 0.75)
    """
    if l2 != 0.0 and rule.catch_up != LINEAR:
        return f"L2 weight_decay has no closed form with rule {rule.name}; set weight_decay=0"
    to: type[Any] = np.dtype(dtype).type
    c = {
        key: np.float64(rounded(key, value, to))
        for key, value in zip(rule.coefficients, coefficients, strict=True)
    }
    sweep = rule.after
    # Of the parameter and the states one after the other is 1, and the others are 0.
    own = [key for key in sweep.states if key not in rule.line_states]
    basis = np.eye(1 + len(own))
    p, states = basis[0], dict(zip(own, basis[1:], strict=True))
    lines = [np.zeros(1 + len(own)) for _ in rule.line_states]
    with np.errstate(all="ignore"):
        g = np.float64(to(l2)) * p
        p *= np.float64(to(decoupled))
        given = {key: c[key] for key in sweep.coefficients}
        sweep.update(p, g, *states.values(), *lines, **given)
    found = [float(p[0])]
    for k, key in enumerate(own):
        found += [float(p[1 + k]), float(states[key][0]), float(states[key][1 + k])]
    if rule.catch_up == SIGNS:
        a, b, _, d = found
        # Of the smallest number, as of any: half of it is rounded to 0, and more than half is not.
        least = [np.finfo(to).smallest_subnormal * np.ones(1, to) for _ in own]
        moved, still = np.zeros(1, to), np.zeros(1, to)
        given = {key: to(value) for key, value in given.items()}
        with np.errstate(all="ignore"):
            sweep.update(moved, still, *least, **given)
        if not least[0].any() or (b != 0.0 and not moved.any()):
            return (
                f"rule {rule.name} takes signs of what factors of 0.5 or less (betas, momentum) "
                "round to 0 after some steps"
            )
        found = [a, b, 0.0, 1.0, 0.0, 0.0, d]
    return tuple(found)


def stands_still(numbers: Numbers) -> bool:
    """Whether a step without a gradient changes nothing."""
    kept = numbers[:1] + numbers[3::3]
    return set(kept) <= {1.0} and not any(numbers[1::3]) and not any(numbers[2::3])


def product(x: Numbers, y: Numbers) -> Numbers:
    """The numbers of two things done one after the other, which are powers of the same."""
    a = x[0] * y[0]
    found = []
    for j in range(1, len(x), 3):
        a += x[j] * y[j + 1]
        found += [
            x[0] * y[j] + x[j] * y[j + 2],
            x[j + 1] * y[0] + x[j + 2] * y[j + 1],
            x[j + 1] * y[j] + x[j + 2] * y[j + 2],
        ]
    return (a, *found)


@lru_cache(16)
def powers(numbers: Numbers, level: int) -> list[Numbers]:
    """The powers by i·256^level, for i from 1 to 255; for 0 the first one again, for nothing."""
    base = numbers
    if level:
        below = powers(numbers, level - 1)
        base = product(below[-1], below[1])
    found = [base, base]
    for _ in range(DIGITS - 2):
        found.append(product(found[-1], base))
    return found


def power(numbers: Numbers, k: int) -> Numbers:
    """The k-th power, k from 1 to below 2³².

    Examples
    --------
    >>> power((0.5,), 3), power((1.0, -0.5, 0.0, 0.5), 2)
    ((0.125,), (1.0, -0.75, 0.0, 0.25))
    """
    found: Numbers | None = None
    for level in range(LEVELS):
        digit = k >> 8 * level & 255
        if digit:
            factor = powers(numbers, level)[digit]
            found = factor if found is None else product(found, factor)
    assert found is not None
    return found


def catch_up(
    p: CodedArray,
    states: Sequence[CodedArray],
    counts: Array,
    taken: int,
    rows: Iterable[int],
    numbers: Numbers,
    signs: bool,
    length: int,
    keys: Sequence[int] = (),
) -> None:
    """Do to rows what they missed.

    Parameters
    ----------
    p, states : CodedArray
        The table, and its states with an element for each of its, updated in place.
    counts : ndarray of uint32, shape (rows of the table,)
        The steps that each row has taken, or caught up with; set to those taken by the table.
    taken : int
        The steps that the table has taken.
    rows : iterable of int
        Which rows.
    numbers : tuple of float
        Those of each step that was missed.
    signs : bool
        Whether the rule takes signs.
    length : int
        Elements of a row.
    keys : sequence of int
        Of the random words by which stores round: those of the last step taken, in which the row
        used none.
    """
    name = "missed_signs" if signs else f"missed_{len(states)}"
    for row in rows:
        k = max(taken - int(counts[row]), 0)  # of a table that was torn, rows may be ahead
        if k and not stands_still(numbers):
            found = power(numbers, k)
            own, *of_states = (row_of(a, row, length) for a in (p, *states))
            coefficients = (found[0], found[1], found[6]) if signs else found
            none = as_coded(own.load(np.float64 if p.codec == "float64" else np.float32)[:0])
            TensorStep(name, own, none, of_states, coefficients, keys=keys).last()
        counts[row] = taken


# --------------------------------------------------------------------------------------- the rules

# What is 0 stays so, by whatever it is multiplied: powers may overflow, where steps would have
# left it alone.


def times(number: Scalar, x: Array) -> Array:
    """x times a number, and x where it is 0."""
    found: Array = np.where(x != 0, number * x, x)
    return found


def part(number: Scalar, x: Array) -> Array:
    """The same, and 0 where the number is, whatever x is."""
    found: Array = np.where(x != 0, weighed(number, x), x)
    return found


@rule(by_rows="is no step of its own")
def missed_0(p: Array, *, a: Scalar) -> None:
    """What a row missed: p ← ap."""
    p[...] = times(a, p)


@rule(by_rows="is no step of its own")
def missed_1(p: Array, s0: Array, *, a: Scalar, b0: Scalar, c0: Scalar, d0: Scalar) -> None:
    """What a row missed: p ← ap + bs, s ← cp + ds; what is to be multiplied by 0 counts as 0."""
    moved = part(b0, s0)
    s0[...] = part(c0, p) + times(d0, s0)
    p[...] = times(a, p) + moved


@rule(by_rows="is no step of its own")
def missed_2(
    p: Array,
    s0: Array,
    s1: Array,
    *,
    a: Scalar,
    b0: Scalar,
    c0: Scalar,
    d0: Scalar,
    b1: Scalar,
    c1: Scalar,
    d1: Scalar,
) -> None:
    """The same of two states, of which one moves p."""
    moved = part(b0, s0) + part(b1, s1)
    s0[...] = part(c0, p) + times(d0, s0)
    s1[...] = part(c1, p) + times(d1, s1)
    p[...] = times(a, p) + moved


@rule(by_rows="is no step of its own")
def missed_3(
    p: Array,
    s0: Array,
    s1: Array,
    s2: Array,
    *,
    a: Scalar,
    b0: Scalar,
    c0: Scalar,
    d0: Scalar,
    b1: Scalar,
    c1: Scalar,
    d1: Scalar,
    b2: Scalar,
    c2: Scalar,
    d2: Scalar,
) -> None:
    """The same of three."""
    moved = (part(b0, s0) + part(b1, s1)) + part(b2, s2)
    s0[...] = part(c0, p) + times(d0, s0)
    s1[...] = part(c1, p) + times(d1, s1)
    s2[...] = part(c2, p) + times(d2, s2)
    p[...] = times(a, p) + moved


@rule(by_rows="is no step of its own")
def missed_signs(p: Array, m: Array, *, a: Scalar, b: Scalar, d: Scalar) -> None:
    """What a row missed that goes along signs: p ← ap + b sign(m), m ← dm."""
    p[...] = times(a, p) + times(b, np.sign(m))
    m[...] = times(d, m)

"""A step of some rows of a table, in NumPy: each row is a small tensor of the same rule.

Rows are stepped in ascending order of their indices.  Where one was given several times its values
are added up first, in the order in which they came.  A row's elements count as what they are in the
whole table, from which the random words of stochastic rounding follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import DTypeLike

from fastgd.kernels.spec.codecs import CODECS
from fastgd.kernels.spec.coded_array import CodedArray, as_coded
from fastgd.kernels.spec.lines import Axes, Axis
from fastgd.kernels.spec.registry import RULES, Array
from fastgd.kernels.spec.stages import Stages
from fastgd.kernels.spec.steps import TensorStep


def summed(indices: Array, values: Array, dtype: DTypeLike) -> tuple[Array, Array]:
    """The distinct indices in ascending order, and the sum of the values of each in a dtype.

    Examples
    --------
    >>> summed(np.array([3, 1, 3]), np.array([[1.0], [2.0], [4.0]]), np.float64)
    (array([1, 3]), array([[2.],
           [5.]]))
    """
    loaded = as_coded(values).load(dtype).reshape(len(indices), prod(values.shape[1:]))
    distinct, first, place = np.unique(indices, return_index=True, return_inverse=True)
    sums = loaded[first].copy()
    later = np.ones(len(indices), bool)
    later[first] = False
    with np.errstate(all="ignore"):
        np.add.at(sums, place[later], loaded[later])  # one after the other
    return distinct.astype(np.int64), sums


def row_of(a: CodedArray, row: int, length: int) -> CodedArray:
    """A row of a table in C order, of so many elements, as an array of its own."""
    start, end, per = row * length, (row + 1) * length, CODECS[a.codec].per
    aux = None if a.aux is None else a.aux[start // per : -(-end // per)]
    return CodedArray(a.raw()[start:end], aux, a.codec, a.stochastic, a.origin + start)


def row_steps(
    name: str,
    p: CodedArray,
    distinct: Array,
    g: Array,
    states: Sequence[CodedArray],
    coefficients: Sequence[float],
    stages: Stages,
    keys: Sequence[int] = (),
    factors: Array | None = None,
    numbers: Mapping[str, Array] | None = None,
) -> None:
    """Step a table's distinct rows; arguments as for `TensorStep`, but for these.

    Parameters
    ----------
    distinct : ndarray of int64, shape (k,)
        The rows.
    g : ndarray, shape (k, elements of a row)
        The gradient of each, in the dtype that the table is computed with.
    factors : ndarray of float64, shape (k,), optional
        What each gradient is multiplied by, in the place of `stages.factor`.
    """
    rule = RULES[name]

    def step_of(row: int, g: Array, stages: Stages) -> TensorStep:
        own = [
            row_of(a, row, 1 if key in rule.line_states else g.size)
            for key, a in zip(rule.states, states, strict=True)
        ]
        all_of_it = Axis(g.size, 1)
        return TensorStep(
            name,
            row_of(p, row, g.size),
            as_coded(g),
            own,
            coefficients,
            stages,
            keys,
            numbers=numbers,
            size=p.code.size,
            axes=Axes(all_of_it, all_of_it, all_of_it, all_of_it),
        )

    # What is worked out is so once for the table: numbers may count its steps.
    table = step_of(0, g.reshape(-1)[:0], stages)
    table.begin()
    table.settle()
    for k, row in enumerate(distinct.tolist()):
        own = stages if factors is None else stages._replace(factor=float(factors[k]))
        step = step_of(row, g[k], own)
        step.worked = table.worked
        step.lines()
        step.last()

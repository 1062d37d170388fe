"""Parameters as matrices, for the steps between sweeps that take them as such."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.spec.registry import Renewal

Array = NDArray[Any]


class Matrix(NamedTuple):
    """What a parameter is as a matrix, as it lies in memory: lines, one after the other."""

    lines: int
    length: int  # of each line
    transposed: bool  # whether these are the matrix's columns


def matrix_of(shape: Sequence[int], order: str) -> Matrix:
    """The matrix that an array in C or F order is: one of one row, if it has no two axes.

    Further axes are columns, too.

    Examples
    --------
    >>> matrix_of((4, 3), "C"), matrix_of((4, 3), "F")
    (Matrix(lines=4, length=3, transposed=False), Matrix(lines=3, length=4, transposed=True))
    """
    rows = shape[0] if len(shape) > 1 else 1
    columns = prod(shape[1:] if len(shape) > 1 else shape)
    return Matrix(columns, rows, True) if order == "F" else Matrix(rows, columns, False)


def as_matrix(a: Array, matrix: Matrix, pairs: str = "") -> Array:
    """A state of a matrix step as a matrix of (rows, columns), or of pairs of either: a view."""
    sides = {True: matrix.length, False: matrix.lines}
    rows, columns = sides[matrix.transposed], sides[not matrix.transposed]
    if pairs:
        rows = columns = rows if pairs == "row_pairs" else columns
    return a.reshape((rows, columns), order="F" if matrix.transposed else "C")


def renewed(
    renew: Renewal, states: Mapping[str, Array], coefficients: Mapping[str, float]
) -> list[tuple[Array, Array]]:
    """What a rule sets before a step: its states, as matrices, and what they are to be.

    New values lie in memory as the states do.
    """
    with np.errstate(all="ignore"):
        given = {key: coefficients[key] for key in renew.coefficients}
        found = renew.update(*(states[key] for key in renew.states), **given)
    pairs = []
    for key, value in found.items():
        new = np.empty_like(states[key])
        new[...] = value
        pairs.append((states[key], new))
    return pairs

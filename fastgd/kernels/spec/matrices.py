"""Parameters as matrices, for the steps between sweeps that take them as such."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple


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

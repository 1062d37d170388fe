"""The lines of an array, its rows and columns: where they lie, and sums over each, in NumPy.

Rows run along the last axis of an array, columns along the second-last; the other axes count
matrices.  Whatever the order of the axes in memory, the elements of a line are at equal distances
there, and numbers of lines lie in the order of what is left when their axis is taken out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from fastgd.kernels.spec.matrices import matrix_of
from fastgd.kernels.spec.norms import sums_of
from fastgd.kernels.spec.registry import PAIRS, Array
from fastgd.kernels.spec.sizes import SLICES


class Axis(NamedTuple):
    """An axis of a contiguous array, as it lies in memory."""

    length: int  # elements of a line,
    stride: int  # and how many elements of the array they are apart


class Axes(NamedTuple):
    """The axes of an array's rows and columns, and that of the rows' numbers along a matrix.

    And that of its entries along the first axis, if the elements of each are at equal distances.
    """

    rows: Axis
    columns: Axis
    matrices: Axis
    entries: Axis | None = None


def line_shape(shape: Sequence[int], kind: str) -> tuple[int, ...]:
    """The shape of the numbers of an array's rows, columns or entries along the first axis.

    And of those of pairs of rows or columns of the matrix that it is.
    """
    if kind in PAIRS:
        matrix = matrix_of(shape, "C")
        return (matrix.lines if kind == "row_pairs" else matrix.length,) * 2
    if kind == "entries":
        return (*shape[:1], *[1] * (len(shape) - 1))
    return (*shape[:-1], 1) if kind == "rows" else (*shape[:-2], 1, shape[-1])


@lru_cache(4096)
def axes_of(shape: Sequence[int], strides: Sequence[int], itemsize: int = 1) -> Axes | None:
    """The axes of a contiguous array in any order of memory; None with fewer than two.

    Lines of one element count as taken across all of the array.
    """
    if len(shape) < 2:
        return None
    size = max(prod(shape), 1)
    (n, m), (apart, next_to) = shape[-2:], (abs(s) // itemsize for s in strides[-2:])

    def axis(length: int, stride: int, size: int) -> Axis:
        return Axis(length, stride) if length > 1 and size > 1 else Axis(1, size)

    entry = size // max(shape[0], 1)
    first = abs(strides[0]) // itemsize
    entries = axis(entry, 1 if first == entry else first, size)
    among_rows = apart // max(m, 1) if apart > next_to else apart
    return Axes(
        axis(m, next_to, size),
        axis(n, apart, size),
        axis(n, among_rows, max(size // max(m, 1), 1)),
        entries if first in (1, entry) or 1 in (entry, shape[0]) or 0 in shape else None,
    )


def spread(numbers: Array, axis: Axis) -> Array:
    """The number of each line at all its elements."""
    length, stride = axis
    lines = numbers.reshape(-1, 1, stride)
    return np.broadcast_to(lines, (len(lines), length, stride)).ravel()


def blocks_over(x: Array, axis: Axis) -> Array:
    """The sums of the blocks of each line in float64, of shape (…, blocks, lines side by side).

    The elements of a line that lie next to each other are added as `sums_of` does.  Those that are
    apart are added one after the other in blocks of SLICES.
    """
    length, stride = axis
    if stride == 1:
        return sums_of(x, length).reshape(x.size // length, -1, 1)
    y = x.astype(np.float64).reshape(-1, length, stride)
    starts = range(0, length, SLICES)
    return np.stack(
        [np.add.accumulate(y[:, k : k + SLICES], axis=1)[:, -1] for k in starts], axis=1
    )


def sums_over(x: Array, axis: Axis) -> Array:
    """The sum of each line of an array in float64: its blocks' sums, added up in order."""
    blocks = blocks_over(x, axis)
    totals: Array = np.zeros((len(blocks), blocks.shape[2]))
    for k in range(blocks.shape[1]):
        totals += blocks[:, k]
    return totals.ravel()

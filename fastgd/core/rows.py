"""The units of adaptive gradient clipping: the parts of an array that have norms of their own."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod


def row_of(shape: Sequence[int], strides: Sequence[int], itemsize: int = 1) -> int:
    """How many elements each unit of a contiguous array has; 0 if units are no pieces of memory.

    Units are the rows along axis 0 of arrays of two or more dimensions, whatever the order of the
    other axes; all of others.
    """
    size = prod(shape)
    rows = shape[0] if len(shape) > 1 and size else 1
    row = max(size // rows, 1)
    return row if 1 in (rows, row) or strides[0] == row * itemsize else 0

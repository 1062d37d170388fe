"""The units of an array, one for each output: where they lie, and sums over each, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np

from fastgd.kernels.spec.coded_array import CodedArray, as_coded
from fastgd.kernels.spec.lines import Axis, blocks_over, spread
from fastgd.kernels.spec.registry import Array

LAYOUTS = ("out_in", "in_out")


@lru_cache(4096)
def units_of(
    shape: Sequence[int], strides: Sequence[int], itemsize: int = 1, layout: str = "out_in"
) -> Axis | None:
    """Where the units of a contiguous array lie: what leads to one output is a unit.

    Outputs are the first axis of arrays of two or more dimensions, or with layout ``"in_out"`` the
    last; the other axes may have any order.  Arrays of fewer dimensions are one unit.

    Returns
    -------
    Axis or None
        Units are lines along it: each contiguous, with a stride of 1, or all of them interleaved,
        with as many elements of other units in between.  None if they are neither.
    """
    size = prod(shape)
    if len(shape) < 2 or not size:
        return Axis(max(size, 1), 1)
    axis = 0 if layout == "out_in" else len(shape) - 1
    n, stride = shape[axis], strides[axis] // itemsize
    length = size // n
    if n == 1 or length in (1, stride):
        return Axis(length, 1)
    return Axis(length, n) if stride == 1 else None


def unit_blocks(
    x: Array | CodedArray,
    units: Axis,
    factor: float = 1.0,
    squares: bool = True,
    means: Array | None = None,
) -> Array:
    """The sums over the blocks of units, in float64: of (factor·x)² or factor·x.

    Where there are `means`, a number for each unit, these are subtracted from x first.  The blocks
    of contiguous units follow each other; of interleaved ones the first blocks of all do.
    """
    with np.errstate(all="ignore"):
        y = as_coded(x).load(np.float64)
        if means is not None:
            y = y - spread(means, units)
        y = factor * y
        return blocks_over(y * y if squares else y, units).ravel()


def centralize(g: Array, means: Array, units: Axis) -> Array:
    """The gradient less the mean of each of its units (Yong, Huang, Hua and Zhang, 2020)."""
    centered: Array = g - spread(means, units)
    return centered


def scale_units(g: Array, factors: Array, units: Axis) -> Array:
    """The gradient times the factor of each of its units."""
    scaled: Array = spread(factors, units) * g
    return scaled

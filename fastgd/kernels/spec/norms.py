"""Sums in a fixed order, in NumPy."""

from __future__ import annotations

import numpy as np

from fastgd.kernels.spec.coded_array import CodedArray, as_coded
from fastgd.kernels.spec.registry import Array
from fastgd.kernels.spec.sizes import BLOCK, LANES


def sums_of_squares(x: Array | CodedArray) -> Array:
    """The sum of x² over each block of an array, in float64; see `sums_of`."""
    with np.errstate(all="ignore"):
        y = as_coded(x).load(np.float64)
        return sums_of(y * y)


def sums_of(x: Array | CodedArray, unit: int = 0) -> Array:
    """The sum of each block of an array, in the order of memory, in float64.

    A block's elements go to its lanes in turn, and lanes are added up as a binary tree: so the bits
    depend on neither vectors nor threads.  Each `unit` elements, by default all, have blocks of
    their own, the last of which is shorter.
    """
    flat = as_coded(x).load(np.float64)
    rows = flat.reshape(-1, unit or max(flat.size, 1))
    sums = np.empty((len(rows), -(-rows.shape[1] // BLOCK)))
    with np.errstate(all="ignore"):
        for k in range(sums.shape[1]):
            y = rows[:, k * BLOCK : (k + 1) * BLOCK]
            turns = -(-y.shape[1] // LANES)
            # A lane starts from 0, to which the first element is added: −0 becomes 0.
            padded = np.zeros((len(y), (turns + 1) * LANES))
            padded[:, LANES : LANES + y.shape[1]] = y
            lane = np.add.accumulate(padded.reshape(len(y), turns + 1, LANES), axis=1)[:, -1]
            while lane.shape[1] > 1:
                middle = lane.shape[1] // 2
                lane = lane[:, :middle] + lane[:, middle:]
            sums[:, k] = lane[:, 0]
    return sums.ravel()

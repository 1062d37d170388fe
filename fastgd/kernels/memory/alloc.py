"""Allocation of the arrays that fastgd makes itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastgd.kernels import _engine

Array = NDArray[Any]


def aligned_zeros(p: Array, dtype: DTypeLike | None = None) -> Array:
    """Zeros in the shape and layout of `p`, and as far from the start of a cache line.

    So a chunk whose parameters start on a line has its states start on one, too, and no 64-byte
    load straddles two lines: on AVX-512 that makes a step in cache 1.3 times as fast.  What has
    fewer bits than float32 starts on a line.
    """
    return _engine.aligned_zeros(p, p.dtype if dtype is None else np.dtype(dtype))


def aligned_copy(a: Array, p: Array) -> Array:
    """The values of `a` in memory as `aligned_zeros` makes it, if they go with those of `p`."""
    if a.shape != p.shape:
        return a.copy("K")
    copy = aligned_zeros(p, a.dtype)
    copy[...] = a
    return copy

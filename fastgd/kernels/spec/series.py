"""Averages of series, in NumPy."""

from __future__ import annotations

import numpy as np

from fastgd.kernels.spec.registry import Array


def ewma(x: Array, out: Array, v: Array, weight: float, beta: float, correct: bool) -> float:
    """Averages along the middle axis: V ← βV + (1 − β)X, c ← βc + (1 − β), out = V or V/c.

    c is the sum of the weights, 1 − βᵗ after t values from V = 0; see `fastgd.averages.ewma`.
    Returns the last c.
    """
    to = x.dtype.type
    past, now, c = to(beta), to(1.0 - beta), to(weight)
    with np.errstate(all="ignore"):
        for t in range(x.shape[1]):
            v[...] = past * v + now * x[:, t]
            c = past * c + now
            out[:, t] = v / c if correct else v
    return float(c)

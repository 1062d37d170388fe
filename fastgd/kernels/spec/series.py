"""Averages of series, in NumPy."""

from __future__ import annotations

import numpy as np

from fastgd.kernels.spec.registry import Array


def ewma(x: Array, out: Array, v: Array, weight: float, beta: float, correct: bool) -> float:
    """Averages along the middle axis: V ← βV + (1 − β)X, c ← βc + (1 − β), out = V or V/c.

    c is the sum of the weights, 1 − βᵗ after t values from V = 0; see `fastgd.averages.ewma`.
    V and c are float64 also for float32, in which V would drift away from a level.
    Returns the last c.
    """
    gamma, c = 1.0 - beta, weight
    with np.errstate(all="ignore"):
        for t in range(x.shape[1]):
            v[...] = beta * v + gamma * x[:, t].astype(np.float64)
            c = beta * c + gamma
            out[:, t] = v / c if correct else v
    return c


def ewma_of_observed(
    x: Array, out: Array, v: Array, weights: Array, past: Array, gamma: float, correct: bool,
    ignore: bool,
) -> None:  # fmt: skip
    """Averages along the middle axis of the values that aren't NaN, as pandas has them.

    With the weight of the past w, 1 after the first value: w ← wβ where a value is there or its
    place counts, V ← (wV + γX)/(w + γ) and w ← 1 where it is.  With `correct` γ is 1, and then
    w ← w + γ.
    `past` has the β of each place; a `gamma` of NaN is what β leaves of 1.  V is NaN before the
    first value; see `fastgd.averages.ewma`.
    """
    with np.errstate(all="ignore"):
        for t in range(x.shape[1]):
            now = x[:, t].astype(np.float64)
            here, started = ~np.isnan(now), ~np.isnan(v)
            counts = started & here if ignore else started
            weights[...] = np.where(counts, weights * past[t], weights)
            fresh = 1.0 if correct else 1.0 - weights if np.isnan(gamma) else gamma
            averaged = (weights * v + fresh * now) / (weights + fresh)
            averaged = np.where(v == now, v, averaged)  # which keeps a level to the bit
            after = weights + fresh if correct else np.ones_like(weights)
            weights[...] = np.where(here, np.where(started, after, 1.0), weights)
            v[...] = np.where(here, np.where(started, averaged, now), v)
            out[:, t] = v

"""Optimizers beside formulas in NumPy: parameters, gradients, and the comparison of both."""

from __future__ import annotations

import numpy as np

from fastgd.kernels.reference import BLOCK

SHAPES = [(5, 3), (300,), (), (BLOCK + 7,)]


def drawn(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape).astype(dtype) + 0.1) for shape in SHAPES]


def few(seed):
    """Those of less than a block."""
    return drawn(seed)[:3]


def follows(opt, params, update, steps=100, rtol=1e-12):
    """Compare steps with a formula: a function of a parameter, its gradient, a dict and t."""
    theirs, states = [p.copy() for p in params], [{} for _ in params]
    for t in range(1, steps + 1):
        grads = drawn(t)[: len(params)]
        opt.step(grads)
        for q, g, state in zip(theirs, grads, states, strict=True):
            q[...] = update(q, g, state, t)
        for p, q in zip(params, theirs, strict=True):
            np.testing.assert_allclose(p, q, rtol=rtol, atol=1e-14)

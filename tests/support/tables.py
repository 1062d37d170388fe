"""Tables, and gradients of few of their rows, most of which miss most steps."""

import numpy as np

import fastgd
from fastgd import Rows

F4, F8, BF16 = np.float32, np.float64, np.uint16
N, LENGTH = 40, 5


def draws(steps, seed=0, n=N, length=LENGTH, dtype=F8):
    """Gradients by rows, most of which miss most steps."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        k = rng.integers(0, 4)
        yield Rows(rng.integers(0, n, k), rng.standard_normal((k, length)).astype(dtype))


def whole(rows, shape, dtype=F8):
    g = np.zeros(shape, dtype)
    np.add.at(g, rows.indices, rows.values.astype(dtype))
    return g


def table_of(dtype=F8, shape=(N, LENGTH), seed=1):
    x = np.random.default_rng(seed).standard_normal(shape)
    return (x.astype(F4).view(np.uint32) >> 16).astype(BF16) if dtype is BF16 else x.astype(dtype)


def momentum(table, **options):
    return fastgd.SGD(table, **{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, **options})

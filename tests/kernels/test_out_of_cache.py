"""From some megabytes on steps may prefetch, or not: the bits are the same."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import COMPILED, same_bits

import fastgd

# Of whole tiles and not, from a cache line on and not: 3.3 million bytes with two states.
SIZES = [5, 64, 129, 256, 513, 4096, 32_768 + 7, 240_001]
CASES = {
    "plain": ("Adam", {}),
    "float64": ("Adam", {"dtype": np.float64}),
    "one state": ("Momentum", {}),
    "none": ("SGD", {"copies": 4}),
    "decay": ("AdamW", {"weight_decay": 0.1}),
    "scratch": ("Adam", {"weight_decay": 0.1, "clip_norm": 1.0, "average": 0.9}),
    "bfloat16": ("AdamW", {"state_dtype": "bfloat16", "copies": 2}),
    "before a line": ("AdamW", {"state_dtype": "bfloat16", "copies": 2, "start": 15}),
    "8 bits": ("AdamW", {"state_dtype": "8bit", "min_8bit_size": 1, "copies": 2}),
    "split": ("Adam", {"dtype": np.uint16, "master": "split"}),
    "split in pairs": (
        "Adam", {"dtype": np.uint16, "master": "split", "state_dtype": "bfloat16", "copies": 2}),
    "in pairs": ("AdamW", {"dtype": np.uint16, "rounding": "stochastic",
                           "state_dtype": "bfloat16", "copies": 2}),
    "two sweeps": ("LAMB", {}),
    "two sweeps in 8 bits": ("LAMB", {"state_dtype": "8bit", "min_8bit_size": 1, "copies": 2}),
}  # fmt: skip


def placed(x, start):
    """The same in memory that begins `start` elements after a cache line does."""
    raw = np.empty(x.size + 32, x.dtype)
    first = (-raw.ctypes.data // x.itemsize) % 16 + start
    raw[first : first + x.size] = x
    return raw[first : first + x.size]


def train(backend, threads, name, dtype=np.float32, copies=1, start=None, **options):
    """What three steps leave of all arrays, gradients included, which are only read."""
    fastgd.set_backend(backend)
    fastgd.set_num_threads(threads)
    rng = np.random.default_rng(0)

    def draw():
        drawn = [rng.standard_normal(n).astype(np.float32) for n in SIZES * copies]
        if dtype == np.uint16:
            return [(x.view(np.uint32) >> 16).astype(np.uint16) for x in drawn]
        if start is not None:
            drawn = [placed(x, start) for x in drawn]
        return [x.astype(dtype, copy=False) for x in drawn]

    params = draw()
    opt = getattr(fastgd, name)(params, lr=0.01, **options)
    arrays = [*params, *(a for entry in opt.state.values() for a in entry.values())]
    assert sum(a.nbytes for a in arrays) > 1 << 21, "else this tests nothing"
    for _ in range(3):
        opt.step(draw())
    return arrays


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", COMPILED)
def test_same_bits_out_of_cache(backend, case):
    name, options = CASES[case]
    expected = train("numpy", 1, name, **options)
    for threads, mode in ((1, "on"), (2, "prefetch"), (2, "no-prefetch"), (1, "fine-prefetch")):
        fastgd.set_tuning(mode)
        found = train(backend, threads, name, **options)
        assert all(map(same_bits, found, expected))

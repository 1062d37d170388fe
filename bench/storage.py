"""Storage choices against float32's stream, interleaved in one run.

    python bench/storage.py [--backend x86_64_v3] [--elements 32000000] [--rounds 11]

One Adam step with all threads; every figure is a multiple of the time of a plain sweep that moves
the bytes of a float32 step, 28 for each parameter.
"""

from __future__ import annotations

import argparse
import gc

import ml_dtypes
import numpy as np
from averages import interleaved
from compare import ALL_THREADS
from stream import Stream, aligned_ones

import fastgd
from fastgd.commands.work import Work

F32, BF16 = np.float32, ml_dtypes.bfloat16

# What it is: (bytes of a step for each parameter, dtype of parameters and gradients, options).
CHOICES = {
    "float32": (28, F32, {}),
    "bfloat16 states": (20, F32, {"state_dtype": "bfloat16"}),
    "float16 states": (20, F32, {"state_dtype": "float16"}),
    "8-bit states": (16, F32, {"state_dtype": "8bit"}),
    "bfloat16, stochastic, float32 states": (22, BF16, {"rounding": "stochastic"}),
    "bfloat16, split master": (26, BF16, {"master": "split"}),
    "bfloat16, float32 master": (28, BF16, {"master": True}),
    "bfloat16, stochastic, bfloat16 states": (
        14, BF16, {"rounding": "stochastic", "state_dtype": "bfloat16"}),
    "bfloat16, stochastic, 8-bit states": (
        10, BF16, {"rounding": "stochastic", "state_dtype": "8bit"}),
}  # fmt: skip


def made(n, dtype, options):
    """An optimizer of one parameter, with its gradient bound."""
    p = aligned_ones(n).astype(dtype, copy=False)
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal(min(n, 1 << 20), F32)
    g = np.resize(drawn, n).astype(dtype)
    return fastgd.Adam(p, lr=1e-3, grads=g, **options)


def main(work):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default=fastgd.get_backend())
    parser.add_argument("--elements", type=int, default=32_000_000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=ALL_THREADS)
    arguments = parser.parse_args()
    fastgd.set_backend(arguments.backend)
    fastgd.set_num_threads(arguments.threads)
    n = arguments.elements
    stream = Stream()
    print(f"{n:,} elements, {arguments.threads} threads, {arguments.backend}")
    work.expect(len(CHOICES))
    for name, (size, dtype, options) in CHOICES.items():
        opt = made(n, dtype, options)
        opt.step()
        times = interleaved(
            {"fastgd": opt.step, "stream": stream.over(n, 2, arguments.threads)}, arguments.rounds
        )
        print(
            f"{name:<40}{times['fastgd'] * 1e3:8.2f} ms   {times['fastgd'] / times['stream']:.2f} "
            f"of the stream, its bytes alone {size / 28:.2f}",
            flush=True,
        )
        del opt
        gc.collect()
        work.advance(name)


if __name__ == "__main__":
    with Work("storage") as work:
        main(work)

"""What a step of Muon takes beside its products of matrices, and beside torch's, in one run.

    python bench/muon.py                        # usual matrices of hidden layers
    python bench/muon.py --shapes 2048x512 --rounds 20
    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 python bench/muon.py

The contestants take turns; a figure is the least time of the rounds, as others may use the machine.
"products" are those of five iterations of Newton and Schulz alone, by NumPy in memory that is
there, as fastgd calls them: X Xᵀ and A Aᵀ, of which BLAS works out a half, and G X.
"""

from __future__ import annotations

import argparse
import math
from time import perf_counter

import numpy as np

import fastgd
from fastgd.commands.work import Work

SHAPES = ["1024x1024", "4096x1024", "8x512x512", "32x128x128"]


def products(matrices):
    """A function that does the products of a step on these matrices."""
    work = []
    for x in matrices:
        side = min(x.shape)
        x = (x / np.linalg.norm(x)).astype(x.dtype)
        work.append((x, np.empty_like(x), *np.empty((2, side, side), x.dtype)))

    def run():
        for x, y, gram, factor in work:
            wide = x.shape[0] <= x.shape[1]
            for _ in range(5):
                np.matmul(*(x, x.T) if wide else (x.T, x), out=gram)
                np.matmul(gram, gram.T, out=factor)
                np.matmul(*(factor, x) if wide else (x, factor), out=y)

    return run


def contestants(shape, count, dtype):
    """The functions to be timed, by name."""
    rng = np.random.default_rng(0)
    params, grads = rng.standard_normal((2, count, *shape)).astype(dtype)
    params, grads = list(params), list(grads)
    opt = fastgd.Muon([p.copy() for p in params])
    found = {"products": products(grads), "fastgd": lambda: opt.step(grads)}
    try:
        import torch
    except ImportError:
        return found
    theirs = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    for q, g in zip(theirs, grads, strict=True):
        q.grad = torch.tensor(g)
    return {**found, "torch": torch.optim.Muon(theirs).step}


def measure(functions, rounds):
    """The least time of each in seconds, taking turns."""
    least = dict.fromkeys(functions, math.inf)
    for _ in range(rounds):
        for name, function in functions.items():
            start = perf_counter()
            function()
            least[name] = min(least[name], perf_counter() - start)
    return least


def main(work):
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", nargs="*", default=SHAPES, help="[COUNTx]ROWSxCOLUMNS")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    arguments = parser.parse_args()
    print("matrices      ms: products  fastgd (beside them)  torch (÷ fastgd)")
    work.expect(len(arguments.shapes))
    for text in arguments.shapes:
        *count, rows, columns = map(int, text.split("x"))
        times = measure(
            contestants((rows, columns), *(count or [1]), arguments.dtype), arguments.rounds
        )
        own = times["fastgd"]
        line = f"{text:12} {times['products'] * 1e3:13.2f} {own * 1e3:7.2f}"
        line += f" ({own / times['products'] - 1:+11.1%})"
        if "torch" in times:
            line += f" {times['torch'] * 1e3:11.2f} ({times['torch'] / own:.2f})"
        print(line, flush=True)
        work.advance(text)


if __name__ == "__main__":
    with Work("muon") as work:
        main(work)

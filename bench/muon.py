"""What a step of Muon takes beside its products of matrices, torch's and optax's, in one run.

    python bench/muon.py                        # usual matrices of hidden layers
    python bench/muon.py --shapes 2048x512 --rounds 20
    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 python bench/muon.py

The contestants take turns; a figure is the least time of the rounds, as others may use the machine.
"products" are those of five iterations of Newton and Schulz alone, by NumPy in memory that is
there, as fastgd calls them: X Xᵀ and A Aᵀ, of which BLAS works out a half, and G X.  optax's step
is jitted, with donated parameters and states, on float32; it takes a thread for each processor.

    python bench/muon.py --losses               # of the same small network, by each of the three
"""

from __future__ import annotations

import argparse
import math
from functools import partial
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
    if dtype == "float32":  # JAX has float64 by a switch for all of it
        theirs = optax_step(params, learning_rate=1e-3, weight_decay=0.1)
        if theirs is not None:
            theirs(grads)
            found["optax"] = lambda: theirs(grads)
    try:
        import torch
    except ImportError:
        return found
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    for q, g in zip(tensors, grads, strict=True):
        q.grad = torch.tensor(g)
    return {**found, "torch": torch.optim.Muon(tensors).step}


def optax_step(params, **options):
    """optax's Muon, jitted, from gradients to its parameters; None where there is none."""
    try:
        import jax
        import optax
    except ImportError:
        return None
    # Rows are outputs, as the factor of torch and fastgd takes them.
    rows = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)
    opt = optax.contrib.muon(
        muon_weight_dimension_numbers=lambda params: [rows] * len(params), **options
    )
    held = {"p": [jax.numpy.array(p) for p in params]}
    held["s"] = opt.init(held["p"])

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(p, s, g):
        change, s = opt.update(g, s, p)
        return optax.apply_updates(p, change), s

    def step(grads):
        held["p"], held["s"] = update(held["p"], held["s"], grads)
        return jax.block_until_ready(held["p"])

    return step


def losses(steps=300, width=64):
    """The last loss of a network of three matrices under each, from the same start."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((512, 32)).astype(np.float32)
    teacher = [rng.standard_normal(s).astype(np.float32) / 6 for s in ((32, width), (width, 8))]
    y = np.tanh(x @ teacher[0]) @ teacher[1]
    start = [
        (rng.standard_normal(s) / s[0] ** 0.5).astype(np.float32)
        for s in ((32, width), (width, width), (width, 8))
    ]

    def loss_and_grads(weights):
        a = np.tanh(x @ weights[0])
        b = np.tanh(a @ weights[1])
        error = b @ weights[2] - y
        d = 2 * error / error.size
        down = d @ weights[2].T * (1 - b * b)
        below = down @ weights[1].T * (1 - a * a)
        return np.mean(error**2), [x.T @ below, a.T @ down, b.T @ d]

    given = {"momentum": 0.95, "weight_decay": 0.0}
    weights = [w.copy() for w in start]
    opt = fastgd.Muon(weights, lr=0.01, **given)
    found = {}
    for _ in range(steps):
        opt.step(loss_and_grads(weights)[1])
    found["fastgd"] = loss_and_grads(weights)[0]
    try:
        import torch
    except ImportError:
        pass
    else:
        tensors = [torch.nn.Parameter(torch.tensor(w)) for w in start]
        theirs = torch.optim.Muon(tensors, lr=0.01, **given)
        arrays = [t.detach().numpy() for t in tensors]
        for _ in range(steps):
            for t, g in zip(tensors, loss_and_grads(arrays)[1], strict=True):
                t.grad = torch.tensor(g)
            theirs.step()
        found["torch"] = loss_and_grads(arrays)[0]
    if (step := optax_step(start, learning_rate=0.01, beta=0.95, eps=1e-7)) is not None:
        weights = start
        for _ in range(steps):
            weights = [*map(np.asarray, step(loss_and_grads(weights)[1]))]
        found["optax"] = loss_and_grads(weights)[0]
    return found


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
    parser.add_argument("--losses", action="store_true", help="train, instead of timing")
    arguments = parser.parse_args()
    if arguments.losses:
        for name, loss in losses().items():
            print(f"{name:8} {loss:.3e}")
        return
    print("matrices      ms: products  fastgd (beside them)  torch, optax (÷ fastgd)")
    work.expect(len(arguments.shapes))
    for text in arguments.shapes:
        *count, rows, columns = map(int, text.split("x"))
        times = measure(
            contestants((rows, columns), *(count or [1]), arguments.dtype), arguments.rounds
        )
        own = times["fastgd"]
        line = f"{text:12} {times['products'] * 1e3:13.2f} {own * 1e3:7.2f}"
        line += f" ({own / times['products'] - 1:+11.1%})"
        for name in ("torch", "optax"):
            if name in times:
                line += f"  {name} {times[name] * 1e3:.2f} ({times[name] / own:.2f})"
        print(line, flush=True)
        work.advance(text)


if __name__ == "__main__":
    with Work("muon") as work:
        main(work)

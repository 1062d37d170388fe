"""Steps of rules that see whole tensors, against torch and the stream of the bytes they must move.

    python bench/kinds.py [--rounds 12] [--threads 2]        needs torch

LAMB and LARS as timm writes them, over lists of tensors as torch's foreach optimizers do; Adafactor
against torch.optim.Adafactor(foreach=True).  The contestants take turns; a figure is the median of
the rounds.  "stream" moves as many bytes as the sweeps must: LAMB 40 for each float32 parameter,
LARS 28, Adafactor 24 (`python -m fastgd optimizers` lists them).
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter

import numpy as np
import torch
from stream import Stream

import fastgd
from fastgd.commands.work import Work

SHAPES = [(32, 1, 1_000_000), (1, 4000, 8000), (300, 1, 64)]


def lamb_in_torch(params, grads):
    """A step of timm's formula, of any number of tensors at once."""
    m, v = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    count = 0

    def step():
        nonlocal count
        count += 1
        torch._foreach_lerp_(m, grads, 0.1)
        torch._foreach_mul_(v, 0.999)
        torch._foreach_addcmul_(v, grads, grads, 0.001)
        roots = torch._foreach_sqrt(v)
        torch._foreach_div_(roots, (1 - 0.999**count) ** 0.5)
        torch._foreach_add_(roots, 1e-6)
        update = torch._foreach_div(m, roots)
        torch._foreach_div_(update, 1 - 0.9**count)
        torch._foreach_add_(update, params, alpha=0.01)
        norms, lengths = torch._foreach_norm(params), torch._foreach_norm(update)
        ratios = [a / b for a, b in zip(norms, lengths, strict=True)]
        torch._foreach_mul_(update, ratios)
        torch._foreach_add_(params, update, alpha=-1e-3)

    return step


def lars_in_torch(params, grads):
    """A step of timm's formula with momentum, of any number of tensors at once."""
    velocity = [torch.zeros_like(p) for p in params]

    def step():
        norms, lengths = torch._foreach_norm(params), torch._foreach_norm(grads)
        ratios = [1e-3 * a / (b + 1e-4 * a + 1e-8) for a, b in zip(norms, lengths, strict=True)]
        scaled = torch._foreach_add(grads, params, alpha=1e-4)
        torch._foreach_mul_(scaled, ratios)
        torch._foreach_mul_(velocity, 0.9)
        torch._foreach_add_(velocity, scaled)
        torch._foreach_add_(params, velocity, alpha=-1.0)

    return step


def adafactor_in_torch(params, grads):
    """A step of torch's own."""
    theirs = [torch.nn.Parameter(p) for p in params]
    for p, g in zip(theirs, grads, strict=True):
        p.grad = g
    return torch.optim.Adafactor(theirs, foreach=True).step


CASES = {
    "LAMB": (lamb_in_torch, {}),
    "LARS": (lars_in_torch, {"momentum": 0.9, "weight_decay": 1e-4}),
    "Adafactor": (adafactor_in_torch, {}),
    "Adam": (lambda params, grads: torch_adam(params, grads), {}),
}


def torch_adam(params, grads):
    """A step of torch's fused Adam."""
    theirs = [torch.nn.Parameter(p) for p in params]
    for p, g in zip(theirs, grads, strict=True):
        p.grad = g
    return torch.optim.Adam(theirs, fused=True).step


def streams(plain, name, n, threads):
    """A function that moves the bytes of a rule's sweeps."""
    read, last = plain.reading(n, threads), plain.over(n, 0, threads)
    with_momentum, as_adam = plain.over(n, 1, threads), plain.over(n, 2, threads)
    parts = {
        "LAMB": [as_adam, last],
        "LARS": [read, read, with_momentum],
        "Adafactor": [read, read, read, last],
        "Adam": [as_adam],
    }[name]
    return lambda: [part() for part in parts]


def times(functions, rounds):
    """The median time of each function in seconds; they take turns."""
    taken = {name: [] for name in functions}
    for _ in range(rounds + 2):
        for name, function in functions.items():
            start = perf_counter()
            function()
            taken[name].append(perf_counter() - start)
    return {name: median(own[2:]) for name, own in taken.items()}


def main(work):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=fastgd.get_num_threads())
    arguments = parser.parse_args()
    fastgd.set_num_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    plain = Stream()
    print("optimizer, tensors: ms, times the stream's, torch's time / fastgd's")
    work.expect(len(SHAPES) * len(CASES))
    for count, rows, columns in SHAPES:
        rng = np.random.default_rng(0)
        drawn = np.resize(rng.standard_normal(min(rows * columns, 1 << 20)), rows * columns)
        drawn = drawn.astype(np.float32).reshape((rows, columns) if rows > 1 else columns)
        for name, (in_torch, options) in CASES.items():
            grads = [drawn + np.float32(k) for k in range(count)]
            opt = getattr(fastgd, name)([drawn.copy() for _ in grads], grads=grads, **options)
            theirs = [[torch.tensor(a) for a in arrays] for arrays in ([drawn] * count, grads)]
            functions = {
                "fastgd": opt.step,
                "torch": in_torch(*theirs),
                "stream": streams(plain, name, count * drawn.size, arguments.threads),
            }
            found = times(functions, arguments.rounds)
            ours = found["fastgd"]
            shape = "x".join(map(str, drawn.shape))
            print(
                f"{name:10s} {count:4d} x {shape:10s} {ours * 1e3:9.3f} "
                f"{ours / found['stream']:6.2f} {found['torch'] / ours:6.2f}",
                flush=True,
            )
            work.advance(f"{name}, {shape}")


if __name__ == "__main__":
    with Work("kinds") as work:
        main(work)

"""AdamW on bfloat16 parameters and gradients, against every peer that runs on a CPU.

    OMP_NUM_THREADS=1 python bench/low_bits.py --elements 100096
    python bench/low_bits.py --elements 1000192 32000000
    python bench/low_bits.py --loss [--workers 2] [--log FILE]

The first two time a step of each, in turn in one run; the third trains networks in bfloat16 with
each, from the same seeds.  Needs torch; bitsandbytes, deepspeed (which compiles its step with
g++ and ninja) and torchao take part where they are installed; for those that can't, why is printed.
Sizes are multiples of 256: torchao keeps a tensor of any other size in float32.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import math
import os
import warnings
from pathlib import Path

import numpy as np
import training
from averages import interleaved

import fastgd
from fastgd.commands.work import Work

OPTIONS = {"lr": 1e-3, "weight_decay": 0.01}

# fastgd's choices: (bytes of states for each parameter, options).
OURS = {
    "fastgd, stochastic": (8, {"rounding": "stochastic"}),
    "fastgd, stochastic, bfloat16 states": (
        4, {"rounding": "stochastic", "state_dtype": "bfloat16"}),
    "fastgd, stochastic, 8-bit states": (2, {"rounding": "stochastic", "state_dtype": "8bit"}),
    "fastgd, split": (10, {"master": "split"}),
    "fastgd, split, bfloat16 states": (6, {"master": "split", "state_dtype": "bfloat16"}),
    "fastgd, split, 8-bit states": (4, {"master": "split", "state_dtype": "8bit"}),
    "fastgd, float32 master": (12, {"master": True}),
}  # fmt: skip
# Peers: (bytes of states for each parameter, module, class, options).
PEERS = {
    "torch fused": (4, "torch.optim", "AdamW", {"fused": True}),
    "torch foreach": (4, "torch.optim", "AdamW", {"foreach": True}),
    "bitsandbytes AdamW": (8, "bitsandbytes.optim", "AdamW", {}),
    "bitsandbytes AdamW8bit": (2, "bitsandbytes.optim", "AdamW8bit", {}),
    "DeepSpeedCPUAdam": (8, "deepspeed.ops.adam", "DeepSpeedCPUAdam", {}),
    "DeepSpeedCPUAdam, bfloat16 states": (
        4, "deepspeed.ops.adam", "DeepSpeedCPUAdam", {"fp32_optimizer_states": False}),
    "torchao AdamW8bit": (2, "torchao.optim", "AdamW8bit", {}),
    "torchao AdamW8bit, stochastic": (
        2, "torchao.optim", "AdamW8bit", {"bf16_stochastic_round": True}),
    "torchao AdamWFp8, stochastic": (
        2, "torchao.optim", "AdamWFp8", {"bf16_stochastic_round": True}),
}  # fmt: skip
FIRST = "torch fused"


def made(name, params, lr=OPTIONS["lr"], seed=0):
    """An optimizer of torch's parameters by its row in one of the tables."""
    import torch

    import fastgd.torch

    options = OPTIONS | {"lr": lr}
    if name in OURS:
        return fastgd.torch.AdamW(params, **options, seed=seed, **OURS[name][1])
    _, module, kind, own = PEERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = getattr(importlib.import_module(module), kind)
    torch.manual_seed(seed)
    return found(params, **options, **own)


def available(wanted):
    """The names that run here; others are printed with the reason."""
    import torch

    names = []
    for name in [*OURS, *PEERS]:
        if wanted and not any(word in name for word in wanted):
            continue
        p = torch.nn.Parameter(torch.ones(8192, dtype=torch.bfloat16))
        p.grad = torch.ones_like(p)
        try:
            made(name, [p]).step()
        except Exception as error:  # whatever keeps others' code from running here
            print(f"{name}: does not run here: {type(error).__name__}: {error}"[:300], flush=True)
        else:
            names.append(name)
    return names


def timed(names, n, rounds):
    """Print the speed of everybody's step as a multiple of torch's fused one."""
    import torch

    steps = {}
    drawn = np.random.default_rng(0).standard_normal(min(n, 1 << 20), np.float32)
    start = torch.from_numpy(np.resize(drawn, n)).bfloat16()
    for name in names:
        p = torch.nn.Parameter(start.clone())
        p.grad = start.flip(0)
        steps[name] = made(name, [p]).step
    times = interleaved(steps, rounds)
    print(f"{n:,} elements, {torch.get_num_threads()} threads, {fastgd.get_backend()}")
    for name, seconds in times.items():
        state = OURS[name][0] if name in OURS else PEERS[name][0]
        print(
            f"{name:<38}{state:>3} bytes of states{seconds * 1e6:12.1f} µs   "
            f"{times[FIRST] / seconds:6.2f} times as fast as {FIRST}",
            flush=True,
        )
    del steps
    gc.collect()


# ----------------------------------------------------------------------------------- final losses


def text(seed):
    """The language model of training.py, what draws its batches, and its held-out loss."""
    rng = np.random.default_rng(seed)
    starts = training.characters()[2] - training.CONTEXT

    def batch():
        return training.windows(rng.integers(0, starts, training.BATCH))

    return training.network(seed), batch, training.held_out


def digits(seed):
    """A network of 170,000 parameters, batches of 64 digits, and the loss on all of them."""
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    data = load_digits()
    x, y = torch.from_numpy((data.data / 16).astype(np.float32)), torch.from_numpy(data.target)
    layers = [nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)]

    def batch():
        k = torch.from_numpy(rng.integers(0, len(x), 64))
        return x[k], y[k]

    def loss(model):
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(x), y))

    return nn.Sequential(*layers), batch, loss


PROBLEMS = {"text": text, "digits": digits}


def train(job):
    """One line of the log: the loss after so many steps, lr falling to 0 by a cosine."""
    import torch

    problem, seed, name, storage, steps = job
    problem, _, first = problem.partition(", lr ")
    torch.set_num_threads(1)
    fastgd.set_num_threads(1)
    model, batch, loss = PROBLEMS[problem](seed)
    model.to(getattr(torch, storage))
    opt = made(name, list(model.parameters()), float(first), seed)
    for step in range(steps):
        lr = float(first) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in opt.param_groups:
            if isinstance(group["lr"], torch.Tensor):  # torchao compiles its step for a place
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        x, y = batch()
        if x.is_floating_point():
            x = x.to(getattr(torch, storage))
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(x).float(), y).backward()
        opt.step()
    final = loss(model.float())
    line = dict(zip(training.FIELDS, job, strict=True))
    return line | {"loss": final if math.isfinite(final) else math.inf}


def losses(work, names, given):
    """Print everybody's final loss, and how far from that of training in float32."""
    kinds = [(FIRST, "float32"), *((name, "bfloat16") for name in names)]
    problems = [f"{problem}, lr {lr}" for problem in given.problem for lr in given.lr]
    jobs = [
        (problem, seed, *kind, given.steps)
        for problem, seed, kind in itertools.product(problems, range(given.seeds), kinds)
    ]
    lines = training.measured(work, jobs, given.workers, given.log, train)
    for problem in problems:
        print(f"{problem}, {given.steps} steps, {given.seeds} seeds")
        of = {
            kind: [line for line in lines if training.key(line)[0::2][:2] == (problem, kind[0])
                   and line["storage"] == kind[1]]
            for kind in kinds
        }  # fmt: skip
        for kind, found in of.items():
            mean = np.mean([line["loss"] for line in found])
            print(
                f"{kind[0]:<38}{kind[1]:<9} mean {mean:.4f}, {training.words(found)}, "
                f"of float32: {training.compared(found, of[kinds[0]])}"
            )


def main(work):
    """Time, or train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, nargs="+", default=[1_000_192, 32_000_000])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", nargs="+", default=[], help="names that contain one of these")
    parser.add_argument("--loss", action="store_true")
    parser.add_argument("--problem", choices=list(PROBLEMS), nargs="+", default=list(PROBLEMS))
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--log", type=Path, default=None)
    given = parser.parse_args()
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    names = available(given.only and [FIRST, *given.only])
    if given.loss:
        losses(work, names, given)
        return
    work.expect(len(given.elements))
    for n in given.elements:
        timed(names, n, given.rounds)
        work.advance(f"{n:,} elements")


if __name__ == "__main__":
    with Work("low_bits") as work:
        main(work)

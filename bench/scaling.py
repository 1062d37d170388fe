"""What is paid once for each tensor, which may not grow with their number.

Microseconds a tensor of Adam over float32 tensors of 16 elements, the least of several calls: to
make an optimizer, to take and load its state dict, to save and load it, and of fastgd.torch's
first step beside torch's own.

    python bench/scaling.py [--tensors 100 1000 10000 100000] [--calls 3]

The last two need safetensors and torch, and are left out without.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import numpy as np

import fastgd
from fastgd.commands.work import Work

SIZE = 16
TENSORS = (100, 1_000, 10_000, 100_000)


def seconds(call):
    """How long a call took."""
    gc.collect()
    start = perf_counter()
    call()
    return perf_counter() - start


def arrays(n):
    return [np.ones(SIZE, np.float32) for _ in range(n)]


def costs_of_arrays(n):
    """Seconds of one call of each kind, by name, over arrays."""
    params, grads = arrays(n), arrays(n)
    opt = fastgd.Adam(params)
    opt.step(grads)
    state = opt.state_dict()
    times = {
        "make": seconds(lambda: fastgd.Adam(params)),
        "state_dict": seconds(opt.state_dict),
        "load_state_dict": seconds(lambda: opt.load_state_dict(state)),
    }
    if find_spec("safetensors"):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "saved"
            times["save"] = seconds(lambda: fastgd.save(file, opt))
            times["load"] = seconds(lambda: fastgd.load(file, opt))
    return times


def first_steps(n):
    """Seconds of the first step over torch's tensors."""
    if not find_spec("torch"):
        return {}
    import torch

    import fastgd.torch

    times = {}
    for name, kind in (("torch step", fastgd.torch.Adam), ("torch's own", torch.optim.Adam)):
        params = [torch.ones(SIZE, requires_grad=True) for _ in range(n)]
        for p in params:
            p.grad = torch.ones(SIZE)
        times[name] = seconds(kind(params).step)
    return times


# What is measured; each function gives seconds by name for a number of tensors.
COSTS = (costs_of_arrays, first_steps)


def main(work):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensors", type=int, nargs="+", default=TENSORS)
    parser.add_argument("--calls", type=int, default=3)
    arguments = parser.parse_args()
    for costs in COSTS:  # what is imported and made at the first call
        costs(10)
    printed = None
    work.expect(sum(arguments.tensors))
    for n in arguments.tensors:
        rounds = [{k: t for costs in COSTS for k, t in costs(n).items()}]
        for _ in range(arguments.calls - 1):
            rounds.append({k: t for costs in COSTS for k, t in costs(n).items()})
        least = {key: min(times[key] for times in rounds) for key in rounds[0]}
        if printed is None:
            print("µs a tensor" + "".join(f"{key:>17}" for key in least))
            printed = least
        print(f"{n:>11,}" + "".join(f"{t / n * 1e6:>17.1f}" for t in least.values()), flush=True)
        work.advance(f"{n:,} tensors", n)


if __name__ == "__main__":
    with Work("scaling") as work:
        main(work)

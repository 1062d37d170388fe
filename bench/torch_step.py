"""fastgd.torch against torch's own kernels, the step alone, interleaved in one run.

python bench/torch_step.py              all of it; needs torch
python bench/torch_step.py 300x64 1e5   some of it
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from averages import interleaved

import fastgd
import fastgd.torch

# Six layers of width 256 over 8,192 tokens: 76 tensors, 6.9 million elements.
WIDTH = 256
LAYER = [(3 * WIDTH, WIDTH), (3 * WIDTH,), (WIDTH, WIDTH), (WIDTH,)]
LAYER += [(4 * WIDTH, WIDTH), (4 * WIDTH,), (WIDTH, 4 * WIDTH)] + [(WIDTH,)] * 5
SHAPES = {
    "4 tensors, 7.5k": [(64, 100), (100,), (100, 10), (10,)],
    "300x64": [(64,)] * 300,
    "1e5": [(100_000,)],
    "1e6": [(1_000_000,)],
    "76 tensors, 6.9M": [(8192, WIDTH), (256, WIDTH), *LAYER * 6, (WIDTH,), (WIDTH,)],
    "32e6": [(32_000_000,)],
}


def parameters(shapes):
    """Parameters with gradients."""
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def main() -> None:
    """Print fastgd.torch's time, and the others' as a multiple of it."""
    rng = np.random.default_rng(0)
    threads = torch.get_num_threads()
    # The first second of a process is slower than those that follow.
    interleaved({"start": fastgd.torch.AdamW(parameters([(64,)] * 300)).step}, rounds=300)
    for name in sys.argv[1:] or SHAPES:
        shapes = SHAPES[name]
        for optimizer, rivals in (("AdamW", ("fused", "foreach")), ("RMSprop", ("foreach",))):
            if optimizer == "RMSprop" and "tensors" not in name:
                continue
            for n in sorted({1, threads} if len(shapes) != 300 else {1}):
                torch.set_num_threads(n)
                fastgd.set_num_threads(n)
                arrays = [rng.standard_normal(s, np.float32) for s in shapes]
                bare = getattr(fastgd, optimizer)(arrays)
                grads = [rng.standard_normal(s, np.float32) for s in shapes]
                steps = {"fastgd.torch": getattr(fastgd.torch, optimizer)(parameters(shapes)).step}
                steps["bare"] = lambda bare=bare, grads=grads: bare.step(grads)
                for way in rivals:
                    theirs = getattr(torch.optim, optimizer)(parameters(shapes), **{way: True})
                    steps[way] = theirs.step
                small = sum(map(np.prod, shapes)) < 1e5
                times = interleaved(steps, rounds=61 if small else 15)
                own = times["fastgd.torch"]
                others = "  ".join(f"{key} {t / own:.2f}" for key, t in times.items())
                print(
                    f"{optimizer:<8} {name:<18}{n} threads {own * 1e6:10.1f} µs   {others}",
                    flush=True,
                )


if __name__ == "__main__":
    main()

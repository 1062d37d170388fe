"""What it gains to find out whether steps take one thread or all: microseconds a step.

    python bench/threads.py                        # steps that follow each other
    python bench/threads.py --gap 10               # with 10 ms between them, in which threads sleep
    python bench/threads.py --gap 10 --rivals 1    # beside a program that keeps a processor busy

By a fixed limit and as tuned, in blocks of steps by turns: medians, and in brackets means, as what
waits for a processor is rare and long.  Tuned steps count from their first verdict on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from time import perf_counter

import numpy as np

import fastgd

BLOCKS = 10


def made(name, n, states):
    """The step of an optimizer of n elements in tensors of 2,048."""
    params = list(np.random.default_rng(0).standard_normal((n // 2048, 2048), np.float32))
    options = {} if states is None else {"state_dtype": states, "min_8bit_size": 0}
    return getattr(fastgd, name)(params, grads=[p.copy() for p in params], **options).step


def seconds(step, gap):
    """How long a step takes, some time after the last one."""
    begin = perf_counter() + gap
    while perf_counter() < begin:
        pass
    start = perf_counter()
    step()
    return perf_counter() - start


def measured(step, gap, steps):
    """The times of steps by the fixed limit, and of tuned ones that tried nothing any more."""
    found = {"off": [], "on": []}
    for _ in range(BLOCKS):
        for mode, times in found.items():
            fastgd.set_tuning(mode)
            for _ in range(max(steps // BLOCKS, 1)):
                took = seconds(step, gap)
                trying = mode == "on" and any(kind.trying for kind in fastgd.threads_record())
                if not trying:
                    times.append(took)
    return [1e6 * np.array(times) for times in found.values()]


def main():
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", default="Adam")
    parser.add_argument("--states", choices=["bfloat16", "8bit"])
    parser.add_argument("--gap", type=float, default=0.0, help="milliseconds between steps")
    parser.add_argument("--rivals", type=int, default=0, help="programs that compute meanwhile")
    parser.add_argument("--steps", type=int, help="of each size; by default for some seconds")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2**k for k in range(13, 20)])
    given = parser.parse_args()
    steps = given.steps or int(4000 / (1 + 3 * given.gap))
    print(
        f"{given.optimizer}, {given.states or 'float32'}, {fastgd.get_backend()}, "
        f"{fastgd.get_num_threads()} threads: µs a step by a fixed limit, and as tuned"
    )
    rivals = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.rivals)
    ]
    try:
        for n in given.sizes:
            off, on = measured(made(given.optimizer, n, given.states), given.gap / 1e3, steps)
            tuned = f"{np.median(on):9.1f} ({on.mean():9.1f})" if len(on) else "  undecided"
            print(f"{n:>9} {np.median(off):9.1f} ({off.mean():9.1f}) {tuned}", flush=True)
    finally:
        for rival in rivals:
            rival.kill()


if __name__ == "__main__":
    main()

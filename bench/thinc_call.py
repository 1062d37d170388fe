"""thinc: a call of Adam.v1 and of fastgd.Adam.v1, taking turns, on one thread.

With clipping, averages and zeroed gradients, as by default:
``python bench/thinc_call.py [--repeats 30]``.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import thinc.optimizers as theirs

import fastgd
import fastgd.thinc as ours

CALLS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    fastgd.set_num_threads(1)
    print(f"{'elements':>10}{'thinc':>13}{'fastgd':>13}{'ratio':>8}")
    for n in (64, 10_000, 100_000, 1_000_000, 10_000_000):
        rng = np.random.default_rng(0)
        w, g = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
        made = [(module.Adam(0.001), w.copy(), g.copy()) for module in (theirs, ours)]
        seconds = np.empty((repeats if n < 10_000_000 else 5, 2))
        for row in seconds:
            for k, (optimizer, weights, gradient) in enumerate(made):
                gradient[...] = g
                start = time.perf_counter()
                for _ in range(CALLS):
                    optimizer((0, "W"), weights, gradient)
                row[k] = (time.perf_counter() - start) / CALLS
        a, b = np.median(seconds, axis=0)
        print(f"{n:10}{a * 1e6:10.1f} µs{b * 1e6:10.1f} µs{a / b:8.1f}")


if __name__ == "__main__":
    main()

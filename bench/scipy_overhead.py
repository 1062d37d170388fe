"""scipy.optimize.minimize: the time of a step outside the function, against the bare step.

A quadratic of 1e6 dimensions, on one thread: ``python bench/scipy_overhead.py [--repeats 7]``.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

import fastgd
import fastgd.scipy

N, STEPS = 1_000_000, 300


class Quadratic:
    """½ Σ sx², with its gradient in one array for all calls, and the time spent in it."""

    def __init__(self, dtype):
        self.scales = np.linspace(0.5, 2.0, N).astype(dtype)
        self.gradient = np.empty(N, dtype)
        self.seconds = 0.0

    def __call__(self, x):
        start = time.perf_counter()
        np.multiply(self.scales, x, out=self.gradient)
        value = 0.5 * float(self.gradient @ x)
        self.seconds += time.perf_counter() - start
        return value, self.gradient


def minimized(name, dtype):
    """Seconds of a step of minimize, less those of the function."""
    fun = Quadratic(dtype)
    x0, options = np.ones(N, dtype), {"lr": 1e-4, "maxiter": STEPS}
    start = time.perf_counter()
    minimize(fun, x0, jac=True, method=getattr(fastgd.scipy, name.lower()), options=options)
    return (time.perf_counter() - start - fun.seconds) / STEPS


def bare(name, dtype):
    """Seconds of a step in a plain loop, less those of the function."""
    fun, x = Quadratic(dtype), np.ones(N, dtype)
    start = time.perf_counter()
    opt = getattr(fastgd, name)(x, lr=1e-4)
    for _ in range(STEPS):
        opt.step(fun(x)[1])
    return (time.perf_counter() - start - fun.seconds) / STEPS


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    threadpool_limits(1)  # for the function's own products, too
    fastgd.set_num_threads(1)
    print(f"{'':20}{'bare':>12}{'minimize':>12}{'ratio':>8}")
    for dtype in ("float64", "float32"):
        for name in ("Adam", "SGD"):
            runs = [(bare(name, dtype), minimized(name, dtype)) for _ in range(repeats)]
            a, b = np.median(runs, axis=0)
            print(f"{name:6}{dtype:14}{a * 1e3:9.3f} ms{b * 1e3:9.3f} ms{b / a:8.2f}")


if __name__ == "__main__":
    main()

"""MLPClassifier: fitting with fastgd against scikit-learn alone; and the share of the optimizer.

784 inputs, hidden (1000,), 10 classes, batches of 200,
on one thread: ``python bench/sklearn_fit.py [--repeats 5]``.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
from sklearn import neural_network
from threadpoolctl import threadpool_limits

import fastgd
from fastgd import sklearn as ours

SAMPLES, STEPS = 4000, 20


class Timed:
    """An optimizer that adds up how long its updates take."""

    def __init__(self, inner):
        self.inner, self.seconds = inner, 0.0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def update_params(self, params, grads):
        start = time.perf_counter()
        self.inner.update_params(params, grads)
        self.seconds += time.perf_counter() - start


def fit(module, solver, dtype):
    """Seconds of one epoch, and of its updates."""
    rng = np.random.default_rng(0)
    x, y = rng.random((SAMPLES, 784)).astype(dtype), rng.integers(0, 10, SAMPLES)
    model = module.MLPClassifier((1000,), solver=solver, batch_size=200, max_iter=1, random_state=0)
    model.partial_fit(x[:200], y[:200], classes=np.arange(10))  # makes the optimizer and its states
    key = "_updates" if "_updates" in vars(model) else "_optimizer"
    timed = vars(model)[key] = Timed(vars(model)[key])
    start = time.perf_counter()
    model.partial_fit(x, y)
    return time.perf_counter() - start, timed.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    warnings.simplefilter("ignore")
    threadpool_limits(1)
    fastgd.set_num_threads(1)
    print(f"{'':16}{'fit, of theirs':>16}{'update, theirs':>16}{'ours':>9}{'ratio':>8}")
    for dtype in ("float64", "float32"):
        for solver in ("adam", "sgd"):
            runs = [
                (fit(neural_network, solver, dtype), fit(ours, solver, dtype))
                for _ in range(repeats)
            ]
            a, b = np.median([[*theirs, *own] for theirs, own in runs], axis=0).reshape(2, 2)
            print(
                f"{solver:6}{dtype:10}{b[0] / a[0]:15.0%} {a[1] / STEPS * 1e3:13.2f} ms"
                f"{b[1] / STEPS * 1e3:6.2f} ms{a[1] / b[1]:8.1f}"
            )


if __name__ == "__main__":
    main()

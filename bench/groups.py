"""What parameter groups add to a step: microseconds a group, of one small tensor each.

    python bench/groups.py
    python bench/groups.py --optimizer SGD --rounds 200

Against one group of as many tensors, in one run: a figure is the median of the differences of
paired steps, over the number of groups.  With a schedule for lr, each group calls one.
"""

from __future__ import annotations

import argparse
from time import perf_counter

import numpy as np

import fastgd

COUNTS = (10, 100, 1000)
ELEMENTS = 16


def scheduled(step):
    """A schedule that is cheap to call."""
    return 1e-3


def made(name, n, grouped, lr):
    """The step of an optimizer of n small tensors, in a group each or in one."""
    params = [np.ones(ELEMENTS, np.float32) for _ in range(n)]
    grads = [np.full(ELEMENTS, 0.5, np.float32) for _ in range(n)]
    groups = [{"params": p} for p in params] if grouped else params
    opt = getattr(fastgd, name)(groups, lr=lr, grads=grads)
    opt.step()
    return opt.step


def seconds(step):
    """How long a step takes."""
    start = perf_counter()
    step()
    return perf_counter() - start


def added(name, n, lr, rounds):
    """The microseconds that each of n groups adds to a step."""
    one, many = made(name, n, False, lr), made(name, n, True, lr)
    found = [-seconds(one) + seconds(many) for _ in range(max(rounds * 10 // n, rounds))]
    return 1e6 * float(np.median(found)) / n


def main():
    """Print a line for each number of groups."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", default="AdamW")
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    print(
        f"{given.optimizer}, {fastgd.get_backend()}: µs a group, with numbers and with a schedule"
    )
    for n in COUNTS:
        figures = [added(given.optimizer, n, lr, given.rounds) for lr in (1e-3, scheduled)]
        print(f"{n:>6} groups {figures[0]:8.2f} {figures[1]:8.2f}")


if __name__ == "__main__":
    main()

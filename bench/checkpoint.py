"""Saving and loading a gigabyte, beside writing and reading a plain file of the same size.

python bench/checkpoint.py [--gigabytes 1] [--folder .]        needs safetensors
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

import fastgd


def timed(call):
    start = perf_counter()
    call()
    return perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", default=".")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    n = int(arguments.gigabytes * 1e9 / 12)
    rng = np.random.default_rng(0)
    p, g = (np.resize(rng.standard_normal(1 << 20, np.float32), n) for _ in range(2))
    opt = fastgd.Adam(p)
    opt.step(g)
    plain_bytes = np.resize(g.view(np.uint8), 12 * n)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        file, plain = Path(folder) / "saved", Path(folder) / "plain"

        def write():
            with plain.open("wb") as f:
                f.write(plain_bytes)
                f.flush()
                os.fsync(f.fileno())

        def read():
            with plain.open("rb", buffering=0) as f:
                f.readinto(plain_bytes)

        def forget(path):
            """Let the next read come from the disk."""
            with path.open("rb") as f:
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        times = {"save": [], "write": [], "load": [], "read": []}
        for _ in range(arguments.rounds):
            times["save"].append(timed(lambda: fastgd.save(file, opt)))
            times["write"].append(timed(write))
            forget(file)
            times["load"].append(timed(lambda: fastgd.load(file, opt)))
            forget(plain)
            times["read"].append(timed(read))
    rate = {key: 12 * n / 1e9 / median(t) for key, t in times.items()}
    for own, other in (("save", "write"), ("load", "read")):
        words = f"{own} {rate[own]:.2f} GB/s, plain {other} {rate[other]:.2f} GB/s"
        print(f"{words}: {rate[own] / rate[other]:.0%} of it")


if __name__ == "__main__":
    main()

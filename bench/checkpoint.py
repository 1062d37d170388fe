"""Saving and loading a gigabyte, against writing and reading a plain file of the same size.

Reading is measured into allocated buffers, and into new ones, as loading needs them to check
everything before the first write: a virtual machine may take longer to allocate a gigabyte than to
read one.  Loading is measured from the disk, and from the system's cache.

python bench/checkpoint.py [--gigabytes 1] [--folder .]        needs safetensors
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

import fastgd
from fastgd.commands.work import Work


def timed(call):
    start = perf_counter()
    call()
    return perf_counter() - start


def main(work):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", default=".")
    parser.add_argument("--rounds", type=int, default=9)
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

        def read(into=None):
            with plain.open("rb", buffering=0) as f:
                f.readinto(np.empty(12 * n, np.uint8) if into is None else into)

        def forget(path):
            """Let the next read come from the disk."""
            with path.open("rb") as f:
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        reads = {
            "load": (file, lambda: fastgd.load(file, opt)),
            "plain read": (plain, lambda: read(plain_bytes)),
            "plain read, new memory": (plain, read),
        }
        times = defaultdict(list)
        work.expect(arguments.rounds)
        for k in range(arguments.rounds):
            times["save"].append(timed(lambda: fastgd.save(file, opt)))
            times["plain write"].append(timed(write))
            for key, (path, call) in reads.items():
                forget(path)
                times[key].append(timed(call))
            for key, (_, call) in reads.items():
                times[f"{key}, cached"].append(timed(call))
            work.advance(f"round {k + 1}")
    keys = list(times)
    compared = {"save": keys[1:2], "load": keys[3:5], "load, cached": keys[6:]}
    for own, others in compared.items():
        print(f"{own}: {12 * n / 1e9 / median(times[own]):.2f} GB/s")
        for other in others:
            ratios = [t / u for t, u in zip(times[other], times[own], strict=True)]
            rate = 12 * n / 1e9 / median(times[other])
            print(f"    {median(ratios):.0%} of {other} ({rate:.2f} GB/s)")


if __name__ == "__main__":
    with Work("checkpoint") as work:
        main(work)

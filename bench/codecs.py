"""What each codec costs: nanoseconds for an element of a tile in L1, for every backend.

    python bench/codecs.py

The last row is a step with two 8-bit states: two loads, the random words, two stochastic stores.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from importlib import import_module
from pathlib import Path

import numpy as np

import fastgd

N = 256
TIMES = 500
ROUNDS = 100
ADAM = ["load e5m2", "load ue6m2", "random words", "stochastic e5m2", "stochastic ue6m2"]


def compiled() -> ctypes.CDLL:
    """The loops of codecs.c."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "codecs.so"
        source = Path(__file__).with_suffix(".c")
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", source, "-o", library], check=True)
        return ctypes.CDLL(str(library))


def aligned(nbytes: int) -> np.ndarray:
    """Bytes from the start of a cache line on."""
    raw = np.zeros(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


class Bench:
    """A tile of each kind, and the times of the loops over it."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.library = compiled()
        self.x = {dtype: aligned(8 * N)[: dtype().itemsize * N].view(dtype)
                  for dtype in (np.float32, np.float64)}  # fmt: skip
        for x in self.x.values():
            x[:] = np.exp(3 * rng.standard_normal(N))
        self.code, self.aux, self.words = aligned(8 * N), aligned(2 * N), aligned(4 * N)
        self.words[:] = rng.integers(0, 256, 4 * N)

    def nanoseconds(self, call) -> float:
        best = float("inf")
        for _ in range(ROUNDS):
            start = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - start)
        return best / (TIMES * N) * 1e9

    def row(self, backend: str, dtype: type) -> dict[str, float]:
        """Times of all loops of a backend for one compute type."""
        module = import_module(f"fastgd.kernels._{backend}")
        fuse = int(dtype is np.float64)
        x, code, aux, words = (
            ctypes.c_void_p(a.ctypes.data) for a in (self.x[dtype], self.code, self.aux, self.words)
        )
        n, times, shift = ctypes.c_ssize_t(N), ctypes.c_long(TIMES), ctypes.c_int(16)
        row = {}
        for name, (load, store, stochastic) in module.CODECS.items():
            for kind, loops in (("store", store), ("stochastic", stochastic)):
                if loops:
                    f = ctypes.c_void_p(loops[fuse])
                    row[f"{kind} {name}"] = self.nanoseconds(
                        lambda f=f: self.library.repeat_store(
                            f, code, aux, x, n, words, shift, times
                        )
                    )
            f = ctypes.c_void_p(load[fuse])
            row[f"load {name}"] = self.nanoseconds(
                lambda f=f: self.library.repeat_load(f, x, code, aux, n, times)
            )
        f = ctypes.c_void_p(module.RANDOM[0])
        row["random words"] = self.nanoseconds(
            lambda: self.library.repeat_words(f, words, x, n, times)
        )
        self.words[:] = np.random.default_rng(1).integers(0, 256, 4 * N)
        return row


def main() -> None:
    """Print the table."""
    backends = [name for name in fastgd.available_backends() if name != "numpy"]
    bench = Bench()
    for dtype in (np.float32, np.float64):
        rows = {backend: bench.row(backend, dtype) for backend in backends}
        print(f"\n| ns per element, {dtype.__name__} | {' | '.join(backends)} |")
        print("|---|" + "--:|" * len(backends))
        for loop in sorted(rows[backends[0]]):
            print(f"| {loop} | {' | '.join(f'{rows[b][loop]:.3f}' for b in backends)} |")
        sums = [sum(rows[b][loop] for loop in ADAM) for b in backends]
        print(f"| **two 8-bit states in all** | {' | '.join(f'{s:.3f}' for s in sums)} |")


if __name__ == "__main__":
    main()

"""The plain stream that moves a rule's bytes: how fast this machine could go."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np


def aligned_ones(n: int) -> np.ndarray:
    """An array on a cache line's start; ones, as all pages of an untouched np.zeros are one."""
    raw = np.ones(n + 16, np.float32)
    start = -(raw.ctypes.data // 4) % 16
    return raw[start : start + n]


class Stream:
    """A compiled sweep over a parameter, a gradient and up to four states of float32."""

    def __init__(self) -> None:
        source = Path(__file__).with_name("stream.c")
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "stream.so"
            compiler = os.environ.get("CC", "cc")
            flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
            subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
            loaded = ctypes.CDLL(str(library))
        self._stream, self._read, self._rows = loaded.stream, loaded.read_all, loaded.move_rows
        pointer = ctypes.c_void_p
        self._read.argtypes = [pointer, ctypes.c_ssize_t, ctypes.c_int]
        self._read.restype = ctypes.c_double
        size = ctypes.c_ssize_t
        self._rows.argtypes = [
            pointer,
            ctypes.c_int,
            pointer,
            pointer,
            pointer,
            size,
            size,
            ctypes.c_int,
        ]
        self._stream.argtypes = [pointer] * 6 + [ctypes.c_int, ctypes.c_ssize_t, ctypes.c_int]

    def reading(self, n: int, threads: int):
        """A function that reads n elements once."""
        array = aligned_ones(n)

        def run():
            return self._read(array.ctypes.data, n, threads)

        return run

    def over(self, n: int, states: int, threads: int, reads: int = 0):
        """A function that moves the bytes of one step once, after reading the gradient first."""
        arrays = [aligned_ones(n) for _ in range(2 + states)]
        pointers = [a.ctypes.data for a in arrays] + [None] * (4 - states)

        def run(_keep=arrays):
            for _ in range(reads):
                self._read(pointers[1], n, threads)
            self._stream(*pointers, states, n, threads)

        return run

    def rows(self, tables, lines, threads: int):
        """A function of indices (int64) and values that moves the bytes of a step by rows.

        `tables` are arrays of float32 in the shape of the parameter, `lines` one with a number for
        each row, or None.
        """
        addresses = (ctypes.c_void_p * len(tables))(*[a.ctypes.data for a in tables])
        of_lines = None if lines is None else lines.ctypes.data

        def run(indices, values, _keep=(tables, lines)):
            self._rows(
                addresses, len(tables), of_lines, values.ctypes.data, indices.ctypes.data,
                *values.shape, threads,
            )  # fmt: skip

        return run

"""What a call from compiled code costs beyond its loop: Cython's and Numba's, in nanoseconds.

    python bench/c_level.py            (needs the extra `compiled` and a C compiler)

The loop itself is the same call through a pointer that was fetched beforehand, of the rule alone.
Times are medians of 21 runs of 100,000 calls on float32 arrays that stay in cache.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from ctypes import CFUNCTYPE, c_ssize_t, c_void_p
from importlib import import_module
from pathlib import Path
from time import perf_counter

import numba
import numpy as np
from numba.extending import get_cython_function_address

import fastgd

CALLS, RUNS = 100_000, 21
CYTHON = """
# cython: language_level=3
from fastgd.kernels.c_api cimport fastgd_adam_f32
ctypedef void (*rule)(float*, const float*, float**, Py_ssize_t, const float*) noexcept nogil

def by_name(float[:, ::1] a, Py_ssize_t n, double[::1] c, double[::1] stages, Py_ssize_t calls):
    cdef Py_ssize_t k
    with nogil:
        for k in range(calls):
            fastgd_adam_f32(&a[0, 0], &a[1, 0], &a[2, 0], &a[3, 0], n, &c[0],
                            NULL if stages is None else &stages[0])

def loop_alone(float[:, ::1] a, Py_ssize_t n, float[::1] c, size_t address, Py_ssize_t calls):
    cdef float* s[2]
    cdef Py_ssize_t k
    s[0], s[1] = &a[2, 0], &a[3, 0]
    with nogil:
        for k in range(calls):
            (<rule> address)(&a[0, 0], &a[1, 0], s, n, &c[0])
"""


def nanoseconds(call) -> float:
    """The median time of one of the calls that `call` makes."""
    times = []
    for _ in range(RUNS):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return statistics.median(times) / CALLS * 1e9


def cython_module():
    """The loops above, compiled."""
    folder = Path(tempfile.mkdtemp())
    (folder / "calls.pyx").write_text(CYTHON)
    build = [sys.executable, "-m", "Cython.Build.Cythonize", "-i", "calls.pyx"]
    subprocess.run(build, cwd=folder, check=True, capture_output=True)
    sys.path.insert(0, str(folder))
    return import_module("calls")


ADAM = CFUNCTYPE(None, *[c_void_p] * 4, c_ssize_t, c_void_p, c_void_p)(
    get_cython_function_address("fastgd.kernels.c_api", "fastgd_adam_f32")
)


@numba.njit(nogil=True)
def by_numba(p, g, m, v, n, c, stages, calls):
    """The same calls from Numba, which has no NULL: stages that do nothing."""
    for _ in range(calls):
        ADAM(p.ctypes, g.ctypes, m.ctypes, v.ctypes, n, c.ctypes, stages.ctypes)


def main() -> None:
    """Print a table."""
    calls = cython_module()
    backend = import_module(f"fastgd.kernels._{fastgd.get_backend()}")
    c = np.array([1e-3, 0.9, 0.1, 0.999, 1e-3, 1e-8, 0.0])
    none, decay = np.array([1, 0, 1, np.inf]), np.array([1, 0, 0.999, np.inf])
    print(f"ns, {backend.__name__}")
    print(f"{'elements':>8}{'loop':>8}{'Cython':>8}{'+ decay':>8}{'Numba':>8}")
    for n in (0, 1, 16, 64, 256, 1024):
        a = np.abs(np.random.default_rng(0).standard_normal((4, max(n, 16)), np.float32))
        address = backend.RULES["adam"][0]
        by_numba(*a, n, c, none, 1)
        row = [
            nanoseconds(
                lambda a=a, n=n, at=address: calls.loop_alone(a, n, c.astype("f"), at, CALLS)
            ),
            nanoseconds(lambda a=a, n=n: calls.by_name(a, n, c, None, CALLS)),
            nanoseconds(lambda a=a, n=n: calls.by_name(a, n, c, decay, CALLS)),
            nanoseconds(lambda a=a, n=n: by_numba(*a, n, c, none, CALLS)),
        ]
        print(f"{n:>8}" + "".join(f"{ns:8.1f}" for ns in row))


if __name__ == "__main__":
    main()

"""Plain C that steps with fastgd's kernels: build plain.c as a shared library, hand it the table.

include="$(python -c 'import fastgd; print(fastgd.get_include())')"
cc -O2 -shared -fPIC -I"$include" plain.c -o plain.so && python plain_c.py ./plain.so
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np

from fastgd.kernels import c_api


def descend(library: str, x: np.ndarray, lr: float, steps: int) -> None:
    """Take steps of Adam on ½‖x − 1‖² in place, all of them in C."""
    plain = ctypes.CDLL(str(Path(library).resolve()))
    plain.use_fastgd.restype = ctypes.c_char_p
    if (missing := plain.use_fastgd(ctypes.c_void_p(c_api.TABLE))) is not None:
        raise ImportError(f"{missing.decode()}: {library} was compiled for another fastgd")
    arrays = [x, *(np.zeros_like(x) for _ in range(3))]
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in arrays]
    plain.descend(*pointers, ctypes.c_ssize_t(x.size), ctypes.c_double(lr), ctypes.c_int(steps))


if __name__ == "__main__":
    x = np.zeros(100)
    descend(sys.argv[1], x, lr=0.05, steps=500)
    print(f"farthest from the minimum: {np.abs(x - 1).max():.1e}")

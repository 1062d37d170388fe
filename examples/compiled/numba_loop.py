"""A training loop in Numba that steps with fastgd's kernels, without the GIL."""

from __future__ import annotations

from ctypes import CFUNCTYPE, c_double, c_longlong, c_ssize_t, c_void_p

import numba
import numpy as np
from numba.extending import get_cython_function_address

C_API = "fastgd.kernels.c_api"
adam = CFUNCTYPE(
    None, c_void_p, c_void_p, c_void_p, c_void_p, c_ssize_t, c_void_p, c_void_p
)(get_cython_function_address(C_API, "fastgd_adam_f32"))  # fmt: skip
coefficients = CFUNCTYPE(
    None, c_double, c_double, c_double, c_double, c_double, c_longlong, c_void_p
)(get_cython_function_address(C_API, "fastgd_adam_coefficients"))  # fmt: skip


@numba.njit(nogil=True)
def descend(x, grad, exp_avg, exp_avg_sq, lr, steps):
    """Take steps of Adam on ½‖x − 1‖², in place."""
    c = np.empty(8)
    stages = np.array([1.0, 0.0, 1.0, np.inf])  # none; a pointer that is NULL is no Numba array
    for step in range(1, steps + 1):
        for i in range(x.size):
            grad[i] = x[i] - 1
        coefficients(lr, 0.9, 0.999, 1e-8, 0.0, step, c.ctypes)
        adam(
            x.ctypes, grad.ctypes, exp_avg.ctypes, exp_avg_sq.ctypes, x.size, c.ctypes,
            stages.ctypes,
        )  # fmt: skip


if __name__ == "__main__":
    x, *others = np.zeros((4, 100), np.float32)
    descend(x, *others, 0.05, 500)
    print(f"farthest from the minimum: {np.abs(x - 1).max():.1e}")

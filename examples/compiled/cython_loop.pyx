# cython: language_level=3, boundscheck=False, wraparound=False
"""A training loop in Cython that steps with fastgd's kernels, without the GIL."""

from fastgd.kernels.c_api cimport fastgd_adam_coefficients, fastgd_adam_f32


def descend(float[::1] x, float[::1] grad, float[::1] exp_avg, float[::1] exp_avg_sq,
            double lr, int steps):
    """Take steps of Adam on ½‖x − 1‖², in place."""
    cdef double c[8]
    cdef Py_ssize_t i, n = x.shape[0]
    cdef int step
    if not n:
        return
    with nogil:
        for step in range(1, steps + 1):
            for i in range(n):
                grad[i] = x[i] - 1
            fastgd_adam_coefficients(lr, 0.9, 0.999, 1e-8, 0.0, step, c)
            fastgd_adam_f32(&x[0], &grad[0], &exp_avg[0], &exp_avg_sq[0], n, c, NULL)

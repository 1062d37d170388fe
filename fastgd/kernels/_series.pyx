"""Exponentially weighted averages along series: the loop of `fastgd.averages.ewma`.

One module for all backends: along a series each value waits for the one before, so wider registers
would not help.
"""

from cython cimport floating

cimport numpy as cnp

cnp.import_array()

# Series worked on side by side, so that they wait for their multiply and add together.
cdef enum:
    LANES = 8
    BLOCK = 256


def ewma(cnp.ndarray x, cnp.ndarray out, cnp.ndarray v, double weight, double beta, bint correct):
    """Average along the middle axis; see `fastgd.kernels.reference.ewma`, which specifies it.

    Parameters
    ----------
    x, out : ndarray of float32 or float64, shape (outer, length, inner), C-contiguous
        The series, and where their averages go; may be the same array.
    v : ndarray of the same dtype, shape (outer, inner), C-contiguous
        The averages to start from, and on return to go on from.
    weight : float
        The sum of the weights so far.
    beta : float
        The weight of the past.
    correct : bool
        Whether to divide by the sum of the weights.

    Returns
    -------
    float
        The sum of the weights, to go on from.
    """
    cdef Py_ssize_t outer = x.shape[0], length = x.shape[1], inner = x.shape[2]
    if cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE:
        return run[double](<double*> cnp.PyArray_DATA(x), <double*> cnp.PyArray_DATA(out),
                           <double*> cnp.PyArray_DATA(v), outer, length, inner, weight, beta,
                           1.0 - beta, correct)
    return run[float](<float*> cnp.PyArray_DATA(x), <float*> cnp.PyArray_DATA(out),
                      <float*> cnp.PyArray_DATA(v), outer, length, inner, <float> weight,
                      <float> beta, <float> (1.0 - beta), correct)


cdef floating run(const floating* x, floating* out, floating* v, Py_ssize_t outer,
                  Py_ssize_t length, Py_ssize_t inner, floating weight, floating beta,
                  floating gamma, bint correct) noexcept:
    cdef Py_ssize_t i, k, size = length * inner
    cdef floating c = weight
    with nogil:
        if inner == 1:
            i = 0
            while i + LANES <= outer:
                c = along_many(x + i * size, out + i * size, v + i, length, weight, beta, gamma,
                               correct)
                i += LANES
            for k in range(i, outer):
                c = along_one(x + k * size, out + k * size, v + k, length, weight, beta, gamma,
                              correct)
        else:
            for k in range(outer):
                c = across(x + k * size, out + k * size, v + k * inner, length, inner, weight,
                           beta, gamma, correct)
    return c


cdef floating along_one(const floating* x, floating* out, floating* v, Py_ssize_t length,
                        floating c, floating beta, floating gamma, bint correct) noexcept nogil:
    cdef floating a = v[0]
    cdef Py_ssize_t t
    for t in range(length):
        a = beta * a + gamma * x[t]
        c = beta * c + gamma
        out[t] = a / c if correct else a
    v[0] = a
    return c


cdef floating along_many(const floating* x, floating* out, floating* v, Py_ssize_t length,
                         floating c, floating beta, floating gamma, bint correct) noexcept nogil:
    cdef floating[LANES] a
    cdef floating[BLOCK] weights
    cdef floating* row
    cdef Py_ssize_t start = 0, m, t, k
    for k in range(LANES):
        a[k] = v[k]
    while start < length:
        m = min(<Py_ssize_t> BLOCK, length - start)
        for t in range(m):
            c = beta * c + gamma
            weights[t] = c
            for k in range(LANES):
                a[k] = beta * a[k] + gamma * x[k * length + start + t]
                out[k * length + start + t] = a[k]
        if correct:      # along each series in turn, where divisions go side by side
            for k in range(LANES):
                row = out + k * length + start
                for t in range(m):
                    row[t] = row[t] / weights[t]
        start += m
    for k in range(LANES):
        v[k] = a[k]
    return c


cdef floating across(const floating* x, floating* out, floating* v, Py_ssize_t length,
                     Py_ssize_t inner, floating c, floating beta, floating gamma,
                     bint correct) noexcept nogil:
    cdef Py_ssize_t _t, k
    for _t in range(length):
        c = beta * c + gamma
        for k in range(inner):
            v[k] = beta * v[k] + gamma * x[k]
        if correct:
            for k in range(inner):
                out[k] = v[k] / c
        else:
            for k in range(inner):
                out[k] = v[k]
        x += inner
        out += inner
    return c

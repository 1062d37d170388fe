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
    v : ndarray of float64, shape (outer, inner), C-contiguous
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
    cdef double* a = <double*> cnp.PyArray_DATA(v)
    if cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE:
        return run[double](<double*> cnp.PyArray_DATA(x), <double*> cnp.PyArray_DATA(out), a,
                           outer, length, inner, weight, beta, 1.0 - beta, correct)
    return run[float](<float*> cnp.PyArray_DATA(x), <float*> cnp.PyArray_DATA(out), a, outer,
                      length, inner, weight, beta, 1.0 - beta, correct)


cdef double run(const floating* x, floating* out, double* v, Py_ssize_t outer, Py_ssize_t length,
                Py_ssize_t inner, double weight, double beta, double gamma,
                bint correct) noexcept:
    cdef Py_ssize_t i, k, size = length * inner
    cdef double c = weight
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


cdef double along_one(const floating* x, floating* out, double* v, Py_ssize_t length,
                      double c, double beta, double gamma, bint correct) noexcept nogil:
    cdef double a = v[0]
    cdef Py_ssize_t t
    for t in range(length):
        a = beta * a + gamma * x[t]
        c = beta * c + gamma
        out[t] = <floating> (a / c if correct else a)
    v[0] = a
    return c


cdef double along_many(const floating* x, floating* out, double* v, Py_ssize_t length,
                       double c, double beta, double gamma, bint correct) noexcept nogil:
    cdef double[LANES] a
    cdef double[LANES][BLOCK] averages
    cdef double[BLOCK] weights
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
                averages[k][t] = a[k]
        for k in range(LANES):       # along each series in turn, where divisions go side by side
            row = out + k * length + start
            if correct:
                for t in range(m):
                    row[t] = <floating> (averages[k][t] / weights[t])
            else:
                for t in range(m):
                    row[t] = <floating> averages[k][t]
        start += m
    for k in range(LANES):
        v[k] = a[k]
    return c


cdef double across(const floating* x, floating* out, double* v, Py_ssize_t length,
                   Py_ssize_t inner, double c, double beta, double gamma,
                   bint correct) noexcept nogil:
    cdef Py_ssize_t _t, k
    for _t in range(length):
        c = beta * c + gamma
        for k in range(inner):
            v[k] = beta * v[k] + gamma * x[k]
        if correct:
            for k in range(inner):
                out[k] = <floating> (v[k] / c)
        else:
            for k in range(inner):
                out[k] = <floating> v[k]
        x += inner
        out += inner
    return c


def ewma_of_observed(cnp.ndarray x, cnp.ndarray out, cnp.ndarray v, cnp.ndarray weights,
                     cnp.ndarray past, double gamma, bint correct, bint ignore):
    """Average what isn't NaN; see `fastgd.kernels.reference.ewma_of_observed`.

    Parameters
    ----------
    x, out, v, correct
        As for `ewma`.
    weights : ndarray of float64, shape (outer, inner), C-contiguous
        The weight of each average beside the next value, to go on from.
    past : ndarray of float64, shape (length,), C-contiguous
        The weight of the past at each place.
    gamma : float
        The weight of a value; NaN for what `past` leaves of 1.
    ignore : bool
        Whether the places of values that are NaN don't count.
    """
    cdef Py_ssize_t outer = x.shape[0], length = x.shape[1], inner = x.shape[2]
    cdef double* a = <double*> cnp.PyArray_DATA(v)
    cdef double* w = <double*> cnp.PyArray_DATA(weights)
    cdef const double* beta = <double*> cnp.PyArray_DATA(past)
    if cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE:
        observed[double](<double*> cnp.PyArray_DATA(x), <double*> cnp.PyArray_DATA(out), a, w,
                         outer, length, inner, beta, gamma, correct, ignore)
    else:
        observed[float](<float*> cnp.PyArray_DATA(x), <float*> cnp.PyArray_DATA(out), a, w,
                        outer, length, inner, beta, gamma, correct, ignore)


cdef void observed(const floating* x, floating* out, double* v, double* weights, Py_ssize_t outer,
                   Py_ssize_t length, Py_ssize_t inner, const double* beta, double gamma,
                   bint correct, bint ignore) noexcept:
    cdef Py_ssize_t _i, t, k
    cdef double now, w, fresh
    with nogil:
        for _i in range(outer):
            for t in range(length):
                for k in range(inner):
                    now, w = x[k], weights[k]
                    if v[k] == v[k]:
                        if now == now or not ignore:
                            w = w * beta[t]
                        if now == now:
                            fresh = 1.0 if correct else 1.0 - w if gamma != gamma else gamma
                            if v[k] != now:
                                v[k] = (w * v[k] + fresh * now) / (w + fresh)
                            w = w + fresh if correct else 1.0
                    elif now == now:
                        v[k], w = now, 1.0
                    weights[k] = w
                    out[k] = <floating> v[k]
                x += inner
                out += inner
            v += inner
            weights += inner

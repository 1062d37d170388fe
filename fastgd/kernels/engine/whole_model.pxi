# Sums that go over all tensors, and numbers that all have alike.  Included by _engine.pyx.

cdef void add_up_tensors(Layout layout) noexcept:
    """Replace the sums over each tensor by those over all, in order, of terms that ask for it."""
    cdef double sums[MAX_SUMS]
    cdef Py_ssize_t i
    cdef int j
    cdef Tensor* t
    memset(sums, 0, sizeof(sums))
    for i in range(layout.n):
        t = &layout.tensors[i]
        if t.g != NULL:
            for j in range(MAX_SUMS):
                if t.info.totals >> j & 1:
                    sums[j] += t.own.sums[j]
    for i in range(layout.n):
        t = &layout.tensors[i]
        if t.g != NULL:
            for j in range(MAX_SUMS):
                if t.info.totals >> j & 1:
                    t.own.sums[j] = sums[j]


cdef void share_numbers(Layout layout) noexcept:
    """Give all tensors the numbers that the first one with a gradient has settled on."""
    cdef Py_ssize_t i
    cdef int j
    cdef Tensor* t
    cdef const Tensor* settled = NULL
    for i in range(layout.n):
        t = &layout.tensors[i]
        if settled == NULL and t.g != NULL and t.info.shared:
            settled = t
    if settled == NULL:
        return
    for i in range(layout.n):
        t = &layout.tensors[i]
        for j in range(t.info.n_numbers):
            if t.info.shared >> j & 1:
                t.own.numbers[j][0] = settled.own.numbers[j][0]

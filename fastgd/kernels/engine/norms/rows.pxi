# Sums of squares of gradients by rows: each row has blocks of its own, and rows are added up in
# ascending order.  Included by _engine.pyx.

cdef inline SumChunk chunk_of_row(const Tensor* t, Py_ssize_t k) noexcept nogil:
    """The gradient of the k-th distinct row."""
    cdef Py_ssize_t length = t.rows.length
    return whole_of(values_at(t.rows, k), NULL, t.g_codec, length, Axis(max(length, 1), 1), NULL,
                    t.rows.totals + k * n_blocks(length))


cdef void add_up_rows(const Tensor* t, Py_ssize_t start, Py_ssize_t end,
                      const Loops* loops) noexcept nogil:
    """Fill in the totals of some distinct rows."""
    cdef SumChunk one
    cdef Py_ssize_t k
    for k in range(start, end):
        if k + ROWS_AHEAD < end:
            fastgd_prefetch_row(values_at(t.rows, k + ROWS_AHEAD), t.rows.size)
        one = chunk_of_row(t, k)
        add_up(&one, &one + 1, Summand(1.0, True), loops)


cdef int sum_of_row(Backend backend, const Tensor* t, Py_ssize_t k, Sum* total) except -1:
    """The sum of squares of a distinct row whose blocks are summed up already."""
    cdef SumChunk one = chunk_of_row(t, k)
    sum_of_unit(backend, &one, 0, True, total)


cdef int sum_of_table_row(Backend backend, const Tensor* t, const SumChunk* whole, Py_ssize_t k,
                          Sum* total) except -1:
    """The sum of squares of the parameter's row; the totals of the gradient's are overwritten."""
    cdef Py_ssize_t length = t.rows.length
    cdef SumChunk one = slice_of(whole, row_at(t.rows, k) * length, length)
    one.units = Axis(max(length, 1), 1)
    one.totals = t.rows.totals + k * n_blocks(length)
    add_up_chunks(backend, &one, 1, length, Summand(1.0, True), PARALLEL_FROM)
    sum_of_unit(backend, &one, 0, True, total)

# The sweep over the rows of a gradient by rows: each is a small tensor of the same rule.
# Included by _engine.pyx; specified by spec/rows.py.

# Rows of up to so many elements are stepped in place one after the other, if the rule is all that
# there is to do; longer ones as tensors of their own.
cdef Py_ssize_t SHORT_ROW = 1024


# What a thread makes of a table to step one of its rows.
cdef struct RowView:
    Tensor tensor
    Coding coding
    StepArgs step
    Chunk chunk


cdef void run_rows(const Tensor* t, const Coding* coding, const GroupStep* group_steps,
                   const StepArgs* step, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """Step some of the distinct rows of a table."""
    cdef const GroupStep* own = &group_steps[t.group_step]
    if t.flags & t.info.last_flags == 0 and t.rows.length <= SHORT_ROW:
        if t.is_double:
            run_rows_plain[double](<double*> t.p, t, doubles_of(t, own), own.rule[1], start, end)
        else:
            run_rows_plain[float](<float*> t.p, t, floats_of(t, own), own.rule[0], start, end)
    else:
        run_rows_staged(t, coding, group_steps, step, start, end)


cdef inline void prefetch_row(const Tensor* t, Py_ssize_t k) noexcept nogil:
    """Prefetch the k-th distinct row of parameter and states, and its gradient."""
    cdef Py_ssize_t row = row_at(t.rows, k), length = t.rows.length
    cdef int j, size = codec_rows[t.p_codec].size
    fastgd_prefetch(t.p + row * length * size, length * size)
    for j in range(t.n_states):
        size = codec_rows[t.s_codec[j]].size
        fastgd_prefetch(t.s[j] + row * length * size, length * size)
    fastgd_prefetch(values_at(t.rows, k), t.rows.size)


cdef inline void run_rows_plain(real* p, const Tensor* t, const real* c, void* rule,
                                Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """The rule alone, in place on the caller's memory."""
    cdef real* s[MAX_STATES]
    cdef Py_ssize_t k, at, n = t.rows.length
    cdef const real* g
    cdef int j
    for k in range(start, min(start + ROWS_AHEAD, end)):
        prefetch_row(t, k)
    for k in range(start, end):
        if k + ROWS_AHEAD < end:
            prefetch_row(t, k + ROWS_AHEAD)
        at = row_at(t.rows, k) * n
        g = <const real*> values_at(t.rows, k)
        for j in range(t.n_states):
            s[j] = <real*> t.s[j] + at
        if real is float:
            (<rule_f32> rule)(p + at, g, s, n, c)
        else:
            (<rule_f64> rule)(p + at, g, s, n, c)


cdef void run_rows_staged(const Tensor* t, const Coding* coding, const GroupStep* group_steps,
                          const StepArgs* step, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """The same with stages, or with long rows."""
    cdef RowView view
    cdef Py_ssize_t k, at, length = t.rows.length
    cdef bint short = length <= SHORT_ROW
    cdef const Codec* codec
    cdef int j
    view.tensor, view.coding, view.step = t[0], coding[0], step[0]
    view.tensor.n, view.tensor.rows, view.step.codings = length, NULL, &view.coding
    view.chunk.tensor, view.chunk.offset, view.chunk.n = 0, 0, length
    if short:
        view.step.prefetch = False
        for k in range(start, min(start + ROWS_AHEAD, end)):
            prefetch_row(t, k)
    for k in range(start, end):
        if short and k + ROWS_AHEAD < end:
            prefetch_row(t, k + ROWS_AHEAD)
        at = row_at(t.rows, k) * length
        codec = &codec_rows[t.p_codec]
        view.tensor.p = t.p + at * codec.size
        view.tensor.g = values_at(t.rows, k)
        if coding.p_aux != NULL:
            view.coding.p_aux = coding.p_aux + at // codec.per * codec.aux_size
        for j in range(t.n_states):
            codec = &codec_rows[t.s_codec[j]]
            view.tensor.s[j] = t.s[j] + at * codec.size
            if coding.s_aux[j] != NULL:
                view.coding.s_aux[j] = coding.s_aux[j] + at // codec.per * codec.aux_size
        if t.copy != NULL:
            view.tensor.copy = t.copy + at * codec_rows[t.copy_codec].size
        view.coding.origin = coding.origin + at
        if t.flags & SCALE_UNITS:
            view.tensor.flags = (t.flags & ~SCALE_UNITS) | SCALE
            view.tensor.factor = t.factors[k]
        run_last(&view.tensor, group_steps, &view.step, &view.chunk)

# Sweeps by rows: each row of a table is a small tensor of the same rule.  Those of a gradient by
# rows are stepped so, and all rows where the rule has a number for each.
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


cdef inline Py_ssize_t row_of_step(const Tensor* t, Py_ssize_t k) noexcept nogil:
    """The k-th row that a step is about."""
    return k if t.rows == NULL else row_at(t.rows, k)


cdef inline char* gradient_of_row(const Tensor* t, Py_ssize_t k) noexcept nogil:
    """Its gradient."""
    if t.rows == NULL:
        return t.g + k * t.row_length * codec_rows[t.g_codec].size
    return values_at(t.rows, k)


cdef void run_rows(const Tensor* t, const Coding* coding, const GroupStep* group_steps,
                   const StepArgs* step, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """Step some of the rows that a step is about."""
    cdef const GroupStep* own = &group_steps[t.group_step]
    cdef bint plain = t.flags & t.info.last_flags == 0
    if plain and t.info.entries >= 0:
        if t.is_double:
            run_rows_of_numbers[double](<double*> t.p, t, doubles_of(t, own), own, step.loops,
                                        start, end)
        else:
            run_rows_of_numbers[float](<float*> t.p, t, floats_of(t, own), own, step.loops,
                                       start, end)
    elif plain and t.row_length <= SHORT_ROW:
        if t.is_double:
            run_rows_plain[double](<double*> t.p, t, doubles_of(t, own), own.rule[1], start, end)
        else:
            run_rows_plain[float](<float*> t.p, t, floats_of(t, own), own.rule[0], start, end)
    else:
        run_rows_staged(t, coding, group_steps, step, start, end)


cdef inline void prefetch_row(const Tensor* t, Py_ssize_t k) noexcept nogil:
    """Prefetch the k-th row of parameter and states, and its gradient; long ones take too much."""
    if t.row_length <= SHORT_ROW:
        prefetch_own(t, row_of_step(t, k))
        fastgd_prefetch_row(gradient_of_row(t, k), t.row_length * codec_rows[t.g_codec].size)


cdef inline void prefetch_own(const Tensor* t, Py_ssize_t row) noexcept nogil:
    """Prefetch a row of parameter and states."""
    cdef Py_ssize_t length = t.row_length
    cdef int j, size = codec_rows[t.p_codec].size
    fastgd_prefetch_row(t.p + row * length * size, length * size)
    for j in range(t.n_states):
        size = codec_rows[t.s_codec[j]].size
        if j == t.info.entries:
            fastgd_prefetch_row(t.s[j] + row * size, size)
        else:
            fastgd_prefetch_row(t.s[j] + row * length * size, length * size)


cdef inline void run_rows_plain(real* p, const Tensor* t, const real* c, void* rule,
                                Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """The rule alone, in place on the caller's memory."""
    cdef real* s[MAX_STATES]
    cdef Py_ssize_t k, at, n = t.row_length
    cdef const real* g
    cdef int j
    for k in range(start, min(start + ROWS_AHEAD, end)):
        prefetch_row(t, k)
    for k in range(start, end):
        if k + ROWS_AHEAD < end:
            prefetch_row(t, k + ROWS_AHEAD)
        at = row_of_step(t, k) * n
        g = <const real*> gradient_of_row(t, k)
        for j in range(t.n_states):
            s[j] = <real*> t.s[j] + at
        if real is float:
            (<rule_f32> rule)(p + at, g, s, n, c)
        else:
            (<rule_f64> rule)(p + at, g, s, n, c)


cdef inline real number_of_row(real* state, double mean, const GroupStep* own,
                               const real* c) noexcept nogil:
    """Update the number of a row by the mean square of its gradient; returns what sweeps see."""
    cdef real seen, g = <real> mean
    if real is float:
        (<rule_f32> own.lines[0][0])(state, &g, NULL, 1, c)
        seen = state[0]
        (<rule_f32> own.lines[0][1])(&seen, &g, NULL, 1, c)
    else:
        (<rule_f64> own.lines[1][0])(state, &g, NULL, 1, c)
        seen = state[0]
        (<rule_f64> own.lines[1][1])(&seen, &g, NULL, 1, c)
    return seen


cdef inline void run_rows_of_numbers(real* p, const Tensor* t, const real* c,
                                     const GroupStep* own, const Loops* loops, Py_ssize_t start,
                                     Py_ssize_t end) noexcept nogil:
    """The same of a rule that has a number for each row."""
    cdef Scratch scratch
    cdef real* s[MAX_STATES]
    cdef real* tile = <real*> scratch.tile[0]
    cdef Py_ssize_t k, m, at, row, length = t.row_length, entries = t.info.entries
    cdef const real* g
    cdef double total
    cdef real seen
    cdef int j
    for k in range(start, min(start + ROWS_AHEAD, end)):
        prefetch_row(t, k)
    for k in range(start, end):
        if k + ROWS_AHEAD < end:
            prefetch_row(t, k + ROWS_AHEAD)
        row, g, total, at = row_of_step(t, k), <const real*> gradient_of_row(t, k), 0.0, 0
        while at < length:
            m = min(<Py_ssize_t> BLOCK, length - at)
            if real is float:
                total += (<sum_f32> loops.sum_of_squares[0])(g + at, m, 1.0)
            else:
                total += (<sum_f64> loops.sum_of_squares[1])(g + at, m, 1.0)
            at += m
        seen = number_of_row[real](<real*> t.s[entries] + row, total / <double> length, own, c)
        if real is float:
            (<fill_f32> loops.fill[0])(tile, seen, min(<Py_ssize_t> TILE, length))
        else:
            (<fill_f64> loops.fill[1])(tile, seen, min(<Py_ssize_t> TILE, length))
        at = 0
        while at < length:
            m = min(<Py_ssize_t> TILE, length - at)
            for j in range(t.n_states):
                s[j] = <real*> t.s[j] + row * length + at
            s[entries] = tile
            if real is float:
                (<rule_f32> own.rule[0])(p + row * length + at, g + at, s, m, c)
            else:
                (<rule_f64> own.rule[1])(p + row * length + at, g + at, s, m, c)
            at += m


cdef void run_rows_staged(const Tensor* t, const Coding* coding, const GroupStep* group_steps,
                          const StepArgs* step, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """The same with stages, or with long rows."""
    cdef RowView view
    cdef double seen
    cdef Py_ssize_t k
    cdef bint short = t.row_length <= SHORT_ROW
    view.tensor, view.coding, view.step = t[0], coding[0], step[0]
    view.tensor.n, view.tensor.rows, view.step.codings = t.row_length, NULL, &view.coding
    view.chunk = Chunk(0, 0, t.row_length, 0)
    if t.info.entries >= 0:
        view.tensor.seen = <char*> &seen
    if t.flags & SCALE_UNITS and t.rows != NULL:    # whose rows are its units
        view.tensor.flags = (t.flags & ~SCALE_UNITS) | SCALE
    if short:
        view.step.prefetch = view.step.each = False
        for k in range(start, min(start + ROWS_AHEAD, end)):
            prefetch_row(t, k)
    for k in range(start, end):
        if short and k + ROWS_AHEAD < end:
            prefetch_row(t, k + ROWS_AHEAD)
        look_at_row(&view, t, coding, k)
        if t.info.entries >= 0:
            see_number(&view.tensor, &view.coding, group_steps, &view.step)
        run_last(&view.tensor, group_steps, &view.step, &view.chunk)


cdef inline void look_at_row(RowView* view, const Tensor* t, const Coding* coding,
                             Py_ssize_t k) noexcept nogil:
    """Let a view be of the k-th row of a step."""
    cdef Py_ssize_t row = row_of_step(t, k), at = row * t.row_length
    cdef const Codec* codec = &codec_rows[t.p_codec]
    cdef int j
    view.tensor.p = t.p + at * codec.size
    view.tensor.g = gradient_of_row(t, k)
    if coding.p_aux != NULL:
        view.coding.p_aux = coding.p_aux + at // codec.per * codec.aux_size
    for j in range(t.n_states):
        codec = &codec_rows[t.s_codec[j]]
        view.tensor.s[j] = t.s[j] + (row if j == t.info.entries else at) * codec.size
        if coding.s_aux[j] != NULL:
            view.coding.s_aux[j] = coding.s_aux[j] + at // codec.per * codec.aux_size
    if t.copy != NULL:
        view.tensor.copy = t.copy + at * codec_rows[t.copy_codec].size
    if t.average != NULL:
        view.tensor.average = t.average + at * (8 if t.is_double else 4)
    view.coding.origin = coding.origin + at
    if t.flags & SCALE_UNITS and t.rows != NULL:
        view.tensor.factor = t.factors[k]


cdef inline void see_number(Tensor* t, const Coding* coding, const GroupStep* group_steps,
                            const StepArgs* step) noexcept nogil:
    """Bring the number of a row up to date, and note what sweeps see of it."""
    cdef const GroupStep* own = &group_steps[t.group_step]
    cdef const Codec* codecs = &step.loops.codecs[0]
    cdef ChunkArgs args
    cdef int kind = t.is_double
    cdef double mean
    describe(&args.p, &codecs[t.p_codec], t.p, coding.p_aux, -1, kind, 0)
    describe(&args.g, &codecs[t.g_codec], t.g, NULL, -1, kind, 0)
    if t.p_codec == kind:
        args.p.load = NULL
    if t.g_codec == kind:
        args.g.load = NULL
    args.n, args.offset, args.prefetch = t.n, coding.origin, False
    args.flags, args.factor = t.flags & OF_GRADIENT, t.factor
    args.factors, args.means, args.units = t.factors, t.means, t.units
    mean = (<mean_square> step.loops.mean_square[kind])(&args, &own.stages)
    if kind:
        (<double*> t.seen)[0] = number_of_row[double](<double*> t.s[t.info.entries], mean, own,
                                                      doubles_of(t, own))
    else:
        (<float*> t.seen)[0] = number_of_row[float](<float*> t.s[t.info.entries], mean, own,
                                                    floats_of(t, own))

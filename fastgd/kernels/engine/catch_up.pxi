# What rows missed while they had no gradient: done to them before they are stepped, or to all.
# Included by _engine.pyx; specified by spec/catch_up.py.

cdef enum:
    POWER_DIGITS = 256
    POWER_LEVELS = 4

# So many rows catch up, and are then stepped while they are in cache.
cdef Py_ssize_t ROWS_AT_ONCE = 32

# So many counts ahead of the one that is written, memory is prefetched.
cdef Py_ssize_t COUNTS_AHEAD = 32

# A step by which what depends on their number shows.
cdef cnp.int64_t LATE = 1 << 20


@cython.final
cdef class Missed:
    """What is known of the rows of a table that catch up.

    Parameters
    ----------
    counts : ndarray of uint32, shape (rows,)
        The steps that each row has taken, or caught up with.
    known : ndarray of float64, shape (1 + numbers,)
        1, and the numbers of a step that rows missed; or 0, where no row missed any.
    group : ParamGroup
        Whose hyper-parameters are those of the table.
    rule : Rule
        What steps it.
    """

    cdef MissedRows view
    cdef readonly cnp.ndarray counts, known
    cdef object group, rule
    cdef double* next           # what `known` is to be from the next step on,
    cdef double asked[MAX_COEFFICIENTS + 2]    # and what it follows from
    cdef str why                # or why there is no such thing
    cdef bint is_asked
    cdef Backend backend        # whose loops these are

    def __cinit__(self, cnp.ndarray counts not None, cnp.ndarray known not None, group, rule):
        cdef Py_ssize_t width = catch_up_spec.width(rule)
        self.counts, self.known, self.group, self.rule = counts, known, group, rule
        if not (cnp.PyArray_TYPE(counts) == <int> cnp.NPY_UINT32 and cnp.PyArray_ISCARRAY(counts)
                and cnp.PyArray_TYPE(known) == <int> cnp.NPY_DOUBLE and cnp.PyArray_ISCARRAY(known)
                and cnp.PyArray_SIZE(known) == 1 + width):
            raise ValueError("row_steps, row_map: expected arrays of uint32 and of "
                             f"{1 + width} float64")
        self.view.counts = <cnp.uint32_t*> cnp.PyArray_DATA(counts)
        self.view.n = cnp.PyArray_SIZE(counts)
        self.view.width, self.view.signs = <int> width, rule.catch_up == catch_up_spec.SIGNS
        self.view.n_states = <int> catch_up_spec.n_states(rule) - self.view.signs
        self.view.built = <double*> calloc(width, sizeof(double))
        self.next = <double*> calloc(1 + width, sizeof(double))
        if self.view.built == NULL or self.next == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef int level
        free(self.view.built)
        free(self.next)
        for level in range(POWER_LEVELS):
            free(self.view.powers[level])

    cdef str rule_name(self):
        return "missed_signs" if self.view.signs else f"missed_{self.view.n_states}"

    cdef int use(self, Backend backend) except -1:
        """Let rows catch up by the loops of a backend."""
        cdef GroupStep step
        if self.backend is backend:
            return 0
        self.view.info = &row_of(self.rule_name()).info
        if backend.compiled:
            backend.take_loops(self.rule_name(), &step)
            self.view.rule[0], self.view.rule[1] = step.rule[0], step.rule[1]
        self.backend = backend

    cdef int ready(self, cnp.int64_t taken) except -1:
        """Work out the powers of what rows may have missed after so many steps."""
        cdef const double* numbers = <const double*> cnp.PyArray_DATA(self.known)
        cdef MissedRows* m = &self.view
        if memcmp(m.built, numbers + 1, m.width * sizeof(double)):
            memcpy(m.built, numbers + 1, m.width * sizeof(double))
            m.levels = 0
        m.moves = numbers[0] != 0 and not is_still(m)
        while m.moves and m.levels < POWER_LEVELS and taken >> (8 * m.levels):
            if m.powers[m.levels] == NULL:
                m.powers[m.levels] = <double*> malloc(POWER_DIGITS * m.width * sizeof(double))
                if m.powers[m.levels] == NULL:
                    raise MemoryError
            add_powers(m)

    cdef int look_ahead(self, Owners owners, Py_ssize_t owner, configure) except -1:
        """Note what rows miss from the next step on: the numbers of a step after the first."""
        cdef GroupStep step, first, late
        cdef double given[MAX_COEFFICIENTS + 2]
        cdef int j
        if self.group.scheduled:
            self.is_asked = False
            self.refuse(f"schedules (of {', '.join(self.group.scheduled)}) make each step another; "
                        "numbers may be changed, and then all rows catch up")
            return 0
        owners.make(&step, owner, 1, configure, 1.0)
        memset(given, 0, sizeof(given))
        memcpy(given, step.c64, step.info.n_given * sizeof(double))
        given[MAX_COEFFICIENTS] = step.stages.weight_decay
        given[MAX_COEFFICIENTS + 1] = step.stages.decoupled
        if self.is_asked and memcmp(given, self.asked, sizeof(given)) == 0:
            return 0
        self.is_asked = False
        owners.make(&first, owner, 0, configure, 1.0)
        owners.make(&late, owner, LATE, configure, 1.0)
        found, at_first = self.numbers_by(&step), self.numbers_by(&first)
        if isinstance(found, str):
            self.refuse(found)
        elif found != self.numbers_by(&late):
            self.refuse("bias correction makes each step another")
        elif found[0] != at_first[0] or found[2::3] != at_first[2::3]:
            self.refuse("dampening and weight_decay make the first step another than the next")
        else:
            self.why = None
            self.next[0] = 1.0
            for j in range(self.view.width):
                self.next[1 + j] = found[j]
        memcpy(self.asked, given, sizeof(given))
        self.is_asked = True

    cdef void refuse(self, str why) noexcept:
        """Note why what rows miss has no closed form."""
        self.why = why
        memset(self.next, 0, (1 + self.view.width) * sizeof(double))

    cdef object numbers_by(self, const GroupStep* step):
        """The numbers of a step; or why it has none."""
        cdef int j
        return catch_up_spec.numbers_of(
            self.rule, [step.c64[j] for j in range(step.info.n_given)], step.stages.weight_decay,
            step.stages.decoupled, np.float64 if self.view.is_double else np.float32)

    cdef tuple numbers(self):
        """Those of what was missed."""
        cdef int j
        return tuple([self.view.built[j] for j in range(self.view.width)])

    cdef bint is_whole(self) noexcept:
        """Whether no row has missed anything, as none could."""
        return (<const double*> cnp.PyArray_DATA(self.known))[0] == 0

    cdef bint changes(self) noexcept:
        """Whether steps are no longer what they were that rows missed."""
        return memcmp(self.next, cnp.PyArray_DATA(self.known),
                      (1 + self.view.width) * sizeof(double)) != 0

    cdef void adopt(self) noexcept:
        """Let rows miss from here on what was noted."""
        memcpy(cnp.PyArray_DATA(self.known), self.next, (1 + self.view.width) * sizeof(double))

    cdef void set_counts(self, cnp.int64_t taken) noexcept:
        """Let all rows have taken so many steps."""
        cdef Py_ssize_t k
        for k in range(self.view.n):
            self.view.counts[k] = <cnp.uint32_t> taken


cdef bint is_still(const MissedRows* m) noexcept nogil:
    """Whether a step without a gradient changes nothing."""
    cdef const double* x = m.built
    cdef int j
    if x[0] != 1.0:
        return False
    for j in range(1, m.width, 3):
        if x[j] != 0.0 or x[j + 1] != 0.0 or x[j + 2] != 1.0:
            return False
    return True


cdef inline void multiply_numbers(double* out, const double* x, const double* y,
                                  int width) noexcept nogil:
    """The numbers of two things done one after the other, which are powers of the same."""
    cdef double a = x[0] * y[0]
    cdef int j
    for j in range(1, width, 3):
        a += x[j] * y[j + 1]
        out[j] = x[0] * y[j] + x[j] * y[j + 2]
        out[j + 1] = x[j + 1] * y[0] + x[j + 2] * y[j + 1]
        out[j + 2] = x[j + 1] * y[j] + x[j + 2] * y[j + 2]
    out[0] = a


cdef void add_powers(MissedRows* m) noexcept nogil:
    """Work out the powers by one more digit."""
    cdef int width = m.width, i
    cdef double* own = m.powers[m.levels]
    cdef const double* below
    if m.levels == 0:
        memcpy(own + width, m.built, width * sizeof(double))
    else:
        below = m.powers[m.levels - 1]
        multiply_numbers(own + width, below + (POWER_DIGITS - 1) * width, below + width, width)
    for i in range(2, POWER_DIGITS):
        multiply_numbers(own + i * width, own + (i - 1) * width, own + width, width)
    m.levels += 1


# The numbers of a rule with as many states as any, and a sign.
cdef enum:
    MOST_NUMBERS = 1 + 3 * (MAX_STATES + 1)


cdef inline const double* power_of(const MissedRows* m, cnp.uint32_t k,
                                   double* room) noexcept nogil:
    """The numbers of k steps, k > 0; there may be room needed for them, of two."""
    cdef const double* found = NULL
    cdef const double* factor
    cdef double* out = room
    cdef int level
    for level in range(POWER_LEVELS):
        if k >> 8 * level & 255 == 0:
            continue
        factor = m.powers[level] + (k >> 8 * level & 255) * m.width
        if found == NULL:
            found = factor
        else:
            multiply_numbers(out, found, factor, m.width)
            found = out
            out = room + MOST_NUMBERS if out == room else room
    return found


cdef inline void take_numbers(GroupStep* step, const MissedRows* m,
                              const double* numbers) noexcept nogil:
    """Take the numbers of what a row missed for coefficients, each rounded once."""
    cdef int j
    if m.signs:
        step.c64[0], step.c64[1], step.c64[2] = numbers[0], numbers[1], numbers[6]
    else:
        for j in range(m.width):
            step.c64[j] = numbers[j]
    for j in range(step.info.n_given):
        step.c32[j] = <float> step.c64[j]


cdef void catch_up_rows(const Tensor* t, const Coding* coding, const StepArgs* step,
                        const RowList* rows, Py_ssize_t start, Py_ssize_t end,
                        Py_ssize_t last) noexcept nogil:
    """Do to some rows what they missed: of these, or of all where they are NULL.

    Those of the gradient are to be stepped then.  The thread goes on with rows up to `last`, which
    are prefetched.
    """
    cdef RowView view
    cdef GroupStep own
    cdef double room[2 * MOST_NUMBERS]
    cdef MissedRows* m = t.missed
    cdef bint stepping = rows != NULL and rows == t.rows
    cdef bint copies = not stepping and t.copy != NULL
    cdef cnp.uint32_t taken = m.taken, missed, now = m.taken + stepping
    cdef Py_ssize_t k, row
    cdef bint staged = t.coded or copies
    view.tensor, view.coding, view.step = t[0], coding[0], step[0]
    view.step.codings, view.step.prefetch, view.step.each = &view.coding, False, False
    view.chunk = Chunk(0, 0, t.row_length, 0)
    view.tensor.own, view.tensor.rows, view.tensor.average = NULL, NULL, NULL
    memset(&own, 0, sizeof(own))
    own.info, own.rule[0], own.rule[1] = m.info, m.rule[0], m.rule[1]
    view.tensor.info, view.tensor.n_states = own.info, m.n_states
    view.tensor.fusable = view.tensor.fusable_in_tile = 0
    view.tensor.n, view.tensor.factor, view.tensor.g_codec = t.row_length, 1.0, t.is_double
    view.tensor.flags = (CODED if t.coded else 0) | (COPY if copies else 0)
    for k in range(t.n_words):
        view.coding.key[k] = m.key[k]
    for k in range(start, end):
        if k + ROWS_AHEAD < last:
            prefetch_missed(t, rows, k + ROWS_AHEAD)
        row = k if rows == NULL else row_at(rows, k)
        # A table that was torn may have rows that are ahead.
        missed = taken - m.counts[row] if m.counts[row] < taken else 0
        if missed and m.moves:
            take_numbers(&own, m, power_of(m, missed, &room[0]))
            look_at(&view, t, coding, row)
            if staged:
                run_staged(&view.tensor, &view.chunk, &own, &view.step, False, view.tensor.flags)
            else:
                run_missed(&view.tensor, &own)
        m.counts[row] = now


cdef inline void prefetch_missed(const Tensor* t, const RowList* rows,
                                 Py_ssize_t k) noexcept nogil:
    """Prefetch a row that will catch up; a sweep over all of the table is found out by itself."""
    cdef Py_ssize_t row
    if rows != NULL:
        row = row_at(rows, k)
        fastgd_prefetch(<const char*> &t.missed.counts[row], sizeof(cnp.uint32_t))
        if rows == t.rows:
            prefetch_row(t, k)
        elif t.row_length <= SHORT_ROW:
            prefetch_own(t, row)


cdef inline void look_at(RowView* view, const Tensor* t, const Coding* coding,
                         Py_ssize_t row) noexcept nogil:
    """Let a view be of a row of a table; without numbers of rows, which miss nothing."""
    cdef Py_ssize_t at = row * t.row_length
    cdef const Codec* codec = &codec_rows[t.p_codec]
    cdef int j
    view.tensor.p = view.tensor.g = t.p + at * codec.size
    if coding.p_aux != NULL:
        view.coding.p_aux = coding.p_aux + at // codec.per * codec.aux_size
    for j in range(t.missed.n_states):
        codec = &codec_rows[t.s_codec[j]]
        view.tensor.s[j] = t.s[j] + at * codec.size
        if coding.s_aux[j] != NULL:
            view.coding.s_aux[j] = coding.s_aux[j] + at // codec.per * codec.aux_size
    if t.copy != NULL:
        view.tensor.copy = t.copy + at * codec_rows[t.copy_codec].size
    view.coding.origin = coding.origin + at


cdef inline void run_missed(Tensor* t, const GroupStep* own) noexcept nogil:
    """What a row missed, in place on the caller's memory."""
    if t.is_double:
        (<rule_f64> own.rule[1])(<double*> t.p, NULL, <double**> t.s, t.n, own.c64)
    else:
        (<rule_f32> own.rule[0])(<float*> t.p, NULL, <float**> t.s, t.n, own.c32)


cdef void run_missed_rows(const Tensor* t, const Coding* coding, const GroupStep* group_steps,
                          const StepArgs* step, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """Let some of the rows of a gradient catch up, and step them while they are in cache."""
    cdef Py_ssize_t stop
    if not t.missed.moves:
        count_as(t.missed, t.rows, start, end, t.missed.taken + 1)
        run_rows(t, coding, group_steps, step, start, end)
        return
    while start < end:
        stop = min(start + ROWS_AT_ONCE, end)
        catch_up_rows(t, coding, step, t.rows, start, stop, end)
        run_rows(t, coding, group_steps, step, start, stop)
        start = stop


cdef void count_as(const MissedRows* m, const RowList* rows, Py_ssize_t start, Py_ssize_t end,
                   cnp.uint32_t taken) noexcept nogil:
    """Let some rows have taken so many steps, of which nothing changes those that missed them."""
    cdef Py_ssize_t k
    for k in range(start, min(start + COUNTS_AHEAD, end)):
        fastgd_prefetch(<const char*> &m.counts[row_at(rows, k)], sizeof(cnp.uint32_t))
    for k in range(start, end):
        if k + COUNTS_AHEAD < end:
            fastgd_prefetch(<const char*> &m.counts[row_at(rows, k + COUNTS_AHEAD)],
                            sizeof(cnp.uint32_t))
        m.counts[row_at(rows, k)] = taken


cdef inline void step_rows(const Tensor* t, const Coding* coding, const GroupStep* group_steps,
                           const StepArgs* step, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """Step some of the rows of a gradient, which may have to catch up first."""
    if t.missed != NULL:
        run_missed_rows(t, coding, group_steps, step, start, end)
    else:
        run_rows(t, coding, group_steps, step, start, end)


cdef int catch_up_table(Layout layout, Missed missed, Py_ssize_t i, RowSet some, Backend backend,
                        const StepArgs* step) except -1:
    """Let rows of a table catch up: some, or all where these are None."""
    cdef Tensor* t = &layout.tensors[i]
    cdef const Coding* coding = &layout.codings[i]
    cdef const RowList* rows = NULL
    cdef Py_ssize_t n = missed.view.n, threads, k
    if some is not None:
        rows, n = &some.view, some.view.n
    if missed.is_whole():
        return 0
    if not missed.view.moves:
        if rows == NULL:
            missed.set_counts(missed.view.taken)
        else:
            count_as(&missed.view, rows, 0, n, missed.view.taken)
        return 0
    if not backend.compiled:
        catch_up_by_reference(layout, missed, i,
                              range(n) if rows == NULL else [row_at(rows, k) for k in range(n)])
        return 0
    t.row_length = t.n // max(missed.view.n, 1)
    threads = threads_for(n * t.row_length, n)
    with nogil:
        if threads <= 1:
            catch_up_rows(t, coding, step, rows, 0, n, n)
        else:
            for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                catch_up_rows(t, coding, step, rows, n * k // threads, n * (k + 1) // threads, n)


cdef int catch_up_by_reference(Layout layout, Missed missed, Py_ssize_t i, rows) except -1:
    """Let rows catch up by the specification."""
    cdef Tensor* t = &layout.tensors[i]
    cdef Py_ssize_t k, length = t.n // max(missed.view.n, 1)
    *states, p = layout.coded_of(i)
    keys = [missed.view.key[k] for k in range(t.n_words)]
    numbers = missed.numbers() if missed.view.moves else (1.0,)
    catch_up_spec.catch_up(p, states[:missed.view.n_states], missed.counts, missed.view.taken, rows,
                           numbers, missed.view.signs, length, keys)
    if t.copy != NULL:
        copied = coded_array.as_coded(layout.copies[i])
        for row in rows:
            reference.copy(rows_spec.row_of(copied, row, length), rows_spec.row_of(p, row, length))

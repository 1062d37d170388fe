# What is worked out for each tensor before a sweep, where rules want it.  Included by _engine.pyx.

cdef void begin(Layout layout, const GroupStep* group_steps, const StepArgs* step,
                const Batch* batch) noexcept:
    """Do `begin_own` to those tensors of a batch that want it."""
    cdef Py_ssize_t i
    for i in range(batch.tensor, batch.end):
        if is_apart(&layout.tensors[i], step):
            begin_own(&layout.tensors[i], group_steps)


cdef void settle(Layout layout, const StepArgs* step, const Batch* batch) noexcept:
    """Do `settle_own` to those tensors of a batch that want it."""
    cdef Py_ssize_t i
    for i in range(batch.tensor, batch.end):
        if is_apart(&layout.tensors[i], step):
            settle_own(&layout.tensors[i])


cdef inline bint is_at_once(const Tensor* t, const StepArgs* step) noexcept nogil:
    """Whether all that this step does to a tensor is done at once."""
    return t.at_once and step.at_once and t.g != NULL


cdef inline bint is_apart(const Tensor* t, const StepArgs* step) noexcept nogil:
    """Whether this step works out coefficients of a tensor between sweeps over all tensors."""
    return (t.own != NULL and t.g != NULL and t.rows == NULL
            and not is_at_once(t, step))


cdef inline void begin_own(Tensor* t, const GroupStep* group_steps) noexcept nogil:
    """Give a tensor the coefficients of its group, and work out those known beforehand."""
    memcpy(t.own.c64, group_steps[t.group_step].c64, sizeof(t.own.c64))
    memcpy(t.own.c32, group_steps[t.group_step].c32, sizeof(t.own.c32))
    if t.info.begin != NULL:
        work_out(t, t.info.begin)


cdef inline void settle_own(Tensor* t) noexcept nogil:
    """Work out what follows from the sums."""
    if t.info.settle != NULL:
        work_out(t, t.info.settle)


cdef void work_out(Tensor* t, arithmetic function) noexcept nogil:
    """Numbers and coefficients of a tensor, in place; given coefficients stay."""
    cdef double numbers[MAX_NUMBERS]
    cdef int j
    for j in range(t.info.n_numbers):
        numbers[j] = t.own.numbers[j][0]
    function(t.own.c64, numbers, t.own.sums, t.size)
    for j in range(t.info.n_numbers):
        t.own.numbers[j][0] = numbers[j]
    cdef int given = t.info.n_given, n = t.info.n_coefficients - given
    cdef int denominators = t.info.denominators >> given
    round_all[float](t.own.c32 + given, t.own.c64 + given, n, denominators)
    round_all[double](t.own.c64 + given, t.own.c64 + given, n, denominators)


cdef void add_up_terms(Layout layout, const StepArgs* step, const Batch* batch) noexcept:
    """Add up the totals of each tensor's blocks, in order."""
    cdef Py_ssize_t i
    for i in range(batch.tensor, batch.end):
        if is_apart(&layout.tensors[i], step):
            add_up_own(&layout.tensors[i])


cdef void add_up_own(Tensor* t) noexcept nogil:
    """Add up the totals of a tensor's blocks, in order."""
    cdef Py_ssize_t k
    cdef int j
    for j in range(t.info.first.n_terms):
        t.own.sums[j] = 0.0
        for k in range(n_blocks(t.n)):
            t.own.sums[j] += t.own.totals[k * MAX_SUMS + j]


cdef int combine_terms(Layout layout, const Batch* batch, function) except -1:
    """Let a function replace the sums over this process's shard by those over all shards.

    It may fail, as messages do, when states have been written and parameters not: then the layout
    stays torn, and no further step is taken.
    """
    layout.torn = True
    cdef Py_ssize_t i
    cdef int j
    cdef Tensor* t
    cdef cnp.ndarray sums = np.zeros((batch.end - batch.tensor, MAX_SUMS))
    cdef double* row = <double*> cnp.PyArray_DATA(sums)
    for i in range(batch.tensor, batch.end):
        t = &layout.tensors[i]
        if t.own != NULL and t.g != NULL:
            for j in range(t.info.first.n_terms):
                row[(i - batch.tensor) * MAX_SUMS + j] = t.own.sums[j]
    function(sums)
    layout.torn = False
    for i in range(batch.tensor, batch.end):
        t = &layout.tensors[i]
        if t.own != NULL and t.g != NULL:
            for j in range(t.info.first.n_terms):
                t.own.sums[j] = row[(i - batch.tensor) * MAX_SUMS + j]

# What is worked out for each tensor before a sweep, where rules want it.  Included by _engine.pyx.

cdef void begin(Layout layout, const GroupStep* group_steps, const Batch* batch) noexcept:
    """Give each tensor the coefficients of its group, and work out those known beforehand."""
    cdef Py_ssize_t i
    cdef Tensor* t
    for i in range(batch.tensor, batch.end):
        t = &layout.tensors[i]
        if t.own == NULL or t.g == NULL:
            continue
        memcpy(t.own.c64, group_steps[t.group_step].c64, sizeof(t.own.c64))
        if t.info.begin != NULL:
            work_out(t, t.info.begin)
        round_own(t)


cdef void settle(Layout layout, const Batch* batch) noexcept:
    """Work out what follows from the sums."""
    cdef Py_ssize_t i
    cdef Tensor* t
    for i in range(batch.tensor, batch.end):
        t = &layout.tensors[i]
        if t.own == NULL or t.g == NULL or t.info.settle == NULL:
            continue
        work_out(t, t.info.settle)
        round_own(t)


cdef void work_out(Tensor* t, arithmetic function) noexcept:
    """Numbers and coefficients of a tensor, in place."""
    cdef double numbers[MAX_NUMBERS]
    cdef int j
    for j in range(t.info.n_numbers):
        numbers[j] = t.own.numbers[j][0]
    function(t.own.c64, numbers, t.own.sums, t.size)
    for j in range(t.info.n_numbers):
        t.own.numbers[j][0] = numbers[j]


cdef void round_own(Tensor* t) noexcept:
    cdef const RuleInfo* info = t.info
    round_all[float](t.own.c32, t.own.c64, info.n_coefficients, info.denominators)
    round_all[double](t.own.c64, t.own.c64, info.n_coefficients, info.denominators)


cdef void add_up_terms(Layout layout, const Batch* batch) noexcept:
    """Add up the totals of each tensor's blocks, in order."""
    cdef Py_ssize_t i
    cdef Tensor* t
    for i in range(batch.tensor, batch.end):
        t = &layout.tensors[i]
        if t.own != NULL and t.g != NULL:
            add_up_own(t)


cdef void add_up_own(Tensor* t) noexcept:
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

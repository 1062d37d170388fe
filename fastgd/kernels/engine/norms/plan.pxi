# What a step has to know of units before it may write: the means of a gradient's, by which it is
# centralized, and the norms of gradients, and of the units of both gradients and parameters, as
# adaptive gradient clipping wants them.  Included by _engine.pyx.

# The norm that a unit's parameters count as having at least, so that those that start from 0 can
# leave it: the constant of Brock, De, Smith and Simonyan, 2021, section 4.1.
cdef double LEAST_NORM = 1e-3

# What is known of a tensor that has a gradient.
cdef struct TensorNorms:
    bint measured              # whether its norm is wanted
    double* totals             # of the blocks of its gradient, then of those of the parameter
    double* means              # of the units of its gradient, or NULL: it is not centralized
    double* norms              # of them where these are clipped, else NULL;
    double* factors            # and what they are scaled by


@cython.final
cdef class PlanNorms:
    """The norms of the gradients and parameters of a layout; room is made when first needed."""

    cdef Layout layout
    cdef Gradients gradients
    cdef TensorNorms* tensors
    cdef SumChunk* chunks
    cdef double* totals         # of all blocks
    cdef double* means          # of units,
    cdef double* norms
    cdef double* factors        # and what these are scaled by
    cdef Sum* sums              # of each tensor's gradient, then of each group's, then of all
    cdef Py_ssize_t n_sums
    cdef bint by_units          # whether there is room for what is known of all units
    cdef Py_ssize_t parallel_from    # the elements from which on this step uses threads

    def __cinit__(self, Layout layout, Gradients gradients):
        self.layout, self.gradients = layout, gradients
        self.n_sums = layout.n + layout.n_groups + 1
        self.parallel_from = PARALLEL_FROM

    def __dealloc__(self):
        self.release()

    cdef void release(self) noexcept:
        free(self.tensors)
        free(self.chunks)
        free(self.totals)
        free(self.means)
        free(self.norms)
        free(self.factors)
        free(self.sums)
        self.tensors, self.chunks, self.sums = NULL, NULL, NULL
        self.totals = self.means = self.norms = self.factors = NULL

    cdef int reserve(self, bint by_units) except -1:
        """Make room for the sums of all gradients or, which is more, of the units of both."""
        cdef Py_ssize_t i, n, times = 2 if by_units else 1
        cdef Py_ssize_t chunks = 0, totals = 0, units = 0, of_units
        cdef SumChunk whole
        cdef Axis own
        cdef Tensor* t
        if self.sums != NULL and self.by_units >= by_units:
            return 0
        for i in range(self.layout.n):
            t = &self.layout.tensors[i]
            own = Axis(max(t.n, 1), 1)
            if by_units and t.own_units.length:
                own = t.own_units
            whole = whole_of(NULL, NULL, FLOAT32, t.n, own, NULL, NULL)
            n = t.n // own.length
            of_units = times * cut_sum_chunks(NULL, &whole, True)
            chunks += max(of_units, n_blocks(t.n))    # also for a tensor that counts as one unit
            totals += times * n * n_unit_blocks(&own)
            units += n if by_units else 0
        self.release()
        self.tensors = <TensorNorms*> malloc(max(self.layout.n, 1) * sizeof(TensorNorms))
        self.chunks = <SumChunk*> malloc(max(chunks, 1) * sizeof(SumChunk))
        self.totals = <double*> malloc(max(totals, 1) * sizeof(double))
        self.means = <double*> malloc(max(units, 1) * sizeof(double))
        self.norms = <double*> malloc(max(units, 1) * sizeof(double))
        self.factors = <double*> malloc(max(units, 1) * sizeof(double))
        self.sums = <Sum*> malloc(self.n_sums * sizeof(Sum))
        self.by_units = by_units
        if (self.tensors == NULL or self.chunks == NULL or self.totals == NULL
                or self.means == NULL or self.norms == NULL or self.factors == NULL
                or self.sums == NULL):
            self.release()
            raise MemoryError

    cdef inline SumChunk gradient(self, Py_ssize_t i) noexcept:
        cdef Tensor* t = &self.layout.tensors[i]
        return whole_of(t.g, NULL, t.g_codec, t.n, t.units, self.tensors[i].means,
                        self.tensors[i].totals)

    cdef inline SumChunk parameter(self, Py_ssize_t i) noexcept:
        cdef Tensor* t = &self.layout.tensors[i]
        return whole_of(t.p, self.layout.codings[i].p_aux, t.p_codec, t.n, t.units, NULL,
                        self.tensors[i].totals + t.n_units * n_unit_blocks(&t.units))

    cdef int measure(self, Backend backend, const GroupStep* group_steps, bint norms,
                     bint units) except -1:
        """Sum up the squares of each gradient, of each group's and of all.

        Gradients that aren't finite make a sum that isn't, and so does nothing else.  Where norms
        of units are clipped, this also notes them, and sums up the squares of parameters; without
        `norms` only there.  Gradients that are centralized count as what they then are.
        """
        cdef Py_ssize_t i, n = 0, elements = 0
        cdef TensorNorms* known
        cdef SumChunk whole
        self.reserve(units or self.layout.n_centralized > 0)
        if self.are_few(backend, units):
            return self.measure_few(backend)
        self.place(group_steps, norms)
        if self.layout.n_centralized:
            self.find_means(backend)
        for i in range(self.layout.n):
            known = &self.tensors[i]
            if known.measured and self.layout.tensors[i].rows != NULL:
                self.measure_rows(backend, i, group_steps)
                continue
            if known.measured:
                whole = self.gradient(i)
                n += cut_sum_chunks(self.chunks + n, &whole, backend.compiled)
                elements += whole.n
            if known.norms != NULL:
                whole = self.parameter(i)
                n += cut_sum_chunks(self.chunks + n, &whole, backend.compiled)
                elements += whole.n
        add_up_chunks(backend, self.chunks, n, elements, Summand(1.0, True), self.parallel_from)
        self.add_up_units(backend)

    cdef bint are_few(self, Backend backend, bint units) noexcept:
        """Whether each gradient is at most a block, and all together are one thread's work."""
        cdef Chunk* last = self.layout.chunks + self.layout.n_chunks - 1
        return (backend.compiled and not units and self.layout.n_centralized == 0
                and not self.gradients.has_rows
                and (self.layout.n_chunks == 0 or last.before + last.n < FEW))

    cdef int measure_few(self, Backend backend) except -1:
        """Sum up the squares of gradients that are few, without cutting them into chunks."""
        cdef Py_ssize_t i
        cdef Tensor* t
        cdef Sum* own
        memset(self.sums, 0, self.n_sums * sizeof(Sum))
        for i in range(self.layout.n):
            t, own = &self.layout.tensors[i], &self.sums[i]
            if t.g != NULL:
                sum_of_few(backend, t.g, t.g_codec, t.n, own)
                add_to(self.sum_of_group(t.group), own)
                add_to(self.sum_of_all(), own)
        return 0

    cdef void place(self, const GroupStep* group_steps, bint norms) noexcept:
        """Give each tensor that has a gradient its part of the room for what is wanted of it."""
        cdef Py_ssize_t i, units = 0
        cdef double* totals = self.totals
        cdef Tensor* t
        cdef TensorNorms* known
        cdef bint clips
        memset(self.tensors, 0, self.layout.n * sizeof(TensorNorms))
        for i in range(self.layout.n):
            t, known = &self.layout.tensors[i], &self.tensors[i]
            if t.g == NULL:
                continue
            clips = not isinf(group_steps[t.group_step].clip_ratio)
            known.measured = norms or clips
            if t.rows != NULL:
                continue           # these have room of their own
            known.totals = totals
            totals += (2 if clips else 1) * t.n_units * n_unit_blocks(&t.units)
            if t.centralized:
                t.means = known.means = self.means + units
            if clips:
                known.norms, known.factors = self.norms + units, self.factors + units
            if clips or t.centralized:
                units += t.n_units

    cdef int find_means(self, Backend backend) except -1:
        """Note the mean of each unit of the gradients that are centralized, as sweeps take it."""
        cdef Py_ssize_t i, k, n = 0, elements = 0
        cdef SumChunk whole
        cdef Sum one
        cdef double mean
        for i in range(self.layout.n):
            if self.tensors[i].means != NULL:
                whole = self.gradient(i)
                whole.means = NULL
                n += cut_sum_chunks(self.chunks + n, &whole, backend.compiled)
                elements += whole.n
        add_up_chunks(backend, self.chunks, n, elements, Summand(1.0, False), self.parallel_from)
        for i in range(self.layout.n):
            if self.tensors[i].means == NULL:
                continue
            whole = self.gradient(i)
            whole.means = NULL
            for k in range(self.layout.tensors[i].n_units):
                sum_of_unit(backend, &whole, k, False, &one)
                mean = one.plain / <double> whole.units.length
                if one.scaled != 0.0:    # or NaN
                    mean = one.scaled / <double> whole.units.length / SMALL
                self.tensors[i].means[k] = (mean if self.layout.tensors[i].is_double
                                            else <float> mean)

    cdef int measure_rows(self, Backend backend, Py_ssize_t i,
                          const GroupStep* group_steps) except -1:
        """Sum up the squares of each distinct row of a gradient by rows."""
        cdef Tensor* t = &self.layout.tensors[i]
        cdef TensorNorms* known = &self.tensors[i]
        cdef RowSet own = self.gradients.row_sets[i]
        cdef Py_ssize_t n = t.rows.n, threads = threads_for(n * t.rows.length, n), k
        cdef const Loops* loops = &backend.loops
        cdef SumChunk one
        own.reserve_units()
        known.totals, known.factors = t.rows.totals, t.rows.factors
        if not isinf(group_steps[t.group_step].clip_ratio):
            known.norms = t.rows.norms
        if not backend.compiled:
            for k in range(n):
                one = chunk_of_row(t, k)
                add_up_chunks(backend, &one, 1, one.n, Summand(1.0, True), PARALLEL_FROM)
            return 0
        with nogil:
            if threads <= 1:
                add_up_rows(t, 0, n, loops)
            else:
                for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                    add_up_rows(t, n * k // threads, n * (k + 1) // threads, loops)

    cdef int add_up_units(self, Backend backend) except -1:
        """Add up blocks to units, tensors and groups, and note the norms of units."""
        cdef Py_ssize_t i, k
        cdef Tensor* t
        cdef TensorNorms* known
        cdef SumChunk whole
        cdef Sum one
        memset(self.sums, 0, self.n_sums * sizeof(Sum))
        for i in range(self.layout.n):
            t, known = &self.layout.tensors[i], &self.tensors[i]
            if not known.measured:
                continue
            if t.rows != NULL:
                for k in range(t.rows.n):
                    sum_of_row(backend, t, k, &one)
                    add_to(&self.sums[i], &one)
                    if known.norms != NULL:
                        known.norms[k] = norm_of(&one)
                add_to(self.sum_of_group(t.group), &self.sums[i])
                add_to(self.sum_of_all(), &self.sums[i])
                continue
            whole = self.gradient(i)
            for k in range(t.n_units):
                sum_of_unit(backend, &whole, k, True, &one)
                add_to(&self.sums[i], &one)
                if known.norms != NULL:
                    known.norms[k] = norm_of(&one)
            add_to(self.sum_of_group(t.group), &self.sums[i])
            add_to(self.sum_of_all(), &self.sums[i])

    cdef inline Sum* sum_of_group(self, Py_ssize_t group) noexcept:
        return &self.sums[self.layout.n + group]

    cdef inline Sum* sum_of_all(self) noexcept:
        return &self.sums[self.n_sums - 1]

    cdef bint clip_units(self, Backend backend, Py_ssize_t i, double ratio) except -1:
        """Note the factor of each unit of a gradient; False if they are all that of the gradient.

        Adaptive gradient clipping: a norm that is more than some times the parameters', which count
        as no less than LEAST_NORM, is scaled down to that.
        """
        cdef Tensor* t = &self.layout.tensors[i]
        cdef double* norms = self.tensors[i].norms
        cdef double own, limit
        cdef bint clips = False
        cdef SumChunk whole = self.parameter(i)
        cdef Sum one
        cdef Py_ssize_t k
        t.factors = self.tensors[i].factors
        for k in range(t.n_units if t.rows == NULL else t.rows.n):
            if t.rows == NULL:
                sum_of_unit(backend, &whole, k, True, &one)
            else:
                sum_of_table_row(backend, t, &whole, k, &one)
            own = norm_of(&one)
            limit = ratio * (LEAST_NORM if own < LEAST_NORM else own)
            t.factors[k] = t.factor
            if not norms[k] * fabs(t.factor) <= limit:    # or NaN, which then spreads
                clips = True
                t.factors[k] = copysign(limit / norms[k], t.factor)
                if (not t.is_double and isfinite(norms[k]) and <float> t.factors[k] == 0
                        and ratio != 0):
                    raise ValueError(f"grads{self.layout.labels[i]}: a norm of "
                                     f"{norms[k] * fabs(t.factor)} in unit "
                                     f"{k if t.rows == NULL else row_at(t.rows, k)} can't be "
                                     f"clipped to "
                                     f"{limit} in float32")
        return clips

    cdef int combine(self, function) except -1:
        """Let a function replace the sums over this process's shard by those over all shards."""
        cdef cnp.ndarray sums = np.empty((self.n_sums, 2))
        memcpy(cnp.PyArray_DATA(sums), self.sums, self.n_sums * sizeof(Sum))
        function(sums)
        memcpy(self.sums, cnp.PyArray_DATA(sums), self.n_sums * sizeof(Sum))

    cdef refuse_nonfinite(self, list arrays):
        """Say where a gradient, of which these are the arrays, isn't finite."""
        cdef Py_ssize_t i
        for i in range(self.layout.n):
            if arrays[i] is not None and not is_finite(&self.sums[i]):
                if type(arrays[i]) is Rows:
                    memory_rows.refuse_nonfinite(arrays[i], f"grads{self.layout.labels[i]}")
                checks.refuse_nonfinite(arrays[i], f"grads{self.layout.labels[i]}")
                if self.layout.tensors[i].centralized:
                    raise FloatingPointError(f"grads{self.layout.labels[i]}: expected numbers "
                                             "whose differences from their unit's mean are finite")
        raise FloatingPointError("grads: expected finite numbers, found others in the shard of "
                                 "another process")

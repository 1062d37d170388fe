# The norms that a step needs before it may write: of gradients, and of the units of both gradients
# and parameters, as adaptive gradient clipping wants them.  Included by _engine.pyx.

# The norm that a unit's parameters count as having at least, so that those that start from 0 can
# leave it: the constant of Brock, De, Smith and Simonyan, 2021, section 4.1.
cdef double LEAST_NORM = 1e-3


cdef inline Block gradient_of(Tensor* t) noexcept:
    return Block(t.g, NULL, t.g_codec, t.n, BLOCK, t.totals)


cdef inline Block parameter_of(Tensor* t, Beside* beside) noexcept:
    return Block(t.p, beside.p, t.p_codec, t.n, BLOCK, t.totals + t.n_units * n_pieces(t.unit))


cdef class Measured(Layout):
    """A `Layout` with room for sums of squares, made when it is first needed."""

    cdef Block* blocks
    cdef double* totals         # of the blocks' pieces
    cdef double* factors        # of units
    cdef Sum* sums              # of each tensor's gradient, then of each group's
    cdef bint by_rows           # whether there is room for the norms of all rows

    def __dealloc__(self):
        free(self.blocks)
        free(self.totals)
        free(self.factors)
        free(self.sums)

    cdef int reserve(self, bint by_rows) except -1:
        """Make room for the sums of all gradients or, which is more, of the rows of both."""
        cdef Py_ssize_t i, unit, times = 2 if by_rows else 1
        cdef Py_ssize_t blocks = 0, totals = 0, rows = 0
        cdef Block whole = Block(NULL, NULL, FLOAT32, 0, BLOCK, NULL)
        if self.sums != NULL and self.by_rows >= by_rows:
            return 0
        for i in range(self.n):
            whole.n = self.tensors[i].n
            unit = self.tensors[i].row if by_rows and self.tensors[i].row else max(whole.n, 1)
            blocks += times * cut_blocks(NULL, &whole, unit)
            totals += times * (whole.n // unit * n_pieces(unit))
            rows += whole.n // unit if by_rows else 0
        free(self.blocks)
        free(self.totals)
        free(self.factors)
        free(self.sums)
        self.blocks = <Block*> malloc(max(blocks, 1) * sizeof(Block))
        self.totals = <double*> malloc(max(totals, 1) * sizeof(double))
        self.factors = <double*> malloc(max(rows, 1) * sizeof(double))
        self.sums = <Sum*> malloc((self.n + self.n_groups + 1) * sizeof(Sum))
        self.by_rows = by_rows
        if (self.blocks == NULL or self.totals == NULL or self.factors == NULL
                or self.sums == NULL):
            free(self.sums)
            self.sums = NULL
            raise MemoryError

    cdef int measure(self, dict rules, list held, bint norms, bint units) except -1:
        """Sum up the squares of each gradient, of each group's and of all.

        Gradients that aren't finite make a sum that isn't, and so does nothing else.  Where norms
        of units are clipped, this also notes them, and sums up the squares of parameters; without
        `norms` only there.
        """
        cdef Py_ssize_t i, k, n = 0, elements = 0
        cdef Tensor* t
        cdef Block whole
        cdef Sum one
        cdef Sum* total
        cdef double* totals
        cdef double* factors
        self.reserve(units)
        totals, factors = self.totals, self.factors
        for i in range(self.n):
            t = &self.tensors[i]
            t.totals = t.factors = NULL
            if t.g == NULL or not norms and isinf(self.settings[t.setting].clip_ratio):
                continue
            t.totals = totals
            totals += t.n_units * n_pieces(t.unit)
            whole = gradient_of(t)
            if rules is None:
                add_up_by_reference(held[i], t.unit, whole.totals, 1.0)
            else:
                n += cut_blocks(self.blocks + n, &whole, t.unit)
            elements += t.n
            if isinf(self.settings[t.setting].clip_ratio):
                continue
            t.factors = factors
            factors += t.n_units
            totals += t.n_units * n_pieces(t.unit)
            whole = parameter_of(t, &self.common.beside[i])
            if rules is None:
                *_, p = self.kept[i]
                add_up_by_reference(p, t.unit, whole.totals, 1.0)
            else:
                n += cut_blocks(self.blocks + n, &whole, t.unit)
            elements += t.n
        if rules is not None:
            add_up_blocks(self.blocks, n, elements)
        total = &self.sums[self.n + self.n_groups]
        memset(&self.sums[0], 0, (self.n + self.n_groups + 1) * sizeof(Sum))
        for i in range(self.n):
            t = &self.tensors[i]
            if t.totals != NULL:
                whole = gradient_of(t)
                for k in range(t.n_units):
                    sum_of(rules, &whole, t.unit, k, &one)
                    add_to(&self.sums[i], &one)
                    if t.factors != NULL:
                        t.factors[k] = norm_of(&one)
                add_to(&self.sums[self.n + t.group], &self.sums[i])
                add_to(total, &self.sums[i])

    cdef bint clip_units(self, Py_ssize_t i, dict rules) except -1:
        """Note the factor of each unit of a gradient; False if they are all that of the gradient.

        Adaptive gradient clipping: a norm that is more than some times the parameters', which count
        as no less than LEAST_NORM, is scaled down to that.
        """
        cdef Tensor* t = &self.tensors[i]
        cdef double ratio = self.settings[t.setting].clip_ratio
        cdef double norm, own, limit
        cdef bint clips = False
        cdef Block whole = parameter_of(t, &self.common.beside[i])
        cdef Sum one
        cdef Py_ssize_t k
        for k in range(t.n_units):
            sum_of(rules, &whole, t.unit, k, &one)
            norm, own = t.factors[k], norm_of(&one)
            limit = ratio * (LEAST_NORM if own < LEAST_NORM else own)
            t.factors[k] = t.factor
            if not norm * fabs(t.factor) <= limit:    # or NaN, which then spreads
                clips = True
                t.factors[k] = copysign(limit / norm, t.factor)
                if not t.is_double and isfinite(norm) and <float> t.factors[k] == 0:
                    raise ValueError(f"grads{self.labels[i]}: a norm of {norm * fabs(t.factor)} in "
                                     f"row {k} can't be clipped to {limit} in float32")
        return clips

    cdef int combine_sums(self, combine) except -1:
        """Let somebody put the sums over all pieces in the place of those over ours."""
        cdef Py_ssize_t rows = self.n + self.n_groups + 1
        cdef cnp.ndarray sums = np.empty((rows, 2))
        memcpy(cnp.PyArray_DATA(sums), self.sums, rows * sizeof(Sum))
        combine(sums)
        memcpy(self.sums, cnp.PyArray_DATA(sums), rows * sizeof(Sum))

    cdef refuse_nonfinite(self, list held):
        for i in range(self.n):
            if held[i] is not None and not is_finite(&self.sums[i]):
                checks.refuse_nonfinite(held[i], f"grads{self.labels[i]}")
        raise FloatingPointError("grads: expected finite numbers, found others in the part of "
                                 "another process")

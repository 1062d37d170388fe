# The tensors of an optimizer as the sweep needs them, and the gradients of a step.
# Included by _engine.pyx.

cdef class Layout:
    """The tensors of an optimizer, resolved to pointers, checked, and cut into chunks.

    Parameters
    ----------
    structure : None, list or dict
        The form in which gradients come: None for a bare array, else lists and dicts nested like
        the parameters, with None in place of each array.
    params : list of ndarray or `coded_array.Stored`
        The parameters in the order of `structure`; contiguous, writeable, of a dtype of floats.
        float64 is computed with as it is, everything else as float32.
    labels : list of str
        What to call each parameter in an error, less the leading ``params``.
    groups : list of int
        The group each parameter belongs to.
    states : list of tuple of ndarray or `coded_array.Stored`
        The states of each parameter, in the order of its rule.
    state_names : list of tuple of str
        What they are called.
    steps : ndarray of int64, shape (parameters,)
        The number of steps each parameter has taken; counted up in place.
    grads : object, optional
        Gradients to be bound: arrays read by each `step` that is given none.
    averages : list of ndarray, optional
        Arrays like the parameters that average them from step to step.
    average_steps : ndarray of int64, optional
        The number of steps that these have seen; counted up in place.
    copies : list of ndarray or None, optional
        Arrays that get a copy of the parameters, of a dtype of floats.
    clip_by : {"all", "group", "tensor"}
        What a norm that is clipped is the norm of.
    nonfinite : {"propagate", "skip", "raise"}
        What to do with gradients that aren't finite.
    skipped : ndarray of int64, shape (1,), optional
        The number of steps skipped; counted up in place.
    seed : int
        What the random words of stochastic rounding follow from, with step and element.
    rows : list of int, optional
        How many elements each row of a parameter has, of which the norms may be clipped: pieces of
        memory one after the other.  0 where it isn't so.  By default parameters are one row each.

    Raises
    ------
    TypeError, ValueError
        If an array is not what it has to be, or two of them overlap.
    """

    cdef readonly list params, labels
    cdef list kept              # of each parameter, its states and itself as `coded_array.Stored`
    cdef list averages, copies
    cdef list borrowed          # what keeps memory that others own from going away
    cdef public unsigned long long seed
    cdef public unsigned long long first   # what random words count the first parameter as
    cdef cnp.ndarray average_steps, skipped
    cdef int clip_by, nonfinite
    cdef readonly cnp.ndarray steps
    cdef object structure
    cdef readonly list bound    # the gradients' arrays, None where there is none, or None
    cdef cnp.int64_t* counts    # of `steps`
    cdef Py_ssize_t n, n_chunks, n_spans, n_groups
    cdef Py_ssize_t elements    # that this step works on
    cdef Tensor* tensors
    cdef Chunk* chunks
    cdef Setting* settings
    cdef Common common
    cdef size_t* spans          # start, end of all that a step writes, by address
    cdef list span_labels
    cdef bint busy

    def __cinit__(self, structure, params, list labels, list groups, states,
                  list state_names, cnp.ndarray steps, grads=None, *, list averages=None,
                  cnp.ndarray average_steps=None, copies=None, clip_by="all",
                  nonfinite="propagate", cnp.ndarray skipped=None, unsigned long long seed=0,
                  list rows=None):
        cdef Py_ssize_t i, k
        self.structure, self.labels = structure, labels
        self.kept = [(*map(coded_array.as_stored, states[i]), coded_array.as_stored(params[i]))
                     for i in range(len(params))]
        self.params = [coded_array.as_stored(p).code for p in params]
        self.seed = seed
        self.steps, self.counts = steps, <cnp.int64_t*> cnp.PyArray_DATA(steps)
        self.averages, self.average_steps = averages, average_steps
        self.copies = None if copies is None else list(copies)
        self.clip_by, self.nonfinite, self.skipped = CLIP_BY[clip_by], NONFINITE[nonfinite], skipped
        self.n, self.n_groups = len(params), max(groups) + 1
        self.tensors = <Tensor*> calloc(self.n, sizeof(Tensor))
        self.settings = <Setting*> calloc(self.n, sizeof(Setting))
        self.common.beside = <Beside*> calloc(self.n, sizeof(Beside))
        self.common.codecs = codec_rows
        if self.tensors == NULL or self.settings == NULL or self.common.beside == NULL:
            raise MemoryError
        written = []
        for i in range(self.n):
            written += self.arrays_of(i, state_names[i])
            self.plan_tensor(i, groups[i])
            self.tensors[i].row = max(self.tensors[i].n, 1) if rows is None else rows[i]
        self.cut_chunks()

        spans = checks.check_disjoint(written)
        self.n_spans = len(spans)
        self.spans = <size_t*> calloc(2 * self.n_spans, sizeof(size_t))
        if self.spans == NULL and self.n_spans:
            raise MemoryError
        self.span_labels = [label for _, _, label in spans]
        for k in range(self.n_spans):
            self.spans[2 * k], self.spans[2 * k + 1] = spans[k][:2]

        if grads is not None:
            self.bound = self.read_gradients(grads)
            for i in range(self.n):
                self.tensors[i].bound = self.tensors[i].g
                self.tensors[i].bound_codec = self.tensors[i].g_codec
        self.borrowed = [buffers.lent(a) for arrays in (self.params, self.copies, self.bound)
                         for a in arrays or () if a is not None and a.base is not None]

    def __dealloc__(self):
        free(self.tensors)
        free(self.chunks)
        free(self.settings)
        free(self.common.beside)
        free(self.spans)

    cdef list arrays_of(self, Py_ssize_t i, names):
        """All arrays of a parameter that a step writes, checked, with what to call them."""
        p, label = self.params[i], self.labels[i]
        arrays = []
        for name, a in zip((*names, None), self.kept[i], strict=True):
            own = f"params{label}" if name is None else checks.state_label(label, name)
            checks.check_stored(a, p, own)
            arrays.append((a.code, own))
            if a.beside is not None:
                arrays.append((a.beside, own))
        if self.averages is not None:
            own, average = f"average{label}", self.averages[i]
            checks.check_average(average, p, own)
            arrays.append((average, own))
        if self.copies is not None and self.copies[i] is not None:
            arrays.append((self.copies[i], f"copy_to{label}"))
        return arrays

    cdef int plan_tensor(self, Py_ssize_t i, Py_ssize_t group) except -1:
        cdef Tensor* t = &self.tensors[i]
        cdef Beside* beside = &self.common.beside[i]
        cdef cnp.ndarray p = self.params[i]
        cdef Py_ssize_t j
        *states, own = self.kept[i]
        if len(states) > MAX_STATES:
            raise ValueError(f"a rule may have at most {MAX_STATES} states")
        *shifts, p_shift = coded_array.shifts(self.kept[i])
        codec_of(p)     # notes NumPy's number of bfloat16, which check_unmoved asks for
        t.p = cnp.PyArray_BYTES(p)
        t.p_codec = CODEC_NAMES.index(own.codec)
        t.n = p.size
        t.group = group
        t.is_double = t.p_codec == FLOAT64
        t.order = (cnp.NPY_ARRAY_C_CONTIGUOUS if cnp.PyArray_IS_C_CONTIGUOUS(p)
                   else cnp.NPY_ARRAY_F_CONTIGUOUS)
        t.n_states = <int> len(states)
        t.coded = t.p_codec != t.is_double
        beside.p, beside.p_shift, beside.origin = address_of(own.beside), p_shift, own.origin
        for j in range(t.n_states):
            t.s[j] = cnp.PyArray_BYTES(<cnp.ndarray> states[j].code)
            t.s_codec[j] = CODEC_NAMES.index(states[j].codec)
            t.coded |= t.s_codec[j] != t.is_double
            beside.s[j], beside.s_shift[j] = address_of(states[j].beside), shifts[j]
        t.n_words = (max(p_shift, *shifts, -1) + 32) // 32
        t.fusable, t.fusable_in_tile = fusable(own.codec, p_shift, states, shifts)
        if self.averages is not None:
            t.average = cnp.PyArray_BYTES(<cnp.ndarray> self.averages[i])
        if self.copies is not None and self.copies[i] is not None:
            t.copy = cnp.PyArray_BYTES(<cnp.ndarray> self.copies[i])
            t.copy_codec = codec_of(<cnp.ndarray> self.copies[i])

    cdef int cut_chunks(self) except -1:
        """Cut each tensor into equal chunks of at most CHUNK elements, whole tiles each.

        All but the first chunk of a large tensor start on a cache line, the first has what is left
        over: 64-byte loads that straddle two lines cost AVX-512 a third of its speed.
        """
        cdef Py_ssize_t i, n, parts, size, head
        cdef Py_ssize_t most = 0, bytes_in_all = 0
        for i in range(self.n):
            most += self.tensors[i].n // CHUNK + 2
        self.chunks = <Chunk*> calloc(most, sizeof(Chunk))
        if self.chunks == NULL:
            raise MemoryError
        for i in range(self.n):
            n, head = self.tensors[i].n, 0
            bytes_in_all += sum([a.code.nbytes for a in self.kept[i]])
            # Where tiles have scales, chunks are of whole tiles from the start.
            if n >= ALIGN_FROM and all(a.beside is None for a in self.kept[i]):
                size = codec_rows[self.tensors[i].p_codec].size
                head = <Py_ssize_t> ((64 - <size_t> self.tensors[i].p % 64) % 64) // size
            self.add_chunks(i, 0, head, TILE)
            parts = (n - head + CHUNK - 1) // CHUNK
            if parts:
                size = (n - head + parts - 1) // parts
                self.add_chunks(i, head, n, (size + TILE - 1) // TILE * TILE)
        self.common.ahead = bytes_in_all > CACHED

    cdef void add_chunks(self, Py_ssize_t tensor, Py_ssize_t offset, Py_ssize_t end,
                         Py_ssize_t size) noexcept:
        """Append chunks of `size` elements, the last one less, from `offset` up to `end`."""
        cdef Chunk* chunk
        while offset < end:
            chunk = &self.chunks[self.n_chunks]
            chunk.tensor, chunk.offset, chunk.n = tensor, offset, min(size, end - offset)
            chunk.before = (chunk - 1).before + (chunk - 1).n if self.n_chunks else 0
            offset += size
            self.n_chunks += 1

    # ------------------------------------------------------------------------ reading gradients

    cdef list read_gradients(self, grads):
        """Check all gradients and note their pointers; returns the arrays, None where none is."""
        cdef list held = [None] * self.n
        cdef Py_ssize_t at = 0
        if not self.walk(self.structure, grads, held, &at):
            checks.refuse_structure(self.structure, grads)
        return held

    @cython.boundscheck(True)   # an array-like's own code may shorten the list being walked
    cdef bint walk(self, structure, grads, list held, Py_ssize_t* at) except -1:
        """Read the gradients of a part of the structure, in order; False if it isn't the same."""
        cdef Py_ssize_t k
        if structure is None:
            self.read_gradient(at[0], grads, held)
            at[0] += 1
        elif type(structure) is dict:
            if not isinstance(grads, dict):
                if not isinstance(grads, Mapping):
                    return False
                grads = dict(grads)
            if len(<dict> grads) != len(<dict> structure):
                return False
            for key, inner in (<dict> structure).items():
                child = (<dict> grads).get(key, _MISSING)
                if child is _MISSING or not self.walk(inner, child, held, at):
                    return False
        else:
            if not isinstance(grads, (list, tuple)) or len(grads) != len(<list> structure):
                return False
            for k in range(len(<list> structure)):
                child = (<list> grads)[k] if type(grads) is list else grads[k]
                if not self.walk((<list> structure)[k], child, held, at):
                    return False
        return True

    cdef int read_gradient(self, Py_ssize_t i, grad, list held) except -1:
        cdef Tensor* t = &self.tensors[i]
        cdef char* g
        if grad is None:
            t.g = NULL
            return 0
        cdef int codec
        if not (cnp.PyArray_CheckExact(grad) and fits(grad, self.params[i], t.order)):
            grad = checks.as_gradient(grad, self.params[i], f"grads{self.labels[i]}")
        self.point(i, cnp.PyArray_BYTES(<cnp.ndarray> grad), codec_of(<cnp.ndarray> grad))
        held[i] = grad

    cdef inline int point(self, Py_ssize_t i, char* g, int codec) except -1:
        """Let a gradient be what is at an address."""
        cdef Tensor* t = &self.tensors[i]
        if g != t.cleared or codec != t.g_codec:
            self.check_overlap(i, <size_t> g, t.n * codec_rows[codec].size)
            t.cleared, t.zeroable = g, NULL
        t.g, t.g_codec = g, codec

    cdef int take_given(self, const Given* given) except -1:
        """Note the pointers of gradients that are given so."""
        cdef Py_ssize_t i
        for i in range(self.n):
            if given[i].data == NULL:
                self.tensors[i].g = NULL
            else:
                self.point(i, given[i].data, codec_of_type(given[i].kind))

    cdef list given_arrays(self):
        """Flat arrays over gradients that were given as pointers; only for the step's duration."""
        cdef list held = [None] * self.n
        cdef Py_ssize_t i
        cdef cnp.npy_intp n
        for i in range(self.n):
            if self.tensors[i].g != NULL:
                n = self.tensors[i].n
                held[i] = cnp.PyArray_SimpleNewFromData(
                    1, &n, TYPE_NUMBERS[self.tensors[i].g_codec], self.tensors[i].g)
        return held

    cdef int check_overlap(self, Py_ssize_t i, size_t start, size_t size) except -1:
        """Refuse a gradient that shares memory with anything that a step writes."""
        cdef Py_ssize_t low = 0, high = self.n_spans, middle
        while low < high:      # the first span that ends after the gradient starts
            middle = (low + high) // 2
            if self.spans[2 * middle + 1] <= start:
                low = middle + 1
            else:
                high = middle
        if size and low < self.n_spans and self.spans[2 * low] < start + size:
            raise ValueError(f"grads{self.labels[i]}: shares memory with {self.span_labels[low]}, "
                             "which the step writes; pass a gradient in memory of its own")

    cdef list hold_gradients(self, grads, bint arrays):
        """Note the pointers of the gradients, given or bound.

        Returns the arrays; None for pointers, unless arrays are wanted.
        """
        cdef Py_ssize_t i
        cdef Tensor* t
        if PyCapsule_CheckExact(grads):
            self.take_given(<Given*> PyCapsule_GetPointer(grads, GIVEN))
            return self.given_arrays() if arrays else None
        if grads is not None:
            return self.read_gradients(grads)
        if self.bound is None:
            raise TypeError("step() needs gradients, as no gradients were bound with grads=...")
        for i in range(self.n):
            t = &self.tensors[i]
            if self.bound[i] is not None and not is_unmoved(
                    <cnp.ndarray> self.bound[i], t.bound, t.n, t.bound_codec):
                raise ValueError(f"grads{self.labels[i]}: was given another dtype, shape or "
                                 "memory after it was bound")
            if t.g_codec != t.bound_codec:
                t.cleared = t.zeroable = NULL
            t.g, t.g_codec = t.bound, t.bound_codec
        return self.bound

    cdef int check_unmoved(self) except -1:
        """Refuse parameters that were made read-only or given other memory since the plan."""
        cdef Py_ssize_t i
        cdef Tensor* t
        cdef cnp.ndarray p
        for i in range(self.n):
            t = &self.tensors[i]
            p = <cnp.ndarray> self.params[i]
            if not (is_unmoved(p, t.p, t.n, t.p_codec) and cnp.PyArray_ISWRITEABLE(p)):
                raise ValueError(f"params{self.labels[i]}: was made read-only, or given another "
                                 "dtype, shape or memory, after the optimizer was made")
            if t.copy != NULL:
                p = <cnp.ndarray> self.copies[i]
                if not (is_unmoved(p, t.copy, t.n, t.copy_codec) and cnp.PyArray_ISWRITEABLE(p)):
                    raise ValueError(f"copy_to{self.labels[i]}: was made read-only, or given "
                                     "another shape or memory, after the optimizer was made")

    cdef int check_zeroable(self, list held) except -1:
        """Refuse gradients that can't be zeroed: read-only ones, and two in the same memory."""
        cdef Py_ssize_t i
        cdef bint known = True
        for i in range(self.n):
            if held[i] is not None:
                if not cnp.PyArray_ISWRITEABLE(<cnp.ndarray> held[i]):
                    raise ValueError(f"grads{self.labels[i]}: expected a writeable array, which "
                                     "zero_grads zeroes, found a read-only one")
                known = known and self.tensors[i].zeroable == self.tensors[i].g
        if not known:
            checks.check_disjoint([(held[i], f"grads{self.labels[i]}") for i in range(self.n)
                                   if held[i] is not None])
            # Valid for this very set of gradients.
            for i in range(self.n):
                self.tensors[i].zeroable = self.tensors[i].g


cdef tuple fusable(str codec, int shift, list states, list shifts):
    """By which rows of FUSED, counted from 1, a parameter's step may be done; 0 for none.

    One is for a parameter where it is, the other for one that was loaded to float32.  Their loops
    round to 16 and 8 bits by chance.
    """
    codecs = [a.codec for a in states]
    by_chance = list(range(0, 16 * len(states), 16))

    def row(codec):
        kept = (codec, *codecs)
        return 1 + FUSED_CODECS.index(kept) if kept in FUSED_CODECS else 0

    if codec == "float64" or shifts != ([-1] * len(states) if set(codecs) == {"float32"}
                                        else by_chance):
        return 0, 0
    return 0 if codec == "bfloat16" and shift < 0 else row(codec), row("float32")

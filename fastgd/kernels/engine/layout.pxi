# The tensors of an optimizer as the sweep needs them.  Included by _engine.pyx.

@cython.final
cdef class Layout:
    """The tensors of an optimizer, checked, resolved to pointers, and cut into chunks.

    `Plan` says what the arguments are.
    """

    cdef list params, labels
    cdef list coded             # of each parameter, its states and itself as `CodedArray`
    cdef list averages, copies
    cdef list written           # (start, end, label) of all that a step writes, by address
    cdef Py_ssize_t n, n_chunks, n_groups
    cdef Tensor* tensors
    cdef Coding* codings
    cdef Chunk* chunks
    cdef bint prefetch          # whether the arrays are too large to stay in cache

    def __cinit__(self, params, list labels, list groups, states, list state_names, list averages,
                  copies, list unit_lengths):
        cdef Py_ssize_t i
        self.labels = labels
        self.coded = [(*map(coded_array.as_coded, states[i]), coded_array.as_coded(params[i]))
                      for i in range(len(params))]
        self.params = [coded_array.as_coded(p).code for p in params]
        self.averages, self.copies = averages, None if copies is None else list(copies)
        self.n, self.n_groups = len(params), max(groups) + 1
        self.tensors = <Tensor*> calloc(self.n, sizeof(Tensor))
        self.codings = <Coding*> calloc(self.n, sizeof(Coding))
        if self.tensors == NULL or self.codings == NULL:
            raise MemoryError
        arrays = []
        for i in range(self.n):
            arrays += self.arrays_of(i, state_names[i])
            self.plan_tensor(i, groups[i])
            self.tensors[i].unit_length = (max(self.tensors[i].n, 1) if unit_lengths is None
                                           else unit_lengths[i])
        self.cut_chunks()
        self.written = checks.check_disjoint(arrays)

    def __dealloc__(self):
        free(self.tensors)
        free(self.codings)
        free(self.chunks)

    cdef list arrays_of(self, Py_ssize_t i, names):
        """All arrays of a parameter that a step writes, checked, with what to call them."""
        p, label = self.params[i], self.labels[i]
        arrays = []
        for name, a in zip((*names, None), self.coded[i], strict=True):
            own = f"params{label}" if name is None else checks.state_label(label, name)
            checks.check_coded(a, p, own)
            arrays.append((a.code, own))
            if a.aux is not None:
                arrays.append((a.aux, own))
        if self.averages is not None:
            own, average = f"average{label}", self.averages[i]
            checks.check_average(average, p, own)
            arrays.append((average, own))
        if self.copies is not None and self.copies[i] is not None:
            arrays.append((self.copies[i], f"copy_to{label}"))
        return arrays

    cdef int plan_tensor(self, Py_ssize_t i, Py_ssize_t group) except -1:
        cdef Tensor* t = &self.tensors[i]
        cdef Coding* coding = &self.codings[i]
        cdef cnp.ndarray p = self.params[i]
        cdef Py_ssize_t j
        *states, own = self.coded[i]
        if len(states) > MAX_STATES:
            raise ValueError(f"a rule may have at most {MAX_STATES} states")
        *offsets, p_offset = coded_array.random_bit_offsets(self.coded[i])
        learn_bfloat16(p)     # as check_unmoved asks for its type
        t.p = cnp.PyArray_BYTES(p)
        t.p_codec = CODEC_NAMES.index(own.codec)
        t.n = p.size
        t.group = group
        t.is_double = t.p_codec == FLOAT64
        t.order = (cnp.NPY_ARRAY_C_CONTIGUOUS if cnp.PyArray_IS_C_CONTIGUOUS(p)
                   else cnp.NPY_ARRAY_F_CONTIGUOUS)
        t.n_states = <int> len(states)
        t.coded = t.p_codec != t.is_double
        coding.p_aux, coding.p_bit_offset = address_of(own.aux), p_offset
        coding.origin = own.origin
        for j in range(t.n_states):
            t.s[j] = cnp.PyArray_BYTES(<cnp.ndarray> states[j].code)
            t.s_codec[j] = CODEC_NAMES.index(states[j].codec)
            t.coded |= t.s_codec[j] != t.is_double
            coding.s_aux[j], coding.s_bit_offset[j] = address_of(states[j].aux), offsets[j]
        t.n_words = (max(p_offset, *offsets, -1) + 32) // 32
        t.fusable, t.fusable_in_tile = fusable(own.codec, p_offset, states, offsets)
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
        cdef Py_ssize_t i, n, chunks, size, head
        cdef Py_ssize_t most = 0, bytes_in_all = 0
        for i in range(self.n):
            most += self.tensors[i].n // CHUNK + 2
        self.chunks = <Chunk*> calloc(most, sizeof(Chunk))
        if self.chunks == NULL:
            raise MemoryError
        for i in range(self.n):
            n, head = self.tensors[i].n, 0
            bytes_in_all += sum([a.code.nbytes for a in self.coded[i]])
            # Where tiles have scales, chunks are of whole tiles from the start.
            if n >= ALIGN_FROM and all(a.aux is None for a in self.coded[i]):
                size = codec_rows[self.tensors[i].p_codec].size
                head = <Py_ssize_t> ((64 - <size_t> self.tensors[i].p % 64) % 64) // size
            self.add_chunks(i, 0, head, TILE)
            chunks = (n - head + CHUNK - 1) // CHUNK
            if chunks:
                size = (n - head + chunks - 1) // chunks
                self.add_chunks(i, head, n, (size + TILE - 1) // TILE * TILE)
        self.prefetch = bytes_in_all > CACHED

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


cdef tuple fusable(str codec, int bit_offset, list states, list bit_offsets):
    """By which rows of FUSED, counted from 1, a parameter's step may be done; 0 for none.

    One is for a parameter in place, the other for one that was loaded to float32.  Their loops
    round stochastically to 16 and 8 bits.
    """
    codecs = [a.codec for a in states]
    stochastic = list(range(0, 16 * len(states), 16))

    def row(codec):
        key = (codec, *codecs)
        return 1 + FUSED_CODECS.index(key) if key in FUSED_CODECS else 0

    if codec == "float64" or bit_offsets != ([-1] * len(states) if set(codecs) == {"float32"}
                                             else stochastic):
        return 0, 0
    return 0 if codec == "bfloat16" and bit_offset < 0 else row(codec), row("float32")

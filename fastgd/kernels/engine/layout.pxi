# The tensors of an optimizer as the sweep needs them.  Included by _engine.pyx.

@cython.final
cdef class Layout:
    """The tensors of an optimizer, checked, resolved to pointers, and cut into chunks.

    `Plan` says what the arguments are.
    """

    cdef list params, rules
    cdef object labels
    cdef list arrays            # of each parameter, its states and itself: plain or `CodedArray`
    cdef list averages, copies
    cdef list numbers
    cdef list shapes            # of the parameters that arrays stand for, or None: the arrays' own
    cdef list matrices          # what each parameter is as a matrix, or None: as its array
    cdef list missed            # what is known of the rows of tables that catch up, or None
    cdef list workspaces        # of each tensor whose rule has a matrix step, else None
    cdef Range* written         # all that a step writes, by address
    cdef Py_ssize_t n, n_written, n_chunks, n_groups
    cdef Py_ssize_t n_own       # tensors with coefficients of their own,
    cdef Py_ssize_t n_apart     # and of these those that can't be done at once,
    cdef Py_ssize_t n_summed    # tensors whose rules have two sweeps,
    cdef Py_ssize_t n_matrices  # and those whose term is kept for a matrix step
    cdef Py_ssize_t n_centralized
    cdef bint shares            # whether sums go over all tensors, or numbers are the same for all
    cdef Tensor* tensors
    cdef Coding* codings
    cdef Place* places          # of the parameters,
    cdef Place* copy_places     # and of their copies
    cdef Chunk* chunks
    cdef Batch* batches         # all tensors, in order
    cdef Py_ssize_t n_batches
    cdef OwnStep* own
    cdef double* totals         # of terms, of all chunks of two sweeps
    cdef bint torn              # whether a step ended between its sweeps
    cdef Py_ssize_t n_lined     # tensors whose rules have states of rows and columns
    cdef Py_ssize_t n_pieces
    cdef Lines* lines           # of these tensors,
    cdef double* line_room      # and room for the sums of their lines
    cdef LinePiece* pieces
    cdef list axes
    cdef bint draws             # whether any store is stochastic
    cdef bint prefetch          # whether the arrays are too large to stay in cache,
    cdef int magnitude          # and their bytes, as a power of four

    def __cinit__(self, params, labels, list groups, states, list rules, list averages,
                  copies, list units, list numbers, list sizes, list matrices, list axes,
                  list centralized, list shapes):
        cdef Py_ssize_t i
        cdef dict alike = {}
        self.labels, self.rules = labels, rules
        self.averages, self.copies = averages, None if copies is None else list(copies)
        self.numbers, self.matrices, self.axes, self.shapes = numbers, matrices, axes, shapes
        self.n, self.n_groups = len(params), max(groups) + 1
        self.arrays, self.params = [], []
        self.tensors = <Tensor*> calloc(self.n, sizeof(Tensor))
        self.codings = <Coding*> calloc(self.n, sizeof(Coding))
        self.places = <Place*> calloc(self.n, sizeof(Place))
        self.copy_places = <Place*> calloc(self.n, sizeof(Place))
        if (self.tensors == NULL or self.codings == NULL or self.places == NULL
                or self.copy_places == NULL):
            raise MemoryError
        for i in range(self.n):
            self.plan_storage(i, states[i], params[i], alike)
            if not self.fits_plainly(i):
                self.arrays_of(i)
            self.plan_tensor(i, groups[i])
            self.plan_units(i, units, centralized)
            if self.tensors[i].info.entries >= 0:
                self.tensors[i].row_length = self.row_length_of(i)
                self.check_tiles(i)
            self.tensors[i].size = self.tensors[i].n if sizes is None else sizes[i]
        self.cut_chunks()
        self.make_own_steps()
        if self.n_matrices:
            self.make_workspaces()
        make_lines(self, axes)
        self.make_batches()
        self.note_written()

    def __dealloc__(self):
        free(self.tensors)
        free(self.codings)
        free(self.places)
        free(self.copy_places)
        free(self.chunks)
        free(self.batches)
        free(self.own)
        free(self.totals)
        free(self.lines)
        free(self.line_room)
        free(self.pieces)
        free(self.written)

    cdef bint fits_plainly(self, Py_ssize_t i) except -1:
        """Whether all arrays of a parameter are what they have to be, at a glance.

        If not, `arrays_of` takes the long look, and says what is wrong.
        """
        cdef cnp.ndarray p = self.params[i]
        cdef int order = order_of(p), is_double
        cdef Py_ssize_t j
        if reference.RULES[self.rules[i]].line_states:
            return False
        for j in range(self.tensors[i].n_states + 1):
            a = self.arrays[self.codings[i].first + j]
            if not is_coded_like(code_of(a), aux_of(a), &codec_rows[codec_in(a)], p, order):
                return False
        if self.numbers is not None and self.numbers[i]:
            return False
        if self.averages is None:
            return True
        is_double = cnp.PyArray_TYPE(p) == <int> cnp.NPY_DOUBLE
        return (codec_of_type(cnp.PyArray_TYPE(<cnp.ndarray> self.averages[i])) == is_double
                and is_coded_like(self.averages[i], None, &codec_rows[is_double], p, order))

    cdef list coded_of(self, Py_ssize_t i):
        """The states of a parameter and itself, as `CodedArray`."""
        cdef Py_ssize_t first = self.codings[i].first
        return list(map(coded_array.as_coded,
                        self.arrays[first:first + self.tensors[i].n_states + 1]))

    cdef list arrays_of(self, Py_ssize_t i):
        """All arrays of a parameter that a step writes, checked, with what to call them."""
        p, label, rule = self.params[i], self.labels[i], reference.RULES[self.rules[i]]
        arrays = []
        for name, a in zip((*rule.states, None), self.coded_of(i), strict=True):
            own = f"params{label}" if name is None else checks.state_label(label, name)
            if name in rule.line_states:
                checks.check_lines(a.code, p, self.lines_of(i, rule.line_states[name]), own)
            else:
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
        for name, a in zip(rule.numbers, self.numbers_of(i), strict=True):
            own = checks.state_label(label, name)
            checks.check_number(a, own)
            arrays.append((a, own))
        return arrays

    cdef Py_ssize_t lines_of(self, Py_ssize_t i, str kind) except -1:
        """How many numbers a state of a parameter's rows or columns has, or of pairs of these."""
        if kind in PAIRS:
            lines, length, transposed = self.matrix_of(i)
            return (lines if transposed == (kind == "column_pairs") else length) ** 2
        if self.axes is None or self.axes[i] is None:
            raise RuntimeError(f"params{self.labels[i]}: its axes are not known")
        return (<object> self.params[i]).size // getattr(self.axes[i], kind).length

    cdef tuple numbers_of(self, Py_ssize_t i):
        return () if self.numbers is None else self.numbers[i]

    cdef int note_missed(self, list missed) except -1:
        """Note the rows of which parameters catch up, by the arguments of `Missed`."""
        cdef Py_ssize_t i
        cdef Missed own
        if missed is None:
            return 0
        self.missed = [None] * self.n
        for i in range(self.n):
            if missed[i] is not None:
                own = self.missed[i] = Missed(*missed[i], reference.RULES[self.rules[i]])
                own.view.is_double = self.tensors[i].is_double
                self.tensors[i].missed = &own.view

    cdef int note_written(self) except -1:
        """Note the memory of all arrays that a step writes; refuse what overlaps."""
        cdef Py_ssize_t i, j, most = 2 * len(self.arrays) + (2 + MAX_NUMBERS) * self.n
        cdef int place
        self.written = <Range*> malloc(max(most, 1) * sizeof(Range))
        if self.written == NULL:
            raise MemoryError
        for i in range(self.n):
            place = 0     # in the order of `arrays_of`
            for j in range(self.tensors[i].n_states + 1):
                a = self.arrays[self.codings[i].first + j]
                place = self.note_range(code_of(a), i, place)
                if aux_of(a) is not None:
                    place = self.note_range(aux_of(a), i, place)
            if self.averages is not None:
                place = self.note_range(self.averages[i], i, place)
            if self.copies is not None and self.copies[i] is not None:
                place = self.note_range(self.copies[i], i, place)
            for a in self.numbers_of(i):
                place = self.note_range(a, i, place)
        if not are_disjoint(self.written, self.n_written):
            checks.check_disjoint([a for i in range(self.n) for a in self.arrays_of(i)])

    cdef int note_range(self, cnp.ndarray a, Py_ssize_t i, int place) noexcept:
        """Note the memory of an array, if it has any; returns the place of the next one."""
        cdef size_t start = <size_t> cnp.PyArray_BYTES(a)
        if cnp.PyArray_SIZE(a):
            self.written[self.n_written] = Range(start, start + cnp.PyArray_NBYTES(a), i, place)
            self.n_written += 1
        return place + 1

    cdef str name_of(self, const Range* range):
        """What to call an array that a step writes."""
        return self.arrays_of(range.tensor)[range.array][1]

    cdef int plan_storage(self, Py_ssize_t i, tuple states, own, dict alike) except -1:
        """Note how a parameter and its states are stored.

        `alike` has a parameter for each way to store that was noted before.
        """
        cdef Py_ssize_t first = len(self.arrays), way = 1, j
        if len(states) > MAX_STATES:
            raise ValueError(f"a rule may have at most {MAX_STATES} states")
        self.params.append(code_of(own))
        for j in range(len(states) + 1):
            a = states[j] if j < len(states) else own
            self.arrays.append(a)
            way = 2 * N_CODECS * way + 2 * codec_in(a) + is_stochastic(a)
        before = alike.setdefault(way, i)
        if before == i:
            self.codings[i].first = first
            self.plan_way(i, len(states))
        else:
            self.tensors[i] = self.tensors[<Py_ssize_t> before]
            self.codings[i] = self.codings[<Py_ssize_t> before]
            self.codings[i].first = first

    cdef int plan_way(self, Py_ssize_t i, int n_states) except -1:
        """Note what follows from the codecs of a parameter and its states."""
        cdef Tensor* t = &self.tensors[i]
        cdef Coding* coding = &self.codings[i]
        cdef Py_ssize_t j
        t.n_states = n_states
        *states, own = self.coded_of(i)
        *offsets, p_offset = coded_array.random_bit_offsets([*states, own])
        t.p_codec = CODEC_OF[own.codec]
        t.is_double = t.p_codec == FLOAT64
        t.coded = t.p_codec != t.is_double
        coding.p_bit_offset = p_offset
        for j in range(n_states):
            t.s_codec[j] = CODEC_OF[states[j].codec]
            t.coded |= t.s_codec[j] != t.is_double
            coding.s_bit_offset[j] = offsets[j]
        t.n_words = (max(p_offset, *offsets, -1) + 32) // 32
        t.fusable, t.fusable_in_tile = fusable(own.codec, p_offset, states, offsets)

    cdef int plan_tensor(self, Py_ssize_t i, Py_ssize_t group) except -1:
        """Note where a parameter and its arrays are."""
        cdef Tensor* t = &self.tensors[i]
        cdef Coding* coding = &self.codings[i]
        cdef cnp.ndarray p = self.params[i]
        cdef Py_ssize_t j
        learn_bfloat16(p)     # as check_unmoved asks for its type
        t.p = cnp.PyArray_BYTES(p)
        t.n = cnp.PyArray_SIZE(p)
        self.places[i] = place_of(p, t.p_codec)
        t.group = group
        t.order = order_of(p)
        t.info = &row_of(self.rules[i]).info
        if t.n_states != t.info.n_states or len(self.numbers_of(i)) != t.info.n_numbers:
            raise RuntimeError(f"params{self.labels[i]}: its states do not fit the rule")
        self.n_own += t.info.works_out
        self.n_summed += t.info.first.n_terms > 0
        self.n_matrices += t.info.matrix != NULL
        self.shares |= t.info.shared | t.info.totals
        self.n_lined += t.info.rows >= 0
        self.draws |= t.n_words > 0
        t.lines = NULL
        for j in range(t.n_states):
            a = self.arrays[coding.first + j]
            t.s[j] = cnp.PyArray_BYTES(code_of(a))
            coding.s_aux[j] = address_of(aux_of(a))
        a = self.arrays[coding.first + t.n_states]
        coding.p_aux, coding.origin = address_of(aux_of(a)), origin_of(a)
        t.average = t.copy = NULL
        if self.averages is not None:
            t.average = cnp.PyArray_BYTES(<cnp.ndarray> self.averages[i])
        if self.copies is not None and self.copies[i] is not None:
            t.copy = cnp.PyArray_BYTES(<cnp.ndarray> self.copies[i])
            t.copy_codec = codec_of(<cnp.ndarray> self.copies[i])
            self.copy_places[i] = place_of(<cnp.ndarray> self.copies[i], t.copy_codec)

    cdef int make_own_steps(self) except -1:
        """Make room for the coefficients of tensors that have their own, and for their sums."""
        cdef Py_ssize_t i, j, k = 0, blocks = 0
        cdef Tensor* t
        for i in range(self.n):
            if self.tensors[i].info.first.n_terms:
                blocks += n_blocks(self.tensors[i].n)
        self.own = <OwnStep*> calloc(max(self.n_own, 1), sizeof(OwnStep))
        self.totals = <double*> calloc(max(blocks, 1), MAX_SUMS * sizeof(double))
        if self.own == NULL or self.totals == NULL:
            raise MemoryError
        blocks = 0
        for i in range(self.n):
            t = &self.tensors[i]
            if not t.info.works_out:
                continue
            t.own = &self.own[k]
            # Not what follows from other tensors, or is made of all of it by other loops.
            t.at_once = (t.n and self.chunks[t.first_chunk].n == t.n and t.info.matrix == NULL
                         and t.info.rows < 0 and t.info.shared == 0 and t.info.totals == 0)
            self.n_apart += not t.at_once
            t.own.totals = self.totals + blocks * MAX_SUMS
            for j in range(t.info.n_numbers):
                t.own.numbers[j] = <double*> address_of(self.numbers_of(i)[j])
            blocks += n_blocks(t.n) if t.info.first.n_terms else 0
            k += 1

    cdef tuple shape_of(self, Py_ssize_t i):
        """The shape of the parameter that an array is, or stands for."""
        return (<object> self.params[i]).shape if self.shapes is None else self.shapes[i][0]

    cdef Py_ssize_t row_length_of(self, Py_ssize_t i) except -1:
        """The elements of each row of a parameter whose rule has a number for each."""
        cdef tuple shape = self.shape_of(i)
        if not self.is_in_rows(i, shape):
            raise ValueError(f"params{self.labels[i]}: expected an array in C order, as rule "
                             f"{self.rules[i]} has a number for each row, found another order")
        return max(self.tensors[i].n // max(shape[0], 1), 1)

    cdef int check_tiles(self, Py_ssize_t i) except -1:
        """Refuse states whose codes share scales over the ends of rows that are stepped apart."""
        cdef Tensor* t = &self.tensors[i]
        cdef int j
        for j in range(t.n_states):
            if j != t.info.entries and t.row_length % codec_rows[t.s_codec[j]].per:
                memory_rows.refuse_tiles(f"params{self.labels[i]}")

    cdef bint is_in_rows(self, Py_ssize_t i, tuple shape) except -1:
        """Whether an array is all of a parameter of that shape, row after row."""
        cdef Tensor* t = &self.tensors[i]
        cdef Py_ssize_t n = 1
        for k in shape:
            n *= k
        if n != t.n:
            return False
        if self.shapes is None:
            return cnp.PyArray_IS_C_CONTIGUOUS(self.params[i])
        return self.shapes[i][1]

    cdef int plan_units(self, Py_ssize_t i, list units, list centralized) except -1:
        """Note where the units of a parameter lie, and whether these are centralized."""
        cdef Tensor* t = &self.tensors[i]
        t.own_units = Axis(max(t.n, 1), 1)
        if units is not None:
            t.own_units.length, t.own_units.stride = units[i] or (0, 1)
        t.centralized = centralized is not None and centralized[i] and t.n
        self.n_centralized += t.centralized

    cdef object matrix_of(self, Py_ssize_t i):
        """What a parameter is as a matrix."""
        if self.matrices is not None:
            return self.matrices[i]
        *_, p = self.coded_of(i)
        return matrix_of(p.code.shape, p.order)

    cdef int make_workspaces(self) except -1:
        """Make room for matrix steps: what the largest takes, as they come one by one."""
        cdef Py_ssize_t i
        cdef Tensor* t
        cdef dict alike = {}
        cdef tuple key
        cdef Workspace w
        self.workspaces = [None] * self.n
        wanted = [(self.matrix_of(i), 8 if self.tensors[i].is_double else 4, self.pairs_of(i))
                  for i in range(self.n) if self.tensors[i].info.matrix != NULL]
        sections = sections_for(wanted)
        for i in range(self.n):
            t = &self.tensors[i]
            if t.info.matrix == NULL:
                continue
            key = (self.matrix_of(i), t.is_double, self.pairs_of(i))
            if key not in alike:
                alike[key] = Workspace(key[0], np.dtype(np.float64 if t.is_double else np.float32),
                                       key[2], sections)
            w = alike[key]
            t.kept = cnp.PyArray_BYTES(w.kept)
            self.workspaces[i] = (Bases(w, key[0], self.matrices_of(i)) if t.info.matrix_states
                                  else w)

    cdef object pairs_of(self, Py_ssize_t i):
        """How many numbers the largest state of pairs of a matrix step has."""
        if not self.tensors[i].info.matrix_states:
            return NO_STATES
        states, pairs = self.matrices_of(i), reference.RULES[self.rules[i]].pair_states
        return max([states[key].size for key in pairs], default=0)

    cdef dict matrices_of(self, Py_ssize_t i):
        """The states that a parameter's matrix step takes, as matrices."""
        rule, matrix = reference.RULES[self.rules[i]], self.matrix_of(i)
        arrays = dict(zip(rule.states, self.coded_of(i)))
        return {key: as_matrix(arrays[key].raw(), matrix, rule.line_states.get(key, ""))
                for key in rule.matrix.states}

    cdef int cut_chunks(self) except -1:
        """Cut each tensor into equal chunks of at most CHUNK elements, whole tiles each.

        Those of tensors whose terms are summed up are blocks, wherever the tensor lies.

        All but the first chunk of a large tensor start on a cache line, the first has what is left
        over: 64-byte loads that straddle two lines cost AVX-512 a third of its speed.  Where a step
        draws random words, or tiles have scales, chunks are of whole tiles from the start: words
        of tiles that begin amid others are made anew for each, which costs more, up to two fifths.
        """
        cdef Py_ssize_t i, j, n, chunks, size, head
        cdef Tensor* t
        cdef bint whole
        cdef Py_ssize_t most = 0, bytes_in_all = 0
        for i in range(self.n):
            most += 2 * (self.tensors[i].n // CHUNK) + 2
        self.chunks = <Chunk*> calloc(most, sizeof(Chunk))
        if self.chunks == NULL:
            raise MemoryError
        for i in range(self.n):
            t = &self.tensors[i]
            t.first_chunk = self.n_chunks
            n, head, whole = t.n, 0, self.codings[i].p_aux != NULL or t.n_words > 0
            bytes_in_all += n * codec_rows[t.p_codec].size
            for j in range(t.n_states):
                if j not in (t.info.rows, t.info.columns, t.info.entries):
                    bytes_in_all += n * codec_rows[t.s_codec[j]].size
                whole |= self.codings[i].s_aux[j] != NULL
            if t.info.first.n_terms:
                self.add_chunks(i, 0, n, BLOCK)
                continue
            if t.info.entries >= 0:
                self.add_chunks(i, 0, n, max(CHUNK // t.row_length, 1) * t.row_length)
                continue
            if n >= ALIGN_FROM and not whole:
                size = codec_rows[t.p_codec].size
                head = <Py_ssize_t> ((64 - <size_t> t.p % 64) % 64) // size
            self.add_chunks(i, 0, head, TILE)
            chunks = (n - head + CHUNK - 1) // CHUNK
            if chunks:
                size = (n - head + chunks - 1) // chunks
                self.add_chunks(i, head, n, (size + TILE - 1) // TILE * TILE)
        self.prefetch = bytes_in_all > CACHED
        while bytes_in_all > 3:
            bytes_in_all //= 4
            self.magnitude += 1

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

    cdef int make_batches(self) except -1:
        """Cut the tensors into batches, if any of their rules has two sweeps.

        A tensor with a matrix step has one for itself.  Where tensors are shards the whole ones
        count, so that batches are the same in all processes.
        """
        cdef Py_ssize_t i, chunk = 0, piece = 0
        cdef double elements = 0
        cdef bint alone = False
        cdef Batch* batch
        self.batches = <Batch*> calloc(max(self.n, 1), sizeof(Batch))
        if self.batches == NULL:
            raise MemoryError
        batch = self.batches
        self.n_batches = 1
        for i in range(self.n):
            alone = self.tensors[i].info.matrix != NULL or alone
            if i and self.n_summed and not self.shares and (
                    alone or elements + self.tensors[i].size > BATCH):
                batch += 1
                batch.tensor, batch.chunk, batch.piece, elements = i, chunk, piece, 0
                self.n_batches += 1
            alone = self.tensors[i].info.matrix != NULL
            while chunk < self.n_chunks and self.chunks[chunk].tensor == i:
                chunk += 1
            while piece < self.n_pieces and self.pieces[piece].tensor == i:
                piece += 1
            batch.end, batch.chunk_end, batch.piece_end = i + 1, chunk, piece
            elements += self.tensors[i].size

    cdef Batch whole(self) noexcept:
        """All tensors as one batch."""
        return Batch(0, self.n, 0, self.n_chunks, 0, self.n_pieces)

    cdef int check_unmoved(self) except -1:
        """Refuse parameters that were made read-only or given other memory since the plan."""
        cdef Py_ssize_t i
        for i in range(self.n):
            if not is_unmoved(&self.places[i], cnp.NPY_ARRAY_WRITEABLE):
                raise ValueError(f"params{self.labels[i]}: was made read-only, or given another "
                                 "dtype, shape or memory, after the optimizer was made")
        for i in range(self.n if self.copies is not None else 0):
            if self.copy_places[i].array != NULL and not is_unmoved(&self.copy_places[i],
                                                                    cnp.NPY_ARRAY_WRITEABLE):
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

# The sweep: the loop over the chunks of a step.  Included by _engine.pyx.

ctypedef fused real:
    float
    double


cdef inline void run_plain(real* p, Tensor* t, Chunk* chunk, const real* c, void* rule,
                           const Sweep* sweep, int prefetch) noexcept nogil:
    """The rule alone, in place on the caller's memory."""
    cdef real* s[MAX_STATES]
    cdef const real* g = <const real*> (t.kept if sweep.kept else t.g) + chunk.offset
    cdef Py_ssize_t start = 0, length = prefetch if prefetch else chunk.n, n
    cdef int j
    p += chunk.offset
    for j in range(t.n_states):
        s[j] = <real*> t.s[j] + chunk.offset
    while start < chunk.n:
        n = min(length, chunk.n - start)
        if prefetch and start + TILE + n <= chunk.n:
            fastgd_prefetch(<char*> (p + TILE), n * sizeof(real))
            if sweep.gradient or sweep.kept:
                fastgd_prefetch(<char*> (g + TILE), n * sizeof(real))
            for j in range(t.n_states):
                if sweep.loads >> j & 1:
                    fastgd_prefetch(<char*> (s[j] + TILE), n * sizeof(real))
        if real is float:
            (<rule_f32> rule)(p, g, s, n, c)
        else:
            (<rule_f64> rule)(p, g, s, n, c)
        p += n
        g += n
        for j in range(t.n_states):
            s[j] += n
        start += n


cdef inline void run_tile(Tensor* t, Chunk* chunk, const real* c, void* rule,
                          void* summed_tile) noexcept nogil:
    """The first of two sweeps of a chunk of at most a tile, without stages."""
    cdef real* s[MAX_STATES]
    cdef const real* p = <const real*> t.p + chunk.offset
    cdef const real* g = <const real*> t.g + chunk.offset
    cdef double* totals = t.own.totals + chunk.offset // BLOCK * MAX_SUMS
    cdef int j
    for j in range(t.n_states):
        s[j] = <real*> t.s[j] + chunk.offset
    if real is float:
        (<tile_f32> summed_tile)(rule, &t.info.first, p, g, s, chunk.n, c, totals)
    else:
        (<tile_f64> summed_tile)(rule, &t.info.first, p, g, s, chunk.n, c, totals)


cdef inline void describe(CodedPtr* a, const Codec* codec, char* code, char* aux, int bit_offset,
                          int is_double, Py_ssize_t offset) noexcept nogil:
    """Where a chunk of a coded array is, and which loops load and store it."""
    a.code = code + offset * codec.size
    a.aux = aux + offset // codec.per * codec.aux_size
    a.size, a.aux_size, a.per, a.bit_offset = codec.size, codec.aux_size, codec.per, bit_offset
    a.load = codec.load[is_double]
    a.store = codec.nearest[is_double] if bit_offset < 0 else codec.stochastic[is_double]


cdef inline void describe_native(CodedPtr* a, char* code, int size,
                                 Py_ssize_t offset) noexcept nogil:
    """Where a chunk of an array is that is in the type that is computed with."""
    a.code = code + offset * size
    a.aux = NULL
    a.load = a.store = NULL
    a.size, a.aux_size, a.per, a.bit_offset = size, 0, 1, -1


cdef inline const float* floats_of(const Tensor* t, const GroupStep* group_step) noexcept nogil:
    """The coefficients of a tensor: its own, or those of its group's step."""
    if t.own != NULL:
        return t.own.c32
    return group_step.c32


cdef inline const double* doubles_of(const Tensor* t, const GroupStep* group_step) noexcept nogil:
    """The same in float64."""
    if t.own != NULL:
        return t.own.c64
    return group_step.c64


cdef void run_staged(Tensor* t, Chunk* chunk, const GroupStep* group_step, const StepArgs* step,
                     bint first, int flags) noexcept nogil:
    """The rule and the stages around it; or the first of its two sweeps."""
    cdef ChunkArgs args
    cdef const Codec* codecs = &step.loops.codecs[0]
    cdef const Coding* coding = step.codings + chunk.tensor
    cdef int kind = t.is_double, size = 8 if t.is_double else 4, j
    if t.p_codec == kind:
        describe_native(&args.p, t.p, size, chunk.offset)
    else:
        describe(&args.p, &codecs[t.p_codec], t.p, coding.p_aux, coding.p_bit_offset, kind,
                 chunk.offset)
    if t.g == NULL:
        args.g.code = NULL
    elif t.g_codec == kind:
        describe_native(&args.g, t.g, size, chunk.offset)
    else:
        describe(&args.g, &codecs[t.g_codec], t.g, NULL, -1, kind, chunk.offset)
    for j in range(t.n_states):
        if t.s_codec[j] == kind:
            describe_native(&args.s[j], t.s[j], size, chunk.offset)
        else:
            describe(&args.s[j], &codecs[t.s_codec[j]], t.s[j], coding.s_aux[j],
                     coding.s_bit_offset[j], kind, chunk.offset)
    if t.lines != NULL:
        describe_lines(&args, t)
    if t.seen != NULL:
        args.s[t.info.entries].code = t.seen
        args.axes[t.info.entries] = Axis(coding.origin + t.n, 1)    # all one line
    if t.copy != NULL:
        describe(&args.copy, &codecs[t.copy_codec], t.copy, NULL, -1, kind, chunk.offset)
    args.average, args.average_size = t.average + chunk.offset * size, 0
    if flags & AVERAGE:
        args.average_size = size
    if t.g != NULL:
        args.sweep = group_step.info.first if first else group_step.info.last
    args.kept = NULL if t.kept == NULL else t.kept + chunk.offset * size
    args.n_states = t.n_states
    args.fused = args.fused_in_tile = NULL
    if t.fusable and t.g != NULL and t.g_codec in (FLOAT32, BFLOAT16):
        args.fused = group_step.fused[t.fusable - 1][t.g_codec == BFLOAT16]
    if t.fusable_in_tile:
        args.fused_in_tile = group_step.fused[t.fusable_in_tile - 1][0]
    args.n, args.flags, args.factor = chunk.n, flags, t.factor
    args.factors, args.means = t.factors, t.means
    args.units = t.units
    args.beta, args.gamma, args.prefetch = step.beta, step.gamma, step.prefetch
    args.n_words, args.offset = t.n_words, coding.origin + chunk.offset
    for j in range(t.n_words):
        args.key[j] = coding.key[j]
    cdef const float* c32 = floats_of(t, group_step)
    cdef const double* c64 = doubles_of(t, group_step)
    cdef double* totals
    if first:
        totals = t.own.totals + chunk.offset // BLOCK * MAX_SUMS
        if kind:
            (<summed_f64> step.loops.summed[1])(group_step.first[1], &args, c64, &group_step.stages,
                                                totals)
        else:
            (<summed_f32> step.loops.summed[0])(group_step.first[0], &args, c32, &group_step.stages,
                                                totals)
    elif kind:
        (<staged_f64> step.loops.staged[1])(group_step.rule[1], &args, c64, &group_step.stages)
    else:
        (<staged_f32> step.loops.staged[0])(group_step.rule[0], &args, c32, &group_step.stages)


cdef void run(Tensor* tensors, const GroupStep* group_steps, const StepArgs* step, Chunk* chunk,
              Chunk* end, bint first) noexcept nogil:
    """The last sweep over some chunks, mostly the only one; or the first of two."""
    if step.each:
        run_by_policies(tensors, group_steps, step, chunk, end, first)
        return
    cdef Tensor* t
    cdef bint straight = not (first or step.prefetch)
    while chunk < end:
        t = &tensors[chunk.tensor]
        if straight and t.straight and chunk.offset == 0:
            run_straight(t, &group_steps[t.group_step], chunk.n)
        else:
            run_chunk(tensors, group_steps, step, chunk, first)
        chunk += 1


cdef inline void run_straight(Tensor* t, const GroupStep* group_step, Py_ssize_t n) noexcept nogil:
    """The rule alone over the start of a tensor, mostly over all of it, as small ones are many."""
    if t.is_double:
        (<rule_f64> group_step.rule[1])(<double*> t.p, <const double*> t.g, <double**> t.s, n,
                                        doubles_of(t, group_step))
    else:
        (<rule_f32> group_step.rule[0])(<float*> t.p, <const float*> t.g, <float**> t.s, n,
                                        floats_of(t, group_step))


cdef inline void run_chunk(Tensor* tensors, const GroupStep* group_steps, const StepArgs* step,
                           Chunk* chunk, bint first) noexcept nogil:
    """The same of one chunk."""
    if not first and is_at_once(&tensors[chunk.tensor], step):
        run_at_once(&tensors[chunk.tensor], group_steps, step, chunk)
    elif first:
        if is_apart(&tensors[chunk.tensor], step):
            run_first(&tensors[chunk.tensor], group_steps, step, chunk)
    else:
        run_last(&tensors[chunk.tensor], group_steps, step, chunk)


cdef void run_at_once(Tensor* t, const GroupStep* group_steps, const StepArgs* step,
                      Chunk* chunk) noexcept nogil:
    """All of a chunk that is a whole tensor, while it is in cache."""
    begin_own(t, group_steps)
    if t.info.first.n_terms:
        run_first(t, group_steps, step, chunk)
        add_up_own(t)
    settle_own(t)
    run_last(t, group_steps, step, chunk)


cdef inline void run_first(Tensor* t, const GroupStep* group_steps, const StepArgs* step,
                           Chunk* chunk) noexcept nogil:
    """The first of two sweeps of a chunk, if its tensor's rule has two."""
    cdef const GroupStep* group_step = &group_steps[t.group_step]
    if t.info.first.n_terms == 0:
        return
    if chunk.n > TILE or t.flags & (OF_GRADIENT | CODED) or t.lines != NULL or t.kept != NULL:
        run_staged(t, chunk, group_step, step, True, t.flags & (OF_GRADIENT | CODED))
    elif t.is_double:
        run_tile[double](t, chunk, doubles_of(t, group_step), group_step.first[1],
                         step.loops.summed_tile[1])
    else:
        run_tile[float](t, chunk, floats_of(t, group_step), group_step.first[0],
                        step.loops.summed_tile[0])


cdef inline void run_last(Tensor* t, const GroupStep* group_steps, const StepArgs* step,
                          Chunk* chunk) noexcept nogil:
    """The sweep of a chunk that writes the parameter."""
    cdef const GroupStep* group_step = &group_steps[t.group_step]
    cdef int flags = t.flags
    if t.g != NULL:
        flags &= t.info.last_flags
        if t.info.entries >= 0 and t.seen == NULL:
            run_rows(t, step.codings + chunk.tensor, group_steps, step,
                     chunk.offset // t.row_length, (chunk.offset + chunk.n) // t.row_length)
            return
    if flags or (t.lines != NULL and t.g != NULL):
        run_staged(t, chunk, group_step, step, False, flags)
    elif t.g != NULL:
        if t.is_double:
            run_plain[double](<double*> t.p, t, chunk, doubles_of(t, group_step),
                              group_step.rule[1], &t.info.last, step.prefetch)
        else:
            run_plain[float](<float*> t.p, t, chunk, floats_of(t, group_step),
                             group_step.rule[0], &t.info.last, step.prefetch)


cdef void run_pieces(Tensor* tensors, const GroupStep* group_steps, const StepArgs* step,
                     Chunk* chunks, Py_ssize_t n, bint first, Shares* shares,
                     Py_ssize_t thread) noexcept nogil:
    """What one of several threads does of a sweep."""
    cdef Py_ssize_t all_pieces = shares.n * shares.pieces, k = next_piece(shares, thread)
    while k >= 0:
        run(tensors, group_steps, step, share_of(chunks, n, k, all_pieces),
            share_of(chunks, n, k + 1, all_pieces), first)
        k = next_piece(shares, thread)


cdef inline Chunk* share_of(Chunk* chunks, Py_ssize_t n, Py_ssize_t k,
                            Py_ssize_t shares) noexcept nogil:
    """The first chunk of the k-th of as many equal shares of all elements."""
    cdef Chunk* last = &chunks[n - 1]
    cdef Py_ssize_t start = chunks[0].before, elements = last.before + last.n - start
    cdef Py_ssize_t low = 0, high = n, middle
    while low < high:
        middle = (low + high) // 2
        if (chunks[middle].before - start) * shares < elements * k:
            low = middle + 1
        else:
            high = middle
    return chunks + low

# The stages: what happens around a rule, each as a small loop of its own, so that options add up
# instead of multiplying the rules.  `staged` runs them tile by tile, as a tile stays in cache.
# Specified by the functions of the same names in spec/stages.py.


cdef void scale(floating* restrict out, const floating* restrict g, Py_ssize_t n,
                floating factor) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = factor * g[i]


cdef void clip_value(floating* restrict out, const floating* restrict g, Py_ssize_t n,
                     floating bound) noexcept nogil:
    cdef floating low
    cdef Py_ssize_t i
    for i in range(n):
        low = -bound if g[i] < -bound else g[i]
        out[i] = bound if low > bound else low


cdef void l2_decay(floating* restrict out, const floating* restrict g, const floating* restrict p,
                   Py_ssize_t n, floating weight_decay) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = g[i] + weight_decay * p[i]


cdef void decoupled_decay(floating* restrict p, Py_ssize_t n, floating factor) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = factor * p[i]


cdef inline char* aux_at(const CodedPtr* a, Py_ssize_t start) noexcept nogil:
    return a.aux + start // a.per * a.aux_size


cdef inline floating* load(const CodedPtr* a, floating* tile, Py_ssize_t start,
                           Py_ssize_t n) noexcept nogil:
    """A tile of an array in the type that is computed with: in place, or loaded to scratch."""
    cdef char* code = a.code + start * a.size
    if a.load == NULL:
        return <floating*> code
    if floating is float:
        (<load_f32> a.load)(tile, code, aux_at(a, start), n)
    else:
        (<load_f64> a.load)(tile, code, aux_at(a, start), n)
    return tile


cdef inline void store(const CodedPtr* a, const floating* x, Py_ssize_t start, Py_ssize_t n,
                       const Scratch* scratch) noexcept nogil:
    """Store a tile that was loaded to scratch; nothing to do for one in place."""
    cdef char* code = a.code + start * a.size
    cdef const uint32_t* words = NULL
    if a.store == NULL:
        return
    if a.bit_offset >= 0:
        words = scratch.words[a.bit_offset // 32]
    if floating is float:
        (<store_f32> a.store)(code, aux_at(a, start), x, n, words, a.bit_offset % 32)
    else:
        (<store_f64> a.store)(code, aux_at(a, start), x, n, words, a.bit_offset % 32)


cdef inline void prefetch_array(const CodedPtr* a, Py_ssize_t start, Py_ssize_t n) noexcept nogil:
    fastgd_prefetch(a.code + start * a.size, n * a.size)
    if a.aux_size and a.per == 1:
        fastgd_prefetch(a.aux + start * a.aux_size, n * a.aux_size)


cdef void prefetch_tile(const ChunkArgs* chunk, Py_ssize_t start, Py_ssize_t n) noexcept nogil:
    """Prefetch a tile, or part of one, of all arrays, unless it goes beyond the chunk."""
    cdef int j
    if start + n > chunk.n:
        return
    if chunk.g.code == NULL or chunk.sweep.parameter or chunk.flags & L2_DECAY:
        prefetch_array(&chunk.p, start, n)
    if chunk.g.code != NULL:
        if chunk.sweep.gradient:
            prefetch_array(&chunk.g, start, n)
        for j in range(chunk.n_states):
            if chunk.sweep.loads >> j & 1:
                prefetch_array(&chunk.s[j], start, n)
    if chunk.average_size:
        fastgd_prefetch(<char*> chunk.average + start * chunk.average_size, n * chunk.average_size)


cdef inline void draw(Scratch* scratch, const ChunkArgs* chunk, Py_ssize_t start, Py_ssize_t n,
                      int j) noexcept nogil:
    """Draw the j-th random word of each element of a tile."""
    random_words(scratch.words[j], scratch.table[j], chunk.key[j], chunk.offset + start, n)


cdef inline void arrange(Scratch* scratch, const ChunkArgs* chunk, const uint32_t* words, int j,
                         bint paired) noexcept nogil:
    """What fused loops take of the j-th words of a tile in another form; states the first ones."""
    if paired:
        by_parity(scratch.paired[j], words)
        if j == 0:
            by_rounding_16(scratch.lower, scratch.upper, scratch.paired[0])
        lower_16(scratch.paired[j])
    elif j == 0 and chunk.s[0].size == 1:
        by_rounding_21(scratch.lower, scratch.upper, words)


cdef inline const uint32_t* words_of(Scratch* scratch, const ChunkArgs* chunk, Py_ssize_t start,
                                     int j, bint paired, uint32_t* of_tile) noexcept nogil:
    """The j-th random words of a whole tile, to be combined with `of_tile` by XOR.

    Where the chunk starts with a tile, they are the table's: what a loop combines itself need not
    be stored and loaded again.
    """
    if chunk.offset % TILE == 0:
        of_tile[0] = fastgd_tile_word(chunk.key[j], <uint64_t> ((chunk.offset + start) // TILE))
        return &scratch.paired[j][0] if paired else &scratch.table[j][0]
    draw(scratch, chunk, start, TILE, j)
    of_tile[0] = 0
    arrange(scratch, chunk, scratch.words[j], j, paired)
    return &scratch.paired[j][0] if paired else &scratch.words[j][0]


cdef inline bint run_fused(const void* loop, const ChunkArgs* chunk, void* p, const void* g,
                           Py_ssize_t start, const float* c, float factor, float decoupled,
                           Scratch* scratch, bint paired) noexcept nogil:
    """A whole tile by a fused loop; False, and nothing is done, if the loop can't do this one."""
    cdef TileArgs t
    cdef const CodedPtr* last = &chunk.s[chunk.n_states - 1]
    cdef int of_p = chunk.p.bit_offset // 32 if chunk.p.bit_offset > 0 else 0
    t.words, t.of_tile = scratch.words[0], 0
    t.words_p, t.of_tile_p = scratch.words[0], 0
    if chunk.n_words:
        t.words = words_of(scratch, chunk, start, 0, paired, &t.of_tile)
        t.words_p, t.of_tile_p = t.words, t.of_tile
    t.lower, t.upper = scratch.lower, scratch.upper
    if of_p:
        t.words_p = words_of(scratch, chunk, start, of_p, paired, &t.of_tile_p)
    t.low = <int16_t*> (<char*> scratch.words if chunk.p.aux == NULL
                        else aux_at(&chunk.p, start))
    t.scale_m = <uint8_t*> aux_at(&chunk.s[0], start)
    t.scale_v = <uint8_t*> aux_at(last, start)
    t.scratch, t.prefetch, t.next_low = scratch, chunk.prefetch, <const char*> (t.low + TILE)
    t.next_p = chunk.p.code + (start + TILE) * chunk.p.size
    t.next_g = chunk.g.code + (start + TILE) * chunk.g.size
    t.scale, t.decoupled = factor, decoupled
    return (<fused_loop> loop)(p, g, chunk.s[0].code + start * chunk.s[0].size,
                               last.code + start * last.size, c, &t)


cdef inline const floating* ready_gradient(
        const ChunkArgs* chunk, const floating* p, Scratch* scratch, Py_ssize_t start, Py_ssize_t n,
        floating factor, const Stages* stages) noexcept nogil:
    """A tile of the gradient, loaded.

    centralize → scale (all, or by units) → value clipping → L2 decay.
    """
    cdef int flags = chunk.flags
    cdef const floating* g = load[floating](&chunk.g, <floating*> scratch.tile[0], start, n)
    cdef floating* free_tile = <floating*> scratch.tile[1]
    cdef floating* next_tile = <floating*> scratch.tile[0]
    if flags & CENTRALIZE:
        centralize(free_tile, g, n, chunk.means, &chunk.units, chunk.offset + start)
        g = free_tile
        free_tile, next_tile = next_tile, free_tile
    if flags & SCALE:
        scale(free_tile, g, n, factor)
        g = free_tile
        free_tile, next_tile = next_tile, free_tile
    if flags & SCALE_UNITS:
        scale_units(free_tile, g, n, chunk.factors, &chunk.units, chunk.offset + start)
        g = free_tile
        free_tile, next_tile = next_tile, free_tile
    if flags & CLIP_VALUE:
        clip_value(free_tile, g, n, <floating> stages.clip_value)
        g = free_tile
        free_tile, next_tile = next_tile, free_tile
    if flags & L2_DECAY:
        l2_decay(free_tile, g, p, n, <floating> stages.weight_decay)
        g = free_tile
    return g


cdef void staged(const void* rule, const ChunkArgs* chunk, const floating* c,
                 const Stages* stages) noexcept nogil:
    """A step of a chunk, tile by tile, with the stages that its flags name.

    load → centralize → scale (all, or by units) → value clipping → L2 decay → decoupled decay →
    rule → store → average → copy → zero gradient.

    The gradient is only read, unless it is to be zeroed: a stage that changes it writes to a
    scratch tile.  Where nothing needs scratch, what is prefetched at a time is done at a time, and
    the whole chunk at once where nothing is.
    """
    cdef Scratch scratch
    cdef floating* s[MAX_STATES]
    cdef floating* p = NULL
    cdef const floating* g = NULL
    cdef floating of_average[2]
    cdef Py_ssize_t start = 0, n, j
    cdef int flags = chunk.flags
    cdef floating factor = <floating> chunk.factor if flags & SCALE else 1
    cdef floating decoupled = <floating> stages.decoupled if flags & DECOUPLED_DECAY else 1
    cdef const void* fused = NULL if flags & (CENTRALIZE | CLIP_VALUE | L2_DECAY) else chunk.fused
    cdef Py_ssize_t length = TILE
    # Whether the fused loop is `in_pairs`.
    cdef bint paired = (fused != NULL and chunk.p.size == 2 and chunk.g.size == 2
                        and chunk.s[0].size == 2)
    if flags & ~DECOUPLED_DECAY == 0 and fused == NULL and chunk.sweep.lines == 0:
        length = chunk.prefetch if chunk.prefetch else chunk.n
    of_average[0], of_average[1] = <floating> chunk.beta, <floating> chunk.gamma
    for j in range(chunk.n_words if flags & CODED else 0):
        random_table(scratch.table[j], chunk.key[j], chunk.offset, chunk.n)
        if (chunk.fused != NULL or chunk.fused_in_tile != NULL) and chunk.n >= TILE:
            arrange(&scratch, chunk, scratch.table[j], <int> j, paired)
    while start < chunk.n:
        n = min(length, chunk.n - start)
        if (floating is float and fused != NULL and n == TILE
                and has_one_factor[floating](chunk, start, n, &factor)
                and run_fused(fused, chunk, chunk.p.code + start * chunk.p.size,
                              chunk.g.code + start * chunk.g.size, start, c, factor, decoupled,
                              &scratch, paired)):
            pass
        elif chunk.g.code != NULL:
            if chunk.prefetch:
                prefetch_tile(chunk, start + TILE, n // 2)
            p = load[floating](&chunk.p, <floating*> scratch.tile[2], start, n)
            if chunk.sweep.gradient:
                g = ready_gradient[floating](chunk, p, &scratch, start, n, factor, stages)
            elif chunk.sweep.kept:
                g = <floating*> chunk.kept + start
            if flags & DECOUPLED_DECAY:
                decoupled_decay(p, n, decoupled)
            if chunk.prefetch:
                prefetch_tile(chunk, start + TILE + n // 2, n // 2)
            if (floating is float and chunk.fused_in_tile != NULL and n == TILE
                    and run_fused(chunk.fused_in_tile, chunk, p, g, start, c, 1, 1, &scratch,
                                  False)):
                if chunk.p.bit_offset >= 0:
                    draw(&scratch, chunk, start, n, chunk.p.bit_offset // 32)
                store[floating](&chunk.p, p, start, n, &scratch)
            else:
                for j in range(chunk.n_states):
                    if chunk.sweep.loads >> j & 1:
                        s[j] = load[floating](&chunk.s[j], <floating*> scratch.tile[3 + j], start,
                                              n)
                    elif chunk.sweep.lines >> j & 1:
                        s[j] = spread[floating](chunk, <int> j, start, n,
                                                <floating*> scratch.tile[3 + j])
                if floating is float:
                    (<rule_f32> rule)(p, g, s, n, c)
                else:
                    (<rule_f64> rule)(p, g, s, n, c)
                if flags & CODED:
                    for j in range(chunk.n_words):
                        draw(&scratch, chunk, start, n, <int> j)
                    store[floating](&chunk.p, p, start, n, &scratch)
                    for j in range(chunk.n_states):
                        if chunk.sweep.stores >> j & 1:
                            store[floating](&chunk.s[j], s[j], start, n, &scratch)
        if flags & (AVERAGE | COPY):
            # As it was stored, which may be less exact than what was computed.
            p = load[floating](&chunk.p, <floating*> scratch.tile[2], start, n)
        if flags & AVERAGE:
            ema(<floating*> chunk.average + start, p, NULL, n, of_average)
        if flags & COPY:
            store[floating](&chunk.copy, p, start, n, &scratch)
        if flags & ZERO_GRADIENT:
            memset(chunk.g.code + start * chunk.g.size, 0, n * chunk.g.size)
        start += n


cdef inline void add_squares(double* lane, const floating* x, Py_ssize_t n,
                             double factor) noexcept nogil:
    """Add (factor·x)² to the lanes, in turn."""
    cdef double y
    cdef Py_ssize_t start = 0, j
    while start + LANES <= n:
        for j in range(LANES):
            y = factor * <double> x[start + j]
            lane[j] += y * y
        start += LANES
    for j in range(n - start):
        y = factor * <double> x[start + j]
        lane[j] += y * y


cdef inline double add_lanes(double* lane) noexcept nogil:
    """The sum over the lanes, as a binary tree; written out, which takes half the time."""
    cdef Py_ssize_t j
    for j in range(LANES // 2):
        lane[j] += lane[j + LANES // 2]
    for j in range(LANES // 4):
        lane[j] += lane[j + LANES // 4]
    return (lane[0] + lane[2]) + (lane[1] + lane[3])


cdef double sum_of_squares(const floating* x, Py_ssize_t n, double factor) noexcept nogil:
    """The sum of (factor·x)² in double precision.

    Prefetches one and a half tiles ahead: out of cache that takes two thirds of the time, in cache
    4 % more.
    """
    cdef double lane[LANES]
    cdef Py_ssize_t start = 0, j
    for j in range(LANES):
        lane[j] = 0.0
    while start + 4 * HALF_TILE <= n:
        fastgd_prefetch(<const char*> (x + start + 3 * HALF_TILE), HALF_TILE * sizeof(floating))
        add_squares(lane, x + start, HALF_TILE, factor)
        start += HALF_TILE
    add_squares(lane, x + start, n - start, factor)
    return add_lanes(lane)


cdef inline void add_terms(double* lane, const floating* x, Py_ssize_t n) noexcept nogil:
    """Add x to the lanes, in turn."""
    cdef Py_ssize_t start = 0, j
    while start + LANES <= n:
        for j in range(LANES):
            lane[j] += <double> x[start + j]
        start += LANES
    for j in range(n - start):
        lane[j] += <double> x[start + j]


cdef void summed(const void* rule, const ChunkArgs* chunk, const floating* c,
                 const Stages* stages, double* totals) noexcept nogil:
    """The first of a rule's two sweeps, of a chunk that is a block: states, and its terms' sums.

    A term may be kept, too.

    load → centralize → scale (all, or by units) → value clipping → L2 decay → rule → store states,
    add up terms.
    """
    cdef Scratch scratch
    cdef double lane[MAX_SUMS][LANES]
    cdef floating* s[MAX_STATES]
    cdef floating* terms[MAX_SUMS]
    cdef const floating* p
    cdef const floating* g = NULL
    cdef floating factor = <floating> chunk.factor if chunk.flags & SCALE else 1
    cdef Py_ssize_t start = 0, n, j, k
    # Half a tile at a time prefetches in small portions, as `staged` does: 0.9 of the time.
    cdef Py_ssize_t length = HALF_TILE if chunk.prefetch and chunk.flags & CODED == 0 else TILE
    for k in range(chunk.sweep.n_terms):
        terms[k] = <floating*> scratch.tile[3 + MAX_STATES + k]
        for j in range(LANES):
            lane[k][j] = 0.0
    for j in range(chunk.n_words if chunk.flags & CODED else 0):
        random_table(scratch.table[j], chunk.key[j], chunk.offset, chunk.n)
    while start < chunk.n:
        n = min(length, chunk.n - start)
        if chunk.kept != NULL:
            terms[0] = <floating*> chunk.kept + start
        if chunk.prefetch:
            prefetch_tile(chunk, start + TILE, n // 2)
        p = load[floating](&chunk.p, <floating*> scratch.tile[2], start, n)
        if chunk.sweep.gradient:
            g = ready_gradient[floating](chunk, p, &scratch, start, n, factor, stages)
        for j in range(chunk.n_states):
            if chunk.sweep.loads >> j & 1:
                s[j] = load[floating](&chunk.s[j], <floating*> scratch.tile[3 + j], start, n)
            elif chunk.sweep.lines >> j & 1:
                s[j] = spread[floating](chunk, <int> j, start, n, <floating*> scratch.tile[3 + j])
        if floating is float:
            (<first_f32> rule)(p, g, s, n, c, terms)
        else:
            (<first_f64> rule)(p, g, s, n, c, terms)
        if chunk.prefetch:
            prefetch_tile(chunk, start + TILE + n // 2, n // 2)
        for k in range(chunk.sweep.n_terms):
            if chunk.sweep.squares >> k & 1:
                add_squares(lane[k], terms[k], n, 1.0)
            else:
                add_terms(lane[k], terms[k], n)
        if chunk.flags & CODED:
            for j in range(chunk.n_words):
                draw(&scratch, chunk, start, n, <int> j)
            for j in range(chunk.n_states):
                if chunk.sweep.stores >> j & 1:
                    store[floating](&chunk.s[j], s[j], start, n, &scratch)
        start += n
    for k in range(chunk.sweep.n_terms):
        totals[k] = add_lanes(lane[k])


cdef void summed_tile(const void* rule, const Sweep* sweep, const floating* p, const floating* g,
                      floating** s, Py_ssize_t n, const floating* c,
                      double* totals) noexcept nogil:
    """What `summed` does to at most a tile without stages: of small tensors there are many."""
    cdef double lane[LANES]
    cdef floating room[MAX_SUMS][TILE]
    cdef floating* terms[MAX_SUMS]
    cdef Py_ssize_t j, k
    for k in range(sweep.n_terms):
        terms[k] = room[k]
    if floating is float:
        (<first_f32> rule)(p, g, s, n, c, terms)
    else:
        (<first_f64> rule)(p, g, s, n, c, terms)
    for k in range(sweep.n_terms):
        for j in range(LANES):
            lane[j] = 0.0
        if sweep.squares >> k & 1:
            add_squares(lane, terms[k], n, 1.0)
        else:
            add_terms(lane, terms[k], n)
        totals[k] = add_lanes(lane)


# (float32 loop, float64 loop), as addresses, like a row of RULES.
STAGED = (<size_t> <void*> staged[float], <size_t> <void*> staged[double])
SUMMED = (<size_t> <void*> summed[float], <size_t> <void*> summed[double])
SUMMED_TILE = (<size_t> <void*> summed_tile[float], <size_t> <void*> summed_tile[double])
SUM_OF_SQUARES = (<size_t> <void*> sum_of_squares[float], <size_t> <void*> sum_of_squares[double])

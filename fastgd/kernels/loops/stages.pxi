# The stages: what happens around a rule, each as a small loop of its own, so that options add up
# instead of multiplying the rules.  `staged` drives them over pieces that stay in cache.
# Specified by the functions of the same names in reference.py.


cdef void scale(floating* restrict out, const floating* restrict g, Py_ssize_t n,
                floating factor) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = factor * g[i]


cdef void scale_units(floating* restrict out, const floating* restrict g, Py_ssize_t n,
                      const double* factors, Py_ssize_t unit, Py_ssize_t start) noexcept nogil:
    """Scale a piece that starts anywhere in a tensor, each unit of which has a factor."""
    cdef Py_ssize_t k = start // unit, left = unit - start % unit, at = 0, m
    while at < n:
        m = min(left, n - at)
        scale(out + at, g + at, m, <floating> factors[k])
        k, left = k + 1, unit
        at += m


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


cdef inline char* beside_at(const Stored* a, Py_ssize_t start) noexcept nogil:
    return a.beside + start // a.per * a.beside_size


cdef inline floating* load(const Stored* a, floating* tile, Py_ssize_t start,
                           Py_ssize_t n) noexcept nogil:
    """A piece of an array in the type that is computed with: where it is, or loaded to a tile."""
    cdef char* code = a.code + start * a.size
    if a.load == NULL:
        return <floating*> code
    if floating is float:
        (<load_f32> a.load)(tile, code, beside_at(a, start), n)
    else:
        (<load_f64> a.load)(tile, code, beside_at(a, start), n)
    return tile


cdef inline void store(const Stored* a, const floating* x, Py_ssize_t start, Py_ssize_t n,
                       const Scratch* scratch) noexcept nogil:
    """Put a piece that was loaded to a tile back to where it is kept."""
    cdef char* code = a.code + start * a.size
    cdef const uint32_t* words = NULL
    if a.store == NULL:
        return
    if a.shift >= 0:
        words = scratch.words[a.shift // 32]
    if floating is float:
        (<store_f32> a.store)(code, beside_at(a, start), x, n, words, a.shift % 32)
    else:
        (<store_f64> a.store)(code, beside_at(a, start), x, n, words, a.shift % 32)


cdef inline void ask_for(const Stored* a, Py_ssize_t start, Py_ssize_t n) noexcept nogil:
    fastgd_prefetch(a.code + start * a.size, n * a.size)
    if a.beside_size and a.per == 1:
        fastgd_prefetch(a.beside + start * a.beside_size, n * a.beside_size)


cdef void look_ahead(const Part* part, Py_ssize_t start, Py_ssize_t n) noexcept nogil:
    """Ask for the memory of a piece, unless it ends later than the part."""
    cdef int j
    if start + n > part.n:
        return
    ask_for(&part.p, start, n)
    if part.g.code != NULL:
        ask_for(&part.g, start, n)
        for j in range(part.n_states):
            ask_for(&part.s[j], start, n)
    if part.average_size:
        fastgd_prefetch(<char*> part.average + start * part.average_size, n * part.average_size)


cdef inline void draw(Scratch* scratch, const Part* part, Py_ssize_t start, Py_ssize_t n,
                      int j) noexcept nogil:
    """The j-th random words of a piece."""
    random_words(scratch.words[j], scratch.table[j], part.key[j], part.offset + start, n)


cdef inline bint run_fused(const void* loop, const Part* part, void* p, const void* g,
                           Py_ssize_t start, const float* c, float factor, float decoupled,
                           Scratch* scratch) noexcept nogil:
    """A whole tile by a loop that does all itself; False, and nothing is done, if it can't."""
    cdef Around t
    cdef const Stored* last = &part.s[part.n_states - 1]
    cdef int j
    for j in range(part.n_words):
        draw(scratch, part, start, TILE, j)
    t.words = scratch.words[0]
    t.words_p = scratch.words[part.p.shift // 32 if part.p.shift > 0 else 0]
    t.low = <int16_t*> (<char*> scratch.words if part.p.beside == NULL
                        else beside_at(&part.p, start))
    t.scale_m = <uint8_t*> beside_at(&part.s[0], start)
    t.scale_v = <uint8_t*> beside_at(last, start)
    t.scratch, t.ahead, t.next_low = scratch, part.ahead, <const char*> (t.low + TILE)
    t.next_p = part.p.code + (start + TILE) * part.p.size
    t.next_g = part.g.code + (start + TILE) * part.g.size
    t.scale, t.decoupled = factor, decoupled
    return (<fused_loop> loop)(p, g, part.s[0].code + start * part.s[0].size,
                               last.code + start * last.size, c, &t)


cdef inline bint has_one_factor(const Part* part, Py_ssize_t start, Py_ssize_t n,
                                floating* factor) noexcept nogil:
    """Whether a piece is scaled by one factor, which is that of a unit where units have theirs."""
    cdef Py_ssize_t k
    if part.flags & SCALE_UNITS == 0:
        return True
    k = (part.offset + start) // part.unit
    factor[0] = <floating> part.factors[k]
    return part.offset + start + n <= (k + 1) * part.unit


cdef void staged(const void* rule, const Part* part, const floating* c,
                 const Stages* stages) noexcept nogil:
    """A step of a part of a tensor, piece by piece, with the stages that its flags name.

    load → scale (all, or by units) → value clipping → L2 decay → decoupled decay → rule → store →
    average → copy → zero gradient.

    The gradient is only read, unless it is to be zeroed: a stage that changes it writes to a
    scratch tile.  Where nothing needs scratch a piece in cache is the whole part.
    """
    cdef Scratch scratch
    cdef floating* s[MAX_STATES]
    cdef floating* free_tile
    cdef floating* next_tile
    cdef floating* p = NULL
    cdef const floating* g
    cdef floating of_average[2]
    cdef Py_ssize_t start = 0, n, j
    cdef int flags = part.flags
    cdef floating factor = <floating> part.factor if flags & SCALE else 1
    cdef floating decoupled = <floating> stages.decoupled if flags & DECOUPLED_DECAY else 1
    cdef const void* fused = part.fused if flags & (CLIP_VALUE | L2_DECAY) == 0 else NULL
    cdef Py_ssize_t piece = TILE
    if flags & ~DECOUPLED_DECAY == 0 and fused == NULL:
        piece = PIECE if part.ahead else part.n
    of_average[0], of_average[1] = <floating> part.beta, <floating> part.gamma
    for j in range(part.n_words if flags & STORED else 0):
        random_table(scratch.table[j], part.key[j], part.offset, part.n)
    while start < part.n:
        n = min(piece, part.n - start)
        if (floating is float and fused != NULL and n == TILE
                and has_one_factor[floating](part, start, n, &factor)
                and run_fused(fused, part, part.p.code + start * part.p.size,
                              part.g.code + start * part.g.size, start, c, factor, decoupled,
                              &scratch)):
            pass
        elif part.g.code != NULL:
            if part.ahead:
                look_ahead(part, start + TILE, n // 2)
            p = load[floating](&part.p, <floating*> scratch.tile[2], start, n)
            g = load[floating](&part.g, <floating*> scratch.tile[0], start, n)
            free_tile, next_tile = <floating*> scratch.tile[1], <floating*> scratch.tile[0]
            if flags & SCALE:
                scale(free_tile, g, n, factor)
                g = free_tile
                free_tile, next_tile = next_tile, free_tile
            if flags & SCALE_UNITS:
                scale_units(free_tile, g, n, part.factors, part.unit, part.offset + start)
                g = free_tile
                free_tile, next_tile = next_tile, free_tile
            if flags & CLIP_VALUE:
                clip_value(free_tile, g, n, <floating> stages.clip_value)
                g = free_tile
                free_tile, next_tile = next_tile, free_tile
            if flags & L2_DECAY:
                l2_decay(free_tile, g, p, n, <floating> stages.weight_decay)
                g = free_tile
            if flags & DECOUPLED_DECAY:
                decoupled_decay(p, n, decoupled)
            if part.ahead:
                look_ahead(part, start + TILE + n // 2, n // 2)
            if (floating is float and part.fused_in_tile != NULL and n == TILE
                    and run_fused(part.fused_in_tile, part, p, g, start, c, 1, 1, &scratch)):
                store[floating](&part.p, p, start, n, &scratch)
            else:
                for j in range(part.n_states):
                    s[j] = load[floating](&part.s[j], <floating*> scratch.tile[3 + j], start, n)
                if floating is float:
                    (<rule_f32> rule)(p, g, s, n, c)
                else:
                    (<rule_f64> rule)(p, g, s, n, c)
                if flags & STORED:
                    for j in range(part.n_words):
                        draw(&scratch, part, start, n, <int> j)
                    store[floating](&part.p, p, start, n, &scratch)
                    for j in range(part.n_states):
                        store[floating](&part.s[j], s[j], start, n, &scratch)
        if flags & (AVERAGE | COPY):
            # What is kept of it, which may be less than what was computed.
            p = load[floating](&part.p, <floating*> scratch.tile[2], start, n)
        if flags & AVERAGE:
            ema(<floating*> part.average + start, p, NULL, n, of_average)
        if flags & COPY:
            store[floating](&part.copy, p, start, n, &scratch)
        if flags & ZERO_GRADIENT:
            memset(part.g.code + start * part.g.size, 0, n * part.g.size)
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

    Memory is asked for three pieces ahead: out of cache in two thirds of the time, in it 4 % more.
    """
    cdef double lane[LANES]
    cdef Py_ssize_t start = 0, j
    for j in range(LANES):
        lane[j] = 0.0
    while start + 4 * PIECE <= n:
        fastgd_prefetch(<const char*> (x + start + 3 * PIECE), PIECE * sizeof(floating))
        add_squares(lane, x + start, PIECE, factor)
        start += PIECE
    add_squares(lane, x + start, n - start, factor)
    return add_lanes(lane)


cdef double sum_of_coded(const Stored* x, Py_ssize_t n, double factor) noexcept nogil:
    """The same of numbers that a codec keeps, which loads them as float64."""
    cdef Scratch scratch
    cdef double lane[LANES]
    cdef Py_ssize_t start = 0, m, j
    for j in range(LANES):
        lane[j] = 0.0
    while start < n:
        m = min(<Py_ssize_t> TILE, n - start)
        add_squares(lane, load[double](x, <double*> scratch.tile[0], start, m), m, factor)
        start += m
    return add_lanes(lane)


# (float32 loop, float64 loop), as addresses, like a row of RULES.
STAGED = (<size_t> <void*> staged[float], <size_t> <void*> staged[double])
SUM_OF_SQUARES = (<size_t> <void*> sum_of_squares[float], <size_t> <void*> sum_of_squares[double],
                  <size_t> <void*> sum_of_coded)

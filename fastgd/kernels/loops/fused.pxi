# The fused loops: load, scale, decay, rule and store in one, for the rules and the ways of storing
# that a family opted into (`Fused` in spec/registry.py).
#
# Stage by stage, numbers go through L1 several times, and codecs wait while the divider works; in
# one loop they take what time the divider leaves.  And the loop prefetches a stride at a time, not
# in bursts that the processor can't hold.  On a Xeon with AVX-512 an element in cache took 0.60 ns,
# not 1.00, with bfloat16 states, and 0.53 in float32; out of cache a step took 0.79 of the time of
# a float32 stream, not 0.96.
#
# The bits are those of the stages: the same functions of fastgd_codecs.h and of the families' .pxi
# in the same order; a scale or a decay of 1 changes nothing.  A loop is for one whole tile, and
# returns whether it did it: states of NaN are left to the stages.

# How a parameter, a gradient or a state may be stored: the types by which loops are told apart.
cdef struct Bfloat16:
    uint16_t code
cdef struct Split:
    uint16_t code

ctypedef fused param_t:
    float
    Bfloat16
    Split
ctypedef fused grad_t:
    float
    Bfloat16
ctypedef fused state_t:
    float
    Bfloat16
ctypedef fused half_t:
    Bfloat16
    Split

# Per-tile arguments of a fused loop, besides the pointers to its elements.
cdef struct TileArgs:
    int16_t* low               # remainders of a split parameter
    uint8_t* scale_m           # of 8-bit states
    uint8_t* scale_v
    const uint32_t* words      # random, for the states, and for the parameter: each is to be
    const uint32_t* words_p    # combined with its tile's by XOR
    uint32_t of_tile
    uint32_t of_tile_p
    const uint32_t* lower      # what states in 8 bits take of `words`, and those of `in_pairs`
    const uint32_t* upper
    float scale                # of the gradient
    float decoupled            # of the parameter
    bint prefetch              # whether to prefetch the next tile: its addresses, where parameter
    const char* next_p         # and gradient are stored
    const char* next_low
    const char* next_g
    Scratch* scratch


# A state's random bits are those of its position among the rule's states.
cdef inline int bits_for_v(const rule_t* c) noexcept nogil:
    return FASTGD_UPPER if has_m(c) else FASTGD_LOWER


cdef inline float get_param(const param_t* p, const int16_t* low) noexcept nogil:
    if param_t is float:
        return p[0]
    elif param_t is Bfloat16:
        return fastgd_bfloat16_load(p.code)
    else:
        return fastgd_split_load(p.code, low[0])


cdef inline void put_param(param_t* p, int16_t* low, float x, uint32_t word) noexcept nogil:
    cdef uint32_t u
    if param_t is float:
        p[0] = x
    elif param_t is Bfloat16:
        p.code = fastgd_bfloat16_stochastic(x, fastgd_random16(word, FASTGD_LOWER))
    else:
        u = fastgd_split_canonical(x)
        p.code, low[0] = fastgd_split_high(u), fastgd_split_low(u)


cdef inline float get(const state_t* s) noexcept nogil:
    if state_t is float:
        return s[0]
    else:
        return fastgd_bfloat16_load(s.code)


cdef inline void put(state_t* s, float x, uint32_t word, int rounding) noexcept nogil:
    if state_t is float:
        s[0] = x
    else:
        s.code = fastgd_bfloat16_stochastic(x, fastgd_random16(word, rounding))


cdef inline void prefetch_next(const param_t* p, const grad_t* g, const TileArgs* t,
                               Py_ssize_t k) noexcept nogil:
    """Prefetch the k-th stride of the next tile's parameter and gradient."""
    cdef Py_ssize_t n = STRIDE * sizeof(param_t), m = STRIDE * sizeof(grad_t)
    fastgd_prefetch(t.next_p + k * n, n)
    if param_t is Split:
        fastgd_prefetch(t.next_low + k * n, n)
    fastgd_prefetch(t.next_g + k * m, m)


cdef bint direct(param_t* restrict p, const grad_t* restrict g, state_t* restrict m,
                 state_t* restrict v, const rule_t* given, const TileArgs* t) noexcept nogil:
    """States in float32 or bfloat16; of a rule with one of them m and v are the same."""
    cdef rule_t c = given[0]
    cdef float scale = t.scale, decoupled = t.decoupled
    cdef int16_t* restrict low = t.low
    cdef const uint32_t* restrict words = t.words
    cdef const uint32_t* restrict words_p = t.words_p
    cdef uint32_t of_tile = t.of_tile, of_tile_p = t.of_tile_p
    cdef bint prefetch = t.prefetch
    cdef float x, one_m = 0, one_v = 0
    cdef Py_ssize_t k, i
    for k in range(TILE // STRIDE):
        if prefetch:
            prefetch_next(p, g, t, k)
            if has_m(given):
                fastgd_prefetch(<const char*> (m + TILE), STRIDE * sizeof(state_t))
            if has_v(given):
                fastgd_prefetch(<const char*> (v + TILE), STRIDE * sizeof(state_t))
        for i in range(STRIDE):
            if has_m(given):
                one_m = get(&m[i])
            if has_v(given):
                one_v = get(&v[i])
            x = updated(decoupled * get_param(&p[i], &low[i]), scale * get(&g[i]), &one_m, &one_v,
                        &c)
            put_param(&p[i], &low[i], x, words_p[i] ^ of_tile_p)
            if has_m(given):
                put(&m[i], one_m, words[i] ^ of_tile, FASTGD_LOWER)
            if has_v(given):
                put(&v[i], one_v, words[i] ^ of_tile, bits_for_v(given))
        p, low, g, m, v = p + STRIDE, low + STRIDE, g + STRIDE, m + STRIDE, v + STRIDE
        words, words_p = words + STRIDE, words_p + STRIDE
    return True


cdef inline uint32_t pair_at(const half_t* a, Py_ssize_t i) noexcept nogil:
    """The i-th two numbers of 16 bits, in a word."""
    return fastgd_word(<const uint8_t*> (a + 2 * i))


cdef inline void put_pair(half_t* a, Py_ssize_t i, uint32_t first, uint32_t second) noexcept nogil:
    """Two float32's bits, of which the upper halves are stored."""
    fastgd_put_word(<uint8_t*> (a + 2 * i), fastgd_pair(first, second))


cdef apart_void in_pairs_loop(half_t* restrict p, int16_t* restrict low,
                              const Bfloat16* restrict g, Bfloat16* restrict m,
                              Bfloat16* restrict v, const rule_t* given,
                              const uint32_t* restrict of_m, const uint32_t* restrict of_v,
                              const uint32_t* restrict of_p, const TileArgs* t) noexcept nogil:
    """`of_m`, `of_v` and `of_p` are the random bits of positions."""
    cdef rule_t c = given[0]
    cdef float scale = t.scale, decoupled = t.decoupled
    cdef uint32_t tile_m = fastgd_random16(t.of_tile, FASTGD_LOWER)
    cdef uint32_t tile_v = fastgd_random16(t.of_tile, bits_for_v(given))
    cdef uint32_t tile_p = fastgd_random16(t.of_tile_p, FASTGD_LOWER)
    cdef bint prefetch = t.prefetch
    cdef uint32_t p2, g2, low2, u0, u1
    cdef float x0, x1, m0 = 0, m1 = 0, v0 = 0, v1 = 0
    cdef Py_ssize_t k, i
    for k in range(TILE // STRIDE):
        if prefetch:
            prefetch_next(p, g, t, k)
            if has_m(given):
                fastgd_prefetch(<const char*> (m + TILE), STRIDE * sizeof(Bfloat16))
            if has_v(given):
                fastgd_prefetch(<const char*> (v + TILE), STRIDE * sizeof(Bfloat16))
        for i in range(STRIDE // 2):
            p2, g2 = pair_at(p, i), pair_at(g, i)
            if has_m(given):
                m0, m1 = fastgd_first(pair_at(m, i)), fastgd_second(pair_at(m, i))
            if has_v(given):
                v0, v1 = fastgd_first(pair_at(v, i)), fastgd_second(pair_at(v, i))
            if half_t is Bfloat16:
                x0, x1 = fastgd_first(p2), fastgd_second(p2)
            else:
                low2 = fastgd_word(<const uint8_t*> (low + 2 * i))
                x0, x1 = fastgd_split_first(p2, low2), fastgd_split_second(p2, low2)
            x0 = updated(decoupled * x0, scale * fastgd_first(g2), &m0, &v0, &c)
            x1 = updated(decoupled * x1, scale * fastgd_second(g2), &m1, &v1, &c)
            if half_t is Bfloat16:
                put_pair(p, i, fastgd_bfloat16_up(x0, of_p[i] ^ tile_p),
                         fastgd_bfloat16_up(x1, of_p[STRIDE // 2 + i] ^ tile_p))
            else:
                u0, u1 = fastgd_split_canonical(x0), fastgd_split_canonical(x1)
                put_pair(p, i, fastgd_split_up(u0), fastgd_split_up(u1))
                fastgd_put_word(<uint8_t*> (low + 2 * i), fastgd_pair(u0 << 16, u1 << 16))
            if has_m(given):
                put_pair(m, i, fastgd_bfloat16_up(m0, of_m[i] ^ tile_m),
                         fastgd_bfloat16_up(m1, of_m[STRIDE // 2 + i] ^ tile_m))
            if has_v(given):
                put_pair(v, i, fastgd_bfloat16_up(v0, of_v[i] ^ tile_v),
                         fastgd_bfloat16_up(v1, of_v[STRIDE // 2 + i] ^ tile_v))
        p, low, g, m, v = p + STRIDE, low + STRIDE, g + STRIDE, m + STRIDE, v + STRIDE
        of_m, of_v, of_p = of_m + STRIDE, of_v + STRIDE, of_p + STRIDE


cdef bint in_pairs(half_t* restrict p, const Bfloat16* restrict g, Bfloat16* restrict m,
                   Bfloat16* restrict v, const rule_t* given, const TileArgs* t) noexcept nogil:
    """All in 16 bits: two elements from each word, the random bits `by_parity`.

    An element takes four fifths of the cycles that `direct` would, which on AVX2 packs and unpacks
    halves across lanes.  Words may alias anything, so all that is read is an argument that does
    not.  Bits that are ready spare it one operation in twenty.
    """
    in_pairs_loop(p, t.low, g, m, v, given, t.lower, t.upper if has_m(given) else t.lower,
                  t.words_p, t)
    return True


cdef inline void quarter(param_t* restrict p, int16_t* restrict low, const grad_t* restrict g,
                         const uint8_t* restrict code_m, const uint8_t* restrict code_v,
                         float* restrict m, float* restrict v, int k, int32_t bits_m,
                         int32_t bits_v, rule_t c, const uint32_t* restrict words, bint prefetch,
                         const TileArgs* t) noexcept nogil:
    """The k-th quarter of a tile: byte k of each word of codes (see codecs.pxi).

    Leaves the new states in scratch tiles.
    """
    cdef Py_ssize_t start = k * STRIDE, j
    cdef float x, one_m = 0, one_v = 0, scale = t.scale, decoupled = t.decoupled
    cdef uint32_t of_tile = t.of_tile_p
    p, low, g, words, m, v = p + start, low + start, g + start, words + start, m + start, v + start
    if prefetch:
        prefetch_next(p, g, t, k)
        if has_m(&c):
            fastgd_prefetch(<const char*> (code_m + start + TILE), STRIDE)
        if has_v(&c):
            fastgd_prefetch(<const char*> (code_v + start + TILE), STRIDE)
    for j in range(STRIDE):
        if has_m(&c):
            one_m = fastgd_e5m2_load(fastgd_code(fastgd_word(code_m + 4 * j), k), bits_m)
        if has_v(&c):
            one_v = fastgd_ue6m2_load(fastgd_code(fastgd_word(code_v + 4 * j), k), bits_v)
        x = updated(decoupled * get_param(&p[j], &low[j]), scale * get(&g[j]), &one_m, &one_v, &c)
        put_param(&p[j], &low[j], x, words[j] ^ of_tile)
        if has_m(&c):
            m[j] = one_m
        if has_v(&c):
            v[j] = one_v


cdef bint in_8_bits(param_t* p, const grad_t* g, uint8_t* code_m, uint8_t* code_v,
                    const rule_t* given, const TileArgs* t) noexcept nogil:
    """States in 8 bits; of a rule with one of them m and v are the same."""
    cdef rule_t c = given[0]
    cdef float* m = <float*> t.scratch.tile[3]
    cdef float* v = <float*> t.scratch.tile[4]
    cdef int16_t* low = t.low
    cdef const uint32_t* words = t.words_p
    cdef bint prefetch = t.prefetch
    cdef int32_t bits_m = 0, bits_v = 0
    cdef int scale_m, scale_v
    if has_m(given):
        if t.scale_m[0] > FASTGD_E5M2_MOST:
            return False
        bits_m = fastgd_scale_bits(t.scale_m[0], FASTGD_E5M2_LEAST)
    if has_v(given):
        if t.scale_v[0] > FASTGD_UE6M2_MOST:
            return False
        bits_v = fastgd_scale_bits(t.scale_v[0], FASTGD_UE6M2_LEAST)
    quarter(p, low, g, code_m, code_v, m, v, 0, bits_m, bits_v, c, words, prefetch, t)
    quarter(p, low, g, code_m, code_v, m, v, 1, bits_m, bits_v, c, words, prefetch, t)
    quarter(p, low, g, code_m, code_v, m, v, 2, bits_m, bits_v, c, words, prefetch, t)
    quarter(p, low, g, code_m, code_v, m, v, 3, bits_m, bits_v, c, words, prefetch, t)
    # Both scales first, as codes wait for what all numbers of a tile have to do with.
    if has_m(given):
        scale_m = scale_e5m2(m, TILE)
        t.scale_m[0] = <uint8_t> scale_m
    if has_v(given):
        scale_v = scale_ue6m2(v, TILE, True)
        t.scale_v[0] = <uint8_t> scale_v
    if has_m(given):
        put_e5m2(code_m, scale_m, m, TILE, t.lower, fastgd_random21(t.of_tile, FASTGD_LOWER),
                 FASTGD_READY)
    if has_v(given):
        put_ue6m2(code_v, scale_v, v, TILE, t.upper if has_m(given) else t.lower,
                  fastgd_random21(t.of_tile, bits_for_v(given)), FASTGD_READY, True)
    return True


ctypedef bint (*fused_loop)(void*, const void*, void*, void*, const float*,
                            const TileArgs*) noexcept nogil

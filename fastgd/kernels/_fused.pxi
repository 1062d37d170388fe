# Load, scale, decay, rule and store in one loop, for what is used most: Adam and AdamW on float32
# and bfloat16, the parameter also in split form and the states also in 8 bits.
#
# Stage by stage, numbers go through L1 several times, and codecs wait while the divider works; in
# one loop they take what time the divider leaves.  And memory is asked for a little at a time, as
# the loop goes, not in bursts that the processor can't hold.  On a Xeon with AVX-512 an element in
# cache took 0.60 ns, not 1.00, with bfloat16 states, and 0.53 in float32; out of cache a step took
# 0.79 of the time of a float32 stream, not 0.96.
#
# The bits are those of the stages: the same functions of codecs.h and _rules.pxi in the same order;
# a scale or a decay of 1 changes nothing.  A loop is for one whole tile, and returns whether it did
# it: states of NaN are left to the stages.

# As a parameter, a gradient or a state may be kept: the types by which loops are told apart.
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

# What a loop wants to know of a tile besides where its elements are.
cdef struct Around:
    int16_t* low               # remainders of a split parameter
    uint8_t* scale_m           # of 8-bit states
    uint8_t* scale_v
    const uint32_t* words      # random, for the states, and for the parameter
    const uint32_t* words_p
    bint ahead                 # whether memory is to be asked for: what the next tile has, of
    const char* next_p         # parameter and gradient where they are kept
    const char* next_low
    const char* next_g
    Scratch* scratch


# A rule's in their order, and the factors of gradient and parameter before it.
cdef struct Coefficients:
    float alpha
    float beta1
    float gamma1
    float beta2
    float gamma2
    float eps
    float eps_root
    float scale
    float decoupled


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


cdef inline void ask_for_next(const param_t* p, const grad_t* g, const Around* t,
                              Py_ssize_t k) noexcept nogil:
    """Ask for the k-th stride of the next tile."""
    cdef Py_ssize_t n = STRIDE * sizeof(param_t), m = STRIDE * sizeof(grad_t)
    fastgd_prefetch(t.next_p + k * n, n)
    if param_t is Split:
        fastgd_prefetch(t.next_low + k * n, n)
    fastgd_prefetch(t.next_g + k * m, m)


cdef bint adam_direct(param_t* restrict p, const grad_t* restrict g, state_t* restrict m,
                      state_t* restrict v, const Coefficients* given,
                      const Around* t) noexcept nogil:
    """States in float32 or bfloat16."""
    cdef Coefficients c = given[0]
    cdef int16_t* restrict low = t.low
    cdef const uint32_t* restrict words = t.words
    cdef const uint32_t* restrict words_p = t.words_p
    cdef bint ahead = t.ahead
    cdef float x, one_m, one_v
    cdef Py_ssize_t k, i
    for k in range(TILE // STRIDE):
        if ahead:
            ask_for_next(p, g, t, k)
            fastgd_prefetch(<const char*> (m + TILE), STRIDE * sizeof(state_t))
            fastgd_prefetch(<const char*> (v + TILE), STRIDE * sizeof(state_t))
        for i in range(STRIDE):
            one_m = get(&m[i])
            one_v = get(&v[i])
            x = adam_of(c.decoupled * get_param(&p[i], &low[i]), c.scale * get(&g[i]), &one_m,
                        &one_v, c.alpha, c.beta1, c.gamma1, c.beta2, c.gamma2, c.eps, c.eps_root)
            put_param(&p[i], &low[i], x, words_p[i])
            put(&m[i], one_m, words[i], FASTGD_LOWER)
            put(&v[i], one_v, words[i], FASTGD_UPPER)
        p, low, g, m, v = p + STRIDE, low + STRIDE, g + STRIDE, m + STRIDE, v + STRIDE
        words, words_p = words + STRIDE, words_p + STRIDE
    return True


cdef inline void adam_quarter(param_t* restrict p, int16_t* restrict low,
                              const grad_t* restrict g, const uint8_t* restrict code_m,
                              const uint8_t* restrict code_v, float* restrict m, float* restrict v,
                              int k, int32_t bits_m, int32_t bits_v, Coefficients c,
                              const uint32_t* restrict words, bint ahead,
                              const Around* t) noexcept nogil:
    """The elements of byte k of each word, see _codecs.pxi; leaves new states in scratch tiles."""
    cdef Py_ssize_t start = k * STRIDE, j
    cdef float x, one_m, one_v
    p, low, g, words, m, v = p + start, low + start, g + start, words + start, m + start, v + start
    if ahead:
        ask_for_next(p, g, t, k)
        fastgd_prefetch(<const char*> (code_m + start + TILE), STRIDE)
        fastgd_prefetch(<const char*> (code_v + start + TILE), STRIDE)
    for j in range(STRIDE):
        one_m = fastgd_e4m3_load(fastgd_code(fastgd_word(code_m + 4 * j), k), bits_m)
        one_v = fastgd_ue5m3_load(fastgd_code(fastgd_word(code_v + 4 * j), k), bits_v)
        x = adam_of(c.decoupled * get_param(&p[j], &low[j]), c.scale * get(&g[j]), &one_m, &one_v,
                    c.alpha, c.beta1, c.gamma1, c.beta2, c.gamma2, c.eps, c.eps_root)
        put_param(&p[j], &low[j], x, words[j])
        m[j] = one_m
        v[j] = one_v


cdef bint adam_8bit(param_t* p, const grad_t* g, uint8_t* code_m, uint8_t* code_v,
                    const Coefficients* given, const Around* t) noexcept nogil:
    cdef Coefficients c = given[0]
    cdef float* m = <float*> t.scratch.tile[3]
    cdef float* v = <float*> t.scratch.tile[4]
    cdef int16_t* low = t.low
    cdef const uint32_t* words = t.words_p
    cdef bint ahead = t.ahead
    cdef int32_t bits_m = fastgd_scale_bits(t.scale_m[0], FASTGD_E4M3_LEAST)
    cdef int32_t bits_v = fastgd_scale_bits(t.scale_v[0], FASTGD_UE5M3_LEAST)
    if t.scale_m[0] > FASTGD_E4M3_MOST or t.scale_v[0] > FASTGD_UE5M3_MOST:
        return False
    adam_quarter(p, low, g, code_m, code_v, m, v, 0, bits_m, bits_v, c, words, ahead, t)
    adam_quarter(p, low, g, code_m, code_v, m, v, 1, bits_m, bits_v, c, words, ahead, t)
    adam_quarter(p, low, g, code_m, code_v, m, v, 2, bits_m, bits_v, c, words, ahead, t)
    adam_quarter(p, low, g, code_m, code_v, m, v, 3, bits_m, bits_v, c, words, ahead, t)
    put_e4m3(code_m, t.scale_m, m, TILE, t.words, FASTGD_LOWER)
    put_ue5m3(code_v, t.scale_v, v, TILE, t.words, FASTGD_UPPER)
    return True


ctypedef bint (*fused_loop)(void*, const void*, void*, void*, const Coefficients*,
                            const Around*) noexcept nogil

# How parameter and states are kept: {rule: its loops, as addresses, for gradients in float32 and in
# bfloat16}.
FUSED = {
    ("float32", "float32", "float32"): {"adam": (
        <size_t> <void*> adam_direct[float, float, float],
        <size_t> <void*> adam_direct[float, Bfloat16, float])},
    ("bfloat16", "float32", "float32"): {"adam": (
        <size_t> <void*> adam_direct[Bfloat16, float, float],
        <size_t> <void*> adam_direct[Bfloat16, Bfloat16, float])},
    ("split", "float32", "float32"): {"adam": (
        <size_t> <void*> adam_direct[Split, float, float],
        <size_t> <void*> adam_direct[Split, Bfloat16, float])},
    ("float32", "bfloat16", "bfloat16"): {"adam": (
        <size_t> <void*> adam_direct[float, float, Bfloat16],
        <size_t> <void*> adam_direct[float, Bfloat16, Bfloat16])},
    ("bfloat16", "bfloat16", "bfloat16"): {"adam": (
        <size_t> <void*> adam_direct[Bfloat16, float, Bfloat16],
        <size_t> <void*> adam_direct[Bfloat16, Bfloat16, Bfloat16])},
    ("split", "bfloat16", "bfloat16"): {"adam": (
        <size_t> <void*> adam_direct[Split, float, Bfloat16],
        <size_t> <void*> adam_direct[Split, Bfloat16, Bfloat16])},
    ("float32", "e4m3", "ue5m3"): {"adam": (
        <size_t> <void*> adam_8bit[float, float],
        <size_t> <void*> adam_8bit[float, Bfloat16])},
    ("bfloat16", "e4m3", "ue5m3"): {"adam": (
        <size_t> <void*> adam_8bit[Bfloat16, float],
        <size_t> <void*> adam_8bit[Bfloat16, Bfloat16])},
    ("split", "e4m3", "ue5m3"): {"adam": (
        <size_t> <void*> adam_8bit[Split, float],
        <size_t> <void*> adam_8bit[Split, Bfloat16])},
}

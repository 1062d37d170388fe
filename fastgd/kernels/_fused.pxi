# Load, rule and store in fewer loops, for what is used most: Adam (and AdamW, which decays first)
# with both states in bfloat16 or 8 bits, rounded by chance.
#
# Stage by stage, states go through L1 several times and their codecs wait while the divider works;
# in one loop the codecs take what time the divider leaves: on a Xeon with AVX-512 an element took
# 0.69 ns, not 1.00, with bfloat16 states, 0.81, not 1.10, with 8 bits, and 0.52 in float32.  The
# bits are those of the stages: the same functions of codecs.h and _rules.pxi, in the same order.
#
# A loop returns whether it was one for this tile: those that are not whole, or hold NaN, are rare.

cdef bint adam_bfloat16(float* restrict p, const float* restrict g, const Stored* s,
                        Py_ssize_t start, const float* c, const uint32_t* restrict words,
                        uint32_t of_tile, Scratch* scratch) noexcept nogil:
    cdef uint16_t* restrict code_m = <uint16_t*> s[0].code + start
    cdef uint16_t* restrict code_v = <uint16_t*> s[1].code + start
    cdef float alpha = c[0], beta1 = c[1], gamma1 = c[2], beta2 = c[3], gamma2 = c[4]
    cdef float eps = c[5], eps_root = c[6]
    cdef float m, v
    cdef uint32_t word
    cdef Py_ssize_t i
    for i in range(TILE):
        m = fastgd_bfloat16_load(code_m[i])
        v = fastgd_bfloat16_load(code_v[i])
        p[i] = adam_of(p[i], g[i], &m, &v, alpha, beta1, gamma1, beta2, gamma2, eps, eps_root)
        word = words[i] ^ of_tile
        code_m[i] = fastgd_bfloat16_stochastic(m, fastgd_random16(word, FASTGD_LOWER))
        code_v[i] = fastgd_bfloat16_stochastic(v, fastgd_random16(word, FASTGD_UPPER))
    return True


# What the largest of a tile are, as its scales are found from them.
cdef struct Largest:
    int32_t m
    uint32_t v


cdef inline void adam_quarter(float* restrict p, const float* restrict g, float* restrict m,
                              float* restrict v, const uint8_t* restrict code_m,
                              const uint8_t* restrict code_v, int k, int32_t bits_m, int32_t bits_v,
                              const float* c, Largest* largest) noexcept nogil:
    """The elements of byte k of each word: see _codecs.pxi."""
    cdef float alpha = c[0], beta1 = c[1], gamma1 = c[2], beta2 = c[3], gamma2 = c[4]
    cdef float eps = c[5], eps_root = c[6]
    cdef float one_m, one_v
    cdef uint32_t order, largest_v = largest.v
    cdef int32_t largest_m = largest.m
    cdef Py_ssize_t j
    for j in range(TILE // 4):
        one_m = fastgd_e4m3_load(fastgd_code(fastgd_word(code_m + 4 * j), k), bits_m)
        one_v = fastgd_ue5m3_load(fastgd_code(fastgd_word(code_v + 4 * j), k), bits_v)
        p[j] = adam_of(p[j], g[j], &one_m, &one_v, alpha, beta1, gamma1, beta2, gamma2, eps,
                       eps_root)
        m[j] = one_m
        v[j] = one_v
        largest_m = fastgd_max(largest_m, fastgd_magnitude(one_m))
        order = fastgd_ue5m3_order(one_v)
        largest_v = order if order > largest_v else largest_v
    largest.m, largest.v = largest_m, largest_v


cdef bint adam_8bit(float* restrict p, const float* restrict g, const Stored* s,
                    Py_ssize_t start, const float* c, const uint32_t* restrict words,
                    uint32_t of_tile, Scratch* scratch) noexcept nogil:
    cdef uint8_t* code_m = <uint8_t*> s[0].code + start
    cdef uint8_t* code_v = <uint8_t*> s[1].code + start
    cdef uint8_t* scale_m = <uint8_t*> s[0].beside + start // TILE
    cdef uint8_t* scale_v = <uint8_t*> s[1].beside + start // TILE
    cdef float* m = <float*> scratch.tile[3]
    cdef float* v = <float*> scratch.tile[4]
    cdef Largest largest
    cdef int32_t bits_m = fastgd_scale_bits(scale_m[0], FASTGD_E4M3_LEAST)
    cdef int32_t bits_v = fastgd_scale_bits(scale_v[0], FASTGD_UE5M3_LEAST)
    cdef Py_ssize_t q = TILE // 4
    if scale_m[0] > FASTGD_E4M3_MOST or scale_v[0] > FASTGD_UE5M3_MOST:
        return False
    largest.m, largest.v = 0, 0
    adam_quarter(p, g, m, v, code_m, code_v, 0, bits_m, bits_v, c, &largest)
    adam_quarter(p + q, g + q, m + q, v + q, code_m, code_v, 1, bits_m, bits_v, c, &largest)
    adam_quarter(p + 2 * q, g + 2 * q, m + 2 * q, v + 2 * q, code_m, code_v, 2, bits_m, bits_v, c,
                 &largest)
    adam_quarter(p + 3 * q, g + 3 * q, m + 3 * q, v + 3 * q, code_m, code_v, 3, bits_m, bits_v, c,
                 &largest)
    put_e4m3(code_m, scale_m, m, TILE, words, of_tile, FASTGD_LOWER, largest.m)
    put_ue5m3(code_v, scale_v, v, TILE, words, of_tile, FASTGD_UPPER, largest.v)
    return True


# How both states are kept: {rule: its loop, as an address}; float32 only.
FUSED = {
    ("bfloat16", "bfloat16"): {"adam": <size_t> <void*> adam_bfloat16},
    ("e4m3", "ue5m3"): {"adam": <size_t> <void*> adam_8bit},
}

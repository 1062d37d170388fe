# The codecs: loops that load a tile of a stored array into float32 or float64, and store it back.
# Included by every backend.
#
# What a loop computes is specified by the function of the same name in spec/codecs.py, bit for bit;
# what happens to one element stands in src_c/fastgd_codecs.h.  All loads have one signature, and so
# have all stores.  `code` is the stored array, `aux` its remainders (of the split form) or scales
# (one for a tile of 8-bit codes).  Stochastic stores take some bits of each element's random word:
# with `shift` 0 the lower ones, with 16 the upper ones.

from libc.stdint cimport int16_t, int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from "fastgd_codecs.h" nogil:
    const int FASTGD_NAN_SCALE
    const int FASTGD_NEAREST, FASTGD_LOWER, FASTGD_UPPER, FASTGD_READY
    const int FASTGD_E5M2_LEAST, FASTGD_E5M2_MOST, FASTGD_E5M2_BINADES, FASTGD_E5M2_FROM
    const int FASTGD_UE6M2_LEAST, FASTGD_UE6M2_MOST, FASTGD_UE6M2_BINADES, FASTGD_UE6M2_FROM
    float fastgd_float(uint32_t)
    float fastgd_to_odd(double)
    int32_t fastgd_magnitude(float)
    int32_t fastgd_max(int32_t, int32_t)
    float fastgd_quiet(float)
    float fastgd_bfloat16_load(uint16_t)
    uint16_t fastgd_bfloat16(float)
    uint16_t fastgd_bfloat16_stochastic(float, uint32_t)
    uint32_t fastgd_bfloat16_up(float, uint32_t)
    float fastgd_first(uint32_t)
    float fastgd_second(uint32_t)
    uint32_t fastgd_pair(uint32_t, uint32_t)
    float fastgd_float16_load(uint16_t)
    uint16_t fastgd_float16_nearest(float)
    uint16_t fastgd_float16_stochastic(float, uint32_t)
    uint32_t fastgd_split_canonical(float)
    uint16_t fastgd_split_high(uint32_t)
    int16_t fastgd_split_low(uint32_t)
    float fastgd_split_load(uint16_t, int16_t)
    uint32_t fastgd_split_up(uint32_t)
    float fastgd_split_first(uint32_t, uint32_t)
    float fastgd_split_second(uint32_t, uint32_t)
    int fastgd_tile_scale(uint32_t, int, int)
    int32_t fastgd_scale_bits(int, int)
    uint32_t fastgd_random16(uint32_t, int)
    uint32_t fastgd_random21(uint32_t, int)
    uint32_t fastgd_units(uint32_t, int, uint32_t)
    int32_t fastgd_unit(const uint32_t*, uint32_t, Py_ssize_t, int)
    uint32_t fastgd_word(const uint8_t*)
    void fastgd_put_word(uint8_t*, uint32_t)
    uint32_t fastgd_code(uint32_t, int)
    uint32_t fastgd_codes(uint32_t, uint32_t, uint32_t, uint32_t, int)
    float fastgd_e5m2_load(uint32_t, int32_t)
    uint32_t fastgd_e5m2_fixed(int32_t)
    uint32_t fastgd_e5m2_store(float, uint32_t, int32_t)
    uint32_t fastgd_ue6m2_order(float, int)
    float fastgd_ue6m2_load(uint32_t, int32_t)
    uint32_t fastgd_ue6m2_store(float, int, int32_t, int32_t)
    uint64_t fastgd_random_key(uint64_t, uint64_t, uint64_t)
    uint64_t fastgd_split(uint64_t, uint64_t)
    uint32_t fastgd_tile_word(uint64_t, uint64_t)
    uint32_t fastgd_position_word(uint32_t, uint32_t)
    const uint32_t FASTGD_WORD_STEP


cdef inline float to_odd(floating x) noexcept nogil:
    """To float32 on the way to 16 bits, without rounding twice."""
    if floating is float:
        return x
    else:
        return fastgd_to_odd(x)


# ------------------------------------------------------------------------------ float32, float64

cdef void load_float32(floating* restrict out, const void* restrict code,
                       const void* restrict aux, Py_ssize_t n) noexcept nogil:
    cdef const float* c = <const float*> code
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = <floating> c[i]


cdef void store_float32(void* restrict code, void* restrict aux, const floating* restrict x,
                        Py_ssize_t n, const uint32_t* restrict words, int shift) noexcept nogil:
    cdef float* c = <float*> code
    cdef Py_ssize_t i
    for i in range(n):
        c[i] = <float> x[i]


cdef void load_float64(floating* restrict out, const void* restrict code,
                       const void* restrict aux, Py_ssize_t n) noexcept nogil:
    cdef const double* c = <const double*> code
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = <floating> c[i]


cdef void store_float64(void* restrict code, void* restrict aux, const floating* restrict x,
                        Py_ssize_t n, const uint32_t* restrict words, int shift) noexcept nogil:
    cdef double* c = <double*> code
    cdef Py_ssize_t i
    for i in range(n):
        c[i] = <double> x[i]


# ---------------------------------------------------------------------------- bfloat16, float16

cdef void load_bfloat16(floating* restrict out, const void* restrict code,
                        const void* restrict aux, Py_ssize_t n) noexcept nogil:
    cdef const uint16_t* c = <const uint16_t*> code
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = <floating> fastgd_bfloat16_load(c[i])


cdef void store_bfloat16(void* restrict code, void* restrict aux, const floating* restrict x,
                         Py_ssize_t n, const uint32_t* restrict words, int shift) noexcept nogil:
    cdef uint16_t* c = <uint16_t*> code
    cdef Py_ssize_t i
    for i in range(n):
        c[i] = fastgd_bfloat16(to_odd(x[i]))


cdef inline void round_bfloat16(uint16_t* restrict c, const floating* restrict x, Py_ssize_t n,
                                const uint32_t* restrict words, int rounding) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        c[i] = fastgd_bfloat16_stochastic(fastgd_quiet(<float> x[i]),
                                          fastgd_random16(words[i], rounding))


cdef void stochastic_bfloat16(void* restrict code, void* restrict aux,
                              const floating* restrict x, Py_ssize_t n,
                              const uint32_t* restrict words, int shift) noexcept nogil:
    if shift == 0:
        round_bfloat16(<uint16_t*> code, x, n, words, FASTGD_LOWER)
    else:
        round_bfloat16(<uint16_t*> code, x, n, words, FASTGD_UPPER)


cdef void load_float16(floating* restrict out, const void* restrict code,
                       const void* restrict aux, Py_ssize_t n) noexcept nogil:
    cdef const uint16_t* c = <const uint16_t*> code
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = <floating> fastgd_float16_load(c[i])


cdef void store_float16(void* restrict code, void* restrict aux, const floating* restrict x,
                        Py_ssize_t n, const uint32_t* restrict words, int shift) noexcept nogil:
    cdef uint16_t* c = <uint16_t*> code
    cdef Py_ssize_t i
    for i in range(n):
        c[i] = fastgd_float16_nearest(to_odd(x[i]))


cdef inline void round_float16(uint16_t* restrict c, const floating* restrict x, Py_ssize_t n,
                               const uint32_t* restrict words, int rounding) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        c[i] = fastgd_float16_stochastic(<float> x[i], fastgd_random16(words[i], rounding))


cdef void stochastic_float16(void* restrict code, void* restrict aux,
                             const floating* restrict x, Py_ssize_t n,
                             const uint32_t* restrict words, int shift) noexcept nogil:
    if shift == 0:
        round_float16(<uint16_t*> code, x, n, words, FASTGD_LOWER)
    else:
        round_float16(<uint16_t*> code, x, n, words, FASTGD_UPPER)


# ---------------------------------------------------------- float32 as bfloat16 and a remainder

cdef void load_split(floating* restrict out, const void* restrict code,
                     const void* restrict aux, Py_ssize_t n) noexcept nogil:
    cdef const uint16_t* high = <const uint16_t*> code
    cdef const int16_t* low = <const int16_t*> aux
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = <floating> fastgd_split_load(high[i], low[i])


cdef void store_split(void* restrict code, void* restrict aux, const floating* restrict x,
                      Py_ssize_t n, const uint32_t* restrict words, int shift) noexcept nogil:
    cdef uint16_t* high = <uint16_t*> code
    cdef int16_t* low = <int16_t*> aux
    cdef uint32_t u
    cdef Py_ssize_t i
    for i in range(n):
        u = fastgd_split_canonical(<float> x[i])
        high[i] = fastgd_split_high(u)
        low[i] = fastgd_split_low(u)


# ------------------------------------------------------------------- 8 bits, one scale per tile
#
# The n codes of a tile stand in n // 4 words of 32 bits, then up to three by themselves.  Byte k
# of word j is element k * (n // 4) + j: the k-th quarter of the tile has the k-th byte of each
# word, so that no loop moves numbers from lane to lane.

cdef inline void fill_nan(floating* out, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = <floating> fastgd_float(0x7fc00000)


cdef inline void load_quarter_e5m2(floating* restrict out, const uint8_t* restrict c,
                                   Py_ssize_t q, int k, int32_t bits) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(q):
        out[j] = <floating> fastgd_e5m2_load(fastgd_code(fastgd_word(c + 4 * j), k), bits)


cdef void load_e5m2(floating* restrict out, const void* restrict code,
                    const void* restrict aux, Py_ssize_t n) noexcept nogil:
    cdef const uint8_t* c = <const uint8_t*> code
    cdef int scale = (<const uint8_t*> aux)[0]
    cdef int32_t bits = fastgd_scale_bits(scale, FASTGD_E5M2_LEAST)
    cdef Py_ssize_t q = n // 4, i
    if scale > FASTGD_E5M2_MOST:
        fill_nan(out, n)
        return
    load_quarter_e5m2(out, c, q, 0, bits)
    load_quarter_e5m2(out + q, c, q, 1, bits)
    load_quarter_e5m2(out + 2 * q, c, q, 2, bits)
    load_quarter_e5m2(out + 3 * q, c, q, 3, bits)
    for i in range(4 * q, n):
        out[i] = <floating> fastgd_e5m2_load(fastgd_code(c[i], 0), bits)


cdef inline int scale_e5m2(const floating* x, Py_ssize_t n) noexcept nogil:
    """The scale of numbers, by the largest of each quarter: four are looked for at once."""
    cdef int32_t largest = 0, first, second
    cdef Py_ssize_t q = n // 4, j
    for j in range(q):
        first = fastgd_max(fastgd_magnitude(<float> x[j]), fastgd_magnitude(<float> x[q + j]))
        second = fastgd_max(fastgd_magnitude(<float> x[2 * q + j]),
                            fastgd_magnitude(<float> x[3 * q + j]))
        largest = fastgd_max(largest, fastgd_max(first, second))
    for j in range(4 * q, n):
        largest = fastgd_max(largest, fastgd_magnitude(<float> x[j]))
    return fastgd_tile_scale(<uint32_t> largest, FASTGD_E5M2_BINADES, FASTGD_E5M2_LEAST)


cdef inline void put_e5m2(uint8_t* restrict c, int scale, const floating* restrict x, Py_ssize_t n,
                          const uint32_t* restrict words, uint32_t of_tile,
                          int rounding) noexcept nogil:
    """The codes of numbers by their scale; `of_tile` are the tile's bits, where all are READY."""
    cdef uint32_t fixed = fastgd_e5m2_fixed(scale << 23)
    cdef uint32_t units = fastgd_units(of_tile, rounding, fixed)
    cdef Py_ssize_t q = n // 4, j
    if scale == FASTGD_NAN_SCALE:
        memset(c, 0, n)
        return
    for j in range(q):
        fastgd_put_word(c + 4 * j, fastgd_codes(
            fastgd_e5m2_store(<float> x[j], fixed, fastgd_unit(words, units, j, rounding)),
            fastgd_e5m2_store(<float> x[q + j], fixed, fastgd_unit(words, units, q + j, rounding)),
            fastgd_e5m2_store(<float> x[2 * q + j], fixed,
                              fastgd_unit(words, units, 2 * q + j, rounding)),
            fastgd_e5m2_store(<float> x[3 * q + j], fixed,
                              fastgd_unit(words, units, 3 * q + j, rounding)),
            FASTGD_E5M2_FROM))
    for j in range(4 * q, n):
        c[j] = <uint8_t> (fastgd_e5m2_store(<float> x[j], fixed,
                                            fastgd_unit(words, units, j, rounding))
                          >> FASTGD_E5M2_FROM)


cdef inline void stored_e5m2(void* code, void* aux, const floating* x, Py_ssize_t n,
                             const uint32_t* words, int rounding) noexcept nogil:
    cdef int scale = scale_e5m2(x, n)
    (<uint8_t*> aux)[0] = <uint8_t> scale
    put_e5m2(<uint8_t*> code, scale, x, n, words, 0, rounding)


cdef void store_e5m2(void* restrict code, void* restrict aux, const floating* restrict x,
                     Py_ssize_t n, const uint32_t* restrict words, int shift) noexcept nogil:
    stored_e5m2(code, aux, x, n, words, FASTGD_NEAREST)


cdef void stochastic_e5m2(void* restrict code, void* restrict aux, const floating* restrict x,
                          Py_ssize_t n, const uint32_t* restrict words, int shift) noexcept nogil:
    if shift == 0:
        stored_e5m2(code, aux, x, n, words, FASTGD_LOWER)
    else:
        stored_e5m2(code, aux, x, n, words, FASTGD_UPPER)


cdef inline void load_quarter_ue6m2(floating* restrict out, const uint8_t* restrict c,
                                    Py_ssize_t q, int k, int32_t bits) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(q):
        out[j] = <floating> fastgd_ue6m2_load(fastgd_code(fastgd_word(c + 4 * j), k), bits)


cdef void load_ue6m2(floating* restrict out, const void* restrict code,
                     const void* restrict aux, Py_ssize_t n) noexcept nogil:
    cdef const uint8_t* c = <const uint8_t*> code
    cdef int scale = (<const uint8_t*> aux)[0]
    cdef int32_t bits = fastgd_scale_bits(scale, FASTGD_UE6M2_LEAST)
    cdef Py_ssize_t q = n // 4, i
    if scale > FASTGD_UE6M2_MOST:
        fill_nan(out, n)
        return
    load_quarter_ue6m2(out, c, q, 0, bits)
    load_quarter_ue6m2(out + q, c, q, 1, bits)
    load_quarter_ue6m2(out + 2 * q, c, q, 2, bits)
    load_quarter_ue6m2(out + 3 * q, c, q, 3, bits)
    for i in range(4 * q, n):
        out[i] = <floating> fastgd_ue6m2_load(fastgd_code(c[i], 0), bits)


cdef inline uint32_t unsigned_max(uint32_t a, uint32_t b) noexcept nogil:
    return a if a > b else b


cdef inline int scale_ue6m2(const floating* x, Py_ssize_t n, bint computed) noexcept nogil:
    """The same; `computed` says that a rule has computed them of squares, so that none is -0."""
    cdef uint32_t largest = 0, first, second
    cdef Py_ssize_t q = n // 4, j
    for j in range(q):
        first = unsigned_max(fastgd_ue6m2_order(<float> x[j], computed),
                             fastgd_ue6m2_order(<float> x[q + j], computed))
        second = unsigned_max(fastgd_ue6m2_order(<float> x[2 * q + j], computed),
                              fastgd_ue6m2_order(<float> x[3 * q + j], computed))
        largest = unsigned_max(largest, unsigned_max(first, second))
    for j in range(4 * q, n):
        largest = unsigned_max(largest, fastgd_ue6m2_order(<float> x[j], computed))
    return fastgd_tile_scale(largest, FASTGD_UE6M2_BINADES, FASTGD_UE6M2_LEAST)


cdef inline void put_ue6m2(uint8_t* restrict c, int scale, const floating* restrict x, Py_ssize_t n,
                           const uint32_t* restrict words, uint32_t of_tile, int rounding,
                           bint computed) noexcept nogil:
    cdef int32_t bits = scale << 23
    cdef uint32_t units = fastgd_units(of_tile, rounding, 0)
    cdef Py_ssize_t q = n // 4, j
    if scale == FASTGD_NAN_SCALE:
        memset(c, 0, n)
        return
    for j in range(q):
        fastgd_put_word(c + 4 * j, fastgd_codes(
            fastgd_ue6m2_store(<float> x[j], computed, bits,
                               fastgd_unit(words, units, j, rounding)),
            fastgd_ue6m2_store(<float> x[q + j], computed, bits,
                               fastgd_unit(words, units, q + j, rounding)),
            fastgd_ue6m2_store(<float> x[2 * q + j], computed, bits,
                               fastgd_unit(words, units, 2 * q + j, rounding)),
            fastgd_ue6m2_store(<float> x[3 * q + j], computed, bits,
                               fastgd_unit(words, units, 3 * q + j, rounding)),
            FASTGD_UE6M2_FROM))
    for j in range(4 * q, n):
        c[j] = <uint8_t> (fastgd_ue6m2_store(<float> x[j], computed, bits,
                                             fastgd_unit(words, units, j, rounding))
                          >> FASTGD_UE6M2_FROM)


cdef inline void stored_ue6m2(void* code, void* aux, const floating* x, Py_ssize_t n,
                              const uint32_t* words, int rounding) noexcept nogil:
    cdef int scale = scale_ue6m2(x, n, False)
    (<uint8_t*> aux)[0] = <uint8_t> scale
    put_ue6m2(<uint8_t*> code, scale, x, n, words, 0, rounding, False)


cdef void store_ue6m2(void* restrict code, void* restrict aux, const floating* restrict x,
                      Py_ssize_t n, const uint32_t* restrict words, int shift) noexcept nogil:
    stored_ue6m2(code, aux, x, n, words, FASTGD_NEAREST)


cdef void stochastic_ue6m2(void* restrict code, void* restrict aux, const floating* restrict x,
                           Py_ssize_t n, const uint32_t* restrict words, int shift) noexcept nogil:
    if shift == 0:
        stored_ue6m2(code, aux, x, n, words, FASTGD_LOWER)
    else:
        stored_ue6m2(code, aux, x, n, words, FASTGD_UPPER)


# --------------------------------------------------------------------------------- random words

cdef uint64_t random_key(uint64_t seed, uint64_t step, uint64_t tensor) noexcept nogil:
    return fastgd_random_key(seed, step, tensor)


cdef void random_table(uint32_t* restrict table, uint64_t key, Py_ssize_t start,
                       Py_ssize_t n) noexcept nogil:
    """Fill `table` with the position hashes of the first min(n, TILE) elements from `start` on.

    A position is that in a tile, so that they repeat every TILE elements.
    """
    cdef uint64_t split = fastgd_split(key, 0)
    cdef uint32_t low = <uint32_t> split, high = <uint32_t> (split >> 32)
    cdef uint32_t first = <uint32_t> (start % TILE), i
    cdef uint32_t count = <uint32_t> min(n, <Py_ssize_t> TILE)
    for i in range(count):
        table[i] = fastgd_position_word(low + (first + i) % TILE * FASTGD_WORD_STEP, high)


cdef inline void by_parity(uint32_t* restrict out, const uint32_t* restrict words) noexcept nogil:
    """The words of a tile, of each stride first those of even elements."""
    cdef Py_ssize_t k, i
    for k in range(TILE // STRIDE):
        for i in range(STRIDE // 2):
            out[i], out[STRIDE // 2 + i] = words[2 * i], words[2 * i + 1]
        out, words = out + STRIDE, words + STRIDE


cdef inline void lower_16(uint32_t* restrict words) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(TILE):
        words[i] = fastgd_random16(words[i], FASTGD_LOWER)


cdef inline void by_rounding_16(uint32_t* restrict lower, uint32_t* restrict upper,
                                const uint32_t* restrict words) noexcept nogil:
    """What two stores to bfloat16 take of the words of a tile."""
    cdef Py_ssize_t i
    for i in range(TILE):
        lower[i] = fastgd_random16(words[i], FASTGD_LOWER)
        upper[i] = fastgd_random16(words[i], FASTGD_UPPER)


cdef inline void by_rounding_21(uint32_t* restrict lower, uint32_t* restrict upper,
                                const uint32_t* restrict words) noexcept nogil:
    """What two stores to 8 bits take of them."""
    cdef Py_ssize_t i
    for i in range(TILE):
        lower[i] = fastgd_random21(words[i], FASTGD_LOWER)
        upper[i] = fastgd_random21(words[i], FASTGD_UPPER)


cdef inline void put_tile_word(uint32_t* restrict words, const uint32_t* restrict table,
                               Py_ssize_t n, uint32_t of_tile) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        words[i] = table[i] ^ of_tile


cdef inline void put_tile_words(uint32_t* restrict words, const uint32_t* restrict table,
                                Py_ssize_t n, uint32_t of_tile, int32_t left,
                                uint32_t of_next) noexcept nogil:
    cdef int32_t i
    for i in range(<int32_t> n):
        words[i] = table[i] ^ (of_tile if i < left else of_next)


cdef void random_words(uint32_t* restrict words, const uint32_t* restrict table, uint64_t key,
                       Py_ssize_t start, Py_ssize_t n) noexcept nogil:
    """The words of `n` elements from element `start` on, where `table` begins."""
    cdef Py_ssize_t position = start % TILE, m
    cdef uint64_t tile = <uint64_t> (start // TILE)
    while n > 0:
        m = min(n, <Py_ssize_t> TILE)
        if position == 0 and m == TILE:
            put_tile_word(words, table, TILE, fastgd_tile_word(key, tile))
        else:
            put_tile_words(words, table, m, fastgd_tile_word(key, tile),
                           <int32_t> (TILE - position), fastgd_tile_word(key, tile + 1))
        words += TILE
        tile += 1
        n -= TILE


# name: (load, store to nearest, stochastic store or None), each as the addresses of its loops for
# float32 and float64.
CODECS = {
    "float32": (
        (<size_t> <void*> load_float32[float], <size_t> <void*> load_float32[double]),
        (<size_t> <void*> store_float32[float], <size_t> <void*> store_float32[double]),
        None),
    "float64": (
        (<size_t> <void*> load_float64[float], <size_t> <void*> load_float64[double]),
        (<size_t> <void*> store_float64[float], <size_t> <void*> store_float64[double]),
        None),
    "bfloat16": (
        (<size_t> <void*> load_bfloat16[float], <size_t> <void*> load_bfloat16[double]),
        (<size_t> <void*> store_bfloat16[float], <size_t> <void*> store_bfloat16[double]),
        (<size_t> <void*> stochastic_bfloat16[float],
         <size_t> <void*> stochastic_bfloat16[double])),
    "float16": (
        (<size_t> <void*> load_float16[float], <size_t> <void*> load_float16[double]),
        (<size_t> <void*> store_float16[float], <size_t> <void*> store_float16[double]),
        (<size_t> <void*> stochastic_float16[float],
         <size_t> <void*> stochastic_float16[double])),
    "split": (
        (<size_t> <void*> load_split[float], <size_t> <void*> load_split[double]),
        (<size_t> <void*> store_split[float], <size_t> <void*> store_split[double]),
        None),
    "e5m2": (
        (<size_t> <void*> load_e5m2[float], <size_t> <void*> load_e5m2[double]),
        (<size_t> <void*> store_e5m2[float], <size_t> <void*> store_e5m2[double]),
        (<size_t> <void*> stochastic_e5m2[float], <size_t> <void*> stochastic_e5m2[double])),
    "ue6m2": (
        (<size_t> <void*> load_ue6m2[float], <size_t> <void*> load_ue6m2[double]),
        (<size_t> <void*> store_ue6m2[float], <size_t> <void*> store_ue6m2[double]),
        (<size_t> <void*> stochastic_ue6m2[float], <size_t> <void*> stochastic_ue6m2[double])),
}
# The loops that make random words and the table they take, and what makes the key of both.
RANDOM = (<size_t> <void*> random_words, <size_t> <void*> random_table,
          <size_t> <void*> random_key)

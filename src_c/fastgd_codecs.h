/* The codecs: one number from its stored form to float32 and back, and the random words of stochastic
 * rounding.  docs/formats.md describes the formats, fastgd/kernels/spec/codecs.py specifies them bit
 * for bit, fastgd/kernels/loops/codecs.pxi has the loops.
 *
 * All of it is plain arithmetic on 32-bit lanes, without a branch, a table or a library call, so
 * that compilers vectorise the loops for every instruction set: no F16C, no 16-bit float type.
 * Comparisons are of signed integers, the only ones that SSE2 and AVX2 have; where a float32 may be
 * subnormal the work is done on integers, which no flush-to-zero mode touches.
 *
 * A float's magnitude, read as an integer, is its logarithm, linear between powers of two.  Adding a
 * random (or half a) unit below the last bit that stays and cutting off what follows is therefore
 * rounding, and a carry into the exponent is right, too. */
#ifndef FASTGD_CODECS_H
#define FASTGD_CODECS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FASTGD_INF 0x7f800000 /* of float32 */
#define FASTGD_NAN_SCALE 255

static inline uint32_t fastgd_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float fastgd_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline int32_t fastgd_magnitude(float x) { return (int32_t)(fastgd_bits(x) & 0x7fffffff); }
static inline int32_t fastgd_min(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t fastgd_max(int32_t a, int32_t b) { return a > b ? a : b; }

/* float64 on its way to 16 bits, as a float32.  Rounded to odd: of the fraction 14 bits are kept, and
 * what is cut off leaves its mark in the last of them, so that rounding again gives what rounding
 * once would have given (Boldo and Melquiond, 2008).  14 are more than either format needs, and few
 * enough for a float32 to hold, where it matters, even if it is subnormal. */
static inline float fastgd_to_odd(double x)
{
    const uint64_t cut = ((uint64_t)1 << 38) - 1;
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    u = (u | ((u & cut) + cut)) & ~cut;
    memcpy(&x, &u, sizeof x);
    return (float)x;
}

/* How a store rounds: to nearest, or by the lower or upper bits of random words, as a word serves two
 * stores; READY says that just these bits are given.  A constant wherever loops are compiled: a shift
 * by a variable costs twice one by a number. */
enum { FASTGD_NEAREST, FASTGD_LOWER, FASTGD_UPPER, FASTGD_READY };

static inline uint32_t fastgd_random16(uint32_t word, int rounding)
{
    return rounding == FASTGD_LOWER ? word & 0xffff : word >> 16;
}

/* ------------------------------------------------------------------------------------ bfloat16 */

static inline float fastgd_bfloat16_load(uint16_t h) { return fastgd_float((uint32_t)h << 16); }

/* To nearest, ties to even; NaN stays a NaN, quiet, of its sign. */
static inline uint16_t fastgd_bfloat16(float x)
{
    const uint32_t u = fastgd_bits(x), rounded = u + 0x7fff + (u >> 16 & 1);
    return (uint16_t)((x != x ? u | 0x400000 : rounded) >> 16);
}

/* A signalling NaN as a quiet one. */
static inline float fastgd_quiet(float x)
{
    const uint32_t u = fastgd_bits(x);
    return fastgd_float(x != x ? u | 0x400000 : u);
}

/* Stochastic, from 16 random bits: a float32's bits, the upper half of which is the number.  In the
 * last step below inf there is only down, and what lies beyond stays as it is: inf, and NaN, which
 * has to be a quiet one, as all that were computed.  Floats are compared, and bits masked, as GCC
 * would compare unsigned integers, and blend, for three operations more on AVX2. */
static inline uint32_t fastgd_bfloat16_up(float x, uint32_t random)
{
    const float magnitude = fastgd_float((uint32_t)fastgd_magnitude(x));
    return fastgd_bits(x) + (random & -(uint32_t)(magnitude < 0x1.fep127f));
}

static inline uint16_t fastgd_bfloat16_stochastic(float x, uint32_t random)
{
    return (uint16_t)(fastgd_bfloat16_up(x, random) >> 16);
}

/* Two numbers in a word: the first is its lower half.  A loop over words has both where they are
 * computed with, or a shift away; one over halves moves them from lane to lane. */
static inline float fastgd_first(uint32_t word) { return fastgd_float(word << 16); }
static inline float fastgd_second(uint32_t word) { return fastgd_float(word & 0xffff0000); }

/* The upper halves of two. */
static inline uint32_t fastgd_pair(uint32_t first, uint32_t second)
{
    return (first >> 16) | (second & 0xffff0000);
}

/* ----------------------------------------------- float32 in two halves: bfloat16 and remainder */

/* The upper half is rounded to nearest, ties away from zero, and the lower a signed remainder.  A
 * NaN becomes the quiet one with no remainder, as others would round to inf or -0. */
static inline uint32_t fastgd_split_canonical(float x)
{
    const uint32_t u = fastgd_bits(x);
    return x != x ? (u & 0x80000000) | 0x7fc00000 : u;
}

static inline uint32_t fastgd_split_up(uint32_t u) { return u + 0x8000; }
static inline uint16_t fastgd_split_high(uint32_t u)
{
    return (uint16_t)(fastgd_split_up(u) >> 16);
}

static inline int16_t fastgd_split_low(uint32_t u) { return (int16_t)(uint16_t)u; }

/* The limit matters only where the upper half was set to zero from outside, and an old remainder is
 * left: a magnitude below zero would be a NaN. */
static inline float fastgd_split_joined(uint32_t u, int32_t low)
{
    const int32_t a = fastgd_max((int32_t)(u & 0x7fffffff) + low, 0);
    return fastgd_float((uint32_t)a | (u & 0x80000000));
}

static inline float fastgd_split_load(uint16_t high, int16_t low)
{
    return fastgd_split_joined((uint32_t)high << 16, low);
}

/* The first and the second number of two words of halves. */
static inline float fastgd_split_first(uint32_t high, uint32_t low)
{
    return fastgd_split_joined(high << 16, (int32_t)(low << 16) >> 16);
}

static inline float fastgd_split_second(uint32_t high, uint32_t low)
{
    return fastgd_split_joined(high & 0xffff0000, (int32_t)low >> 16);
}

/* ------------------------------------------------------------------------------------- float16 */

/* float32's exponent bits of 2^-15, float16's zero point; its 2^-14 and 2^16, where its normal
 * numbers start and end. */
#define FASTGD_F16_ZERO 0x38000000
#define FASTGD_F16_NORMAL 0x38800000
#define FASTGD_F16_END 0x47800000

static inline float fastgd_float16_load(uint16_t h)
{
    const int32_t m = h & 0x7fff;
    const int32_t normal = (m << 13) + (m < 0x7c00 ? FASTGD_F16_ZERO : 2 * FASTGD_F16_ZERO);
    const uint32_t subnormal = fastgd_bits((float)m * 0x1p-24f);
    const uint32_t u = m < 0x400 ? subnormal : (uint32_t)normal;
    return fastgd_float(u | (uint32_t)(h & 0x8000) << 16);
}

/* To nearest, ties to even; NaN stays a NaN, quiet, of its sign and upper payload.  The last place
 * of 0.5 is that of float16's subnormals, so that adding 0.5 rounds them. */
static inline uint16_t fastgd_float16_nearest(float x)
{
    const int32_t a = fastgd_magnitude(x);
    const uint32_t b = (uint32_t)fastgd_min(a, FASTGD_F16_END) - FASTGD_F16_ZERO;
    const uint32_t normal = (b + 0xfff + (b >> 13 & 1)) >> 13;
    const uint32_t subnormal = fastgd_bits(fastgd_float((uint32_t)a) + 0.5f) - 0x3f000000;
    const uint32_t nan = 0x7e00 | ((uint32_t)a >> 13 & 0x3ff);
    const uint32_t q = a < FASTGD_F16_NORMAL ? subnormal : normal;
    return (uint16_t)((x != x ? nan : q) | (fastgd_bits(x) >> 16 & 0x8000));
}

/* Stochastic, from 13 of 16 random bits.  Below 65536 finite values stay finite; what
 * lies above is inf, as in rounding to nearest. */
static inline uint16_t fastgd_float16_stochastic(float x, uint32_t random)
{
    const int32_t a = fastgd_min(fastgd_magnitude(x), FASTGD_F16_END);
    /* A subnormal's value in fixed point; what is normal overtakes it by its logarithm. */
    const float value = fastgd_float((uint32_t)a) * 0x1p37f;
    const int32_t linear = (int32_t)(value < 0x1p23f ? value : 0x1p23f);
    const int32_t b = fastgd_max(a - FASTGD_F16_ZERO, linear);
    const int32_t up = fastgd_min(b + (int32_t)(random >> 3), FASTGD_F16_END - FASTGD_F16_ZERO - 1);
    const uint32_t q = (uint32_t)fastgd_max(up, b) >> 13;
    const uint32_t nan = 0x7e00 | ((uint32_t)fastgd_magnitude(x) >> 13 & 0x3ff);
    return (uint16_t)((x != x ? nan : q) | (fastgd_bits(x) >> 16 & 0x8000));
}

/* -------------------------------------------------------------- 8 bits, and a scale for a tile */

/* A scale is a biased exponent, 2^(scale - 127), as in E8M0 of the OCP's MX formats; 255 is NaN.
 * The least are those for which no step between codes is a subnormal float32. */
enum {
    FASTGD_E5M2_LEAST = 32,
    FASTGD_E5M2_MOST = 223,
    FASTGD_E5M2_BINADES = 31,
    FASTGD_UE6M2_LEAST = 1,
    FASTGD_UE6M2_MOST = 191,
    FASTGD_UE6M2_BINADES = 63
};

/* 21 bits of a float32 are cut off: to nearest after adding a half, stochastically after adding as
 * many random bits, the lower or the upper 21 of a word.  The ten bits in both are the upper state's
 * last ones, which decide one time in 2048. */
static inline uint32_t fastgd_random21(uint32_t word, int rounding)
{
    return rounding == FASTGD_LOWER ? word & 0x1fffff : word >> 11;
}

/* What is added: of a word, or of bits that are READY, which are a position's and have yet to be
 * combined with the `bits` of the tile.  It is less by `less`, whose lower 23 bits are 0: that is
 * in what a tile has for all of its elements, and costs nothing. */
static inline uint32_t fastgd_units(uint32_t bits, int rounding, uint32_t less)
{
    return (rounding == FASTGD_NEAREST ? 0x100000 : bits) - less;
}

static inline int32_t fastgd_unit(const uint32_t *words, uint32_t units, ptrdiff_t i, int rounding)
{
    if (rounding == FASTGD_NEAREST) /* there are no words then */
        return (int32_t)units;
    if (rounding == FASTGD_READY)
        return (int32_t)(words[i] ^ units);
    return (int32_t)(fastgd_random21(words[i], rounding) ^ units);
}

/* The codes of a tile are shuffled as if the tile were cut in four and each quarter gave one byte to
 * every 32-bit word, so that a loop over words meets each quarter's numbers side by side: codes are
 * shifted into position, not moved between lanes, which costs more than all of the rounding.  A code
 * that is loaded, from byte k of a word, is bits 21 to 28 of 32, and the others mean nothing; one to
 * be stored is bits `from` to `from` + 7, with nothing above. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "8-bit states are laid out for little-endian processors"
#endif

static inline uint32_t fastgd_word(const uint8_t *at)
{
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static inline void fastgd_put_word(uint8_t *at, uint32_t word) { memcpy(at, &word, sizeof word); }

static inline uint32_t fastgd_code(uint32_t word, int k)
{
    return k < 3 ? word << (21 - 8 * k) : word >> 3;
}

enum { FASTGD_E5M2_FROM = 24, FASTGD_UE6M2_FROM = 21 };

static inline uint32_t fastgd_codes(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, int from)
{
    return (c0 >> from) | (c1 >> (from - 8) & 0xff00) | (c2 >> (from - 16) & 0xff0000)
           | (c3 << (24 - from) & 0xff000000);
}

/* The scale with which the largest of a tile (its bits) has the topmost exponent, or the next one if
 * it could be rounded beyond the largest code; NaN if that is inf, NaN or negative. */
static inline int fastgd_tile_scale(uint32_t largest, int binades, int least)
{
    if (largest > FASTGD_INF - 0x200000)
        return FASTGD_NAN_SCALE;
    return fastgd_max((int)((largest + 0x1fffff) >> 23) - binades, least);
}

/* The exponent bits of a scale as it was read; memory of zeros counts as the least scale. */
static inline int32_t fastgd_scale_bits(int scale, int least)
{
    return fastgd_max(scale, least) << 23;
}

/* Signed, 5 exponent bits, 2 mantissa bits, subnormals, no code for inf or NaN.  A subnormal code
 * that is read as if it were normal gives half of its number and two steps more, and a normal code at
 * least four steps.  So the number is the lesser of what was read, and twice that less four steps;
 * nothing is rounded, and nothing compared. */
static inline float fastgd_e5m2_load(uint32_t code, int32_t scale_bits)
{
    const uint32_t zero = (uint32_t)scale_bits;
    const float normal = fastgd_float((code & 0x0fe00000) + zero);
    const float subnormal = normal + normal - fastgd_float(zero + 0x800000);
    const int32_t a = fastgd_min((int32_t)fastgd_bits(subnormal), (int32_t)fastgd_bits(normal));
    return fastgd_float((uint32_t)a | (code << 3 & 0x80000000));
}

/* What is added to a magnitude, and taken from the sum's bits, by its own bits: 2^(scale - 126), whose
 * last place is 2^-21 of the step between subnormals.  So the bits of the sum are fixed point, and
 * linear, up to where the number's own bits, which are its logarithm, overtake them: at the first
 * normal code. */
static inline uint32_t fastgd_e5m2_fixed(int32_t scale_bits)
{
    return (uint32_t)scale_bits + 0x800000;
}

/* `unit` is less by `fixed`. */
static inline uint32_t fastgd_e5m2_store(float x, uint32_t fixed, int32_t unit)
{
    const int32_t a = fastgd_magnitude(x);
    const int32_t linear = (int32_t)fastgd_bits(fastgd_float((uint32_t)a) + fastgd_float(fixed));
    const int32_t b = fastgd_max(a + 0x800000, linear) + unit;
    return (uint32_t)b << 3 | (fastgd_bits(x) & 0x80000000);
}

/* Unsigned, 6 exponent bits, 2 mantissa bits, 0 for zero, no subnormals, no code for inf or NaN. */

/* The bits by which the largest is found, of which negative ones are beyond inf; -0 counts as 0.  What
 * a rule has `computed` of squares is no -0. */
static inline uint32_t fastgd_ue6m2_order(float x, int computed)
{
    return fastgd_bits(computed ? x : x + 0.0f);
}

static inline float fastgd_ue6m2_load(uint32_t code, int32_t scale_bits)
{
    const int32_t m = (int32_t)(code & 0x1fe00000);
    return fastgd_float((uint32_t)(m ? m + scale_bits : 0));
}

/* What is positive stays so, as a second moment of zero would make a step too long; only where it is
 * no normal float32 may it become zero. */
static inline uint32_t fastgd_ue6m2_store(float x, int computed, int32_t zero, int32_t unit)
{
    const int32_t a = computed ? (int32_t)fastgd_bits(x) : fastgd_magnitude(x);
    return (uint32_t)(fastgd_max(a - zero, fastgd_min(a, 1 << 21)) + unit);
}

/* -------------------------------------------------------------------------------- random words */

/* The finaliser of splitmix64 (Steele, Lea and Flood, 2014; constants of Stafford). */
static inline uint64_t fastgd_mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* What a step's random words of one tensor follow from. */
static inline uint64_t fastgd_random_key(uint64_t seed, uint64_t step, uint64_t tensor)
{
    const uint64_t gamma = 0x9e3779b97f4a7c15u;
    uint64_t key = fastgd_mix(seed + gamma);
    key = fastgd_mix((key ^ step) + gamma);
    return fastgd_mix((key ^ tensor) + gamma);
}

/* The word of element e is a ^ b: a of a table of 256, for the position e % 256, and b for the tile
 * e / 256.  Any three words are independent, as the tables' are (tabulation hashing: Zobrist, 1970;
 * Patrascu and Thorup, 2012), for one operation instead of a dozen.
 *
 * Values of splitmix64 from the tensor's key on: number 0 is for the table, number t + 1 for tile t. */
static inline uint64_t fastgd_split(uint64_t key, uint64_t number)
{
    return fastgd_mix(key + (number + 1) * 0x9e3779b97f4a7c15u);
}

static inline uint32_t fastgd_tile_word(uint64_t key, uint64_t tile)
{
    return (uint32_t)(fastgd_split(key, tile + 1) >> 32);
}

/* An entry of the table: an integer hash of few operations on 32-bit lanes (the multipliers are of
 * Wellons' hash prospector) of the position times FASTGD_WORD_STEP, plus one half of the table's key;
 * the other half is added after the first round. */
#define FASTGD_WORD_STEP 0x9e3779b9u

static inline uint32_t fastgd_position_word(uint32_t x, uint32_t high)
{
    x = (x ^ x >> 16) * 0x21f0aaadu + high;
    x = (x ^ x >> 15) * 0xd35a2d97u;
    return x ^ x >> 15;
}

#endif

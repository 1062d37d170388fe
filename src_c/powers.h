/* Powers with the same bits everywhere: fastgd/kernels/spec/powers.py specifies and explains them. */
#ifndef FASTGD_POWERS_H
#define FASTGD_POWERS_H

#include <math.h>
#include <stdint.h>

/* m·2^(e - 127), where m, in two halves, has 128 bits. */
typedef struct {
    uint64_t high, low;
    int64_t e;
} fastgd_wide;

#include "_powers.h" /* FASTGD_DIGITS, _COUNTED, _ROOTS: written by the build from the specification */

/* Beyond these exponents of two a result is inf or 0, whatever follows. */
enum { FASTGD_POWER_END = 1100 };

/* The product of two words; its upper half goes to `high`. */
static inline uint64_t fastgd_times(uint64_t a, uint64_t b, uint64_t *high)
{
#ifdef __SIZEOF_INT128__
    const unsigned __int128 product = (unsigned __int128)a * b;
    *high = (uint64_t)(product >> 64);
    return (uint64_t)product;
#else
    const uint64_t half = 0xffffffff;
    const uint64_t ll = (a & half) * (b & half), lh = (a & half) * (b >> 32);
    const uint64_t hl = (a >> 32) * (b & half), middle = (ll >> 32) + (lh & half) + (hl & half);
    *high = (a >> 32) * (b >> 32) + (lh >> 32) + (hl >> 32) + (middle >> 32);
    return middle << 32 | (ll & half);
#endif
}

static inline fastgd_wide fastgd_widened(double x)
{
    int e;
    const double m = frexp(x, &e);
    const fastgd_wide wide = {(uint64_t)(m * 0x1p53) << 11, 0, e - 1};
    return wide;
}

static inline fastgd_wide fastgd_product(fastgd_wide a, fastgd_wide b)
{
    uint64_t low_high, x_high, y_high, high_high, word, next;
    fastgd_wide product;
    (void)fastgd_times(a.low, b.low, &low_high);
    const uint64_t x = fastgd_times(a.low, b.high, &x_high);
    const uint64_t y = fastgd_times(a.high, b.low, &y_high);
    const uint64_t z = fastgd_times(a.high, b.high, &high_high);
    /* The second of four words, counted from the lowest, and what it carries to the third. */
    word = low_high + x;
    next = word < x;
    word += y;
    next += word < y;
    next += z;
    high_high += next < z;
    next += x_high;
    high_high += next < x_high;
    next += y_high;
    high_high += next < y_high;
    /* A branch that is predicted, as step counts share their leading digits for long. */
    if (high_high >> 63) {
        product.high = high_high, product.low = next, product.e = a.e + b.e + 1;
    } else {
        product.high = high_high << 1 | next >> 63, product.low = next << 1 | word >> 63;
        product.e = a.e + b.e;
    }
    return product;
}

static inline int fastgd_beyond(fastgd_wide x)
{
    return x.e > FASTGD_POWER_END || x.e < -FASTGD_POWER_END;
}

static inline double fastgd_rounded(fastgd_wide x)
{
    if (fastgd_beyond(x))
        return x.e > 0 ? HUGE_VAL : 0.0;
    return ldexp((double)(x.high | (x.low != 0)), (int)x.e - 63);
}

static inline fastgd_wide fastgd_by_squares(fastgd_wide x, uint64_t n)
{
    fastgd_wide power = x;
    int digit = 0;
    while (n >> digit > 1)
        digit++;
    while (digit-- > 0) {
        power = fastgd_product(power, power);
        if (n >> digit & 1)
            power = fastgd_product(power, x);
        if (fastgd_beyond(power))
            break;
    }
    return power;
}

/* Exponents are step counts, which count up: the factors of the last power of each of a few numbers
 * are kept, so that the next one takes two products, and less time than the library's. */
static inline fastgd_wide fastgd_whole_power(double x, uint64_t n)
{
    static _Thread_local struct {
        double x;
        uint64_t n, count; /* of the high factor, and of the low one */
        fastgd_wide high, low;
    } kept[8], *last;
    const fastgd_wide one = {(uint64_t)1 << 63, 0, 0}, wide = fastgd_widened(x);
    const uint64_t count = n % FASTGD_COUNTED;
    last = &kept[(wide.high * 0x9e3779b97f4a7c15u) >> 61];
    n -= count;
    if (last->x != x || last->n != n) {
        last->x = x, last->n = n, last->count = 0, last->low = one;
        last->high = n ? fastgd_by_squares(wide, n) : one;
    }
    if (count < last->count)
        last->count = 0, last->low = one;
    for (; last->count < count; last->count++)
        last->low = fastgd_product(last->low, wide);
    return fastgd_product(last->high, last->low);
}

static inline fastgd_wide fastgd_real_power(fastgd_wide x, double n)
{
    fastgd_wide v = {x.high, x.low, 0}, power = {(uint64_t)1 << 63, 0, 0};
    uint64_t fraction = 0, high, low, middle;
    int e, negative = (x.e < 0) != (n < 0);
    /* The logarithm: x.e, and FASTGD_DIGITS digits after the point. */
    for (int k = 0; k < FASTGD_DIGITS; k++) {
        v = fastgd_product(v, v);
        fraction = fraction << 1 | (uint64_t)v.e;
        v.e = 0;
    }
    /* Its magnitude times that of n. */
    uint64_t whole = (uint64_t)x.e;
    if (x.e < 0) {
        fraction = ~fraction + 1;
        whole = (uint64_t)-x.e - (fraction != 0);
    }
    const uint64_t m = (uint64_t)(frexp(fabs(n), &e) * 0x1p53);
    low = fastgd_times(fraction, m, &middle);
    high = fastgd_times(whole, m, &(uint64_t){0}) + middle;
    e = 53 - e; /* digits of n after the point: at least one, as n is not whole */
    if (e >= 128) {
        high = low = 0;
    } else if (e >= 64) {
        low = high >> (e - 64), high = 0;
    } else {
        low = low >> e | high << (64 - e), high >>= e;
    }
    if (high > 2 * FASTGD_POWER_END) /* far beyond */
        high = 2 * FASTGD_POWER_END;
    power.e = (int64_t)high;
    if (negative) {
        low = ~low + 1;
        power.e = -power.e - (low != 0);
    }
    for (int k = 0; k < FASTGD_DIGITS; k++)
        if (low >> (FASTGD_DIGITS - 1 - k) & 1)
            power = fastgd_product(power, FASTGD_ROOTS[k]);
    return power;
}

/* The n-th power of x; where Python raises an error it isn't finite. */
static inline double fastgd_raised(double x, double n)
{
    const int whole = floor(n) == n;
    double result;
    if (x == 0 || !isfinite(x) || !isfinite(n) || (x < 0 && !whole))
        return pow(x, n);
    if (n == 0)
        return 1.0;
    if (whole) {
        /* Beyond 2⁶³ all but those of 1 are 0 or infinite. */
        result = fastgd_rounded(fastgd_whole_power(fabs(x), (uint64_t)fmin(fabs(n), 0x1p63)));
        if (n < 0)
            result = 1.0 / result;
    } else {
        result = fastgd_rounded(fastgd_real_power(fastgd_widened(fabs(x)), n));
    }
    return x < 0 && fmod(n, 2.0) != 0 ? -result : result;
}

#endif

/* Logarithm and cosine with the same bits everywhere: fastgd/kernels/spec/elementary.py specifies and
 * explains them. */
#ifndef FASTGD_ELEMENTARY_H
#define FASTGD_ELEMENTARY_H

#include <math.h>

static inline double fastgd_logarithm(double x)
{
    int e;
    if (!(x > 0 && isfinite(x)))
        return log(x);
    double m = frexp(x, &e);
    if (m < 0x1.6a09e667f3bcdp-1)
        m *= 2, e--;
    const double f = m - 1, s = f / (2 + f), z = s * s, half = 0.5 * f * f;
    double rest = 0;
    for (int k = 21; k > 1; k -= 2)
        rest = z * (rest + 2.0 / k);
    return e * 0x1.62e42feep-1 - ((half - (s * (half + rest) + e * 0x1.a39ef35793c76p-33)) - f);
}

static inline double fastgd_rest(double z, int first)
{
    double rest = 0;
    for (int k = first + 14; k >= first; k -= 2)
        rest = z / (k * (k - 1)) * (1 - rest);
    return rest;
}

static inline double fastgd_first_quarter(double x)
{
    const int by_cosine = x <= 0.25;
    const double r = by_cosine ? x : 0.5 - x;
    double upper = 134217729.0 * r;
    upper -= upper - r;
    const double product = upper * 0x1.921fb5p+1;
    const double added = (r - upper) * 0x1.921fb5p+1 + r * 0x1.110b4611a6263p-25;
    const double y = product + added, low = product - y + added;
    const double z = y * y, half = 0.5 * z, first = 1 - half;
    if (by_cosine)
        return first + (1 - first - half + (half * fastgd_rest(z, 4) - y * low));
    return y + (low * (1 - half) - y * fastgd_rest(z, 3));
}

/* NaN where Python raises an error. */
static inline double fastgd_cospi(double x)
{
    x = fmod(fabs(x), 2);
    x = x > 1 ? 2 - x : x;
    return x > 0.5 ? -fastgd_first_quarter(1 - x) : fastgd_first_quarter(x);
}

#endif

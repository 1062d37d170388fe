"""The logarithm, and the cosine of multiples of π, with the same bits everywhere.

``math.log`` and ``math.cos`` are the C library's, whose last bit differs from one library to the
next, and between processors in the same one.  Coefficients and schedules are made of these two
instead: fixed sequences of IEEE operations, each of which is rounded in one way alone.  Both are
sums of a series about 0, after steps towards it that are exact; what the first terms rounded away
is added in the end.  So they are within a unit in the last place.
"""

from __future__ import annotations

import math

# ln 2, the first part so short that its products with exponents of two are exact.
LN2_HIGH = float.fromhex("0x1.62e42feep-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
# π, the first part so short that its products with half of a float's digits are exact.
PI_HIGH = float.fromhex("0x1.921fb5p+1")
PI_LOW = float.fromhex("0x1.110b4611a6263p-25")
ROOT_OF_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")


def logarithm(x: float) -> float:
    """The natural logarithm of x.

    Raises
    ------
    ValueError
        If x is 0 or below, as ``math.log`` does.

    Examples
    --------
    >>> logarithm(1.0), logarithm(0.5)
    (0.0, -0.6931471805599453)
    """
    x = float(x)
    if not 0.0 < x < math.inf:
        return math.log(x)
    m, e = math.frexp(x)
    if m < ROOT_OF_HALF:
        m, e = 2.0 * m, e - 1
    # ln m = ln (1 + f) = 2 artanh s = 2s + 2s³/3 + 2s⁵/5 + …; and 2s = f − f²/2 + sf²/2.
    f = m - 1.0
    s = f / (2.0 + f)
    z, rest = s * s, 0.0
    for k in range(21, 1, -2):
        rest = z * (rest + 2.0 / k)
    half = 0.5 * f * f
    return e * LN2_HIGH - ((half - (s * (half + rest) + e * LN2_LOW)) - f)


def cospi(x: float) -> float:
    """cos πx: exactly 1, 0 and −1 where it is.

    Raises
    ------
    ValueError
        If x is infinite, as ``math.cos`` does.

    Examples
    --------
    >>> cospi(0.0), cospi(0.5), cospi(1.0), cospi(-2.0)
    (1.0, 0.0, -1.0, 1.0)
    """
    x = math.fmod(abs(float(x)), 2.0)
    x = 2.0 - x if x > 1.0 else x
    if x > 0.5:
        return -_first_quarter(1.0 - x)
    return _first_quarter(x)


def _first_quarter(x: float) -> float:
    """cos πx for x from 0 to ½: by a sine where that is nearer to its zero."""
    by_cosine = x <= 0.25
    r = x if by_cosine else 0.5 - x
    # πr = y + low.  Half of the digits of r at a time, so that the first product is exact.
    upper = 134217729.0 * r
    upper -= upper - r
    product, added = upper * PI_HIGH, (r - upper) * PI_HIGH + r * PI_LOW
    y = product + added
    low = product - y + added
    z = y * y
    half = 0.5 * z
    if by_cosine:
        first = 1.0 - half
        return first + (1.0 - first - half + (half * _rest(z, 4) - y * low))
    return y + (low * (1.0 - half) - y * _rest(z, 3))


def _rest(z: float, first: int) -> float:
    """z/(k(k − 1)) − z²/(k(k − 1)(k + 2)(k + 1)) + …, k being the first, 3 or 4."""
    rest = 0.0
    for k in range(first + 14, first - 1, -2):
        rest = z / (k * (k - 1)) * (1.0 - rest)
    return rest

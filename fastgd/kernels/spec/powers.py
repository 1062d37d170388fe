"""Powers with the same bits everywhere.

``x**n`` of Python and C is ``pow`` of the C library, whose last bit differs from one library to the
next, and between processors in the same one.  Coefficients of steps are made of powers, as βᵗ; so
they come from integers here, by a fixed sequence of multiplications, each of 128 bits and cut off.
That leaves n·2⁻¹²⁶ of relative error where the exponent n is an integer, before the result is
rounded to a float: for a million the nearest one, but for one time in 10¹⁵.

Any other power is 2^(n·log₂ x).  The digits of the logarithm come one by one, 64 after the point,
each from a square: the n-th digit of log₂ v says whether v^(2ⁿ) has passed the next power of two.
2^f is the product of those 2^(2^-k) whose digits f has.  The relative error is below
(1 + |n|)·2⁻⁶³, before the result is rounded.

The build imports nothing of the package: so this module doesn't, either.
"""

from __future__ import annotations

import math

DIGITS = 64  # of the logarithm, after the point
COUNTED = 32  # what is left of a whole exponent, divided by this, is multiplied one by one
_ONE = 1 << 127
# Beyond these exponents of two a result is inf or 0, whatever follows.
_END = 1100

# A positive number as (m, e): m·2^(e − 127), with m of 128 bits.
Wide = tuple[int, int]


def roots_of_two() -> list[int]:
    """2^(2^-k) for k from 1 to `DIGITS`, times 2¹²⁷, rounded down."""
    roots = [2 * _ONE]
    for _ in range(DIGITS):
        roots.append(math.isqrt(roots[-1] * _ONE))
    return roots[1:]


def raised(x: float, n: float) -> float:
    """The n-th power of x.

    Powers of 0, of what is not finite, and by what is not finite, are those of the C library, where
    none is rounded.

    Raises
    ------
    ZeroDivisionError, OverflowError, ValueError
        As ``math.pow`` does, but for 0 by a negative number, which is a division by 0.

    Examples
    --------
    >>> raised(0.5, 3), raised(4.0, -0.5), raised(-2.0, 3)
    (0.125, 0.5, -8.0)
    """
    x, n = float(x), float(n)
    whole = n.is_integer()
    if x == 0 or not (math.isfinite(x) and math.isfinite(n)) or (x < 0 and not whole):
        return math.pow(x, n) if x or n >= 0 else 1.0 / x
    if n == 0:
        return 1.0
    if whole:
        result = _rounded(_whole_power(_wide(abs(x)), int(abs(n))))
        if n < 0:
            result = 1.0 / result if result else math.inf
    else:
        result = _rounded(_real_power(_wide(abs(x)), n))
    if math.isinf(result):
        raise OverflowError(f"{x!r}**{n!r}: the result is too large")
    return -result if x < 0 and n % 2 else result


def _wide(x: float) -> Wide:
    m, e = math.frexp(x)
    return int(m * 2**53) << 75, e - 1


def _product(a: Wide, b: Wide) -> Wide:
    m, e = a[0] * b[0], a[1] + b[1]
    return (m >> 128, e + 1) if m >> 255 else (m >> 127, e)


def _whole_power(x: Wide, n: int) -> Wide:
    """What x^n is the product of: by squares, and by the rest of n, one by one.

    Compiled code keeps the two for the next n, as step counts count up.
    """
    low: Wide = (_ONE, 0)
    for _ in range(n % COUNTED):
        low = _product(low, x)
    n -= n % COUNTED
    return _product(_by_squares(x, n) if n else (_ONE, 0), low)


def _by_squares(x: Wide, n: int) -> Wide:
    """Squares, and a multiplication for each digit of n that is 1, the first one aside."""
    power = x
    for digit in f"{n:b}"[1:]:
        power = _product(power, power)
        if digit == "1":
            power = _product(power, x)
        if abs(power[1]) > _END:
            break
    return power


def _real_power(x: Wide, n: float) -> Wide:
    v, log = (x[0], 0), x[1]
    for _ in range(DIGITS):
        m, digit = _product(v, v)
        v, log = (m, 0), 2 * log + digit
    part, e = math.frexp(abs(n))
    # n·log₂ x in units of 2^-DIGITS, its magnitude rounded down.
    magnitude = abs(log) * int(part * 2**53) >> 53 - e
    exponent = magnitude if (n > 0) == (log > 0) else -magnitude
    power: Wide = (_ONE, exponent >> DIGITS)
    for k, root in enumerate(roots_of_two()):
        if exponent >> (DIGITS - 1 - k) & 1:
            power = _product(power, (root, 0))
    return power


def _rounded(x: Wide) -> float:
    """To the nearest float; 0 and inf beyond their range."""
    if abs(x[1]) > _END:
        return math.inf if x[1] > 0 else 0.0
    try:
        # The lower half matters only where the upper one is a tie.
        return math.ldexp(float(x[0] >> 64 | (x[0] % 2**64 != 0)), x[1] - 63)
    except OverflowError:
        return math.inf

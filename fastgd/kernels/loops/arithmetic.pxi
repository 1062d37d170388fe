# What the rules of all families are written with.

cdef inline floating root(floating x) noexcept nogil:
    if floating is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline floating magnitude(floating x) noexcept nogil:
    if floating is float:
        return fabsf(x)
    else:
        return fabs(x)


cdef inline floating sign(floating x) noexcept nogil:
    """-1, 0 or 1; NaN stays NaN."""
    # As integers the comparisons would keep compilers from vectorising float64 for SSE2.
    cdef floating above = <floating> 1 if x > 0 else <floating> 0
    cdef floating below = <floating> 1 if x < 0 else <floating> 0
    return x if x != x else above - below


cdef inline floating at_most(floating x, floating high) noexcept nogil:
    """x, or `high` where x is more; NaN stays NaN."""
    return high if x > high else x


cdef inline floating at_least(floating x, floating low) noexcept nogil:
    """x, or `low` where x is less; NaN stays NaN."""
    return low if x < low else x


cdef inline floating larger(floating x, floating y) noexcept nogil:
    """The larger of x and y; NaN if either is."""
    return x if (x > y) | (x != x) else y


cdef inline floating epsilon(floating eps) noexcept nogil:
    """eps, or the machine epsilon of its type where eps is negative."""
    if floating is float:
        return <float> FLT_EPSILON if eps < 0 else eps
    else:
        return DBL_EPSILON if eps < 0 else eps


cdef inline floating positive_part(floating x) noexcept nogil:
    return <floating> 0 if x < 0 else x


cdef inline floating is_positive(floating x) noexcept nogil:
    """1 where x > 0, else 0; NaN is not."""
    return <floating> 1 if x > 0 else <floating> 0

# What the rules of all families are written with.

cdef extern from "roots.h" nogil:
    float fastgd_near_inverse_cube_root_f32(float x)
    double fastgd_near_inverse_cube_root_f64(double x)


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


cdef inline floating weighed(floating weight, floating x) noexcept nogil:
    """x times its weight, and 0 where that is 0, whatever x is."""
    return weight * x if weight != 0 else <floating> 0


cdef inline floating nearer_inverse_cube_root(floating r, floating x) noexcept nogil:
    """A nearer x^(-1/3): r (1 - e)^(-1/3), of whose series four terms are taken."""
    cdef floating e = <floating> 1 - (x * r) * (r * r)
    cdef floating near = <floating> (1.0 / 3.0) + e * <floating> (2.0 / 9.0)
    return r + (r * e) * (near + (e * e) * <floating> (14.0 / 81.0))


cdef inline floating cube_root(floating x) noexcept nogil:
    """The cube root of a number of at least 0; infinity, NaN and 0 are their own."""
    # Scaled by 2^54 or 2^-54, nothing on the way is too large or too small for its type.
    cdef floating y = x * (<floating> 18014398509481984.0 if x < 1 else
                           <floating> 5.551115123125783e-17)
    cdef floating back = <floating> 3.814697265625e-06 if x < 1 else <floating> 262144.0
    cdef floating r, square, found
    if floating is float:
        r = nearer_inverse_cube_root(fastgd_near_inverse_cube_root_f32(y), y)
    else:
        r = nearer_inverse_cube_root(fastgd_near_inverse_cube_root_f64(y), y)
        r = nearer_inverse_cube_root(r, y)
    square = r * r
    found = y * square
    found = (found * back
             + (y - found * found * found) * (square * (back * <floating> (1.0 / 3.0))))
    if floating is float:
        return found if x > 0 and x <= <float> FLT_MAX else x
    else:
        return found if x > 0 and x <= DBL_MAX else x

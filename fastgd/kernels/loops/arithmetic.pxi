# What the rules of all families are written with.

cdef inline floating root(floating x) noexcept nogil:
    if floating is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline floating sign(floating x) noexcept nogil:
    """-1, 0 or 1; NaN stays NaN."""
    return x if x != x else <floating> ((x > 0) - (x < 0))


cdef inline floating positive_part(floating x) noexcept nogil:
    return <floating> 0 if x < 0 else x

# What the rules of all families are written with.

cdef inline floating root(floating x) noexcept nogil:
    if floating is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline floating positive_part(floating x) noexcept nogil:
    return <floating> 0 if x < 0 else x

# One element of each rule of spec/catch_up.py.

cdef inline floating times(floating number, floating x) noexcept nogil:
    """x times a number, and x where it is 0."""
    cdef floating product = number * x
    return product if x != 0 else x


cdef inline floating part(floating number, floating x) noexcept nogil:
    """The same, and 0 where the number is, whatever x is."""
    cdef floating product = weighed(number, x)
    return product if x != 0 else x


cdef inline floating missed_0_element(floating p, floating a) noexcept nogil:
    return times(a, p)


cdef inline floating missed_1_element(floating p, floating* s0, floating a, floating b0,
                                      floating c0, floating d0) noexcept nogil:
    cdef floating moved = part(b0, s0[0])
    s0[0] = part(c0, p) + times(d0, s0[0])
    return times(a, p) + moved


cdef inline floating missed_2_element(floating p, floating* s0, floating* s1, floating a,
                                      floating b0, floating c0, floating d0, floating b1,
                                      floating c1, floating d1) noexcept nogil:
    cdef floating moved = part(b0, s0[0]) + part(b1, s1[0])
    s0[0] = part(c0, p) + times(d0, s0[0])
    s1[0] = part(c1, p) + times(d1, s1[0])
    return times(a, p) + moved


cdef inline floating missed_3_element(floating p, floating* s0, floating* s1, floating* s2,
                                      floating a, floating b0, floating c0, floating d0,
                                      floating b1, floating c1, floating d1, floating b2,
                                      floating c2, floating d2) noexcept nogil:
    cdef floating moved = (part(b0, s0[0]) + part(b1, s1[0])) + part(b2, s2[0])
    s0[0] = part(c0, p) + times(d0, s0[0])
    s1[0] = part(c1, p) + times(d1, s1[0])
    s2[0] = part(c2, p) + times(d2, s2[0])
    return times(a, p) + moved


cdef inline floating missed_signs_element(floating p, floating* m, floating a, floating b,
                                          floating d) noexcept nogil:
    cdef floating moved = times(a, p) + times(b, sign(m[0]))
    m[0] = times(d, m[0])
    return moved

# One element of each rule of spec/catch_up.py.

cdef inline floating missed_0_element(floating p, floating a) noexcept nogil:
    return a * p


cdef inline floating missed_1_element(floating p, floating* s0, floating a, floating b0,
                                      floating c0, floating d0) noexcept nogil:
    cdef floating moved = weighed(b0, s0[0])
    s0[0] = weighed(c0, p) + d0 * s0[0]
    return a * p + moved


cdef inline floating missed_2_element(floating p, floating* s0, floating* s1, floating a,
                                      floating b0, floating c0, floating d0, floating b1,
                                      floating c1, floating d1) noexcept nogil:
    cdef floating moved = weighed(b0, s0[0]) + weighed(b1, s1[0])
    s0[0] = weighed(c0, p) + d0 * s0[0]
    s1[0] = weighed(c1, p) + d1 * s1[0]
    return a * p + moved


cdef inline floating missed_3_element(floating p, floating* s0, floating* s1, floating* s2,
                                      floating a, floating b0, floating c0, floating d0,
                                      floating b1, floating c1, floating d1, floating b2,
                                      floating c2, floating d2) noexcept nogil:
    cdef floating moved = (weighed(b0, s0[0]) + weighed(b1, s1[0])) + weighed(b2, s2[0])
    s0[0] = weighed(c0, p) + d0 * s0[0]
    s1[0] = weighed(c1, p) + d1 * s1[0]
    s2[0] = weighed(c2, p) + d2 * s2[0]
    return a * p + moved


cdef inline floating missed_signs_element(floating p, floating* m, floating a, floating b,
                                          floating d) noexcept nogil:
    cdef floating moved = a * p + b * sign(m[0])
    m[0] = d * m[0]
    return moved

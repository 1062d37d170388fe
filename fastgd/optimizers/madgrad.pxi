# One element of the rule of madgrad.py.

cdef inline floating madgrad_element(floating p, floating g, floating* nu, floating* s,
                                     floating* x0, floating first, floating l2, floating alpha,
                                     floating eps, floating mu, floating gamma) noexcept nogil:
    cdef floating r = g + l2 * p
    cdef floating start = p if first != 0 else x0[0]
    x0[0] = start
    s[0] = s[0] + alpha * r
    nu[0] = nu[0] + alpha * (r * r)
    cdef floating scale = cube_root(nu[0]) + eps
    cdef floating ratio = s[0] / scale
    cdef floating moved = scale if scale == 0 else ratio
    return mu * p + gamma * (start - moved)

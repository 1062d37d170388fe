# One element of the rule of adopt.py.

cdef inline floating adopt_element(floating p, floating g, floating* m, floating* v,
                                   floating alpha, floating beta1, floating gamma1,
                                   floating beta2, floating gamma2, floating eps, floating bound,
                                   floating l2, floating shrink, floating first) noexcept nogil:
    cdef floating d = g + l2 * p
    cdef floating u = at_most(at_least(d / at_least(root(v[0]), eps), -bound), bound)
    m[0] = m[0] if first != 0 else beta1 * m[0] + gamma1 * u
    v[0] = beta2 * v[0] + gamma2 * (d * d)
    return p if first != 0 else shrink * p - alpha * m[0]

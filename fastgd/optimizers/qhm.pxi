# One element of each rule of qhm.py.

cdef inline floating qhm_element(floating p, floating g, floating* m, floating beta, floating gamma,
                                 floating alpha_g, floating alpha_m) noexcept nogil:
    m[0] = beta * m[0] + gamma * g
    return p - (alpha_g * g + alpha_m * m[0])


cdef inline floating qhadam_element(floating p, floating g, floating* m, floating* v,
                                    floating beta1, floating gamma1, floating beta2,
                                    floating gamma2, floating alpha_g, floating alpha_m,
                                    floating nu_g, floating nu_v, floating eps) noexcept nogil:
    cdef floating square = g * g
    m[0] = beta1 * m[0] + gamma1 * g
    v[0] = beta2 * v[0] + gamma2 * square
    cdef floating mixed = weighed(nu_g, square) + weighed(nu_v, v[0])
    return p - (alpha_g * g + alpha_m * m[0]) / (root(mixed) + eps)

# One element of the rule of nadam.py.

cdef inline floating nadam_element(floating p, floating g, floating* m, floating* v,
                                   floating beta1, floating gamma1, floating beta2,
                                   floating gamma2, floating eps, floating alpha_g,
                                   floating alpha_m) noexcept nogil:
    m[0] = beta1 * m[0] + gamma1 * g
    v[0] = beta2 * v[0] + gamma2 * (g * g)
    return p - (alpha_g * g + alpha_m * m[0]) / (root(v[0]) + eps)

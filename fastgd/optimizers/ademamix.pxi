# One element of the rule of ademamix.py.

cdef inline floating ademamix_element(floating p, floating g, floating* m, floating* n, floating* v,
                                      floating beta1, floating gamma1, floating beta3,
                                      floating gamma3, floating beta2, floating gamma2,
                                      floating alpha_fast, floating alpha_slow,
                                      floating eps) noexcept nogil:
    m[0] = beta1 * m[0] + gamma1 * g
    n[0] = beta3 * n[0] + gamma3 * g
    v[0] = beta2 * v[0] + gamma2 * (g * g)
    return p - (alpha_fast * m[0] + alpha_slow * n[0]) / (root(v[0]) + eps)

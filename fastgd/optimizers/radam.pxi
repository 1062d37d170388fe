# One element of the rule of radam.py.

cdef inline floating radam_element(floating p, floating g, floating* m, floating* v,
                                   floating alpha, floating beta1, floating gamma1,
                                   floating beta2, floating gamma2, floating eps,
                                   floating adapt) noexcept nogil:
    m[0] = beta1 * m[0] + gamma1 * g
    v[0] = beta2 * v[0] + gamma2 * (g * g)
    return p - alpha * m[0] / (root(v[0]) + eps if adapt != 0 else <floating> 1)

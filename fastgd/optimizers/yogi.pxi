# One element of the rule of yogi.py.

cdef inline floating yogi_element(floating p, floating g, floating* m, floating* v, floating alpha,
                                  floating beta1, floating gamma1, floating gamma2,
                                  floating eps) noexcept nogil:
    cdef floating square = g * g
    m[0] = beta1 * m[0] + gamma1 * g
    v[0] = v[0] - gamma2 * (sign(v[0] - square) * square)
    return p - alpha * m[0] / (root(v[0]) + eps)

# One element of each sweep of stable_adamw.py.

cdef inline void stable_adamw_before_element(floating p, floating g, floating* m, floating* v,
                                             floating* growth, floating beta1, floating gamma1,
                                             floating beta2, floating gamma2,
                                             floating least) noexcept nogil:
    cdef floating square = g * g
    m[0] = beta1 * m[0] + gamma1 * g
    v[0] = beta2 * v[0] + gamma2 * square
    growth[0] = square / at_least(v[0], least)


cdef inline floating stable_adamw_element(floating p, floating m, floating v, floating eps,
                                          floating alpha, floating shrink) noexcept nogil:
    return shrink * p - alpha * m / (root(v) + eps)

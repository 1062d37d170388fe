# One element of the rule of lion.py.

cdef inline floating lion_element(floating p, floating g, floating* m, floating alpha,
                                  floating beta1, floating gamma1, floating beta2,
                                  floating gamma2) noexcept nogil:
    cdef floating u = beta1 * m[0] + gamma1 * g
    m[0] = beta2 * m[0] + gamma2 * g
    return p - alpha * sign(u)

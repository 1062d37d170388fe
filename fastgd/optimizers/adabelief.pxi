# One element of the rule of adabelief.py.

cdef inline floating adabelief_element(floating p, floating g, floating* m, floating* s,
                                       floating alpha, floating beta1, floating gamma1,
                                       floating beta2, floating gamma2, floating least,
                                       floating eps, floating adapt) noexcept nogil:
    m[0] = beta1 * m[0] + gamma1 * g
    cdef floating surprise = g - m[0]
    s[0] = beta2 * s[0] + gamma2 * (surprise * surprise) + least
    return p - alpha * m[0] / (root(s[0]) + eps if adapt != 0 else <floating> 1)

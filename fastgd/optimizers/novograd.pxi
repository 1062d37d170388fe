# One element of each sweep of novograd.py.

cdef inline void novograd_before_element(floating p, floating g, floating* w) noexcept nogil:
    w[0] = g


cdef inline floating novograd_element(floating p, floating g, floating* m, floating alpha,
                                      floating beta1, floating weight_decay,
                                      floating q) noexcept nogil:
    m[0] = beta1 * m[0] + (q * g + weight_decay * p)
    return p - alpha * m[0]

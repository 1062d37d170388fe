# One element of each part of the rules of rowwise.py.

cdef inline floating rowwise_adagrad_numbers_element(floating p, floating g) noexcept nogil:
    return p + g


cdef inline floating rowwise_adam_numbers_element(floating p, floating g, floating beta2,
                                                  floating gamma2) noexcept nogil:
    return beta2 * p + gamma2 * g


cdef inline floating inverse_root_element(floating p, floating eps) noexcept nogil:
    return 1 / (root(p) + eps)


cdef inline floating rowwise_adagrad_element(floating p, floating g, floating r,
                                             floating alpha) noexcept nogil:
    return p - alpha * (g * r)


cdef inline floating rowwise_adam_element(floating p, floating g, floating* m, floating r,
                                          floating alpha, floating beta1,
                                          floating gamma1) noexcept nogil:
    m[0] = beta1 * m[0] + gamma1 * g
    return p - alpha * (m[0] * r)

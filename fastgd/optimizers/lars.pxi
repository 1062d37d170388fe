# One element of each sweep of lars.py.

cdef inline void norms_before_element(floating p, floating g, floating* w,
                                      floating* x) noexcept nogil:
    w[0] = g
    x[0] = p


cdef inline floating lars_element(floating p, floating g, floating weight_decay, floating alpha,
                                  floating q) noexcept nogil:
    return p - alpha * (q * (g + weight_decay * p))


cdef inline floating lars_momentum_element(floating p, floating g, floating* V,
                                           floating weight_decay, floating alpha, floating beta,
                                           floating gamma, floating q) noexcept nogil:
    V[0] = beta * V[0] + gamma * (q * (g + weight_decay * p))
    return p - alpha * V[0]


cdef inline floating lars_nesterov_element(floating p, floating g, floating* V,
                                           floating weight_decay, floating alpha, floating beta,
                                           floating gamma, floating mu,
                                           floating q) noexcept nogil:
    cdef floating d = q * (g + weight_decay * p)
    V[0] = beta * V[0] + gamma * d
    return p - alpha * (d + mu * V[0])

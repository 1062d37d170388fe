# One element of each rule of sgd.py.

cdef inline floating sgd_element(floating p, floating g, floating alpha) noexcept nogil:
    return p - alpha * g


cdef inline floating momentum_element(floating p, floating g, floating* V, floating alpha,
                                      floating beta, floating gamma) noexcept nogil:
    V[0] = beta * V[0] + gamma * g
    return p - alpha * V[0]


cdef inline floating nesterov_element(floating p, floating g, floating* V, floating alpha,
                                      floating beta, floating gamma, floating mu) noexcept nogil:
    V[0] = beta * V[0] + gamma * g
    return p - alpha * (g + mu * V[0])

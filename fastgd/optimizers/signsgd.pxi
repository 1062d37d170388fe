# One element of each rule of signsgd.py.

cdef inline floating sign_sgd_element(floating p, floating g, floating alpha) noexcept nogil:
    return p - alpha * sign(g)


cdef inline floating signum_element(floating p, floating g, floating* m, floating alpha,
                                    floating beta, floating gamma) noexcept nogil:
    m[0] = beta * m[0] + gamma * g
    return p - alpha * sign(m[0])

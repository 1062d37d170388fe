# One element of the rule of adadelta.py.

cdef inline floating adadelta_element(floating p, floating g, floating* v, floating* u,
                                      floating alpha, floating beta, floating gamma,
                                      floating eps) noexcept nogil:
    v[0] = beta * v[0] + gamma * (g * g)
    cdef floating delta = root(u[0] + eps) / root(v[0] + eps) * g
    u[0] = beta * u[0] + gamma * (delta * delta)
    return p - alpha * delta

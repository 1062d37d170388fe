# One element of each sweep of lamb.py.

cdef inline void lamb_before_element(floating p, floating g, floating* m, floating* v, floating* u,
                                     floating* w, floating beta1, floating gamma1, floating beta2,
                                     floating gamma2, floating mu, floating eps,
                                     floating weight_decay) noexcept nogil:
    m[0] = beta1 * m[0] + gamma1 * g
    v[0] = beta2 * v[0] + gamma2 * (g * g)
    u[0] = mu * m[0] / (root(v[0]) + eps) + weight_decay * p
    w[0] = p


cdef inline floating lamb_element(floating p, floating m, floating v, floating mu, floating eps,
                                  floating weight_decay, floating alpha) noexcept nogil:
    return p - alpha * (mu * m / (root(v) + eps) + weight_decay * p)

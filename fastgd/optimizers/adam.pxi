# One element of each rule of adam.py.

cdef inline floating adam_element(floating p, floating g, floating* m, floating* v, floating alpha,
                                  floating beta1, floating gamma1, floating beta2, floating gamma2,
                                  floating eps, floating eps_root) noexcept nogil:
    m[0] = beta1 * m[0] + gamma1 * g
    v[0] = beta2 * v[0] + gamma2 * (g * g)
    return p - alpha * m[0] / (root(v[0] + eps_root) + eps)


cdef inline floating amsgrad_element(floating p, floating g, floating* m, floating* v,
                                     floating* largest, floating alpha, floating beta1,
                                     floating gamma1, floating beta2, floating gamma2,
                                     floating eps, floating eps_root) noexcept nogil:
    m[0] = beta1 * m[0] + gamma1 * g
    v[0] = beta2 * v[0] + gamma2 * (g * g)
    largest[0] = largest[0] if largest[0] > v[0] else v[0]
    return p - alpha * m[0] / (root(largest[0] + eps_root) + eps)


cdef inline floating adam_nesterov_element(floating p, floating g, floating* m, floating* v,
                                           floating alpha, floating beta1, floating gamma1,
                                           floating beta2, floating gamma2, floating eps,
                                           floating eps_root) noexcept nogil:
    m[0] = beta1 * m[0] + gamma1 * g
    v[0] = beta2 * v[0] + gamma2 * (g * g)
    return p - alpha * (beta1 * m[0] + gamma1 * g) / (root(v[0] + eps_root) + eps)

# One element of the rule of laprop.py.

cdef inline floating laprop_element(floating p, floating g, floating* m, floating* v,
                                    floating alpha, floating beta1, floating gamma1,
                                    floating beta2, floating gamma2, floating eps) noexcept nogil:
    v[0] = beta2 * v[0] + gamma2 * (g * g)
    m[0] = beta1 * m[0] + gamma1 * g / (root(v[0]) + eps)
    return p - alpha * m[0]

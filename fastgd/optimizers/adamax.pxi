# One element of the rule of adamax.py.

cdef inline floating adamax_element(floating p, floating g, floating* m, floating* u,
                                    floating alpha, floating beta1, floating gamma1,
                                    floating beta2, floating eps) noexcept nogil:
    m[0] = beta1 * m[0] + gamma1 * g
    u[0] = larger(beta2 * u[0], magnitude(g) + eps)
    return p - alpha * m[0] / u[0]

# One element of each sweep of prodigy.py.

cdef inline void prodigy_before_element(floating p, floating g, floating* m, floating* v,
                                        floating* s, floating* x, floating* u, floating* w,
                                        floating l2, floating beta1, floating gamma1,
                                        floating beta2,
                                        floating gamma2, floating beta_s, floating sigma,
                                        floating tau, floating omega,
                                        floating first) noexcept nogil:
    cdef floating r = g + l2 * p
    x[0] = p if first != 0 else x[0]
    m[0] = beta1 * m[0] + gamma1 * r
    v[0] = beta2 * v[0] + gamma2 * (r * r)
    s[0] = beta_s * s[0] + sigma * r
    u[0] = tau * r * (x[0] - p)
    w[0] = omega * magnitude(s[0])


cdef inline floating prodigy_element(floating p, floating m, floating v, floating weight_decay,
                                     floating alpha, floating eps) noexcept nogil:
    return p - alpha * (m / (root(v) + eps) + weight_decay * p)

# One element of each sweep of dadaptation.py.

cdef inline void dadapt_before_element(floating p, floating g, floating* m, floating* v,
                                       floating* s, floating* u, floating* w, floating l2,
                                       floating beta1, floating gamma1, floating beta2,
                                       floating gamma2, floating beta_s, floating gamma_s,
                                       floating tau, floating omega,
                                       floating eps) noexcept nogil:
    cdef floating r = g + l2 * p
    u[0] = tau * r * (s[0] / (root(v[0]) + eps))
    m[0] = beta1 * m[0] + gamma1 * r
    v[0] = beta2 * v[0] + gamma2 * (r * r)
    s[0] = beta_s * s[0] + gamma_s * r
    w[0] = omega * magnitude(s[0])


cdef inline floating dadapt_adam_element(floating p, floating m, floating v, floating eps,
                                         floating moves, floating shrink) noexcept nogil:
    return p - moves * (m / (root(v) + eps) + shrink * p)

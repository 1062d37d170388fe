# One element of the rule of adan.py.

cdef inline floating adan_element(floating p, floating g, floating* m, floating* v, floating* d,
                                  floating* neg_pre_grad, floating alpha, floating alpha_diff,
                                  floating beta1, floating gamma1, floating beta2, floating gamma2,
                                  floating beta3, floating gamma3, floating eps, floating shrink,
                                  floating proximal, floating first) noexcept nogil:
    cdef floating change = <floating> 0 if first != 0 else g + neg_pre_grad[0]
    m[0] = beta1 * m[0] + gamma1 * g
    d[0] = beta2 * d[0] + gamma2 * change
    cdef floating ahead = g + beta2 * change
    v[0] = beta3 * v[0] + gamma3 * (ahead * ahead)
    neg_pre_grad[0] = -g
    return proximal * (shrink * p - (alpha * m[0] + alpha_diff * d[0]) / (root(v[0]) + eps))

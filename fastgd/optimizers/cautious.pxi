# One element of each sweep of cautious.py.

cdef inline void cautious_adam_before_element(floating p, floating g, floating* m, floating* v,
                                              floating* agrees, floating alpha, floating beta1,
                                              floating gamma1, floating beta2,
                                              floating gamma2) noexcept nogil:
    m[0] = beta1 * m[0] + gamma1 * g
    v[0] = beta2 * v[0] + gamma2 * (g * g)
    agrees[0] = is_positive(m[0] * g)


cdef inline floating cautious_adam_element(floating p, floating g, floating m, floating v,
                                           floating eps, floating eps_root,
                                           floating rate) noexcept nogil:
    return p - rate * (is_positive(m * g) * m) / (root(v + eps_root) + eps)


cdef inline floating cautious_amsgrad_element(floating p, floating g, floating m, floating v,
                                              floating* largest, floating eps, floating eps_root,
                                              floating rate) noexcept nogil:
    largest[0] = largest[0] if largest[0] > v else v
    return p - rate * (is_positive(m * g) * m) / (root(largest[0] + eps_root) + eps)


cdef inline void cautious_rmsprop_before_element(floating p, floating g, floating* nu, floating* V,
                                                 floating* agrees, floating alpha, floating beta,
                                                 floating gamma, floating eps, floating eps_root,
                                                 floating mu) noexcept nogil:
    nu[0] = beta * nu[0] + gamma * (g * g)
    V[0] = mu * V[0] + g / (root(nu[0] + eps_root) + eps)
    agrees[0] = is_positive(V[0] * g)


cdef inline floating cautious_rmsprop_element(floating p, floating g, floating V,
                                              floating rate) noexcept nogil:
    return p - rate * (is_positive(V * g) * V)


cdef inline void cautious_rmsprop_centered_before_element(
        floating p, floating g, floating* nu, floating* mean, floating* V, floating* agrees,
        floating alpha, floating beta, floating gamma, floating eps, floating eps_root,
        floating mu) noexcept nogil:
    nu[0] = beta * nu[0] + gamma * (g * g)
    mean[0] = beta * mean[0] + gamma * g
    V[0] = mu * V[0] + g / (root(positive_part(nu[0] - mean[0] * mean[0]) + eps_root) + eps)
    agrees[0] = is_positive(V[0] * g)


cdef inline floating cautious_rmsprop_centered_element(floating p, floating g, floating V,
                                                       floating rate) noexcept nogil:
    return p - rate * (is_positive(V * g) * V)


cdef inline void cautious_laprop_before_element(floating p, floating g, floating* m, floating* v,
                                                floating* agrees, floating alpha, floating beta1,
                                                floating gamma1, floating beta2, floating gamma2,
                                                floating eps) noexcept nogil:
    v[0] = beta2 * v[0] + gamma2 * (g * g)
    m[0] = beta1 * m[0] + gamma1 * g / (root(v[0]) + eps)
    agrees[0] = is_positive(m[0] * g)


cdef inline floating cautious_laprop_element(floating p, floating g, floating m,
                                             floating rate) noexcept nogil:
    return p - rate * (is_positive(m * g) * m)


cdef inline void cautious_lion_before_element(floating p, floating g, floating m, floating* agrees,
                                              floating alpha, floating beta1,
                                              floating gamma1) noexcept nogil:
    agrees[0] = is_positive((beta1 * m + gamma1 * g) * g)


cdef inline floating cautious_lion_element(floating p, floating g, floating* m, floating beta1,
                                           floating gamma1, floating beta2, floating gamma2,
                                           floating rate) noexcept nogil:
    cdef floating u = beta1 * m[0] + gamma1 * g
    m[0] = beta2 * m[0] + gamma2 * g
    return p - rate * (is_positive(u * g) * sign(u))


cdef inline void cautious_lamb_before_element(floating p, floating g, floating* m, floating* v,
                                              floating* a, floating* dot, floating* w,
                                              floating* agrees, floating beta1, floating gamma1,
                                              floating beta2, floating gamma2, floating mu,
                                              floating eps) noexcept nogil:
    m[0] = beta1 * m[0] + gamma1 * g
    v[0] = beta2 * v[0] + gamma2 * (g * g)
    a[0] = mu * (is_positive(m[0] * g) * m[0]) / (root(v[0]) + eps)
    dot[0] = a[0] * p
    w[0] = p
    agrees[0] = is_positive(m[0] * g)


cdef inline floating cautious_lamb_element(floating p, floating g, floating m, floating v,
                                           floating mu, floating eps, floating weight_decay,
                                           floating weight, floating alpha) noexcept nogil:
    cdef floating a = mu * (is_positive(m * g) * m) / (root(v) + eps)
    return p - alpha * (weight * a + weight_decay * p)

# One element of each rule of rmsprop.py.

cdef inline floating rmsprop_element(floating p, floating g, floating* nu, floating alpha,
                                     floating beta, floating gamma, floating eps,
                                     floating eps_root) noexcept nogil:
    nu[0] = beta * nu[0] + gamma * (g * g)
    return p - alpha * g / (root(nu[0] + eps_root) + eps)


cdef inline floating rmsprop_momentum_element(floating p, floating g, floating* nu, floating* V,
                                              floating alpha, floating beta, floating gamma,
                                              floating eps, floating eps_root,
                                              floating mu) noexcept nogil:
    nu[0] = beta * nu[0] + gamma * (g * g)
    V[0] = mu * V[0] + g / (root(nu[0] + eps_root) + eps)
    return p - alpha * V[0]


cdef inline floating rmsprop_centered_element(floating p, floating g, floating* nu, floating* mean,
                                              floating alpha, floating beta, floating gamma,
                                              floating eps, floating eps_root) noexcept nogil:
    nu[0] = beta * nu[0] + gamma * (g * g)
    mean[0] = beta * mean[0] + gamma * g
    return p - alpha * g / (root(positive_part(nu[0] - mean[0] * mean[0]) + eps_root) + eps)


cdef inline floating rmsprop_centered_momentum_element(
        floating p, floating g, floating* nu, floating* mean, floating* V, floating alpha,
        floating beta, floating gamma, floating eps, floating eps_root,
        floating mu) noexcept nogil:
    nu[0] = beta * nu[0] + gamma * (g * g)
    mean[0] = beta * mean[0] + gamma * g
    V[0] = mu * V[0] + g / (root(positive_part(nu[0] - mean[0] * mean[0]) + eps_root) + eps)
    return p - alpha * V[0]

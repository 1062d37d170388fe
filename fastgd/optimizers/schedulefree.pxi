# One element of each rule of schedulefree.py.

cdef inline floating sgd_schedule_free_element(floating p, floating g, floating* z, floating lr,
                                               floating first, floating part,
                                               floating kappa) noexcept nogil:
    cdef floating old = p if first != 0 else z[0]
    z[0] = old - lr * g
    return p + part * (old - p) - kappa * g


cdef inline floating adamw_schedule_free_element(floating p, floating g, floating* z, floating* v,
                                                 floating lr, floating first, floating beta2,
                                                 floating gamma2, floating adaptive,
                                                 floating correction, floating eps,
                                                 floating weight_decay, floating part,
                                                 floating kappa) noexcept nogil:
    cdef floating old = p if first != 0 else z[0]
    v[0] = beta2 * v[0] + gamma2 * (g * g)
    cdef floating ratio = correction * g / (root(v[0]) + eps)
    cdef floating d = (ratio if adaptive != 0 else g) + weight_decay * p
    z[0] = old - lr * d
    return p + part * (old - p) - kappa * d

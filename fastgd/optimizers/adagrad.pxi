# One element of the rule of adagrad.py.

cdef inline floating adagrad_element(floating p, floating g, floating* nu, floating alpha,
                                     floating eps, floating eps_root) noexcept nogil:
    nu[0] = nu[0] + g * g
    return p - alpha * g / (root(nu[0] + eps_root) + eps)

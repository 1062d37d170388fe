# One element of the rule of ftrl.py.

cdef inline floating ftrl_element(floating p, floating g, floating* z, floating* n, floating alpha,
                                  floating tau, floating rho, floating first) noexcept nogil:
    cdef floating before = root(n[0])
    cdef floating start = -(p * (before + rho) + tau * sign(p))
    n[0] = n[0] + g * g
    cdef floating grown = root(n[0])
    z[0] = (start if first != 0 else z[0]) + (alpha * g - (grown - before) * p)
    cdef floating scale = grown + rho
    cdef floating found = (at_least(at_most(z[0], tau), -tau) - z[0]) / scale
    return p if scale == 0 else found

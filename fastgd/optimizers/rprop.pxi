# One element of the rule of rprop.py.

cdef inline floating rprop_element(floating p, floating g, floating* prev, floating* step_size,
                                   floating delta0, floating first, floating eta_minus,
                                   floating eta_plus, floating delta_min,
                                   floating delta_max) noexcept nogil:
    cdef floating turn = g * prev[0]
    cdef floating delta = delta0 if first != 0 else step_size[0]
    delta = delta * (eta_plus if turn > 0 else eta_minus if turn < 0 else <floating> 1)
    step_size[0] = at_most(at_least(delta, delta_min), delta_max)
    prev[0] = <floating> 0 if turn < 0 else g
    return p - step_size[0] * sign(prev[0])

# One element of the rule of spec/average.py.

cdef inline floating ema_element(floating p, floating g, floating beta,
                                 floating gamma) noexcept nogil:
    return beta * p + gamma * g

# One element of each rule of spec/average.py.

cdef inline floating ema_element(floating p, floating g, floating beta,
                                 floating gamma) noexcept nogil:
    return p + gamma * (g - p) if gamma < beta else g + beta * (p - g)


cdef inline floating weighted_sum_element(floating p, floating g, floating weight) noexcept nogil:
    return p + weight * g

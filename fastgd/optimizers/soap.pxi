# One element of each sweep of soap.py; the matrix step is in kernels/engine/bases.pxi.

cdef inline void soap_before_element(floating p, floating g, floating* kept) noexcept nogil:
    kept[0] = g


cdef inline floating soap_element(floating p, floating update, floating alpha,
                                  floating kappa) noexcept nogil:
    return kappa * (p - alpha * update)


cdef inline floating soap_left_element(floating p, floating update, floating alpha,
                                       floating kappa) noexcept nogil:
    return kappa * (p - alpha * update)


cdef inline floating soap_right_element(floating p, floating update, floating alpha,
                                        floating kappa) noexcept nogil:
    return kappa * (p - alpha * update)

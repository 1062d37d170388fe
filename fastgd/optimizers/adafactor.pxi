# One element of each sweep of adafactor.py.

cdef inline floating adafactor_lines_element(floating p, floating g, floating beta2,
                                             floating gamma2) noexcept nogil:
    return beta2 * p + gamma2 * g


cdef inline floating adafactor_rows_element(floating p, floating g,
                                            floating eps) noexcept nogil:
    return 1 / root(p / at_least(g, epsilon(eps)))


cdef inline floating adafactor_columns_element(floating p) noexcept nogil:
    return 1 / root(p)


cdef inline floating by_lines(floating g, floating r, floating c, floating eps) noexcept nogil:
    return g * at_most(r * c, 1 / epsilon(eps))


cdef inline floating by_elements(floating g, floating V, floating eps) noexcept nogil:
    return g * at_most(1 / root(V), 1 / epsilon(eps))


cdef inline void adafactor_before_element(floating p, floating g, floating r, floating c,
                                          floating* u, floating* w,
                                          floating eps) noexcept nogil:
    u[0] = by_lines(g, r, c, eps)
    w[0] = p


cdef inline void vector_before_element(floating p, floating g, floating* V, floating* u,
                                       floating* w, floating beta2, floating gamma2,
                                       floating eps) noexcept nogil:
    V[0] = beta2 * V[0] + gamma2 * (g * g)
    u[0] = by_elements(g, V[0], eps)
    w[0] = p


cdef inline floating adafactor_element(floating p, floating g, floating r, floating c,
                                       floating eps, floating alpha) noexcept nogil:
    return p - alpha * by_lines(g, r, c, eps)


cdef inline floating adafactor_vector_element(floating p, floating g, floating V, floating eps,
                                              floating alpha) noexcept nogil:
    return p - alpha * by_elements(g, V, eps)

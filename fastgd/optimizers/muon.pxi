# One element of each sweep of muon.py; the matrix step is in kernels/engine/matrices.pxi.

cdef inline void muon_before_element(floating p, floating g, floating* B, floating* u,
                                     floating gamma, floating nu) noexcept nogil:
    B[0] = B[0] + gamma * (g - B[0])
    u[0] = B[0] + nu * (g - B[0])


cdef inline floating muon_element(floating p, floating update, floating alpha) noexcept nogil:
    return p - alpha * update

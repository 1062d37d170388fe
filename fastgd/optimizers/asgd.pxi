# One element of the rule of asgd.py.

cdef inline floating asgd_element(floating p, floating g, floating* ax, floating alpha,
                                  floating shrink, floating weight) noexcept nogil:
    cdef floating q = shrink * p - alpha * g
    ax[0] = ax[0] + weight * (q - ax[0]) if weight != 1 else q
    return q

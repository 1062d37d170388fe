# Coefficients in the type that is computed with.  Included by _engine.pyx and c_api.pyx.

from cython cimport floating
from libc.float cimport DBL_MIN, FLT_MIN


cdef inline void round_all(floating* c, const double* coefficients, int n,
                           int denominators) noexcept nogil:
    """Coefficients, each rounded once; may be in place.

    Those that are added to denominators, which these bits tell, are at least the smallest normal
    number.  So 0/0 is 0, and where the rest of the denominator isn't 0, its bits stay the same.
    """
    cdef floating least
    cdef int j
    if floating is float:
        least = <float> FLT_MIN
    else:
        least = DBL_MIN
    for j in range(n):
        c[j] = <floating> coefficients[j]
        if denominators >> j & 1 and 0 <= c[j] < least:
            c[j] = least

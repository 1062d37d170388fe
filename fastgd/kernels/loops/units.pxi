# Units, each what leads to one output: sums over them, and stages by which each is changed in its
# own way.  They are lines along an axis of the tensor: contiguous, or all interleaved.
# Specified by spec/units.py.


cdef void scale_units(floating* restrict out, const floating* restrict g, Py_ssize_t n,
                      const double* factors, const Axis* units, Py_ssize_t at) noexcept nogil:
    """Scale `n` elements from `at` on of a tensor each unit of which has its own factor."""
    cdef Py_ssize_t i, m, left, period = units.stride
    cdef floating factor
    if period == 1:
        factors += at // units.length
        left = units.length - at % units.length
        while n > 0:
            m, factor = min(left, n), <floating> factors[0]
            scale(out, g, m, factor)
            out, g, n, factors, left = out + m, g + m, n - m, factors + 1, units.length
        return
    at %= period
    while n > 0:
        m = min(period - at, n)
        for i in range(m):
            out[i] = <floating> factors[at + i] * g[i]
        out, g, n, at = out + m, g + m, n - m, 0


cdef void centralize(floating* restrict out, const floating* restrict g, Py_ssize_t n,
                     const double* means, const Axis* units, Py_ssize_t at) noexcept nogil:
    """Subtract from `n` elements from `at` on of a tensor the means of their units."""
    cdef Py_ssize_t i, m, left, period = units.stride
    cdef floating mean
    if period == 1:
        means += at // units.length
        left = units.length - at % units.length
        while n > 0:
            m, mean = min(left, n), <floating> means[0]
            for i in range(m):
                out[i] = g[i] - mean
            out, g, n, means, left = out + m, g + m, n - m, means + 1, units.length
        return
    at %= period
    while n > 0:
        m = min(period - at, n)
        for i in range(m):
            out[i] = g[i] - <floating> means[at + i]
        out, g, n, at = out + m, g + m, n - m, 0


cdef inline bint has_one_factor(const ChunkArgs* chunk, Py_ssize_t start, Py_ssize_t n,
                                floating* factor) noexcept nogil:
    """Whether all of a tile has one factor, which is its unit's where units have their own."""
    cdef Py_ssize_t k
    if chunk.flags & SCALE_UNITS == 0:
        return True
    if chunk.units.stride != 1:
        return False
    k = (chunk.offset + start) // chunk.units.length
    factor[0] = <floating> chunk.factors[k]
    return chunk.offset + start + n <= (k + 1) * chunk.units.length


cdef double sum_of_coded(const CodedPtr* x, Py_ssize_t n, double factor, double mean,
                         bint squares) noexcept nogil:
    """The sum of factor·(x − mean), or of its square, of any array, which is loaded as float64."""
    cdef Scratch scratch
    cdef double lane[LANES]
    cdef double* free_tile = <double*> scratch.tile[1]
    cdef const double* y
    cdef Py_ssize_t start = 0, m, j
    for j in range(LANES):
        lane[j] = 0.0
    while start < n:
        m = min(<Py_ssize_t> TILE, n - start)
        y = load[double](x, <double*> scratch.tile[0], start, m)
        if mean != 0.0:    # or NaN
            for j in range(m):
                free_tile[j] = y[j] - mean
            y = free_tile
        if squares:
            add_squares[double](lane, y, m, factor)
        else:
            scale[double](<double*> scratch.tile[2], y, m, factor)
            add_terms[double](lane, <double*> scratch.tile[2], m)
        start += m
    return add_lanes(lane)


cdef void sum_apart(const CodedPtr* x, const Axis* units, Py_ssize_t at, Py_ssize_t n,
                    Py_ssize_t times, Py_ssize_t apart, double factor, const double* means,
                    bint squares, double* totals) noexcept nogil:
    """The same of interleaved units: `n` elements `times` times, `apart` elements from each other.

    There is a total for each block of each unit, of which all or nothing is among these elements.
    """
    cdef Scratch scratch
    cdef double* z = <double*> scratch.tile[2]
    cdef const double* y
    cdef Py_ssize_t k, start, end, m, j
    if n == apart:
        n, times = n * times, 1
    for k in range(times):
        start, end = at + k * apart, at + k * apart + n
        while start < end:
            m = min(<Py_ssize_t> TILE, end - start)
            if start + 3 * TILE <= end:
                prefetch_array(x, start + 2 * TILE, m)
            y = load[double](x, <double*> scratch.tile[0], start, m)
            if means != NULL:
                centralize[double](<double*> scratch.tile[1], y, m, means, units, start)
                y = <double*> scratch.tile[1]
            if squares:
                for j in range(m):
                    z[j] = (factor * y[j]) * (factor * y[j])
            else:
                scale[double](z, y, m, factor)
            add_apart(totals, units, z, start, m)
            start += m


# The sum of a block of a contiguous unit, and the sums of those of interleaved ones.
SUM_OF_CODED = <size_t> <void*> sum_of_coded
SUM_APART = <size_t> <void*> sum_apart

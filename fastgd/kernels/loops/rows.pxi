# Sums of rows; the mean square of a row's gradient, and a row's number for each element.
# Specified by `lines` of spec/steps.py, and `summed` of spec/rows.py.


cdef double mean_square_of(const ChunkArgs* chunk, const Stages* stages,
                           floating unused) noexcept nogil:
    """The mean square of the gradient of a chunk that is a row, as sweeps get it."""
    cdef Scratch scratch
    cdef double lane[LANES]
    cdef double total = 0.0
    cdef const floating* p = NULL
    cdef const floating* g
    cdef floating factor = <floating> chunk.factor if chunk.flags & SCALE else 1
    cdef Py_ssize_t start = 0, n
    memset(lane, 0, sizeof(lane))
    while start < chunk.n:
        n = min(<Py_ssize_t> TILE, chunk.n - start)
        if chunk.flags & L2_DECAY:
            p = load[floating](&chunk.p, <floating*> scratch.tile[2], start, n)
        g = ready_gradient[floating](chunk, p, &scratch, start, n, factor, stages)
        add_squares[floating](lane, g, n, 1.0)
        start += n
        if start % BLOCK == 0 or start == chunk.n:
            total += add_lanes(lane)
            memset(lane, 0, sizeof(lane))
    return total / <double> chunk.n


cdef double mean_square_f32(const ChunkArgs* chunk, const Stages* stages) noexcept nogil:
    return mean_square_of[float](chunk, stages, 0)


cdef double mean_square_f64(const ChunkArgs* chunk, const Stages* stages) noexcept nogil:
    return mean_square_of[double](chunk, stages, 0)


cdef void fill(floating* out, floating x, Py_ssize_t n) noexcept nogil:
    """Give a rule the number of a row for each element.

    Stores are as wide as the loads of the rule that follows: those of narrower stores wait until
    all earlier ones are in cache, and so for the row before.
    """
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = x


cdef void add_to(floating* restrict out, const floating* restrict x, Py_ssize_t n) noexcept nogil:
    """Add the values of a row that came again."""
    cdef Py_ssize_t i
    for i in range(n):
        out[i] += x[i]


# (float32 loop, float64 loop), as addresses.
MEAN_SQUARE = (<size_t> <void*> mean_square_f32, <size_t> <void*> mean_square_f64)
FILL = (<size_t> <void*> fill[float], <size_t> <void*> fill[double])
ADD = (<size_t> <void*> add_to[float], <size_t> <void*> add_to[double])

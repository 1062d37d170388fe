# The mean square of a row's gradient, for rules that have a number for each row.
# Specified by `lines` of spec/steps.py.


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


# (float32 loop, float64 loop), as addresses.
MEAN_SQUARE = (<size_t> <void*> mean_square_f32, <size_t> <void*> mean_square_f64)

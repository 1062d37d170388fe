# The stages: what happens around a rule, each as a small loop of its own, so that options add up
# instead of multiplying the rules.  `staged` drives them over pieces that stay in cache.
# Specified by the functions of the same names in reference.py.

from libc.string cimport memset

cdef extern from "codecs.h" nogil:
    unsigned short fastgd_bfloat16(float x)


cdef void scale(floating* restrict out, const floating* restrict g, Py_ssize_t n,
                floating factor) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = factor * g[i]


cdef void clip_value(floating* restrict out, const floating* restrict g, Py_ssize_t n,
                     floating bound) noexcept nogil:
    cdef floating low
    cdef Py_ssize_t i
    for i in range(n):
        low = -bound if g[i] < -bound else g[i]
        out[i] = bound if low > bound else low


cdef void l2_decay(floating* restrict out, const floating* restrict g, const floating* restrict p,
                   Py_ssize_t n, floating weight_decay) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = g[i] + weight_decay * p[i]


cdef void decoupled_decay(floating* restrict p, Py_ssize_t n, floating factor) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = factor * p[i]


cdef void copy_float32(float* restrict out, const floating* restrict p,
                       Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = <float> p[i]


cdef void copy_bfloat16(unsigned short* restrict out, const floating* restrict p,
                        Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = fastgd_bfloat16(<float> p[i])


cdef void staged(const void* rule, const Part* part, const floating* c,
                 const Stages* stages) noexcept nogil:
    """A step of a part of a tensor, piece by piece, with the stages that its flags name.

    scale → value clipping → L2 decay → decoupled decay → rule → average → copy → zero gradient.

    The gradient is only read, unless it is to be zeroed: a stage that changes it writes to a
    scratch tile.  Without stages that work on several arrays in turn the piece is the whole part:
    out of cache, a decay that stops and starts with every tile keeps the processor from fetching
    ahead (measured: 1.12 of the bytes' time, against 1.04).
    """
    cdef Scratch scratch
    cdef floating* s[MAX_STATES]
    cdef floating* free_tile = <floating*> scratch.tile[0]
    cdef floating* next_tile = <floating*> scratch.tile[1]
    cdef floating* p
    cdef floating* average
    cdef const floating* g
    cdef floating of_average[2]
    cdef Py_ssize_t start = 0, n, j
    cdef int flags = part.flags
    cdef Py_ssize_t piece = part.n if flags & ~DECOUPLED_DECAY == 0 else TILE
    of_average[0], of_average[1] = <floating> part.beta, <floating> part.gamma
    while start < part.n:
        n = min(piece, part.n - start)
        p = <floating*> part.p + start
        if part.g != NULL:
            g = <const floating*> part.g + start
            if flags & SCALE:
                scale(free_tile, g, n, <floating> part.factor)
                g = free_tile
                free_tile, next_tile = next_tile, free_tile
            if flags & CLIP_VALUE:
                clip_value(free_tile, g, n, <floating> stages.clip_value)
                g = free_tile
                free_tile, next_tile = next_tile, free_tile
            if flags & L2_DECAY:
                l2_decay(free_tile, g, p, n, <floating> stages.weight_decay)
                g = free_tile
                free_tile, next_tile = next_tile, free_tile
            if flags & DECOUPLED_DECAY:
                decoupled_decay(p, n, <floating> stages.decoupled)
            for j in range(stages.n_states):
                s[j] = <floating*> part.s[j] + start
            if floating is float:
                (<rule_f32> rule)(p, g, s, n, c)
            else:
                (<rule_f64> rule)(p, g, s, n, c)
        if flags & AVERAGE:
            average = <floating*> part.average + start
            ema(average, p, NULL, n, of_average)
        if flags & COPY:
            if part.copy_type == BFLOAT16:
                copy_bfloat16(<unsigned short*> part.copy + start, p, n)
            else:
                copy_float32(<float*> part.copy + start, p, n)
        if flags & ZERO_GRADIENT:
            memset(<floating*> part.g + start, 0, n * sizeof(floating))
        start += n


cdef double sum_of_squares(const floating* restrict x, Py_ssize_t n, double factor) noexcept nogil:
    """The sum of (factor·x)² in double precision, lane by lane, then over the lanes as a tree."""
    cdef double lane[LANES]
    cdef double y
    cdef Py_ssize_t start = 0, width = LANES // 2, j
    for j in range(LANES):
        lane[j] = 0.0
    while start + LANES <= n:
        for j in range(LANES):
            y = factor * <double> x[start + j]
            lane[j] += y * y
        start += LANES
    for j in range(n - start):
        y = factor * <double> x[start + j]
        lane[j] += y * y
    while width:
        for j in range(width):
            lane[j] += lane[j + width]
        width //= 2
    return lane[0]


# (float32 loop, float64 loop), as addresses, like a row of RULES.
STAGED = (<size_t> <void*> staged[float], <size_t> <void*> staged[double])
SUM_OF_SQUARES = (<size_t> <void*> sum_of_squares[float], <size_t> <void*> sum_of_squares[double])

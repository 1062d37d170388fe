# Rows and columns: sums over each, their states, and what sweeps see of these.
# Specified by spec/lines.py, and `lines` of spec/steps.py.


cdef inline Py_ssize_t blocks_of(const Axis* axis) noexcept nogil:
    """How many blocks a line has."""
    cdef Py_ssize_t most = BLOCK if axis.stride == 1 else SLICES
    return (axis.length + most - 1) // most


cdef inline void add(double* restrict total, const double* restrict x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        total[i] += x[i]


cdef void add_apart(double* block, const Axis* axis, const double* x, Py_ssize_t at,
                    Py_ssize_t n) noexcept nogil:
    """Add elements from `at` on to the blocks of their lines, whose elements are apart.

    A block's first element sets it.
    """
    cdef Py_ssize_t stride = axis.stride, i = at % stride, k = at // stride % axis.length, m
    block += (at // stride // axis.length * blocks_of(axis) + k // SLICES) * stride
    while n > 0:
        m = min(n, stride - i)
        if k % SLICES == 0:
            memcpy(block + i, x, m * sizeof(double))
        else:
            add(block + i, x, m)
        x, n, i, k = x + m, n - m, 0, k + 1
        if k == axis.length:
            k, block = 0, block + stride
        elif k % SLICES == 0:
            block += stride


cdef inline double sum_of_line(const double* x, Py_ssize_t n) noexcept nogil:
    """The sum of a whole line, of elements next to each other, over lanes."""
    cdef double lane[LANES]
    cdef Py_ssize_t j
    if n <= 4:    # all other lanes are 0
        return ((x[0] + (x[2] if n > 2 else 0.0))
                + ((x[1] if n > 1 else 0.0) + (x[3] if n > 3 else 0.0)))
    for j in range(LANES):
        lane[j] = 0.0
    add_terms[double](lane, x, n)
    return add_lanes(lane)


cdef void add_next(double* block, double* lane, const Axis* axis, const double* x, Py_ssize_t at,
                   Py_ssize_t n) noexcept nogil:
    """The same of lines whose elements lie next to each other.

    The elements are those of some whole lines, or else of a single one: then they are what follows
    on those before, which are in the lanes.
    """
    cdef Py_ssize_t length = axis.length, line = at // length, i = at - line * length, j
    if length < TILE:
        block += line
        while n > 0:
            block[0] = sum_of_line(x, length)
            block, x, n = block + 1, x + length, n - length
        return
    if i % BLOCK == 0:
        for j in range(LANES):
            lane[j] = 0.0
    add_terms[double](lane, x, n)
    if i + n == length or (i + n) % BLOCK == 0:
        block[line * blocks_of(axis) + i // BLOCK] = add_lanes(lane)


cdef inline Py_ssize_t piece_of(const Axis* axis, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    """How many of `n` elements from `at` on to take at a time: of a line, or whole lines."""
    cdef Py_ssize_t length = axis.length
    if axis.stride != 1:
        return min(n, <Py_ssize_t> TILE)
    if length < TILE:
        return min(n, TILE // length * length)
    return min(n, min(<Py_ssize_t> TILE, length - at % length))


cdef inline void add_to_lines(double* block, double* lane, const Axis* axis, const double* x,
                              Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    if axis.stride == 1:
        add_next(block, lane, axis, x, at, n)
    else:
        add_apart(block, axis, x, at, n)


cdef void square_both(const Lines* lines, bint near, double* lane, const floating* g,
                      Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    """Add the squares of part of a long line, of elements next to each other, to that line's lanes,
    and to the lines across it: the same as by one after the other, without going through scratch.
    """
    cdef const Axis* line = &lines.axes[near]
    cdef const Axis* across = &lines.axes[not near]
    cdef Py_ssize_t i = at % line.length, k = at // across.stride, start = 0, j
    cdef double* block = lines.blocks[not near]
    cdef double total[LANES]
    cdef double x
    block += (k // across.length * blocks_of(across) + k % across.length // SLICES) * across.stride
    block += at % across.stride
    if k % across.length % SLICES == 0:
        memset(block, 0, n * sizeof(double))
    if i % BLOCK == 0:
        memset(lane, 0, LANES * sizeof(double))
    for j in range(LANES):
        total[j] = lane[j]
    while start + LANES <= n:
        for j in range(LANES):
            x = <double> g[start + j] * <double> g[start + j]
            total[j] += x
            block[start + j] += x
        start += LANES
    for j in range(n - start):
        x = <double> g[start + j] * <double> g[start + j]
        total[j] += x
        block[start + j] += x
    for j in range(LANES):
        lane[j] = total[j]
    if i + n == line.length or (i + n) % BLOCK == 0:
        lines.blocks[near][at // line.length * blocks_of(line) + i // BLOCK] = add_lanes(lane)


cdef void squared(const ChunkArgs* chunk, const Stages* stages, const Lines* lines,
                  Py_ssize_t times, Py_ssize_t apart, floating unused) noexcept nogil:
    """Add the squares of the gradient, as sweeps get it, to the blocks of its rows and columns.

    `times` times as many elements as the chunk has, `apart` elements from each other.
    """
    cdef Scratch scratch
    cdef double lane[LANES]
    cdef double* x = <double*> scratch.tile[3]
    cdef bint near = lines.axes[1].stride < lines.axes[0].stride
    cdef const Axis* nearest = &lines.axes[near]
    cdef const floating* p = NULL
    cdef const floating* g
    cdef floating factor = <floating> chunk.factor if chunk.flags & SCALE else 1
    cdef Py_ssize_t k, start, end, n, at, i
    for k in range(times):
        start, end = k * apart, k * apart + chunk.n
        while start < end:
            at = chunk.offset + start
            n = piece_of(nearest, at, end - start)
            if chunk.prefetch and start + 3 * TILE <= end:
                prefetch_array(&chunk.g, start + 2 * TILE, n)
            if chunk.flags & L2_DECAY:
                p = load[floating](&chunk.p, <floating*> scratch.tile[2], start, n)
            g = ready_gradient[floating](chunk, p, &scratch, start, n, factor, stages)
            start += n
            if nearest.stride == 1 and nearest.length >= TILE:
                square_both[floating](lines, near, lane, g, at, n)
                continue
            for i in range(n):
                x[i] = <double> g[i] * <double> g[i]
            for i in range(2):
                add_to_lines(lines.blocks[i], lane, &lines.axes[i], x, at, n)


cdef void means_of(floating* mean, const double* block, const Axis* axis,
                   Py_ssize_t size) noexcept nogil:
    """The mean of each line, whose blocks were summed up, of an array of `size` elements."""
    cdef double total[TILE]
    cdef double length = <double> axis.length
    cdef Py_ssize_t blocks = blocks_of(axis), stride = axis.stride
    cdef Py_ssize_t outer = size // axis.length // stride, o, i, j, k, n
    if blocks == 1:
        stride, outer = outer * stride, 1
    for o in range(outer):
        i = 0
        while i < stride:
            n = min(<Py_ssize_t> TILE, stride - i)
            memset(total, 0, sizeof(total))
            for k in range(blocks):
                add(total, block + k * stride + i, n)
            for j in range(n):
                mean[i + j] = <floating> (total[j] / length)
            i += n
        mean, block = mean + stride, block + blocks * stride


cdef inline void run_rule(const void* rule, floating* p, const floating* g, Py_ssize_t n,
                          const floating* c) noexcept nogil:
    if floating is float:
        (<rule_f32> rule)(p, g, NULL, n, c)
    else:
        (<rule_f64> rule)(p, g, NULL, n, c)


cdef void settled(const Lines* lines, const void** loops, const floating* c) noexcept nogil:
    """Update the states of rows and columns, and make what sweeps see of them."""
    cdef double lane[LANES]
    cdef double x[TILE]
    cdef const Axis* axis = &lines.axes[2]
    cdef floating* R = <floating*> lines.state[0]
    cdef floating* mean = <floating*> lines.mean
    cdef floating* seen
    cdef Py_ssize_t size = lines.size // lines.axes[0].length, start = 0, n, j
    for j in range(2):
        seen, n = <floating*> lines.seen[j], lines.size // lines.axes[j].length
        means_of[floating](mean, lines.blocks[j], &lines.axes[j], lines.size)
        run_rule[floating](loops[0], <floating*> lines.state[j], mean, n, c)
        memcpy(seen, lines.state[j], n * sizeof(floating))
    run_rule[floating](loops[2], seen, NULL, n, c)
    seen = <floating*> lines.seen[0]
    while start < size:
        n = piece_of(axis, start, size - start)
        for j in range(n):
            x[j] = <double> R[start + j]
        add_to_lines(lines.blocks[0], lane, axis, x, start, n)
        start += n
    means_of[floating](seen, lines.blocks[0], axis, size)
    copy_spread[floating](mean, seen, axis, 0, size)
    memcpy(seen, R, size * sizeof(floating))
    run_rule[floating](loops[1], seen, mean, size, c)


cdef void copy_spread(floating* out, const floating* x, const Axis* axis, Py_ssize_t at,
                      Py_ssize_t n) noexcept nogil:
    """The numbers of lines at `n` elements from `at` on."""
    cdef Py_ssize_t stride = axis.stride, i = at % stride, k = at // stride % axis.length, m, j
    cdef floating one
    x += at // stride // axis.length * stride
    while n > 0:
        if stride == 1:
            m, one = min(n, axis.length - k), x[0]
            for j in range(m):
                out[j] = one
            k = axis.length
        else:
            m = min(n, stride - i)
            memcpy(out, x + i, m * sizeof(floating))
            i, k = 0, k + 1
        out, n = out + m, n - m
        if k == axis.length:
            k, x = 0, x + stride


cdef inline floating* spread(const ChunkArgs* chunk, int j, Py_ssize_t start, Py_ssize_t n,
                             floating* tile) noexcept nogil:
    """A tile of a state that has numbers of lines: in place, where they lie as elements do."""
    cdef const Axis* axis = &chunk.axes[j]
    cdef floating* x = <floating*> chunk.s[j].code
    cdef Py_ssize_t at = chunk.offset + start, i = at % axis.stride
    if i + n <= axis.stride:
        return x + at // axis.stride // axis.length * axis.stride + i
    copy_spread[floating](tile, x, axis, at, n)
    return tile


cdef void squared_f32(const ChunkArgs* chunk, const Stages* stages, const Lines* lines,
                      Py_ssize_t times, Py_ssize_t apart) noexcept nogil:
    squared[float](chunk, stages, lines, times, apart, 0)


cdef void squared_f64(const ChunkArgs* chunk, const Stages* stages, const Lines* lines,
                      Py_ssize_t times, Py_ssize_t apart) noexcept nogil:
    squared[double](chunk, stages, lines, times, apart, 0)


# (float32 loop, float64 loop), as addresses.
SQUARED = (<size_t> <void*> squared_f32, <size_t> <void*> squared_f64)
SETTLED = (<size_t> <void*> settled[float], <size_t> <void*> settled[double])

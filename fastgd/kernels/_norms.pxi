# The sweep before the sweep: sums of squares, for norms and to find what isn't finite.
# Included by _engine.pyx; the order of all additions is fixed, by blocks, as in reference.py.

# Squares of float64 may overflow where the numbers don't; times this they can't.
cdef double SMALL = 2.0 ** -540
# From this sum on; low enough that the sums of all tensors can be added.
cdef double LARGE = 2.0 ** 900

# A block of consecutive elements, and the sum of its squares.
cdef struct Block:
    const char* x
    Py_ssize_t n
    int codec
    double total


cdef struct Sum:
    double plain               # of all squares but
    double scaled              # those times SMALL² of the arrays whose squares are LARGE


cdef inline void add_up(Block* block, Block* end, double factor) noexcept nogil:
    while block < end:
        if block.codec == FLOAT32:
            block.total = (<sum_f32> _sums[0])(<const float*> block.x, block.n, factor)
        elif block.codec == FLOAT64:
            block.total = (<sum_f64> _sums[1])(<const double*> block.x, block.n, factor)
        else:
            block.total = (<sum_coded> _sums[2])(
                codec_rows[block.codec].load[1], block.x, block.n, codec_rows[block.codec].size,
                factor)
        block += 1


cdef int add_up_blocks(dict rules, Block* blocks, Py_ssize_t n, Py_ssize_t elements, list arrays,
                       double factor) except -1:
    """Sum up the blocks of some arrays, by the backend whose rules are given."""
    cdef Py_ssize_t k, threads
    if rules is None:
        k = 0
        for x in arrays:
            if x is not None:
                for total in reference.sums_of_squares(x, factor):
                    blocks[k].total = total
                    k += 1
        return 0
    threads = threads_for(elements, n)
    with nogil:
        if threads <= 1:
            add_up(blocks, blocks + n, factor)
        else:
            for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                add_up(blocks + n * k // threads, blocks + n * (k + 1) // threads, factor)


cdef int sum_of(dict rules, Block* blocks, Py_ssize_t n, x, Sum* total) except -1:
    """The sum of one array's squares from its blocks, which hold their sums already."""
    cdef Py_ssize_t k
    total.plain = total.scaled = 0.0
    for k in range(n):
        total.plain += blocks[k].total
    if not total.plain <= LARGE and blocks[0].codec == FLOAT64:
        add_up_blocks(rules, blocks, n, n * BLOCK, [x], SMALL)
        total.plain = 0.0
        for k in range(n):
            total.scaled += blocks[k].total


cdef inline void add_to(Sum* total, Sum* other) noexcept:
    total.plain += other.plain
    total.scaled += other.scaled


cdef inline bint is_finite(Sum* total) noexcept:
    return isfinite(total.plain) and isfinite(total.scaled)


cdef inline double norm_of(Sum* total) noexcept:
    if total.scaled != 0.0:    # or NaN
        return sqrt(total.scaled + total.plain * SMALL * SMALL) / SMALL
    return sqrt(total.plain)


cdef Py_ssize_t cut_blocks(Block* blocks, const char* x, Py_ssize_t n, int codec) noexcept:
    """Cut an array into blocks, unless there is no room for them; returns how many there are."""
    cdef Py_ssize_t start = 0, k = 0
    while start < n:
        if blocks != NULL:
            blocks[k].x = x + start * codec_rows[codec].size
            blocks[k].n = min(<Py_ssize_t> BLOCK, n - start)
            blocks[k].codec = codec
        k += 1
        start += BLOCK
    return k

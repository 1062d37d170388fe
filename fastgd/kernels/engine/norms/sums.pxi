# The sweep before the sweep: sums of squares, for norms and to find what isn't finite.
# Included by _engine.pyx; the order of all additions is fixed, by blocks, as in reference.py.

# Squares of float64 may overflow where the numbers don't; times this they can't.
cdef double SMALL = 2.0 ** -540
# From this sum on; low enough that the sums of all tensors can be added.
cdef double LARGE = 2.0 ** 900

# Consecutive elements of an array: at most BLOCK, or all of what a norm is wanted of.
cdef struct Block:
    char* x
    char* beside               # of codecs that keep as much beside each element, or NULL
    int codec
    Py_ssize_t n
    Py_ssize_t piece           # elements whose squares are summed up at a time, at most BLOCK
    double* totals             # the sum of each piece


cdef struct Sum:
    double plain               # of all squares but
    double scaled              # those times SMALL² of the arrays whose squares are LARGE


cdef inline double sum_of_piece(const Block* block, Py_ssize_t start, Py_ssize_t n,
                                double factor) noexcept nogil:
    cdef Stored x
    if block.codec == FLOAT32:
        return (<sum_f32> _sums[0])(<const float*> block.x + start, n, factor)
    if block.codec == FLOAT64:
        return (<sum_f64> _sums[1])(<const double*> block.x + start, n, factor)
    describe(&x, &codec_rows[block.codec], block.x, block.beside, -1, 1, start)
    return (<sum_coded> _sums[2])(&x, n, factor)


cdef inline void add_up(Block* block, Block* end, double factor) noexcept nogil:
    cdef Py_ssize_t start, k
    while block < end:
        start = k = 0
        while start < block.n:
            block.totals[k] = sum_of_piece(block, start, min(block.piece, block.n - start), factor)
            start += block.piece
            k += 1
        block += 1


cdef int add_up_blocks(Block* blocks, Py_ssize_t n, Py_ssize_t elements) except -1:
    """Sum up blocks, by the compiled backend in use."""
    cdef Py_ssize_t k, threads = threads_for(elements, n)
    with nogil:
        if threads <= 1:
            add_up(blocks, blocks + n, 1.0)
        else:
            for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                add_up(blocks + n * k // threads, blocks + n * (k + 1) // threads, 1.0)


cdef int add_up_by_reference(x, Py_ssize_t unit, double* totals, double factor) except -1:
    """The same of an array, by the specification."""
    cdef Py_ssize_t k = 0
    for total in reference.sums_of_squares(x, factor, unit):
        totals[k] = total
        k += 1


cdef inline double sum_of_totals(const double* totals, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    cdef double total = 0.0
    for k in range(n):
        total += totals[k]
    return total


cdef inline int sum_of(dict rules, const Block* whole, Py_ssize_t unit, Py_ssize_t k,
                       Sum* total) except -1:
    """The sum of squares of the k-th unit of an array, whose pieces are summed up already."""
    cdef Py_ssize_t n = n_pieces(unit)
    total.plain, total.scaled = sum_of_totals(whole.totals + k * n, n), 0.0
    if not total.plain <= LARGE and whole.codec == FLOAT64:
        total.plain, total.scaled = 0.0, scaled_sum_of(rules, whole, unit, k)


cdef double scaled_sum_of(dict rules, const Block* whole, Py_ssize_t unit,
                          Py_ssize_t k) except? -1:
    """The same, times SMALL², of float64."""
    cdef cnp.npy_intp n = unit
    cdef Block part = part_of(whole, k * unit, unit)
    part.totals += k * n_pieces(unit)
    if rules is None:
        x = cnp.PyArray_SimpleNewFromData(1, &n, cnp.NPY_DOUBLE, part.x)
        add_up_by_reference(x, unit, part.totals, SMALL)
    else:
        with nogil:
            add_up(&part, &part + 1, SMALL)
    return sum_of_totals(part.totals, n_pieces(unit))


cdef inline void add_to(Sum* total, Sum* other) noexcept:
    total.plain += other.plain
    total.scaled += other.scaled


cdef inline bint is_finite(Sum* total) noexcept:
    return isfinite(total.plain) and isfinite(total.scaled)


cdef inline double norm_of(Sum* total) noexcept:
    if total.scaled != 0.0:    # or NaN
        return sqrt(total.scaled + total.plain * SMALL * SMALL) / SMALL
    return sqrt(total.plain)


cdef inline Py_ssize_t n_pieces(Py_ssize_t n) noexcept:
    """How many pieces what a norm is wanted of has."""
    return (n + BLOCK - 1) // BLOCK


cdef inline Block part_of(const Block* whole, Py_ssize_t start, Py_ssize_t n) noexcept:
    """The elements from one on of an array, without their totals."""
    cdef Codec* codec = &codec_rows[whole.codec]
    cdef Block part = whole[0]
    part.x += start * codec.size
    part.beside += start * codec.beside_size
    part.n = n
    return part


cdef Py_ssize_t cut_blocks(Block* blocks, const Block* whole, Py_ssize_t unit) noexcept:
    """Cut an array into blocks, unless there is no room for them; returns how many there are.

    Norms are wanted of each `unit` elements: a block is a part of these, or as many whole units as
    fit.  The pieces of all of them have their totals side by side.
    """
    cdef Py_ssize_t start = 0, k = 0, units = 1, n
    cdef double* totals = whole.totals
    if unit < whole.n and unit <= BLOCK:
        units = BLOCK // unit
    while start < whole.n:
        if unit > BLOCK:
            n = min(<Py_ssize_t> BLOCK, unit - start % unit)
        else:
            n = min(units * unit, whole.n - start)
        if blocks != NULL:
            blocks[k] = part_of(whole, start, n)
            blocks[k].piece, blocks[k].totals = min(<Py_ssize_t> BLOCK, unit), totals
            totals += units
        start += n
        k += 1
    return k

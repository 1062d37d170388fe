# The sweep before the sweep: sums of squares, for norms and to find what isn't finite.
# Included by _engine.pyx; the order of all additions is fixed, by blocks, as in spec/norms.py.

# Squares of float64 may overflow where the numbers don't; times this they can't.
cdef double SMALL = 2.0 ** -540
# From this sum on; low enough that the sums of all tensors can be added.
cdef double LARGE = 2.0 ** 900

# A chunk of a sum: consecutive elements of an array, at most one block or as many whole units as
# fit in one.  Or all of an array.
cdef struct SumChunk:
    char* x
    char* aux                  # of codecs with as many aux elements as elements, or NULL
    int codec
    Py_ssize_t n
    Py_ssize_t block           # elements of each block, at most BLOCK; a unit's last has less
    double* totals             # the sum of each block


cdef struct Sum:
    double plain               # of all squares but
    double scaled              # those times SMALL² of the arrays whose squares are LARGE


cdef inline double sum_of_block(const SumChunk* chunk, Py_ssize_t start, Py_ssize_t n,
                                double factor, const Loops* loops) noexcept nogil:
    cdef CodedPtr x
    if chunk.codec == FLOAT32:
        return (<sum_f32> loops.sum_of_squares[0])(<const float*> chunk.x + start, n, factor)
    if chunk.codec == FLOAT64:
        return (<sum_f64> loops.sum_of_squares[1])(<const double*> chunk.x + start, n, factor)
    describe(&x, &loops.codecs[chunk.codec], chunk.x, chunk.aux, -1, 1, start)
    return (<sum_coded> loops.sum_of_squares[2])(&x, n, factor)


cdef inline void add_up(SumChunk* chunk, SumChunk* end, double factor,
                        const Loops* loops) noexcept nogil:
    cdef Py_ssize_t start, k
    while chunk < end:
        start = k = 0
        while start < chunk.n:
            chunk.totals[k] = sum_of_block(chunk, start, min(chunk.block, chunk.n - start), factor,
                                           loops)
            start += chunk.block
            k += 1
        chunk += 1


cdef int add_up_chunks(Backend backend, SumChunk* chunks, Py_ssize_t n, Py_ssize_t elements,
                       double factor) except -1:
    """Fill in the totals of chunks: the sums of (factor·x)² over their blocks."""
    cdef Py_ssize_t k, threads = threads_for(elements, n)
    cdef const Loops* loops = &backend.loops
    if not backend.compiled:
        for k in range(n):
            add_up_by_reference(&chunks[k], factor)
        return 0
    with nogil:
        if threads <= 1:
            add_up(chunks, chunks + n, factor, loops)
        else:
            for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                add_up(chunks + n * k // threads, chunks + n * (k + 1) // threads, factor, loops)


cdef int add_up_by_reference(SumChunk* chunk, double factor) except -1:
    """The same of one chunk, by the specification."""
    cdef Py_ssize_t k = 0, unit = chunk.n if chunk.block == BLOCK else chunk.block
    if chunk.n == 0:
        return 0
    aux = None if chunk.aux == NULL else array_at(chunk.aux, chunk.n, BFLOAT16).view(np.int16)
    x = coded_array.CodedArray(array_at(chunk.x, chunk.n, chunk.codec), aux,
                               CODEC_NAMES[chunk.codec])
    for total in reference.sums_of_squares(x, factor, unit):
        chunk.totals[k] = total
        k += 1


cdef inline double sum_of_totals(const double* totals, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    cdef double total = 0.0
    for k in range(n):
        total += totals[k]
    return total


cdef inline int sum_of_unit(Backend backend, const SumChunk* whole, Py_ssize_t unit, Py_ssize_t k,
                            Sum* total) except -1:
    """The sum of squares of the k-th unit of an array whose blocks are summed up already."""
    cdef Py_ssize_t n = n_blocks(unit)
    total.plain, total.scaled = sum_of_totals(whole.totals + k * n, n), 0.0
    if not total.plain <= LARGE and whole.codec == FLOAT64:
        total.plain, total.scaled = 0.0, scaled_sum_of(backend, whole, unit, k)


cdef double scaled_sum_of(Backend backend, const SumChunk* whole, Py_ssize_t unit,
                          Py_ssize_t k) except? -1:
    """The same, times SMALL², of float64."""
    cdef SumChunk own = slice_of(whole, k * unit, unit)
    own.totals += k * n_blocks(unit)
    add_up_chunks(backend, &own, 1, unit, SMALL)
    return sum_of_totals(own.totals, n_blocks(unit))


cdef inline void add_to(Sum* total, Sum* other) noexcept:
    total.plain += other.plain
    total.scaled += other.scaled


cdef inline bint is_finite(Sum* total) noexcept:
    return isfinite(total.plain) and isfinite(total.scaled)


cdef inline double norm_of(Sum* total) noexcept:
    if total.scaled != 0.0:    # or NaN
        return sqrt(total.scaled + total.plain * SMALL * SMALL) / SMALL
    return sqrt(total.plain)


cdef inline Py_ssize_t n_blocks(Py_ssize_t unit) noexcept nogil:
    """How many blocks a unit of so many elements has."""
    return (unit + BLOCK - 1) // BLOCK


cdef inline SumChunk slice_of(const SumChunk* whole, Py_ssize_t start, Py_ssize_t n) noexcept:
    """The `n` elements from `start` on of an array; its totals stay those of the array."""
    cdef Codec* codec = &codec_rows[whole.codec]
    cdef SumChunk chunk = whole[0]
    chunk.x += start * codec.size
    chunk.aux += start * codec.aux_size
    chunk.n = n
    return chunk


cdef Py_ssize_t cut_sum_chunks(SumChunk* chunks, const SumChunk* whole, Py_ssize_t unit) noexcept:
    """Cut an array into chunks, unless there is no room for them; returns how many there are.

    Norms are wanted of each `unit` elements: a chunk is a block of one, or as many whole units as
    fit in a block.  The totals of all chunks follow each other.
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
        if chunks != NULL:
            chunks[k] = slice_of(whole, start, n)
            chunks[k].block, chunks[k].totals = min(<Py_ssize_t> BLOCK, unit), totals
            totals += units
        start += n
        k += 1
    return k

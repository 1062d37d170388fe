# The sweep before the sweep: sums of squares, for norms and to find what isn't finite, and the sums
# of units, for their means.
# Included by _engine.pyx; the order of all additions is fixed, by blocks, as in spec/units.py.

# Sums and squares of float64 may overflow where the numbers don't; times this they can't.
cdef double SMALL = 2.0 ** -540
# From this sum on; low enough that the sums of all tensors can be added.
cdef double LARGE = 2.0 ** 900

# Interleaved units of so many at a time are summed up, so that their totals stay in L1.
cdef Py_ssize_t SLICE = 2048

# What is summed up of x: (factor·(x − mean))², or the same without the square.
cdef struct Summand:
    double factor
    bint squares

# A chunk of a sum over units.  Of contiguous ones: consecutive elements, at most one block or as
# many whole units as fit in one.  Of interleaved ones: `n` elements, `times` times, which are whole
# blocks.  Or all of an array.
cdef struct SumChunk:
    char* x
    char* aux                  # of codecs with as many aux elements as elements, or NULL
    int codec
    Py_ssize_t n
    Axis units
    const double* means        # to be subtracted from each unit from the chunk's first on, or NULL
    double* totals             # the sum of each block; of interleaved units, of all of the array
    Py_ssize_t at              # where the elements of interleaved units start,
    Py_ssize_t times           # and how often there are n; 0: of contiguous ones


cdef struct Sum:
    double plain               # of all that is summed up but
    double scaled              # what is LARGE of an array, times SMALL as often as it has factors x


cdef inline SumChunk whole_of(char* x, char* aux, int codec, Py_ssize_t n, Axis units,
                              const double* means, double* totals) noexcept nogil:
    """All of an array."""
    cdef SumChunk whole
    whole.x, whole.aux, whole.codec, whole.n = x, aux, codec, n
    whole.units = units
    whole.means, whole.totals, whole.at, whole.times = means, totals, 0, 0
    return whole


cdef inline double sum_of_block(const SumChunk* chunk, Py_ssize_t start, Py_ssize_t n, double mean,
                                Summand of, const Loops* loops) noexcept nogil:
    cdef CodedPtr x
    if of.squares and chunk.means == NULL and chunk.codec == FLOAT32:
        return (<sum_f32> loops.sum_of_squares[0])(<const float*> chunk.x + start, n, of.factor)
    if of.squares and chunk.means == NULL and chunk.codec == FLOAT64:
        return (<sum_f64> loops.sum_of_squares[1])(<const double*> chunk.x + start, n, of.factor)
    describe_to_sum(&x, chunk, start, loops)
    return (<sum_coded> loops.sum_of_coded)(&x, n, of.factor, mean, of.squares)


cdef inline void describe_to_sum(CodedPtr* x, const SumChunk* chunk, Py_ssize_t start,
                                 const Loops* loops) noexcept nogil:
    """Where elements of a chunk are, and how they are loaded as float64."""
    describe(x, &loops.codecs[chunk.codec], chunk.x, chunk.aux, -1, 1, start)
    if chunk.codec == FLOAT64:
        x.load = NULL


cdef inline double mean_at(const SumChunk* chunk, Py_ssize_t start) noexcept nogil:
    """What is subtracted from an element of contiguous units."""
    return 0.0 if chunk.means == NULL else chunk.means[start // chunk.units.length]


cdef inline void add_up(SumChunk* chunk, SumChunk* end, Summand of,
                        const Loops* loops) noexcept nogil:
    cdef Py_ssize_t start, block, k
    cdef CodedPtr x
    while chunk < end:
        if chunk.times:
            describe_to_sum(&x, chunk, 0, loops)
            (<sums_apart> loops.sum_apart)(&x, &chunk.units, chunk.at, chunk.n, chunk.times,
                                           chunk.units.stride, of.factor, chunk.means, of.squares,
                                           chunk.totals)
        else:
            start, k, block = 0, 0, min(<Py_ssize_t> BLOCK, chunk.units.length)
            while start < chunk.n:
                chunk.totals[k] = sum_of_block(chunk, start, min(block, chunk.n - start),
                                               mean_at(chunk, start), of, loops)
                start += block
                k += 1
        chunk += 1


cdef void add_up_pieces(SumChunk* chunks, Py_ssize_t n, Summand of, const Loops* loops,
                        Shares* shares, Py_ssize_t thread) noexcept nogil:
    """What one of several threads adds up."""
    cdef Py_ssize_t all_pieces = shares.n * shares.pieces, k = next_piece(shares, thread)
    while k >= 0:
        add_up(chunks + n * k // all_pieces, chunks + n * (k + 1) // all_pieces, of, loops)
        k = next_piece(shares, thread)


cdef int add_up_chunks(Backend backend, SumChunk* chunks, Py_ssize_t n, Py_ssize_t elements,
                       Summand of, Py_ssize_t parallel_from) except -1:
    """Fill in the totals of chunks, by several threads if there are so many elements."""
    cdef Py_ssize_t k, threads = threads_from(parallel_from, elements, n)
    cdef const Loops* loops = &backend.loops
    cdef Shares shares
    if not backend.compiled:
        for k in range(n):
            add_up_by_reference(&chunks[k], of)
        return 0
    with nogil:
        if threads <= 1:
            add_up(chunks, chunks + n, of, loops)
        else:
            share_out(&shares, elements, threads)
            for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                add_up_pieces(chunks, n, of, loops, &shares, k)


cdef int add_up_by_reference(SumChunk* chunk, Summand of) except -1:
    """The same of one chunk, by the specification; of interleaved units all of the array."""
    cdef Py_ssize_t k = 0, n = chunk.n, stride = chunk.units.stride, length = chunk.units.length
    if n == 0:
        return 0
    if stride == 1:    # a chunk that is less than a unit is a block of it
        length = min(length, n)
    else:
        n = length * stride
    aux = None if chunk.aux == NULL else array_at(chunk.aux, n, BFLOAT16).view(np.int16)
    x = coded_array.CodedArray(array_at(chunk.x, n, chunk.codec), aux, CODEC_NAMES[chunk.codec])
    means = None
    if chunk.means != NULL:
        means = np.array([chunk.means[k] for k in range(n // length)])
    sums = reference.unit_blocks(x, lines.Axis(length, stride), of.factor, of.squares, means)
    for k in range(len(sums)):
        if stride == 1 or 0 <= k % stride - chunk.at % stride < chunk.n:
            chunk.totals[k] = sums[k]


cdef inline double sum_of_totals(const SumChunk* whole, Py_ssize_t k) noexcept nogil:
    """The sum of the blocks of the k-th unit."""
    cdef Py_ssize_t n = n_unit_blocks(&whole.units), stride = whole.units.stride, j
    cdef const double* totals = whole.totals + (k * n if stride == 1 else k)
    cdef double total = 0.0
    for j in range(n):
        total += totals[j * stride]
    return total


cdef inline int sum_of_unit(Backend backend, const SumChunk* whole, Py_ssize_t k, bint squares,
                            Sum* total) except -1:
    """The sum of the k-th unit of an array whose blocks are summed up already."""
    total.plain, total.scaled = sum_of_totals(whole, k), 0.0
    if not fabs(total.plain) <= LARGE and whole.codec == FLOAT64:
        total.plain, total.scaled = 0.0, scaled_sum_of(backend, whole, k, squares)


cdef inline int sum_of_few(Backend backend, char* x, int codec, Py_ssize_t n,
                           Sum* total) except -1:
    """The sum of the squares of an array of at most a block, by a compiled backend."""
    cdef double block = 0.0
    cdef SumChunk whole = whole_of(x, NULL, codec, n, Axis(n, 1), NULL, &block)
    if n:
        block = sum_of_block(&whole, 0, n, 0.0, Summand(1.0, True), &backend.loops)
    sum_of_unit(backend, &whole, 0, True, total)


cdef double scaled_sum_of(Backend backend, const SumChunk* whole, Py_ssize_t k,
                          bint squares) except? -1:
    """The same of SMALL times what it is of."""
    cdef SumChunk own = whole[0]
    cdef Py_ssize_t length = whole.units.length
    if whole.units.stride == 1:
        own = slice_of(whole, k * length, length)
        own.totals += k * n_unit_blocks(&whole.units)
        add_up_chunks(backend, &own, 1, length, Summand(SMALL, squares), PARALLEL_FROM)
        return sum_of_totals(&own, 0)
    own.at, own.n, own.times = k, 1, length
    add_up_chunks(backend, &own, 1, length, Summand(SMALL, squares), PARALLEL_FROM)
    return sum_of_totals(&own, k)


cdef inline void add_to(Sum* total, Sum* other) noexcept:
    total.plain += other.plain
    total.scaled += other.scaled


cdef inline bint is_finite(Sum* total) noexcept:
    return isfinite(total.plain) and isfinite(total.scaled)


cdef inline double norm_of(Sum* total) noexcept:
    if total.scaled != 0.0:    # or NaN
        return sqrt(total.scaled + total.plain * SMALL * SMALL) / SMALL
    return sqrt(total.plain)


cdef inline Py_ssize_t n_blocks(Py_ssize_t n) noexcept nogil:
    """How many blocks so many consecutive elements have."""
    return (n + BLOCK - 1) // BLOCK


cdef inline Py_ssize_t n_unit_blocks(const Axis* units) noexcept nogil:
    """How many blocks each unit has."""
    cdef Py_ssize_t most = BLOCK if units.stride == 1 else SLICES
    return (units.length + most - 1) // most


cdef inline SumChunk slice_of(const SumChunk* whole, Py_ssize_t start, Py_ssize_t n) noexcept:
    """The `n` elements from `start` on of contiguous units; its totals stay those of the array."""
    cdef Codec* codec = &codec_rows[whole.codec]
    cdef SumChunk chunk = whole[0]
    chunk.x += start * codec.size
    chunk.aux += start * codec.aux_size
    chunk.n = n
    if chunk.means != NULL:
        chunk.means += start // whole.units.length
    return chunk


cdef Py_ssize_t cut_sum_chunks(SumChunk* chunks, const SumChunk* whole, bint to_pieces) noexcept:
    """Cut an array into chunks, unless there is no room for them; returns how many there are.

    A chunk is a block of a unit, or as many whole units as fit in a block, and the totals of all
    chunks follow each other.  Interleaved units may also stay one.
    """
    cdef Py_ssize_t start = 0, k = 0, units = 1, unit = whole.units.length, n
    cdef double* totals = whole.totals
    if whole.units.stride != 1:
        return cut_interleaved(chunks, whole, to_pieces)
    if unit < whole.n and unit <= BLOCK:
        units = BLOCK // unit
    while start < whole.n:
        if unit > BLOCK:
            n = min(<Py_ssize_t> BLOCK, unit - start % unit)
        else:
            n = min(units * unit, whole.n - start)
        if chunks != NULL:
            chunks[k] = slice_of(whole, start, n)
            chunks[k].totals = totals
            totals += units
        start += n
        k += 1
    return k


cdef Py_ssize_t cut_interleaved(SumChunk* chunks, const SumChunk* whole, bint to_pieces) noexcept:
    """The same of interleaved units: a chunk is some blocks of some of them."""
    cdef Py_ssize_t slice = whole.units.stride, slices = whole.units.length
    cdef Py_ssize_t part = slice, some = slices, k = 0, row = 0, column
    if to_pieces:
        part = min(slice, SLICE)
        some = SLICES * max(BLOCK // (SLICES * slice), 1)
    while row < slices:
        column = 0
        while column < slice:
            if chunks != NULL:
                chunks[k] = whole[0]
                chunks[k].at = row * slice + column
                chunks[k].n, chunks[k].times = min(part, slice - column), min(some, slices - row)
            column += part
            k += 1
        row += some
    return k

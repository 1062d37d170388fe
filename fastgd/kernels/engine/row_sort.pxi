# The passes by which the entries of a gradient by rows are sorted: digit by digit, from the lowest.
# Included by _engine.pyx.

ctypedef fused index_t:
    cnp.int32_t
    cnp.int64_t


cdef Py_ssize_t enter(RowList* rows, Py_ssize_t* places, const index_t* indices, Py_ssize_t k,
                      Py_ssize_t n, Py_ssize_t slices, int width, bint* ascending) noexcept nogil:
    """Put each index and its position into one number, sorted by the lowest digit of indices.

    Or not sorted, if they ascend already.  Returns the position of one out of range, or -1.
    """
    cdef Py_ssize_t bad[MOST_SLICES]
    cdef bint in_order[MOST_SLICES]
    cdef Py_ssize_t j
    if slices <= 1:
        bad[0] = count_indices(places, indices, 0, k, n, width, &in_order[0])
    else:
        for j in prange(slices, num_threads=slices, schedule="static", chunksize=1):
            bad[j] = count_indices(places + j * DIGITS, indices, k * j // slices,
                                   k * (j + 1) // slices, n, width, &in_order[j])
    ascending[0] = True
    for j in range(slices):
        if bad[j] >= 0:
            return bad[j]
        ascending[0] &= in_order[j]
    if ascending[0]:    # as if all had the same digit
        width = 0
        for j in range(slices):
            places[j * DIGITS] = k * j // slices
    else:
        make_places(places, slices, width)
    if slices <= 1:
        move_indices(rows, places, indices, 0, k, width)
    else:
        for j in prange(slices, num_threads=slices, schedule="static", chunksize=1):
            move_indices(rows, places + j * DIGITS, indices, k * j // slices,
                         k * (j + 1) // slices, width)
    return -1


cdef Py_ssize_t count_indices(Py_ssize_t* counts, const index_t* indices, Py_ssize_t start,
                              Py_ssize_t end, Py_ssize_t n, int width,
                              bint* ascending) noexcept nogil:
    """Count the indices of a slice by the lowest digit; returns where one is out of range, or -1.

    And say whether they ascend, from the one before the slice on.
    """
    cdef cnp.uint64_t mask = (<cnp.uint64_t> 1 << width) - 1
    cdef cnp.uint64_t most = <cnp.uint64_t> n, index, last = 0
    cdef bint in_order = True
    cdef Py_ssize_t i
    memset(counts, 0, (mask + 1) * sizeof(Py_ssize_t))
    if start > 0:
        last = <cnp.uint64_t> <cnp.int64_t> indices[start - 1]
    for i in range(start, end):
        index = <cnp.uint64_t> <cnp.int64_t> indices[i]
        if index >= most:
            return i
        in_order &= index >= last
        last = index
        counts[index & mask] += 1
    ascending[0] = in_order
    return -1


cdef void move_indices(RowList* rows, Py_ssize_t* places, const index_t* indices, Py_ssize_t start,
                       Py_ssize_t end, int width) noexcept nogil:
    """Put the entries of a slice of indices where their lowest digit goes."""
    cdef cnp.uint64_t mask = (<cnp.uint64_t> 1 << width) - 1, index
    cdef Py_ssize_t i
    for i in range(start, end):
        index = <cnp.uint64_t> <cnp.int64_t> indices[i]
        rows.entries[places[index & mask]] = index << rows.bits | <cnp.uint64_t> i
        places[index & mask] += 1


cdef void count_digits(Py_ssize_t* counts, const cnp.uint64_t* x, Py_ssize_t start, Py_ssize_t end,
                       int shift, int width) noexcept nogil:
    """Count the entries of a slice by a digit."""
    cdef cnp.uint64_t mask = (<cnp.uint64_t> 1 << width) - 1
    cdef Py_ssize_t i
    memset(counts, 0, (mask + 1) * sizeof(Py_ssize_t))
    for i in range(start, end):
        counts[x[i] >> shift & mask] += 1


cdef void make_places(Py_ssize_t* places, Py_ssize_t slices, int width) noexcept nogil:
    """From counts to where the entries of each digit and slice go."""
    cdef Py_ssize_t digit, j, count, start = 0
    for digit in range(<Py_ssize_t> 1 << width):
        for j in range(slices):
            count, places[j * DIGITS + digit] = places[j * DIGITS + digit], start
            start += count


cdef void move_entries(cnp.uint64_t* out, const cnp.uint64_t* x, Py_ssize_t* places,
                       Py_ssize_t start, Py_ssize_t end, int shift, int width) noexcept nogil:
    cdef cnp.uint64_t mask = (<cnp.uint64_t> 1 << width) - 1
    cdef Py_ssize_t i, digit
    for i in range(start, end):
        digit = <Py_ssize_t> (x[i] >> shift & mask)
        out[places[digit]] = x[i]
        places[digit] += 1

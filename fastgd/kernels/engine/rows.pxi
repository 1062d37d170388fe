# Gradients by rows: the distinct rows in order, and the sums of those that came several times.
# Included by _engine.pyx; specified by `summed` of spec/rows.py.

# The most threads that sort, and add up values; and the values of a digit that is sorted by.
cdef enum:
    MOST_SLICES = 64
    DIGITS = 2048

# So many rows ahead of the one in work, memory is prefetched.
cdef Py_ssize_t ROWS_AHEAD = 8


@cython.final
cdef class RowSet:
    """The rows of a gradient of one tensor; its memory is kept from step to step."""

    cdef RowList view
    cdef cnp.uint64_t* spare    # as much as there are entries
    cdef Py_ssize_t* places     # where entries go, by slice and digit,
    cdef Py_ssize_t n_places    # in slices
    cdef Py_ssize_t capacity    # of entries,
    cdef Py_ssize_t sums_size   # and bytes of sums
    cdef Py_ssize_t units_size  # doubles of totals, norms and factors
    cdef object held            # what owns the memory of the values
    cdef char* wiped            # what zero_grads zeroes,
    cdef Py_ssize_t wiped_size  # and so many bytes

    def __dealloc__(self):
        free(self.view.entries)
        free(self.spare)
        free(self.places)
        free(self.view.sums)
        free(self.view.totals)
        free(self.view.norms)
        free(self.view.factors)

    cdef Py_ssize_t take(self, rows, Py_ssize_t n, Py_ssize_t length, int is_double,
                         Backend backend) except -2:
        """Take rows of a tensor that has `n` of so many elements; they fit but for their indices.

        Returns the position of an index that is out of range, or -1.
        """
        cdef cnp.ndarray values = rows.values
        cdef Py_ssize_t k = cnp.PyArray_DIM(values, 0), bad
        cdef RowList* own = &self.view
        own.length, own.size = length, length * (8 if is_double else 4)
        own.values, own.given = cnp.PyArray_BYTES(values), k
        self.wiped, self.wiped_size = cnp.PyArray_BYTES(values), cnp.PyArray_NBYTES(values)
        self.held = None
        bad = self.make_entries(rows.indices, n)
        if bad >= 0:
            return bad
        if length == 0:
            return -1
        if not backend.compiled:
            self.take_summed(rows, is_double)
        else:
            self.merge(k, codec_of(values), is_double, &backend.loops)
        return -1

    cdef Py_ssize_t take_distinct(self, cnp.ndarray indices, Py_ssize_t n) except -2:
        """The same of indices that come without values."""
        cdef Py_ssize_t bad = self.make_entries(indices, n), i
        cdef cnp.uint64_t* entries = self.view.entries
        if bad < 0:
            for i in range(cnp.PyArray_SIZE(indices)):
                if is_head(&self.view, i):
                    self.spare[self.view.n] = entries[i]
                    self.view.n += 1
            self.view.entries, self.spare = self.spare, entries
        return bad

    cdef Py_ssize_t make_entries(self, cnp.ndarray indices, Py_ssize_t n) except -2:
        """Make entries of indices, and sort them; returns as `take`."""
        cdef Py_ssize_t k = cnp.PyArray_DIM(indices, 0), bad
        cdef Py_ssize_t slices = min(threads_for(k, k), <Py_ssize_t> MOST_SLICES)
        cdef RowList* own = &self.view
        cdef int key_bits = bits_for(max(n - 1, 0)), passes, width
        cdef bint ascending = True, wide = cnp.PyArray_TYPE(indices) != <int> cnp.NPY_INT32
        cdef const void* data = cnp.PyArray_DATA(indices)
        own.bits, own.n = bits_for(2 * k), 0
        if own.bits + key_bits > 64:
            raise ValueError(f"rows: can't tell {k} indices into {n} rows apart by 64 bits")
        own.mask = (<cnp.uint64_t> 1 << own.bits) - 1
        slices = max(slices, 1)
        self.reserve(k, slices)
        passes = (key_bits + 10) // 11
        width = key_bits // max(passes, 1)
        with nogil:
            if wide:
                bad = enter[cnp.int64_t](own, self.places, <const cnp.int64_t*> data, k, n, slices,
                                         width, &ascending)
            else:
                bad = enter[cnp.int32_t](own, self.places, <const cnp.int32_t*> data, k, n, slices,
                                         width, &ascending)
            if bad < 0 and not ascending:
                self.sort(k, key_bits, passes, slices)
        return bad

    cdef int reserve(self, Py_ssize_t k, Py_ssize_t slices) except -1:
        """Make room for so many entries, and as many threads to sort them."""
        if slices > self.n_places:
            free(self.places)
            self.n_places = 0
            self.places = <Py_ssize_t*> malloc(slices * DIGITS * sizeof(Py_ssize_t))
            if self.places == NULL:
                raise MemoryError
            self.n_places = slices
        if k <= self.capacity:
            return 0
        free(self.view.entries)
        free(self.spare)
        self.capacity = 0
        self.view.entries = <cnp.uint64_t*> malloc(k * sizeof(cnp.uint64_t))
        self.spare = <cnp.uint64_t*> malloc(k * sizeof(cnp.uint64_t))
        if self.view.entries == NULL or self.spare == NULL:
            raise MemoryError
        self.capacity = k

    cdef int reserve_sums(self, Py_ssize_t size) except -1:
        if size > self.sums_size:
            free(self.view.sums)
            self.sums_size = 0
            self.view.sums = <char*> malloc(size)
            if self.view.sums == NULL:
                raise MemoryError
            self.sums_size = size

    cdef int reserve_units(self) except -1:
        """Make room for the sums of squares of all rows, their norms and their factors."""
        cdef Py_ssize_t size = max(self.view.n * n_blocks(self.view.length), self.view.n, 1)
        if size <= self.units_size:
            return 0
        free(self.view.totals)
        free(self.view.norms)
        free(self.view.factors)
        self.units_size = 0
        self.view.totals = <double*> malloc(size * sizeof(double))
        self.view.norms = <double*> malloc(size * sizeof(double))
        self.view.factors = <double*> malloc(size * sizeof(double))
        if self.view.totals == NULL or self.view.norms == NULL or self.view.factors == NULL:
            raise MemoryError
        self.units_size = size

    cdef void sort(self, Py_ssize_t k, int key_bits, int passes, Py_ssize_t slices) noexcept nogil:
        """Sort entries, which are so by the lowest digit of their indices, by the others.

        Equals stay in order.  Threads have slices of the entries, each of which goes behind those
        before it.
        """
        cdef int digit, shift = self.view.bits + key_bits // passes, width
        cdef Py_ssize_t j
        cdef cnp.uint64_t* x = self.view.entries
        cdef cnp.uint64_t* out = self.spare
        for digit in range(1, passes):
            width = (key_bits * (digit + 1)) // passes - (key_bits * digit) // passes
            if slices <= 1:
                count_digits(self.places, x, 0, k, shift, width)
                make_places(self.places, 1, width)
                move_entries(out, x, self.places, 0, k, shift, width)
            else:
                for j in prange(slices, num_threads=slices, schedule="static", chunksize=1):
                    count_digits(self.places + j * DIGITS, x, k * j // slices,
                                 k * (j + 1) // slices, shift, width)
                make_places(self.places, slices, width)
                for j in prange(slices, num_threads=slices, schedule="static", chunksize=1):
                    move_entries(out, x, self.places + j * DIGITS, k * j // slices,
                                 k * (j + 1) // slices, shift, width)
            shift += width
            x, out = out, x
        self.view.entries, self.spare = x, out

    cdef int merge(self, Py_ssize_t k, int codec, int is_double, const Loops* loops) except -1:
        """Leave one entry for each row; rows that came several times are added up.

        Threads share the distinct rows, so that each adds in the order of appearance.  Values that
        are not in the type that is computed with are all copied.
        """
        cdef Py_ssize_t rows[MOST_SLICES]
        cdef Py_ssize_t slots[MOST_SLICES]
        cdef Py_ssize_t slices, j, n = 0, n_slots = 0
        cdef RowList* own = &self.view
        cdef bint all_to_sums = codec != is_double
        cdef cnp.uint64_t* other
        slices = min(threads_for(k * own.length, k), <Py_ssize_t> MOST_SLICES)
        with nogil:
            if slices <= 1:
                slices = 1
                count_rows(own, k, 0, k, all_to_sums, &rows[0], &slots[0])
            else:
                for j in prange(slices, num_threads=slices, schedule="static", chunksize=1):
                    count_rows(own, k, k * j // slices, k * (j + 1) // slices, all_to_sums,
                               &rows[j], &slots[j])
        for j in range(slices):    # from counts to where each slice starts
            rows[j], n = n, n + rows[j]
            slots[j], n_slots = n_slots, n_slots + slots[j]
        own.n = n
        if n_slots == 0:    # each once, to be read where it is
            return 0
        self.reserve_sums(n_slots * own.size)
        if all_to_sums:
            own.given = 0
        with nogil:
            if slices <= 1:
                merge_slice(own, self.spare, k, 0, k, 0, 0, is_double, codec, loops)
            else:
                for j in prange(slices, num_threads=slices, schedule="static", chunksize=1):
                    merge_slice(own, self.spare, k, k * j // slices, k * (j + 1) // slices, rows[j],
                                slots[j], is_double, codec, loops)
        other = self.spare
        self.spare, own.entries = own.entries, other

    cdef int take_summed(self, rows, int is_double) except -1:
        """The same by the specification."""
        cdef cnp.ndarray distinct, sums
        cdef cnp.uint64_t j
        cdef RowList* own = &self.view
        distinct, sums = rows_spec.summed(rows.indices, rows.values,
                                          np.float64 if is_double else np.float32)
        own.n = cnp.PyArray_DIM(distinct, 0)
        for j in range(<cnp.uint64_t> own.n):
            own.entries[j] = (<cnp.uint64_t> (<cnp.int64_t*> cnp.PyArray_DATA(distinct))[j]
                              << own.bits | j)
        own.values, own.given, self.held = cnp.PyArray_BYTES(sums), own.n, (rows.values, sums)

    cdef tuple arrays(self, int is_double):
        """The distinct indices, and a copy of the sums of their values."""
        cdef cnp.ndarray distinct = np.empty(self.view.n, np.int64)
        cdef cnp.ndarray sums = np.empty((self.view.n, self.view.length),
                                         np.float64 if is_double else np.float32)
        cdef Py_ssize_t k
        for k in range(self.view.n):
            (<cnp.int64_t*> cnp.PyArray_DATA(distinct))[k] = row_at(&self.view, k)
            memcpy(cnp.PyArray_BYTES(sums) + k * self.view.size, values_at(&self.view, k),
                   self.view.size)
        return distinct, sums


def summed_rows(rows, Py_ssize_t n, int is_double, name):
    """The distinct indices of `Rows` of a parameter of `n` rows, and the sums of their values.

    In ascending order; shapes (k,) and (k, elements of a row).  Raises ValueError if an index is
    out of range; `name` is what to call the gradient then.
    """
    cdef RowSet own = RowSet()
    cdef Backend backend = backend_in_use()
    cdef Py_ssize_t length = 1
    for k in rows.values.shape[1:]:
        length *= k
    cdef Py_ssize_t bad = own.take(rows, n, length, is_double, backend)
    if bad >= 0:
        memory_rows.refuse_index(rows.indices, bad, n, name)
    return own.arrays(is_double)


cdef inline int bits_for(Py_ssize_t n) noexcept nogil:
    """The bits that a number from 0 to n takes."""
    cdef int bits = 0
    while n >> bits:
        bits += 1
    return bits


cdef inline Py_ssize_t row_at(const RowList* rows, Py_ssize_t k) noexcept nogil:
    """The k-th distinct row."""
    return <Py_ssize_t> (rows.entries[k] >> rows.bits)


cdef inline char* values_at(const RowList* rows, Py_ssize_t k) noexcept nogil:
    """The gradient of the k-th distinct row."""
    cdef Py_ssize_t place = <Py_ssize_t> (rows.entries[k] & rows.mask)
    if place < rows.given:
        return rows.values + place * rows.size
    return rows.sums + (place - rows.given) * rows.size


cdef inline bint is_head(const RowList* rows, Py_ssize_t i) noexcept nogil:
    """Whether the i-th of the sorted entries is the first one of its row."""
    return i == 0 or rows.entries[i] >> rows.bits != rows.entries[i - 1] >> rows.bits


cdef inline Py_ssize_t end_of(const RowList* rows, Py_ssize_t k, Py_ssize_t i) noexcept nogil:
    """Where the entries of the row end that starts with the i-th of `k`."""
    cdef cnp.uint64_t row = rows.entries[i] >> rows.bits
    i += 1
    while i < k and rows.entries[i] >> rows.bits == row:
        i += 1
    return i


cdef void count_rows(const RowList* rows, Py_ssize_t k, Py_ssize_t start, Py_ssize_t end,
                     bint all_to_sums, Py_ssize_t* n, Py_ssize_t* slots) noexcept nogil:
    """Count the rows that start in a slice of the sorted entries, and those that want a sum."""
    cdef Py_ssize_t found = 0, several = 0, i
    cdef bint head, later
    head = start < end and is_head(rows, start)
    for i in range(start, end):
        later = i + 1 < k and not is_head(rows, i + 1)
        found += head
        several += head and later
        head = not later
    n[0], slots[0] = found, found if all_to_sums else several


cdef inline void prefetch_summand(const RowList* rows, Py_ssize_t k, Py_ssize_t i, Py_ssize_t item,
                                  bint native) noexcept nogil:
    """Prefetch the value of the i-th of the sorted entries, if it has to be added up or copied."""
    if i < k and (not native or not is_head(rows, i) or (i + 1 < k and not is_head(rows, i + 1))):
        fastgd_prefetch_row(rows.values + <Py_ssize_t> (rows.entries[i] & rows.mask) * item,
                            min(item, <Py_ssize_t> 4096))


cdef void merge_rows(const RowList* rows, cnp.uint64_t* out, Py_ssize_t k, Py_ssize_t start,
                     Py_ssize_t end, Py_ssize_t at, Py_ssize_t slot, const Codec* codec,
                     const void* add, real unused) noexcept nogil:
    """Add up the rows that start in a slice of the sorted entries, and write an entry for each."""
    cdef real* total
    cdef Py_ssize_t i = start, stop, place
    cdef Py_ssize_t item = rows.length * codec.size
    cdef bint native = rows.given != 0
    while i < end and not is_head(rows, i):
        i += 1
    while i < end:
        stop = end_of(rows, k, i)
        prefetch_summand(rows, k, i + ROWS_AHEAD, item, native)
        if native and stop == i + 1:
            out[at] = rows.entries[i]
        else:
            total = <real*> (rows.sums + slot * rows.size)
            out[at] = (rows.entries[i] & ~rows.mask) | <cnp.uint64_t> (rows.given + slot)
            place = <Py_ssize_t> (rows.entries[i] & rows.mask)
            set_row[real](total, rows.values + place * item, rows.length, native, codec)
            slot += 1
            i += 1
            while i < stop:
                prefetch_summand(rows, k, i + ROWS_AHEAD, item, native)
                place = <Py_ssize_t> (rows.entries[i] & rows.mask)
                add_row[real](total, rows.values + place * item, rows.length, native, codec, add)
                i += 1
        at += 1
        i = stop


cdef void merge_slice(const RowList* rows, cnp.uint64_t* out, Py_ssize_t k, Py_ssize_t start,
                      Py_ssize_t end, Py_ssize_t at, Py_ssize_t slot, int is_double, int codec,
                      const Loops* loops) noexcept nogil:
    if is_double:
        merge_rows[double](rows, out, k, start, end, at, slot, &loops.codecs[codec], loops.add[1],
                           0)
    else:
        merge_rows[float](rows, out, k, start, end, at, slot, &loops.codecs[codec], loops.add[0], 0)


cdef inline void set_row(real* out, const char* x, Py_ssize_t n, bint native,
                         const Codec* codec) noexcept nogil:
    cdef Py_ssize_t start = 0, m
    if native:
        memcpy(out, x, n * sizeof(real))
        return
    while start < n:
        m = min(<Py_ssize_t> TILE, n - start)
        if real is float:
            (<load_f32> codec.load[0])(out + start, x + start * codec.size, NULL, m)
        else:
            (<load_f64> codec.load[1])(out + start, x + start * codec.size, NULL, m)
        start += m


cdef inline void add_row(real* out, const char* x, Py_ssize_t n, bint native, const Codec* codec,
                         const void* add) noexcept nogil:
    cdef real[256] tile
    cdef Py_ssize_t start = 0, m
    if native:
        add_numbers[real](out, <const real*> x, n, add)
        return
    while start < n:
        m = min(<Py_ssize_t> 256, n - start)
        set_row[real](tile, x + start * codec.size, m, False, codec)
        add_numbers[real](out + start, tile, m, add)
        start += m


cdef inline void add_numbers(real* out, const real* x, Py_ssize_t n,
                             const void* add) noexcept nogil:
    if real is float:
        (<add_f32> add)(out, x, n)
    else:
        (<add_f64> add)(out, x, n)

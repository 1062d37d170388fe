# The memory of arrays: whether it is as it has to be, and apart; and new memory for states.
# Included by _engine.pyx.

cdef extern from "numpy/arrayobject.h":
    # Takes the reference to the dtype.
    cnp.ndarray PyArray_NewFromDescr(PyTypeObject*, cnp.dtype, int, cnp.npy_intp*, cnp.npy_intp*,
                                     void*, int, PyObject*)


cdef object CodedArray = coded_array.CodedArray


cdef inline cnp.ndarray code_of(a):
    """The array of an array that is plain, or coded."""
    return (<tuple> a)[0] if type(a) is CodedArray else a


cdef inline object aux_of(a):
    return (<tuple> a)[1] if type(a) is CodedArray else None


cdef inline int codec_in(a) except -1:
    return CODEC_OF[(<tuple> a)[2]] if type(a) is CodedArray else codec_of(a)


cdef inline bint is_stochastic(a) except -1:
    return (<tuple> a)[3] if type(a) is CodedArray else False


cdef inline Py_ssize_t origin_of(a) except -1:
    return (<tuple> a)[4] if type(a) is CodedArray else 0


cdef bint is_coded_like(cnp.ndarray code, aux, const Codec* codec, cnp.ndarray p,
                        int order) noexcept:
    """Whether an array is a coded one of a parameter, as `checks.check_coded` wants it."""
    cdef int needed = order | cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE
    return (cnp.PyArray_ITEMSIZE(code) == codec.size
            and (cnp.PyArray_FLAGS(code) & needed) == needed and cnp.PyArray_ISNOTSWAPPED(code)
            and have_same_shape(<RawArray*> code, <RawArray*> p)
            and (codec.aux_size == 0 or is_aux(aux, codec, cnp.PyArray_SIZE(p))))


cdef bint is_aux(aux, const Codec* codec, Py_ssize_t n) noexcept:
    """Whether these are the scales or remainders of so many elements."""
    if not cnp.PyArray_CheckExact(aux):
        return False
    cdef cnp.ndarray a = aux
    return (cnp.PyArray_TYPE(a) == <int> (cnp.NPY_UBYTE if codec.aux_size == 1 else cnp.NPY_SHORT)
            and cnp.PyArray_ISCARRAY(a) and cnp.PyArray_NDIM(a) == 1
            and cnp.PyArray_DIM(a, 0) == (n + codec.per - 1) // codec.per)


cdef int by_address(const void* a, const void* b) noexcept nogil:
    cdef const Range* left = <const Range*> a
    cdef const Range* right = <const Range*> b
    if left.start != right.start:
        return -1 if left.start < right.start else 1
    return (left.end > right.end) - (left.end < right.end)


cdef bint are_disjoint(Range* ranges, Py_ssize_t n) noexcept nogil:
    """Sort the memory of arrays by address; whether none overlaps another."""
    cdef Py_ssize_t i
    qsort(ranges, n, sizeof(Range), by_address)
    for i in range(1, n):
        if ranges[i - 1].end > ranges[i].start:
            return False
    return True


def aligned_zeros(cnp.ndarray p, cnp.dtype kind not None):
    """What `fastgd.kernels.memory.alloc.aligned_zeros` says."""
    cdef Py_ssize_t size = cnp.PyArray_SIZE(p), item = kind.itemsize, ahead
    cdef cnp.npy_intp length = size * item + 64
    cdef int order = (cnp.NPY_ARRAY_CARRAY if cnp.PyArray_IS_C_CONTIGUOUS(p)
                      else cnp.NPY_ARRAY_FARRAY)
    cdef cnp.ndarray raw = cnp.PyArray_ZEROS(1, &length, cnp.NPY_UBYTE, 0), made
    # In elements: where types differ in size, the same element then starts a line in both.  What is
    # kept in fewer bits starts on a line, as its chunks are whole tiles, wherever the parameter is.
    ahead = 0
    if item >= <Py_ssize_t> sizeof(float):
        ahead = <size_t> cnp.PyArray_BYTES(p) % 64 // cnp.PyArray_ITEMSIZE(p)
    cdef size_t offset = (ahead * item - <size_t> cnp.PyArray_BYTES(raw)) % 64
    Py_INCREF(kind)
    made = PyArray_NewFromDescr(<PyTypeObject*> cnp.ndarray, kind, cnp.PyArray_NDIM(p),
                                cnp.PyArray_DIMS(p), NULL, cnp.PyArray_BYTES(raw) + offset, order,
                                NULL)
    cnp.set_array_base(made, raw)
    return made

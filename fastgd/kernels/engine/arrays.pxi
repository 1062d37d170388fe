# What the engine needs to know of NumPy's arrays, asked of their C structures.
# Included by _engine.pyx.

# The rows of the backend's codecs.  The first two are the types that are computed with, by their
# value of `is_double`.
cdef enum:
    FLOAT32 = 0
    FLOAT64 = 1
    BFLOAT16 = 2
    FLOAT16 = 3
    SPLIT = 4
    N_CODECS = 7

# NumPy's numbers of the types of their codes, of those that parameters and gradients may have.
cdef int[5] TYPE_NUMBERS = [
    cnp.NPY_FLOAT, cnp.NPY_DOUBLE, cnp.NPY_USHORT, cnp.NPY_FLOAT16, cnp.NPY_USHORT]


cdef char* address_of(a) except? NULL:
    return NULL if a is None else cnp.PyArray_BYTES(<cnp.ndarray> a)


cdef cnp.ndarray array_at(char* data, Py_ssize_t n, int codec):
    """A flat array over memory of some codec, which the array does not keep alive."""
    cdef cnp.npy_intp size = n
    return cnp.PyArray_SimpleNewFromData(1, &size, TYPE_NUMBERS[codec], data)


cdef int _bfloat16 = -1        # NumPy's number of ml_dtypes' type, once it was seen


cdef inline int codec_of_type(int kind) noexcept:
    """The codec of arrays of one of NumPy's types, or -1."""
    if kind == <int> cnp.NPY_FLOAT:
        return FLOAT32
    if kind == <int> cnp.NPY_DOUBLE:
        return FLOAT64
    if kind == <int> cnp.NPY_USHORT or kind == _bfloat16:
        return BFLOAT16
    return FLOAT16 if kind == <int> cnp.NPY_FLOAT16 else -1


cdef int learn_bfloat16(cnp.ndarray a) except -1:
    """Note NumPy's number of bfloat16 if an array, found to be of floats, is of that type."""
    global _bfloat16
    if codec_of_type(cnp.PyArray_TYPE(a)) < 0:
        assert a.dtype.name == "bfloat16"
        _bfloat16 = cnp.PyArray_TYPE(a)


cdef int codec_of(cnp.ndarray a) except -1:
    """The codec of an array that was found to be of floats."""
    cdef int codec = codec_of_type(cnp.PyArray_TYPE(a))
    if codec < 0:
        learn_bfloat16(a)
        codec = BFLOAT16
    return codec


# An array as NumPy has it in C, by a pointer that counts as no reference.
cdef extern from "numpy/arrayobject.h" nogil:
    ctypedef struct RawArray "PyArrayObject":
        pass
    char* start_of "PyArray_BYTES"(RawArray*)
    int axes_in "PyArray_NDIM"(RawArray*)
    cnp.npy_intp* shape_of "PyArray_DIMS"(RawArray*)
    int type_number_of "PyArray_TYPE"(RawArray*)
    int flags_of "PyArray_FLAGS"(RawArray*)
    bint is_native "PyArray_ISNOTSWAPPED"(RawArray*)

# Where an array was when the plan was made, to be looked at before each step.
cdef struct Place:
    RawArray* array            # which a list of the plan's keeps alive; or NULL: there is none
    char* data
    Py_ssize_t n               # elements
    int type_number            # NumPy's number of its dtype,
    int codec                  # which has the codec of the array's memory


cdef inline Place place_of(cnp.ndarray a, int codec) noexcept:
    return Place(<RawArray*> a, cnp.PyArray_BYTES(a), elements_of(<RawArray*> a),
                 cnp.PyArray_TYPE(a), BFLOAT16 if codec == SPLIT else codec)


cdef inline bint is_unmoved(const Place* known, int flags) noexcept:
    """Whether an array is still the memory that it was, and has these flags."""
    cdef RawArray* a = known.array
    return (start_of(a) == known.data and elements_of(a) == known.n
            and (type_number_of(a) == known.type_number
                 or codec_of_type(type_number_of(a)) == known.codec)
            and flags_of(a) & flags == flags)


cdef inline Py_ssize_t elements_of(RawArray* a) noexcept:
    """How many elements an array has, without a call of NumPy's."""
    cdef const cnp.npy_intp* shape = shape_of(a)
    cdef Py_ssize_t n
    cdef int j, ndim = axes_in(a)
    if ndim == 1:
        return shape[0]
    n = 1
    for j in range(ndim):
        n *= shape[j]
    return n


cdef inline bint fits(RawArray* g, RawArray* p, int order) noexcept:
    """Whether a gradient is of floats, in its parameter's shape and layout."""
    cdef int needed = order | cnp.NPY_ARRAY_ALIGNED
    return (codec_of_type(type_number_of(g)) >= 0 and flags_of(g) & needed == needed
            and is_native(g) and have_same_shape(g, p))


cdef inline int order_of(cnp.ndarray p) noexcept:
    """The contiguity flag of a parameter's order of memory."""
    return (cnp.NPY_ARRAY_C_CONTIGUOUS if cnp.PyArray_IS_C_CONTIGUOUS(p)
            else cnp.NPY_ARRAY_F_CONTIGUOUS)


cdef inline bint have_same_shape(RawArray* a, RawArray* p) noexcept:
    cdef const cnp.npy_intp* own = shape_of(a)
    cdef const cnp.npy_intp* wanted = shape_of(p)
    cdef int j, ndim = axes_in(p)
    if axes_in(a) != ndim:
        return False
    for j in range(ndim):
        if own[j] != wanted[j]:
            return False
    return True


cdef bint is_plain(cnp.ndarray x) noexcept:
    """Whether an array is of floats, contiguous and aligned."""
    return (codec_of_type(cnp.PyArray_TYPE(x)) >= 0 and cnp.PyArray_ISBEHAVED_RO(x)
            and (cnp.PyArray_IS_C_CONTIGUOUS(x) or cnp.PyArray_IS_F_CONTIGUOUS(x)))


def is_parameter(a):
    """Whether an object is at a glance what `checks.check_parameter` wants, of any dtype of floats.

    If not, that takes the long look.
    """
    return (cnp.PyArray_CheckExact(a) and is_plain(<cnp.ndarray> a)
            and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> a))

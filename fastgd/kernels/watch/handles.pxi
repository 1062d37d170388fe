# What the library's functions say of a tensor by its handle.
# Included by _watch.pyx.

# They return 0, or what else went wrong.
ctypedef int (*to_release)(void* handle) noexcept nogil
ctypedef int (*to_find)(void* handle, void** found) noexcept nogil
ctypedef int (*to_tell)(void* handle, int32_t* found) noexcept nogil
ctypedef int (*to_count)(void* handle, int64_t* found) noexcept nogil

# A handle's functions: where the memory is, to let it go, and how that memory is laid out.
cdef struct Functions:
    to_find where
    to_release release
    to_tell dtype
    to_tell device
    to_tell layout
    to_count axes
    to_find shape
    to_find strides


cdef Functions functions_at(tuple addresses):
    """The functions at these addresses, in the order of the struct."""
    cdef Functions f
    where, release, dtype, device, layout, axes, shape, strides = addresses
    f.where, f.release = <to_find> <size_t> where, <to_release> <size_t> release
    f.dtype, f.device = <to_tell> <size_t> dtype, <to_tell> <size_t> device
    f.layout, f.axes = <to_tell> <size_t> layout, <to_count> <size_t> axes
    f.shape, f.strides = <to_find> <size_t> shape, <to_find> <size_t> strides
    return f


cdef inline char* place_of(const Functions* ask, void* handle, const Known* known) noexcept:
    """Where the memory of a tensor is that is laid out as a parameter; NULL of any other.

    The layout comes first: of a sparse tensor it is an error to ask where its memory is.
    """
    cdef DLTensor t
    cdef int32_t dtype, layout
    cdef int64_t axes
    cdef void* found = NULL
    if not (ask.layout(handle, &layout) == 0 and layout == known.layout
            and ask.dtype(handle, &dtype) == 0 and dtype == known.dtype
            and ask.axes(handle, &axes) == 0
            and ask.shape(handle, <void**> &t.shape) == 0
            and ask.strides(handle, <void**> &t.strides) == 0):
        return NULL
    t.ndim = <int32_t> axes
    if not same_layout(&t, known.ndim, known.shape, known.n):
        return NULL
    return <char*> found if ask.where(handle, &found) == 0 else NULL


cdef inline bint is_beside(const Functions* ask, void* handle, const Known* known) noexcept:
    """Whether a tensor is on the device of a parameter."""
    cdef int32_t device
    return ask.device(handle, &device) == 0 and device == known.device

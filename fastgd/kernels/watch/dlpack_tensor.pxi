# A tensor as DLPack describes it: address, dtype, shape and strides.
# Included by _watch.pyx.

cdef Exchange* exchange_of(api) except NULL:
    """The table of functions in a capsule."""
    cdef Exchange* exchange = <Exchange*> PyCapsule_GetPointer(api, CAPSULE)
    if exchange.version.major != MAJOR or exchange.tensor_of == NULL:
        raise ImportError(f"expected DLPack {MAJOR} with a function that lends tensors, "
                          f"found version {exchange.version.major}")
    return exchange


cdef inline Py_ssize_t size_of(DLTensor* t) noexcept:
    cdef Py_ssize_t n = 1
    cdef int j
    for j in range(t.ndim):
        n *= t.shape[j]
    return n


cdef inline bint look(Exchange* exchange, PyObject* tensor, DLTensor* t) noexcept:
    """Where a tensor's memory is; False if it has none that DLPack could describe."""
    if exchange.tensor_of(<void*> tensor, t) != 0:
        PyErr_Clear()      # the caller knows better words for what is wrong
        return False
    if t.data == NULL and size_of(t) != 0:
        return False       # of elements that are stored nowhere
    t.data = <char*> t.data + t.byte_offset
    return True


cdef inline int kind_of(DLTensor* t) noexcept:
    """NumPy's number for what a tensor in the memory of the CPU holds, or -1.

    Of floats, of the codes that states are stored as, where uint16 stands for bfloat16, and of
    counts in uint32.
    """
    if t.device.type != CPU or t.dtype.lanes != 1:
        return -1
    if t.dtype.code == FLOAT:
        return (<int> cnp.NPY_FLOAT if t.dtype.bits == 32 else
                <int> cnp.NPY_DOUBLE if t.dtype.bits == 64 else
                <int> cnp.NPY_FLOAT16 if t.dtype.bits == 16 else -1)
    if t.dtype.bits == 16:
        return (<int> cnp.NPY_USHORT if t.dtype.code == BFLOAT else
                <int> cnp.NPY_SHORT if t.dtype.code == INT else -1)
    if t.dtype.code == UINT:
        return (<int> cnp.NPY_UBYTE if t.dtype.bits == 8 else
                <int> cnp.NPY_UINT32 if t.dtype.bits == 32 else -1)
    return -1


cdef inline bint of_floats(int kind) noexcept:
    return (kind >= 0 and kind != <int> cnp.NPY_UBYTE and kind != <int> cnp.NPY_SHORT
            and kind != <int> cnp.NPY_UINT32)


cdef inline bint same_layout(DLTensor* t, int ndim, const int64_t* shape, Py_ssize_t n) noexcept:
    """Whether a tensor has this shape and, where they matter, the strides that follow it."""
    cdef int j
    if t.ndim != ndim:
        return False
    for j in range(ndim):
        if t.shape[j] != shape[j]:
            return False
        if t.strides[j] != shape[ndim + j] and t.shape[j] != 1 and n != 0:
            return False
    return True


cdef cnp.ndarray lend(DLTensor* t, owner):
    """A flat array over all memory of a dense tensor, which `owner` keeps alive."""
    cdef cnp.npy_intp n = size_of(t)
    cdef int kind = kind_of(t)
    cdef cnp.ndarray array
    if n == 0:
        return cnp.PyArray_EMPTY(1, &n, kind, 0)
    array = cnp.PyArray_SimpleNewFromData(1, &n, kind, t.data)
    if owner is not None:
        cnp.set_array_base(array, owner)
    return array


def flat(api, tensor, owner):
    """A flat array over a tensor's memory, in the order of its addresses.

    Parameters
    ----------
    api : capsule
        ``__dlpack_c_exchange_api__`` of the tensor's type.
    tensor : object
        A tensor without holes or overlaps in its memory, whatever the order of its axes.
    owner : object
        What the array keeps alive: something that holds this memory.

    Returns
    -------
    ndarray of floats, uint8, int16 or uint32, shape (elements,), or None
        bfloat16 comes as uint16.  None if the tensor has another dtype, or no memory that the CPU
        can reach.
    """
    cdef DLTensor t
    if not look(exchange_of(api), <PyObject*> tensor, &t) or kind_of(&t) < 0:
        return None
    return lend(&t, owner)

# Whether a tensor has changed, told from the bytes of its object.
# Included by _tensors.pyx.
#
# To ask a library where a tensor is takes ten times as long as to see that nothing of it has
# changed.  Where things stand in its objects is learned from probes, whose values the library itself
# says, and then put to the test by changing tensors in every way; if anything isn't as expected
# (`forget`), every tensor is asked again at every step.  Nothing read here is ever used as an
# address to write to: it is only compared.

cdef enum:
    KIND = 192                 # bytes that say shape, strides, dtype and device, at most

# Where things stand, in bytes from the start of what holds them.
cdef struct Anatomy:
    bint known
    Py_ssize_t impl            # in Python's object: the address of the library's own
    Py_ssize_t storage         # in that: the address of the storage
    Py_ssize_t offset          # in that: how far into it the tensor starts
    Py_ssize_t start, size     # in that: all that says of what kind the tensor is
    Py_ssize_t data            # in the storage: the address of its memory

cdef Anatomy anatomy

# Where a tensor was seen.
cdef struct Glimpse:
    const char* impl
    const char* storage
    const char* data
    const char* offset


cdef inline const char* word(const char* at) noexcept:
    return (<const char**> at)[0]


cdef void take_glimpse(Glimpse* seen, object tensor) noexcept:
    if anatomy.known:
        seen.impl = word(<const char*> <void*> tensor + anatomy.impl)
        seen.storage = word(seen.impl + anatomy.storage)
        seen.data = word(seen.storage + anatomy.data)
        seen.offset = word(seen.impl + anatomy.offset)


cdef inline bint in_place(const Glimpse* seen, PyObject* tensor) noexcept:
    """Whether a tensor is where it was seen; False as well if it wasn't seen yet."""
    # In this order each address is one that its owner, just found unchanged, keeps alive.
    return (anatomy.known and seen.impl != NULL
            and word(<const char*> tensor + anatomy.impl) == seen.impl
            and word(seen.impl + anatomy.storage) == seen.storage
            and word(seen.storage + anatomy.data) == seen.data
            and word(seen.impl + anatomy.offset) == seen.offset)


cdef inline bint of_kind(const Glimpse* seen, const char* kind) noexcept:
    """Whether a tensor that is in place has the shape, strides and dtype that it had."""
    return memcmp(kind, seen.impl + anatomy.start, anatomy.size) == 0


cdef inline void take_kind(const Glimpse* seen, char* kind) noexcept:
    if anatomy.known:
        memcpy(kind, seen.impl + anatomy.start, anatomy.size)


cdef Py_ssize_t find_word(const char* start, Py_ssize_t first, Py_ssize_t end,
                          size_t value) noexcept:
    """Where a value stands, or -1."""
    cdef Py_ssize_t at
    for at in range(first, end - 7, 8):
        if <size_t> word(start + at) == value:
            return at
    return -1


def learn(tensor, size_t impl, size_t storage, size_t data, size_t offset):
    """Learn where things stand in a tensor's object, from one of which they are known.

    Parameters
    ----------
    tensor : object
        A tensor.
    impl, storage : int
        The addresses of the library's own object, and of the tensor's storage.
    data : int
        The address of the storage's memory.
    offset : int
        The tensor's offset in that, in elements: a number that nothing else has by chance.

    Returns
    -------
    bool
        Whether all was found.
    """
    anatomy.known = False
    anatomy.impl = find_word(<const char*> <void*> tensor, sizeof(PyObject),
                             type(tensor).__basicsize__, impl)
    if anatomy.impl < 0:
        return False
    anatomy.storage = find_word(<const char*> impl, 8, 64, storage)
    anatomy.offset = find_word(<const char*> impl, 8, 168, offset)
    if anatomy.storage < 0 or anatomy.offset < anatomy.storage:
        return False
    anatomy.data = find_word(<const char*> storage, 8, 64, data)
    if anatomy.data < 0:
        return False
    # Shape and strides are before the offset, number of elements, dtype and device after it.
    anatomy.start = max(anatomy.storage, anatomy.offset - 88)
    anatomy.size = anatomy.offset + 24 - anatomy.start
    anatomy.known = anatomy.size <= KIND
    return anatomy.known


def forget():
    """Ask every tensor where it is from now on."""
    anatomy.known = False


cdef class Probe:
    """A tensor as it was seen when this was made; for tests of what was learned."""

    cdef Glimpse seen
    cdef char kind[KIND]
    cdef object tensor

    def __init__(self, tensor):
        self.tensor = tensor
        take_glimpse(&self.seen, tensor)
        take_kind(&self.seen, self.kind)

    def unchanged(self):
        """Whether nothing of it has changed."""
        return in_place(&self.seen, <PyObject*> self.tensor) and of_kind(&self.seen, self.kind)

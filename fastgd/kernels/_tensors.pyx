"""Tensors of another library: where their memory is now, and how it is laid out.

A library that has DLPack's C exchange API says in some 40 ns where a tensor's memory is, without an
object being made.  So a `Watch` can look at every parameter, state and gradient before every step,
and no step ever writes to where a tensor was once.  It knows nothing of the library itself: what
the tensors are, and the words of errors, are its caller's.
"""

cimport numpy as cnp
from cpython.dict cimport PyDict_GetItem, PyDict_Next, PyDict_Size
from cpython.exc cimport PyErr_Clear
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free

from fastgd.kernels._dlpack cimport *

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyArrayObject_fields:
        char* data

# What is known of a parameter and of its states.
cdef struct Known:
    bint bound
    bint complete          # whether all its states stand where the library's users see them
    char* data
    Py_ssize_t n
    int kind               # NumPy's number of its dtype
    int ndim
    int64_t* shape         # and after it the strides
    char* states[12]       # of up to 4 states with scales, master, average and step
    bint counts            # whether the last of them is a step count
    cnp.int64_t* count     # the engine's step count
    bint stepped           # whether the last reading found a gradient
    char* step             # where that reading found the step count users see, or NULL
    int step_bits


cdef Exchange* exchange_of(api) except NULL:
    """The table of functions in a capsule."""
    cdef Exchange* exchange = <Exchange*> PyCapsule_GetPointer(api, CAPSULE)
    if exchange.version.major != MAJOR or exchange.tensor_of == NULL:
        raise ImportError(f"expected DLPack {MAJOR} with a function that lends tensors, "
                          f"found version {exchange.version.major}")
    return exchange


cdef bint look(Exchange* exchange, object tensor, DLTensor* t) noexcept:
    """Where a tensor's memory is; False if it has none that DLPack could describe."""
    if exchange.tensor_of(<void*> tensor, t) != 0:
        PyErr_Clear()      # the caller knows better words for what is wrong
        return False
    t.data = <char*> t.data + t.byte_offset
    return True


cdef inline int kind_of(DLTensor* t) noexcept:
    """NumPy's number for what a tensor in the memory of the CPU holds, or -1.

    Of floats, and of the codes that states are kept by; uint16 stands for bfloat16.
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
    return <int> cnp.NPY_UBYTE if t.dtype.code == UINT and t.dtype.bits == 8 else -1


cdef inline bint of_floats(int kind) noexcept:
    return kind >= 0 and kind != <int> cnp.NPY_UBYTE and kind != <int> cnp.NPY_SHORT


cdef inline Py_ssize_t size_of(DLTensor* t) noexcept:
    cdef Py_ssize_t n = 1
    cdef int j
    for j in range(t.ndim):
        n *= t.shape[j]
    return n


cdef bint same_layout(DLTensor* t, int ndim, const int64_t* shape, Py_ssize_t n) noexcept:
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
    """A flat array over all memory of a tensor that is dense, which `owner` keeps alive."""
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
    ndarray of floats, uint8 or int16, shape (elements,), or None
        bfloat16 comes as uint16.  None if the tensor has another dtype, or no memory that the CPU
        can reach.
    """
    cdef DLTensor t
    if not look(exchange_of(api), tensor, &t) or kind_of(&t) < 0:
        return None
    return lend(&t, owner)


cdef class Watch:
    """Parameters and their states, looked at before every step.

    Parameters
    ----------
    api : capsule
        ``__dlpack_c_exchange_api__`` of the type of tensors.
    members : list of list
        The parameters of each group, as the library knows them; their ``grad`` is read.
    tensors : list of list
        The tensor that holds a parameter's memory, often itself; None for a parameter that is not
        bound, which is only asked whether it has a gradient.
    local : callable
        From a gradient to the tensor that holds its memory, for a parameter that isn't itself its
        tensor.
    refuse : callable
        ``refuse(k, i, gradient)`` raises what is wrong with the gradient of a parameter.
    """

    cdef Exchange* exchange
    cdef readonly list members, tensors
    cdef readonly list stepped     # the parameters with a gradient at the last reading
    cdef object local, refuse
    cdef list lent, held           # arrays over the gradients, and what they were lent by
    cdef list entries, keys, shown, memory, counts
    cdef list order                # the keys and values of the library's dict of states
    cdef Known* known
    cdef int64_t* layouts
    cdef Py_ssize_t n

    def __cinit__(self, api, list members, list tensors, local, refuse):
        cdef Py_ssize_t i = 0, at = 0
        cdef DLTensor t
        self.exchange = exchange_of(api)
        self.members = [list(group) for group in members]
        self.tensors = [tensor for group in tensors for tensor in group]
        self.local, self.refuse = local, refuse
        self.n = len(self.tensors)
        self.entries, self.keys, self.shown, self.memory, self.counts, self.lent, self.held = (
            [None] * self.n for _ in range(7))
        self.order, self.stepped = [], []
        self.known = <Known*> calloc(self.n + 1, sizeof(Known))
        # Of as many axes as there are in all, shape and strides.
        axes = sum(tensor.ndim for tensor in self.tensors if tensor is not None)
        self.layouts = <int64_t*> calloc(2 * axes + 1, sizeof(int64_t))
        if self.known == NULL or self.layouts == NULL:
            raise MemoryError
        for i in range(self.n):
            if self.tensors[i] is None:
                continue
            if not look(self.exchange, self.tensors[i], &t) or not of_floats(kind_of(&t)):
                raise RuntimeError("a tensor to be watched has no memory of floats")
            self.known[i].bound = True
            self.known[i].data, self.known[i].n = <char*> t.data, size_of(&t)
            self.known[i].kind, self.known[i].ndim = kind_of(&t), t.ndim
            self.known[i].shape = self.layouts + at
            for j in range(t.ndim):
                self.layouts[at + j] = t.shape[j]
                self.layouts[at + t.ndim + j] = t.strides[j]
            at += 2 * t.ndim

    def __dealloc__(self):
        free(self.known)
        free(self.layouts)

    def count(self, Py_ssize_t i, cnp.ndarray count):
        """Take the engine's step count of the i-th parameter of all, an int64 of shape ()."""
        self.counts[i] = count
        self.known[i].count = <cnp.int64_t*> cnp.PyArray_DATA(count)

    def show(self, Py_ssize_t i, entry, tuple keys, tuple shown, tuple memory, bint complete):
        """Take the states of the i-th parameter of all, as the library's users see them.

        Parameters
        ----------
        i : int
            Which parameter.
        entry : dict
            Where users find the states.
        keys : tuple of str
            Their names; the last may be ``"step"``, a count in a float.
        shown : tuple
            The values of these keys.
        memory : tuple
            The tensors that hold their memory.
        complete : bool
            Whether these are all.
        """
        cdef DLTensor t
        cdef Py_ssize_t j
        if len(keys) > 12:
            raise ValueError(f"keys: expected at most 12, found {len(keys)}")
        for j in range(len(keys)):
            if not look(self.exchange, memory[j], &t) or kind_of(&t) < 0:
                raise RuntimeError("a state to be watched has no memory of numbers")
            self.known[i].states[j] = <char*> t.data
        self.entries[i], self.keys[i], self.shown[i], self.memory[i] = entry, keys, shown, memory
        self.known[i].complete = complete
        self.known[i].counts = len(keys) > 0 and keys[len(keys) - 1] == "step"

    def note(self, state):
        """Take the library's dict of states: any key or entry that changes from here on is seen."""
        self.order = [x for pair in state.items() for x in pair]

    def read(self, groups, state):
        """This step's gradients.

        Parameters
        ----------
        groups : list of dict or None
            The library's groups; None doesn't look at them.
        state : dict or None
            Its states, likewise.

        Returns
        -------
        list of list of ndarray, or None
            Flat arrays over the gradients, None where there is none; they hold until `tick`.  Or
            nothing, if a tensor is not the one or not where it was, and all has to be bound again.

        Raises
        ------
        Exception
            What `refuse` raises of a gradient that isn't like its parameter.
        """
        cdef Py_ssize_t k, j, i = 0
        cdef list group
        if groups is not None and not self.same_groups(groups):
            return None
        if state is not None and not self.same_state(state):
            return None
        self.stepped = []
        arrays = []
        for k in range(len(self.members)):
            group = <list> self.members[k]
            found = []
            for j in range(len(group)):
                p = group[j]
                g = p.grad
                if not self.known[i].bound:
                    if g is not None:
                        return None
                elif not self.unmoved(i):
                    return None
                else:
                    self.known[i].stepped = g is not None
                    if g is not None:
                        g = self.gradient(i, k, j, p, g)
                        self.stepped.append(p)
                found.append(g)
                i += 1
            arrays.append(found or [None])     # the engine knows no empty groups
        return arrays

    cdef bint same_groups(self, groups) except -1:
        cdef Py_ssize_t k, j
        cdef list known, now
        if len(groups) != len(self.members):
            return False
        for k in range(len(self.members)):
            known, now = self.members[k], groups[k]["params"]
            if len(known) != len(now):
                return False
            for j in range(len(known)):
                if known[j] is not now[j]:
                    return False
        return True

    cdef bint same_state(self, state) except -1:
        """Whether the dict of states has the same keys and values, by identity and in order."""
        cdef PyObject* key
        cdef PyObject* value
        cdef Py_ssize_t place = 0, at = 0
        if 2 * PyDict_Size(state) != len(self.order):
            return False
        while PyDict_Next(state, &place, &key, &value):
            if (key != <PyObject*> self.order[at] or value != <PyObject*> self.order[at + 1]):
                return False
            at += 2
        return True

    cdef bint unmoved(self, Py_ssize_t i) except -1:
        """Whether a parameter and its states are the tensors that they were, where they were."""
        cdef Known* known = &self.known[i]
        cdef DLTensor t
        cdef Py_ssize_t j
        cdef tuple keys, shown, memory
        if not (look(self.exchange, self.tensors[i], &t)
                and <char*> t.data == known.data and kind_of(&t) == known.kind
                and same_layout(&t, known.ndim, known.shape, known.n)):
            return False
        if self.entries[i] is None:
            return True
        entry, keys = self.entries[i], <tuple> self.keys[i]
        shown, memory = <tuple> self.shown[i], <tuple> self.memory[i]
        for j in range(len(keys)):
            if (PyDict_GetItem(entry, keys[j]) != <PyObject*> shown[j]
                    or not look(self.exchange, memory[j], &t)
                    or <char*> t.data != known.states[j]):
                return False
        known.step = NULL
        if known.counts:
            self.read_count(known, &t)
        return True

    cdef void read_count(self, Known* known, DLTensor* t) noexcept:
        """Take a step count that somebody has changed; one that was only rounded stays exact."""
        cdef double value, exact
        known.step, known.step_bits = <char*> t.data, t.dtype.bits
        if t.dtype.bits == 32:
            value, exact = (<float*> t.data)[0], <float> known.count[0]
        else:
            value, exact = (<double*> t.data)[0], <double> known.count[0]
        if value != exact:     # NaN goes where the engine refuses it
            known.count[0] = <cnp.int64_t> value if 0 <= value < 2.0**53 else -1

    cdef object gradient(self, Py_ssize_t i, Py_ssize_t k, Py_ssize_t j, p, g):
        """The flat array of a gradient that is like its parameter."""
        cdef Known* known = &self.known[i]
        cdef DLTensor t
        tensor = g if self.tensors[i] is p else self.local(k, j, g)
        if not (look(self.exchange, tensor, &t) and of_floats(kind_of(&t))
                and same_layout(&t, known.ndim, known.shape, known.n)):
            self.refuse(k, j, tensor)
            raise RuntimeError("a gradient was refused without a reason")
        self.held[i] = tensor
        if self.lent[i] is None or kind_of(&t) != cnp.PyArray_TYPE(<cnp.ndarray> self.lent[i]):
            self.lent[i] = lend(&t, None)
        # An array object for each gradient of each step would take as long as the step does.
        if known.n:            # or there is no memory, which the engine takes for no gradient
            (<PyArrayObject_fields*> self.lent[i]).data = <char*> t.data
        return self.lent[i]

    def tick(self, bint skipped=False):
        """Write the engine's step counts where users see them, and let go of the gradients.

        Parameters
        ----------
        skipped : bool
            Whether the step was not taken, so that there is nothing to write.

        Returns
        -------
        list of int
            The parameters that have stepped, and whose states users don't see yet.
        """
        cdef Py_ssize_t i
        cdef Known* known
        unseen = []
        for i in range(self.n):
            known = &self.known[i]
            if not known.stepped:
                continue
            known.stepped = False
            self.held[i] = None
            if skipped:
                continue
            if not known.complete:
                unseen.append(i)
            if known.step != NULL and known.step_bits == 32:
                (<float*> known.step)[0] = <float> known.count[0]
            elif known.step != NULL:
                (<double*> known.step)[0] = <double> known.count[0]
        return unseen

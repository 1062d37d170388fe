"""Tensors of another library: where their memory is now, and how it is laid out.

A library that has DLPack's C exchange API says in some 50 ns where a tensor's memory is, without an
object being made.  So a `Watch` can look at every parameter and gradient before every step, and no
step ever writes to where a tensor was once.  States, of which there are the most, it holds by
handles that the library gives out, and asks in some 5 ns; parameters and gradients, which it must
not hold, by the handle that each tensor object has in itself, where that is known.  It knows
nothing of the library itself: what the tensors are, and the words of errors, are its caller's.
"""

from inspect import getattr_static
from types import GetSetDescriptorType

cimport cython
cimport numpy as cnp
from cpython.dict cimport PyDict_GetItem, PyDict_Next, PyDict_Size
from cpython.exc cimport PyErr_Clear
from cpython.object cimport Py_TYPE, PyObject, descrgetfunc
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free

from fastgd.kernels._dlpack cimport *
from fastgd.kernels._grad_pointers cimport GRAD_POINTERS, GradPointer

cnp.import_array()

cdef extern from "Python.h":
    PyObject* PyList_GET_ITEM(list, Py_ssize_t)    # lent, where Cython would count a reference

# What is known of a state: its key and value in the library's dict, and its memory.
cdef struct KnownState:
    PyObject* key
    PyObject* value
    void* handle
    char* data

# What is known of a parameter and of its states.
cdef struct Known:
    bint bound
    bint complete          # whether all its states stand where the library's users see them
    bint stepped           # whether the last reading found a gradient
    bint told              # whether the handle in its object tells all that follows of it
    int kind               # NumPy's number of its dtype
    int32_t dtype          # and the library's, of dtype, device and layout
    int32_t device
    int32_t layout
    int ndim
    char* data
    Py_ssize_t n
    int64_t* shape         # and after it the strides
    KnownState* states
    Py_ssize_t n_states
    cnp.int64_t* count     # the engine's step count
    void* step             # the step count that users see, or NULL
    int step_bits

include "watch/dlpack_tensor.pxi"
include "watch/handles.pxi"


cdef void return_argument(cnp.uint64_t* stack, cnp.uint64_t arguments,
                          cnp.uint64_t results) noexcept nogil:
    """What an operator runs that returns its argument: both are at the same place of a stack."""


RETURN_ARGUMENT = <size_t> &return_argument    # its address


cdef inline bint same_entry(const Known* known, PyObject* entry) except -1:
    """Whether a parameter's states are the objects that they were, whatever else is there."""
    cdef const KnownState* state = known.states
    cdef const KnownState* end = state + known.n_states
    cdef PyObject* key
    cdef PyObject* value
    cdef Py_ssize_t place = 0
    while state < end and PyDict_Next(<object> entry, &place, &key, &value):
        state += key == state.key and value == state.value
    if state == end:
        return True
    state = known.states
    while state < end:     # in another order?
        if PyDict_GetItem(<object> entry, <object> state.key) != state.value:
            return False
        state += 1
    return True


@cython.final
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
    odd : callable
        ``odd(k, i, gradient)`` is asked about the gradient of a parameter that isn't like it: it
        returns what stands for it in `odds`, or raises what is wrong with it.
    handles : tuple
        A callable from tensors to the handles that hold them; the addresses of functions of these,
        as `Functions` has them; the type of tensors without anything special; and how far into the
        object of a tensor its own handle is, 0 if that isn't known.
    """

    cdef Exchange* exchange
    cdef readonly list members, tensors
    cdef readonly list stepped     # the parameters with a gradient at the last reading
    cdef readonly dict odds        # of the last reading: what `odd` returned, by parameter
    cdef object local, odd, hold
    cdef Functions ask
    cdef object plain
    cdef Py_ssize_t inside
    cdef list lenders              # what lends the gradients
    cdef list entries, shown, counts
    cdef list bound                # the parameters that are, in order
    cdef list order                # the keys and values of the library's dict of states
    cdef Known* known
    cdef GradPointer* pointers
    cdef int64_t* layouts
    cdef Py_ssize_t n

    cdef object kind, grad         # the type of all parameters, and its descriptor of `grad`
    cdef descrgetfunc grad_of_kind  # what reads that one; NULL if types differ

    def __cinit__(self, api, list members, list tensors, local, odd, tuple handles):
        cdef Py_ssize_t i = 0, at = 0
        cdef DLTensor t
        self.exchange = exchange_of(api)
        self.members = [list(group) for group in members]
        # For a group without parameters there is one that is not bound, as the engine has it.
        self.tensors = [tensor for group in tensors for tensor in group or [None]]
        self.local, self.odd, self.odds = local, odd, {}
        self.hold, addresses, self.plain, self.inside = handles
        self.ask = functions_at(addresses)
        self.n = len(self.tensors)
        self.entries, self.shown, self.counts, self.lenders = (
            [None] * self.n for _ in range(4))
        self.order, self.stepped = [], []
        self.bound = [p for group, own in zip(members, tensors) for p, tensor in zip(group, own)
                      if tensor is not None]
        types = {type(p) for group in members for p in group}
        self.kind = types.pop() if len(types) == 1 else None
        self.grad = getattr_static(self.kind, "grad", None)
        if type(self.grad) is GetSetDescriptorType:
            self.grad_of_kind = Py_TYPE(self.grad).tp_descr_get
        self.known = <Known*> calloc(self.n + 1, sizeof(Known))
        self.pointers = <GradPointer*> calloc(self.n + 1, sizeof(GradPointer))
        # Of as many axes as there are in all, shape and strides.
        axes = sum(tensor.ndim for tensor in self.tensors if tensor is not None)
        self.layouts = <int64_t*> calloc(2 * axes + 1, sizeof(int64_t))
        if self.known == NULL or self.pointers == NULL or self.layouts == NULL:
            raise MemoryError
        for i in range(self.n):
            if self.tensors[i] is None:
                continue
            if not (look(self.exchange, PyList_GET_ITEM(self.tensors, i), &t)
                    and of_floats(kind_of(&t))):
                raise RuntimeError("a tensor to be watched has no memory of floats")
            self.known[i].bound = True
            self.known[i].data, self.known[i].n = <char*> t.data, size_of(&t)
            self.known[i].kind, self.known[i].ndim = kind_of(&t), t.ndim
            self.known[i].shape = self.layouts + at
            for j in range(t.ndim):
                self.layouts[at + j] = t.shape[j]
                self.layouts[at + t.ndim + j] = t.strides[j]
            at += 2 * t.ndim
            self.known[i].told = self.is_told(&self.known[i], PyList_GET_ITEM(self.tensors, i))

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.known != NULL:
            for i in range(self.n):
                self.forget(&self.known[i])
        free(self.known)
        free(self.pointers)
        free(self.layouts)

    cdef void forget(self, Known* known) noexcept:
        """Let go of the states of a parameter."""
        cdef Py_ssize_t j
        for j in range(known.n_states):
            if known.states[j].handle != NULL:
                self.ask.release(known.states[j].handle)
        free(known.states)
        known.states, known.n_states, known.step = NULL, 0, NULL

    def count(self, Py_ssize_t i, cnp.ndarray count):
        """Take the engine's step count of the i-th parameter of all, an int64 of shape ()."""
        self.counts[i] = count
        self.known[i].count = <cnp.int64_t*> cnp.PyArray_DATA(count)

    def show(self, Py_ssize_t i, dict entry, tuple keys, tuple memory, bint complete):
        """Take the states of the i-th parameter of all, as the library's users see them.

        Parameters
        ----------
        i : int
            Which parameter.
        entry : dict
            Where users find the states.
        keys : tuple of str
            Their names; ``"step"``, if it is there, is a count in a float.
        memory : tuple
            The tensors that hold the memory of the values.
        complete : bool
            Whether these are all.
        """
        cdef DLTensor t
        cdef Known* known = &self.known[i]
        cdef KnownState* one
        of = dict(zip(keys, memory, strict=True))
        # In the order of the dict, in which they are looked at, and with its own keys.
        order = [key for key in entry if key in of]
        self.forget(known)
        self.entries[i] = None
        known.states = <KnownState*> calloc(len(order) + 1, sizeof(KnownState))
        if known.states == NULL:
            raise MemoryError
        values, tensors = [entry[key] for key in order], [of[key] for key in order]
        # Kept alive, as the states point to them.
        self.shown[i] = order + values + tensors
        handles = self.hold(tensors)
        known.n_states = len(order)    # of which all are let go
        for j in range(len(order)):
            known.states[j].handle = <void*> <size_t> handles[j]
        for j, (key, value) in enumerate(zip(order, values)):
            one = &known.states[j]
            if not look(self.exchange, <PyObject*> of[key], &t) or kind_of(&t) < 0:
                raise RuntimeError("a state to be watched has no memory of numbers")
            one.key, one.value, one.data = <PyObject*> key, <PyObject*> value, <char*> t.data
            if self.data_of(one) != one.data:
                raise RuntimeError("a handle of a state is that of another tensor")
            if key == "step":
                known.step, known.step_bits = t.data, t.dtype.bits
        self.entries[i], known.complete = entry, complete

    cdef inline char* data_of(self, KnownState* state) noexcept:
        """Where a state's memory is now."""
        cdef void* data = NULL
        return NULL if self.ask.where(state.handle, &data) != 0 else <char*> data

    cdef bint is_told(self, Known* known, PyObject* tensor) noexcept:
        """Note what a parameter's own handle tells of it; False if that isn't what DLPack told."""
        cdef void* handle = <char*> tensor + self.inside
        return (self.inside and isinstance(<object> tensor, self.plain) and known.n != 0
                and self.ask.dtype(handle, &known.dtype) == 0
                and self.ask.device(handle, &known.device) == 0
                and self.ask.layout(handle, &known.layout) == 0
                and place_of(&self.ask, handle, known) == known.data)

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
            Its states; None doesn't look at them.

        Returns
        -------
        capsule or None
            The gradients as an array of `GradPointer`, but for those in `odds`; they hold until
            `tick`.  None if a tensor is not the one that it was, or not where it was: all has to be
            bound again then.

        Raises
        ------
        Exception
            What `odd` raises of a gradient that isn't like its parameter.
        """
        cdef Py_ssize_t k, j, i = 0
        cdef list group
        cdef bint all_stepped = True
        if self.odds:
            self.odds = {}
        if groups is not None and not self.same_groups(groups):
            return None
        if state is not None and not self.same_state(state):
            return None
        for k in range(len(self.members)):
            group = <list> self.members[k]
            for j in range(len(group)):
                p = group[j]
                g = self.grad_of(p)
                self.pointers[i].data = NULL
                if not self.known[i].bound:
                    if g is not None:
                        return None
                elif not self.unmoved(i):
                    return None
                else:
                    self.known[i].stepped = g is not None
                    if g is not None:
                        self.take_gradient(i, k, j, p, g)
                    else:
                        all_stepped = False
                i += 1
            i += len(group) == 0
        self.stepped = self.bound if all_stepped else self.found()
        return PyCapsule_New(self.pointers, GRAD_POINTERS, NULL)

    cdef inline object grad_of(self, p):
        """The gradient of a parameter; where it can be, without a search for what reads it."""
        if self.grad_of_kind != NULL and type(p) is self.kind:
            return self.grad_of_kind(self.grad, p, self.kind)
        return p.grad

    cdef list found(self):
        """The parameters that have a gradient."""
        cdef Py_ssize_t i = 0
        found = []
        for group in self.members:
            for p in group:
                if self.known[i].bound and self.known[i].stepped:
                    found.append(p)
                i += 1
            i += len(group) == 0
        return found

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
        cdef KnownState* state = known.states
        cdef KnownState* end = state + known.n_states
        cdef DLTensor t
        if known.told:
            if place_of(&self.ask, <char*> PyList_GET_ITEM(self.tensors, i) + self.inside,
                        known) != known.data:
                return False
        elif not (look(self.exchange, PyList_GET_ITEM(self.tensors, i), &t)
                  and <char*> t.data == known.data and kind_of(&t) == known.kind
                  and same_layout(&t, known.ndim, known.shape, known.n)):
            return False
        if known.n_states == 0:
            return True
        if not same_entry(known, PyList_GET_ITEM(self.entries, i)):
            return False
        while state < end:
            if self.data_of(state) != state.data:
                return False
            state += 1
        if known.step != NULL:
            self.read_count(known)
        return True

    cdef void read_count(self, Known* known) noexcept:
        """Take a step count that a user has changed; one that was only rounded stays exact."""
        cdef double value, exact
        if known.step_bits == 32:
            value, exact = (<float*> known.step)[0], <float> known.count[0]
        else:
            value, exact = (<double*> known.step)[0], <double> known.count[0]
        if value != exact:     # NaN goes where the engine refuses it
            known.count[0] = <cnp.int64_t> value if 0 <= value < 2.0**53 else -1

    cdef int take_gradient(self, Py_ssize_t i, Py_ssize_t k, Py_ssize_t j, p, g) except -1:
        """Note where a gradient is that is like its parameter."""
        cdef Known* known = &self.known[i]
        cdef void* handle
        cdef char* data
        cdef DLTensor t
        tensor = g
        if PyList_GET_ITEM(self.tensors, i) != <PyObject*> p:
            tensor = self.local(k, j, g)
        # Where strides don't matter, a gradient may be a view of another's negative, as autograd
        # makes of imaginary parts; what has more elements is copied before it is one.
        if known.n == 1 and tensor.is_neg():
            self.odds[i] = self.odd(k, j, tensor)
            return 0
        if known.told and type(tensor) is self.plain:
            handle = <char*> <PyObject*> tensor + self.inside
            data = place_of(&self.ask, handle, known)
            if data != NULL and is_beside(&self.ask, handle, known):
                self.lenders[i] = tensor
                self.pointers[i].data, self.pointers[i].kind = data, known.kind
                return 0
        if not (look(self.exchange, <PyObject*> tensor, &t) and of_floats(kind_of(&t))
                and same_layout(&t, known.ndim, known.shape, known.n)):
            self.odds[i] = self.odd(k, j, tensor)
            return 0
        self.lenders[i] = tensor
        # Without elements there is no memory, which would be taken for no gradient.
        self.pointers[i].data = <char*> t.data if known.n else <char*> known
        self.pointers[i].kind = kind_of(&t)

    def lent(self):
        """The tensors that hold the gradients of the last reading; None where there is none."""
        cdef Py_ssize_t i
        return [self.lenders[i] if self.pointers[i].data != NULL else None for i in range(self.n)]

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
        if self.odds:
            self.odds = {}
        for i in range(self.n):
            known = &self.known[i]
            if not known.stepped:
                continue
            known.stepped = False
            self.lenders[i] = None
            if skipped:
                continue
            if not known.complete:
                unseen.append(i)
            if known.step != NULL and known.step_bits == 32:
                (<float*> known.step)[0] = <float> known.count[0]
            elif known.step != NULL:
                (<double*> known.step)[0] = <double> known.count[0]
        return unseen

# The gradients of a step: read, checked, and noted as pointers.  Included by _engine.pyx.

cdef object Rows = memory_rows.Rows


cdef bint holds_rows(tree) except -1:
    """Whether some gradient of a tree comes by rows."""
    cdef bint found = False, mapping
    if tree is None or cnp.PyArray_CheckExact(tree):
        return False
    # Abstract classes last: asking them takes time and memory.
    mapping = isinstance(tree, dict) or (
        not isinstance(tree, (list, tuple, Rows)) and isinstance(tree, Mapping))
    if not (mapping or isinstance(tree, (list, tuple))):
        return isinstance(tree, Rows)
    Py_EnterRecursiveCall(" while looking for Rows in a tree of gradients")
    try:
        for child in tree.values() if mapping else tree:
            # To leave out most of them here spares a call for each.
            if not cnp.PyArray_CheckExact(child) and holds_rows(child):
                found = True
                break
    finally:
        Py_LeaveRecursiveCall()
    return found


def has_rows(tree):
    """Whether some gradient of a tree comes by rows."""
    return holds_rows(tree)


# What is known of a tensor's gradients from step to step.
cdef struct KnownGrad:
    Place bound                # of the gradient bound when the plan was made, if there is one
    char* disjoint             # the last gradient found not to overlap anything that is written
    char* zeroable             # the last gradient found not to overlap another gradient


@cython.final
cdef class Gradients:
    """Reads the gradients of the tensors of a layout.

    Parameters
    ----------
    layout : Layout
        The tensors, whose `g` and `g_codec` are set.
    structure : None, list or dict
        The form in which gradients come.
    grads : object or None
        Gradients to be bound.
    """

    cdef Layout layout
    cdef object structure
    cdef list bound             # the gradients' arrays, None where there is none, or None
    cdef list borrowed          # what keeps borrowed memory from going away
    cdef KnownGrad* known
    cdef Backend backend        # of this step
    cdef bint has_rows          # whether a gradient of the latest step is one by rows,
    cdef bint same              # or all are where they were in the step before
    cdef bint are_bound         # whether tensors point to the bound gradients
    cdef dict row_sets          # by tensor, of those that had one

    def __cinit__(self, Layout layout, structure, grads):
        cdef Py_ssize_t i
        self.layout, self.structure, self.row_sets = layout, structure, {}
        self.known = <KnownGrad*> calloc(layout.n, sizeof(KnownGrad))
        if self.known == NULL:
            raise MemoryError
        if grads is not None:
            self.bound = self.read(grads)
            if self.has_rows:
                raise TypeError("grads: expected arrays, found Rows, which can't be bound; give "
                                "them to step()")
            for i in range(layout.n):
                if self.bound[i] is not None:
                    self.known[i].bound = place_of(self.bound[i], layout.tensors[i].g_codec)
        self.borrowed = [buffers.lent(a) for arrays in (layout.params, layout.copies, self.bound)
                         for a in arrays or () if a is not None and a.base is not None]

    def __dealloc__(self):
        free(self.known)

    cdef list take(self, grads, bint arrays, Backend backend):
        """Note the pointers of a step's gradients, given or bound.

        Returns the arrays, or `Rows`; None where pointers are given, unless arrays are wanted.
        """
        self.backend = backend
        self.same = not self.has_rows
        if self.has_rows:
            self.forget_rows()
        if grads is None:
            return self.take_bound()
        self.are_bound = False
        if PyCapsule_CheckExact(grads):
            self.take_pointers(<GradPointer*> PyCapsule_GetPointer(grads, GRAD_POINTERS))
            return self.arrays_at_pointers() if arrays else None
        return self.read(grads)

    cdef list read(self, grads):
        """Check all gradients and note their pointers; returns the arrays, None where none is."""
        cdef list arrays = [None] * self.layout.n
        cdef Py_ssize_t at = 0
        if not self.walk(self.structure, grads, arrays, &at):
            checks.refuse_structure(self.structure, grads)
        return arrays

    cdef bint walk(self, structure, grads, list arrays, Py_ssize_t* at) except -1:
        """Read the gradients of a branch of the structure, in order; False if it isn't the same."""
        cdef Py_ssize_t k
        if structure is None:
            self.read_one(at[0], grads, arrays)
            at[0] += 1
        elif type(structure) is dict:
            if not isinstance(grads, dict):
                if not isinstance(grads, Mapping):
                    return False
                grads = dict(grads)
            if len(<dict> grads) != len(<dict> structure):
                return False
            for key, inner in (<dict> structure).items():
                child = (<dict> grads).get(key, _MISSING)
                if child is _MISSING or not self.walk(inner, child, arrays, at):
                    return False
        else:
            if not isinstance(grads, (list, tuple)) or len(grads) != len(<list> structure):
                return False
            if type(grads) is list:
                return self.walk_list(<list> structure, <list> grads, arrays, at)
            for k in range(len(<list> structure)):
                if not self.walk((<list> structure)[k], grads[k], arrays, at):
                    return False
        return True

    cdef bint walk_list(self, list structure, list grads, list arrays, Py_ssize_t* at) except -1:
        """The same of two lists of the same length; many steps have but one, and a long one."""
        cdef Py_ssize_t k, n = len(structure)
        for k in range(n):
            if k >= len(grads):    # an array-like's own code may shorten it
                raise IndexError("grads: a list was shortened while it was read")
            child = grads[k]
            if PyList_GET_ITEM(structure, k) == <PyObject*> None:
                if not self.read_again(at[0], child, arrays):
                    self.read_one(at[0], child, arrays)
                at[0] += 1
            elif not self.walk(structure[k], child, arrays, at):
                return False
        return True

    cdef inline bint read_again(self, Py_ssize_t i, grad, list arrays) noexcept:
        """Note a gradient that fits and is where the last one was; False if it may be another."""
        cdef Tensor* t = &self.layout.tensors[i]
        cdef RawArray* a
        if not cnp.PyArray_CheckExact(grad):
            return False
        a = <RawArray*> grad
        if not (start_of(a) == self.known[i].disjoint
                and codec_of_type(type_number_of(a)) == t.g_codec
                and fits(a, self.layout.places[i].array, t.order)):
            return False
        self.same &= t.g == self.known[i].disjoint
        t.g = self.known[i].disjoint
        arrays[i] = grad
        return True

    cdef int read_one(self, Py_ssize_t i, grad, list arrays) except -1:
        cdef Tensor* t = &self.layout.tensors[i]
        if grad is None:
            self.same &= t.g == NULL
            t.g = NULL
            return 0
        if not (cnp.PyArray_CheckExact(grad)
                and fits(<RawArray*> grad, self.layout.places[i].array, t.order)):
            if type(grad) is Rows:
                self.read_rows(i, grad)
                arrays[i] = grad
                return 0
            grad = checks.as_gradient(grad, self.layout.params[i], f"grads{self.layout.labels[i]}")
        self.point(i, cnp.PyArray_BYTES(<cnp.ndarray> grad), codec_of(<cnp.ndarray> grad))
        arrays[i] = grad

    cdef int read_rows(self, Py_ssize_t i, rows) except -1:
        """Note a gradient by rows."""
        cdef Tensor* t = &self.layout.tensors[i]
        cdef str name = f"grads{self.layout.labels[i]}"
        cdef tuple shape = self.layout.shape_of(i)
        cdef Py_ssize_t length, bad
        cdef RowSet own
        memory_rows.check_rows(rows, shape, self.layout.is_in_rows(i, shape), name)
        length = t.n // shape[0] if shape[0] else 0
        for part, a in (("indices", rows.indices), ("values", rows.values)):
            self.check_overlap(i, <size_t> cnp.PyArray_BYTES(<cnp.ndarray> a),
                               cnp.PyArray_NBYTES(<cnp.ndarray> a))
        self.has_rows, self.same = True, False
        if self.backend is None:    # to be bound, which is refused
            return 0
        own = self.row_sets.get(i)
        if own is None:
            own = self.row_sets[i] = RowSet()
        # What is known of other gradients is so of their memory as a whole.
        self.known[i].disjoint = self.known[i].zeroable = NULL
        t.g, t.g_codec = cnp.PyArray_BYTES(<cnp.ndarray> rows.values), t.is_double
        t.row_length = length
        bad = own.take(rows, shape[0], length, t.is_double, self.backend)
        if bad >= 0:
            memory_rows.refuse_index(rows.indices, bad, shape[0], name)
        t.rows = &own.view

    cdef void forget_rows(self) noexcept:
        """Let no tensor have a gradient by rows."""
        cdef Py_ssize_t i
        for i in range(self.layout.n):
            self.layout.tensors[i].rows = NULL
        self.has_rows = False

    cdef inline int point(self, Py_ssize_t i, char* g, int codec) except -1:
        """Point a tensor at this gradient."""
        cdef Tensor* t = &self.layout.tensors[i]
        cdef KnownGrad* known = &self.known[i]
        if g != known.disjoint or codec != t.g_codec:
            self.check_overlap(i, <size_t> g, t.n * codec_rows[codec].size)
            known.disjoint, known.zeroable = g, NULL
        self.same &= t.g == g and t.g_codec == codec
        t.g, t.g_codec = g, codec

    cdef int check_overlap(self, Py_ssize_t i, size_t start, size_t size) except -1:
        """Refuse a gradient that shares memory with anything that a step writes."""
        cdef const Range* written = self.layout.written
        cdef Py_ssize_t low = 0, high = self.layout.n_written, middle
        while low < high:      # the first range that ends after the gradient starts
            middle = (low + high) // 2
            if written[middle].end <= start:
                low = middle + 1
            else:
                high = middle
        if size and low < self.layout.n_written and written[low].start < start + size:
            raise ValueError(f"grads{self.layout.labels[i]}: shares memory with "
                             f"{self.layout.name_of(&written[low])}, which the step writes; pass a "
                             "gradient in memory of its own")

    cdef int take_pointers(self, const GradPointer* grads) except -1:
        """Note gradients that are given as pointers."""
        cdef Py_ssize_t i
        for i in range(self.layout.n):
            if grads[i].data == NULL:
                self.same &= self.layout.tensors[i].g == NULL
                self.layout.tensors[i].g = NULL
            else:
                self.point(i, grads[i].data, codec_of_type(grads[i].kind))

    cdef list arrays_at_pointers(self):
        """Flat arrays over gradients that were given as pointers; only for the step's duration."""
        cdef list arrays = [None] * self.layout.n
        cdef Py_ssize_t i
        cdef Tensor* t
        for i in range(self.layout.n):
            t = &self.layout.tensors[i]
            if t.g != NULL:
                arrays[i] = array_at(t.g, t.n, t.g_codec)
        return arrays

    cdef list take_bound(self):
        """Note the bound gradients again, if they are unmoved; returns the arrays."""
        cdef Py_ssize_t i
        cdef Tensor* t
        cdef KnownGrad* known
        if self.bound is None:
            raise TypeError("step() needs gradients, as no gradients were bound with grads=...")
        self.check_unmoved()
        if self.are_bound:
            return self.bound
        for i in range(self.layout.n):
            t, known = &self.layout.tensors[i], &self.known[i]
            if t.g_codec != known.bound.codec:
                known.disjoint = known.zeroable = NULL
            t.g, t.g_codec = known.bound.data, known.bound.codec
        self.same, self.are_bound = False, True
        return self.bound

    cdef int check_unmoved(self) except -1:
        """Refuse bound gradients that were given other memory since the plan."""
        cdef Py_ssize_t i
        cdef KnownGrad* known
        if self.bound is None:
            return 0
        for i in range(self.layout.n):
            known = &self.known[i]
            if known.bound.array != NULL and not is_unmoved(&known.bound, 0):
                raise ValueError(f"grads{self.layout.labels[i]}: was given another dtype, shape or "
                                 "memory after it was bound")

    cdef int check_zeroable(self, list arrays) except -1:
        """Refuse gradients that can't be zeroed: read-only ones, and two in the same memory."""
        cdef Py_ssize_t i
        cdef bint known = True
        labels = self.layout.labels
        for i in range(self.layout.n):
            if type(arrays[i]) is Rows:
                memory_rows.check_zeroable(arrays[i], f"grads{labels[i]}")
        arrays = [a.values if type(a) is Rows else a for a in arrays]
        for i in range(self.layout.n):
            if arrays[i] is not None:
                if not cnp.PyArray_ISWRITEABLE(<cnp.ndarray> arrays[i]):
                    raise ValueError(f"grads{labels[i]}: expected a writeable array, which "
                                     "zero_grads zeroes, found a read-only one")
                known = known and self.known[i].zeroable == self.layout.tensors[i].g
        if not known:
            if not self.are_disjoint():
                checks.check_disjoint([(arrays[i], f"grads{labels[i]}")
                                       for i in range(self.layout.n) if arrays[i] is not None])
            # Valid for this very set of gradients.
            for i in range(self.layout.n):
                self.known[i].zeroable = (self.layout.tensors[i].g
                                          if self.layout.tensors[i].rows == NULL else NULL)

    cdef bint are_disjoint(self) except -1:
        """Whether no gradient overlaps another."""
        cdef Py_ssize_t i, n = 0, size
        cdef Tensor* t
        cdef char* start
        cdef bint disjoint
        cdef Range* ranges = <Range*> malloc(self.layout.n * sizeof(Range))
        if ranges == NULL:
            raise MemoryError
        for i in range(self.layout.n):
            t = &self.layout.tensors[i]
            start, size = t.g, t.n * codec_rows[t.g_codec].size
            if t.rows != NULL:
                start = self.values_of(i, &size)
            if t.g != NULL and size:
                ranges[n] = Range(<size_t> start, <size_t> start + size, i, 0)
                n += 1
        disjoint = are_disjoint(ranges, n)
        free(ranges)
        return disjoint

    cdef void zero(self) noexcept:
        cdef Py_ssize_t i
        cdef Tensor* t
        for i in range(self.layout.n):
            t = &self.layout.tensors[i]
            if t.rows != NULL:
                self.zero_rows(i)
            elif t.g != NULL:
                memset(t.g, 0, t.n * codec_rows[t.g_codec].size)

    cdef char* values_of(self, Py_ssize_t i, Py_ssize_t* size) noexcept:
        """The memory of the values of a gradient by rows, as they were given."""
        cdef RowSet own = self.row_sets[i]
        size[0] = own.wiped_size
        return own.wiped

    cdef void zero_rows(self, Py_ssize_t i) noexcept:
        cdef Py_ssize_t size = 0
        cdef char* start = self.values_of(i, &size)
        memset(start, 0, size)

# The norm of a tree of arrays, by itself.  Included by _engine.pyx.

cdef class Measure:
    """Arrays of a tree, cut into blocks, whose norm is wanted."""

    cdef Block* blocks
    cdef double* totals
    cdef Py_ssize_t n, capacity, elements
    cdef list arrays

    def __dealloc__(self):
        free(self.blocks)
        free(self.totals)

    cdef int add(self, tree, path, key) except -1:
        """Take in the arrays of a tree, which stands at a key of what is at a path."""
        if tree is None:
            return 0
        # An array's type is told at once; a Mapping's takes Python code.
        if cnp.PyArray_CheckExact(tree) and is_plain(tree):
            return self.add_array(tree)
        if not cnp.PyArray_Check(tree) and isinstance(tree, (list, tuple, Mapping)):
            return self.add_children(tree, (path, key))
        return self.add_array(checks.as_floats(tree, f"grads{checks.label(keys_of((path, key)))}"))

    cdef int add_children(self, tree, path) except -1:
        cdef Py_ssize_t k = 0
        Py_EnterRecursiveCall(" while reading a tree of arrays")
        try:
            if isinstance(tree, Mapping):
                for key, child in tree.items():
                    self.add(child, path, key)
            else:
                for child in tree:
                    self.add(child, path, k)
                    k += 1
        finally:
            Py_LeaveRecursiveCall()

    cdef int add_array(self, cnp.ndarray x) except -1:
        cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
        cdef Py_ssize_t more = n // BLOCK + 1
        cdef Block* blocks
        cdef Block whole = Block(cnp.PyArray_BYTES(x), NULL, codec_of(x), n, BLOCK, NULL)
        if self.n + more > self.capacity:
            more += 2 * self.capacity + 64
            blocks = <Block*> realloc(self.blocks, (self.n + more) * sizeof(Block))
            if blocks == NULL:
                raise MemoryError
            self.blocks, self.capacity = blocks, self.n + more
        self.n += cut_blocks(self.blocks + self.n, &whole, n)
        self.elements += n
        self.arrays.append(x)

    cdef double norm(self) except? -1:
        cdef Sum total, one
        cdef Block whole
        cdef Py_ssize_t k
        cdef cnp.ndarray x
        cdef dict rules = _rules    # the same to the end, whoever sets another backend
        self.totals = <double*> malloc(max(self.n, 1) * sizeof(double))
        if self.totals == NULL:
            raise MemoryError
        for k in range(self.n):
            self.blocks[k].totals = self.totals + k
        if rules is not None:
            add_up_blocks(self.blocks, self.n, self.elements)
        total.plain = total.scaled = 0.0
        k = 0
        for x in self.arrays:
            whole = Block(cnp.PyArray_BYTES(x), NULL, codec_of(x), cnp.PyArray_SIZE(x), BLOCK,
                          self.totals + k)
            if rules is None:
                add_up_by_reference(x, whole.n, whole.totals, 1.0)
            sum_of(rules, &whole, whole.n, 0, &one)
            add_to(&total, &one)
            k += n_pieces(whole.n)
        return norm_of(&total)


cdef tuple keys_of(path):
    """The keys of a path that is nested as (path of the parent, key), less the outermost."""
    return () if path is None or path[0] is None else (*keys_of(path[0]), path[1])


def global_norm(tree):
    """The norm of all arrays in a tree; see `fastgd.functional.global_norm`."""
    cdef Measure measure = Measure.__new__(Measure)
    measure.arrays = []
    try:
        measure.add(tree, None, None)
    except RecursionError:
        raise ValueError("grads: expected an end to its nesting, found none") from None
    return measure.norm()

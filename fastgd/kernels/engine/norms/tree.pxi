# The norm of a tree of arrays, by itself.  Included by _engine.pyx.

@cython.final
cdef class TreeNorm:
    """The arrays of a tree whose norm is wanted, cut into chunks unless they are few."""

    cdef SumChunk* chunks
    cdef double* totals
    cdef Py_ssize_t n, capacity, elements
    cdef list arrays

    def __cinit__(self):
        self.arrays = []

    def __dealloc__(self):
        free(self.chunks)
        free(self.totals)

    cdef int add(self, tree, path, key) except -1:
        """Add the arrays of a tree, which is at `key` of its parent, itself at `path`."""
        if tree is None:
            return 0
        # To tell an array's type is quick; to tell a Mapping takes Python code.
        if cnp.PyArray_CheckExact(tree) and is_plain(tree):
            return self.add_array(tree)
        if not cnp.PyArray_Check(tree) and isinstance(tree, (list, tuple, Mapping)):
            return self.add_children(tree, (path, key))
        return self.add_array(checks.as_floats(tree, f"grads{checks.label(keys_of((path, key)))}"))

    cdef int add_children(self, tree, path) except -1:
        cdef Py_ssize_t k = 0
        Py_EnterRecursiveCall(" while reading a tree of arrays")
        try:
            if type(tree) is list:
                for child in <list> tree:
                    # Most are told here, which spares a call, and a number to name them by.
                    if cnp.PyArray_CheckExact(child) and is_plain(<cnp.ndarray> child):
                        self.add_array(<cnp.ndarray> child)
                    else:
                        self.add(child, path, k)
                    k += 1
            elif isinstance(tree, Mapping):
                for key, child in tree.items():
                    self.add(child, path, key)
            else:
                for child in tree:
                    self.add(child, path, k)
                    k += 1
        finally:
            Py_LeaveRecursiveCall()

    cdef int add_array(self, cnp.ndarray x) except -1:
        self.elements += elements_of(<RawArray*> x)
        self.arrays.append(x)

    cdef int cut(self, cnp.ndarray x) except -1:
        """Append the chunks of an array."""
        cdef Py_ssize_t more = cnp.PyArray_SIZE(x) // BLOCK + 1
        cdef SumChunk* chunks
        cdef SumChunk whole = whole_array(x, NULL)
        if self.n + more > self.capacity:
            more += 2 * self.capacity + 64
            chunks = <SumChunk*> realloc(self.chunks, (self.n + more) * sizeof(SumChunk))
            if chunks == NULL:
                raise MemoryError
            self.chunks, self.capacity = chunks, self.n + more
        self.n += cut_sum_chunks(self.chunks + self.n, &whole, True)

    cdef double norm(self) except? -1:
        cdef Sum total, one
        cdef SumChunk whole
        cdef Py_ssize_t k
        cdef cnp.ndarray x
        cdef Backend backend = backend_in_use()    # to the end, whatever is set meanwhile
        total.plain = total.scaled = 0.0
        if backend.compiled and self.elements < FEW:
            for x in self.arrays:
                sum_of_few(backend, cnp.PyArray_BYTES(x), codec_of(x), elements_of(<RawArray*> x),
                           &one)
                add_to(&total, &one)
            return norm_of(&total)
        for x in self.arrays:
            self.cut(x)
        self.totals = <double*> malloc(max(self.n, 1) * sizeof(double))
        if self.totals == NULL:
            raise MemoryError
        for k in range(self.n):
            self.chunks[k].totals = self.totals + k
        add_up_chunks(backend, self.chunks, self.n, self.elements, Summand(1.0, True),
                      PARALLEL_FROM)
        k = 0
        for x in self.arrays:
            whole = whole_array(x, self.totals + k)
            sum_of_unit(backend, &whole, 0, True, &one)
            add_to(&total, &one)
            k += n_blocks(whole.n)
        return norm_of(&total)


cdef SumChunk whole_array(cnp.ndarray x, double* totals) except *:
    """All of an array that is plain, as one unit."""
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    return whole_of(cnp.PyArray_BYTES(x), NULL, codec_of(x), n, Axis(n, 1), NULL, totals)


cdef tuple keys_of(path):
    """The keys of a path that is nested as (path of the parent, key), less the outermost."""
    return () if path is None or path[0] is None else (*keys_of(path[0]), path[1])


def global_norm(tree):
    """The norm of all arrays in a tree; see `fastgd.functional.global_norm`."""
    cdef TreeNorm norm = TreeNorm.__new__(TreeNorm)
    try:
        norm.add(tree, None, None)
    except RecursionError:
        raise ValueError("grads: nested without end (does it contain itself?)") from None
    return norm.norm()

# Groups with the rules of their tensors, and the steps of these.  Included by _engine.pyx.

# The tensors of a group that follow the same rule.
cdef struct Owner:
    Py_ssize_t group
    Maker maker
    bint has_loops             # whether those of the backend in use are in its latest step,
    GroupStep latest           # from which the next one takes them


@cython.final
cdef class Owners:
    """All owners of a layout, to whose tensors it is noted already."""

    cdef Owner* owners
    cdef Py_ssize_t n
    cdef list rules             # of each
    cdef HyperRows hyper_rows
    cdef Backend backend        # whose loops they have

    def __cinit__(self, Layout layout, list rules, HyperRows hyper_rows):
        cdef Py_ssize_t i
        cdef Tensor* t
        cdef Owner* owner
        for i in range(layout.n):
            self.n = max(self.n, layout.tensors[i].owner + 1)
        self.owners = <Owner*> calloc(self.n, sizeof(Owner))
        if self.owners == NULL:
            raise MemoryError
        self.rules, self.hyper_rows = [None] * self.n, hyper_rows
        for i in range(layout.n):
            t = &layout.tensors[i]
            owner = &self.owners[t.owner]
            owner.group, owner.latest.info = t.group, t.info
            if self.rules[t.owner] is None and hyper_rows is not None:
                owner.maker = hyper_rows.maker_of(rules[i])
            self.rules[t.owner] = rules[i]

    def __dealloc__(self):
        free(self.owners)

    cdef void use(self, Backend backend) noexcept:
        """Let the next steps run on a backend."""
        cdef Py_ssize_t i
        if backend is not self.backend:
            self.backend = backend
            for i in range(self.n):
                self.owners[i].has_loops = False

    cdef tuple make(self, GroupStep* group_step, Py_ssize_t k, cnp.int64_t step, configure,
                    double unscale):
        """Fill in an owner's step, counted from 0; returns what `configure` said, if asked."""
        cdef Owner* owner = &self.owners[k]
        cdef tuple row = None
        group_step[0] = owner.latest
        if not (self.backend.compiled and owner.maker.function != NULL
                and self.hyper_rows.make(group_step, owner.group, owner.maker, step, unscale)):
            row = configure(k, step + 1, unscale)
            read_row(group_step, row)
        complete(group_step)
        if self.backend.compiled and not owner.has_loops:
            self.backend.take_loops(self.rules[k], group_step)
            owner.latest, owner.has_loops = group_step[0], True
        return row

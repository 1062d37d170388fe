"""The engine: checks of every tensor, then one sweep over all of them without the GIL.

A `Plan` resolves the tensors of an optimizer to pointers once and cuts them into chunks.  A step
then reads the gradients' pointers, asks for the coefficients, and runs the rules of the chosen
backend chunk by chunk, on one thread or several.  Nothing is written before everything is checked.
"""

import os
from collections.abc import Mapping

cimport cython
cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport isfinite
from libc.stdlib cimport calloc, free

from fastgd.kernels._types cimport *

from fastgd.kernels import checks, reference

cnp.import_array()

# Elements a thread works on at a time, at most.
cdef Py_ssize_t CHUNK = 32768
# From this size on a tensor's chunks are cut to start on cache lines.
cdef Py_ssize_t ALIGN_FROM = 1024
# With fewer elements than this in all, waking a second thread costs more than it saves.
cdef Py_ssize_t PARALLEL_FROM = 32768

cdef object _MISSING = object()

include "_machine.pxi"
include "_sweep.pxi"

cdef class Plan:
    """The tensors of an optimizer, resolved to pointers, and the step over all of them.

    Parameters
    ----------
    structure : None, list or dict
        The form in which gradients come: None for a bare array, else lists and dicts nested like
        the parameters, with None in place of each array.
    params : list of ndarray
        The parameters in the order of `structure`; float32 or float64, contiguous, writeable.
    labels : list of str
        What to call each parameter in an error, less the leading ``params``.
    groups : list of int
        The group each parameter belongs to.
    states : list of tuple of ndarray
        The states of each parameter, in the order of its rule.
    state_names : list of tuple of str
        What they are called.
    steps : ndarray of int64, shape (parameters,)
        The number of steps each parameter has taken; counted up in place.
    grads : object, optional
        Gradients to be bound: arrays read by each `step` that is given none.

    Raises
    ------
    TypeError, ValueError
        If an array is not what it has to be, or two of them overlap.
    """

    cdef readonly list params, labels, states
    cdef readonly cnp.ndarray steps
    cdef object structure
    cdef readonly list bound    # the gradients' arrays, None where there is none, or None
    cdef cnp.int64_t* counts    # of `steps`
    cdef Py_ssize_t n, n_chunks, n_spans
    cdef Tensor* tensors
    cdef Chunk* chunks
    cdef Setting* settings
    cdef size_t* spans          # start, end of all that a step writes, by address
    cdef list span_labels
    cdef bint busy

    def __cinit__(self, structure, list params, list labels, list groups, list states,
                  list state_names, cnp.ndarray steps, grads=None):
        cdef Py_ssize_t i, k
        self.structure, self.params, self.labels, self.states = structure, params, labels, states
        self.steps, self.counts = steps, <cnp.int64_t*> cnp.PyArray_DATA(steps)
        self.n = len(params)
        self.tensors = <Tensor*> calloc(self.n, sizeof(Tensor))
        self.settings = <Setting*> calloc(self.n, sizeof(Setting))
        if self.tensors == NULL or self.settings == NULL:
            raise MemoryError
        for i in range(self.n):
            for name, state in zip(state_names[i], states[i], strict=True):
                checks.check_like(state, params[i], checks.state_label(labels[i], name))
            self.plan_tensor(&self.tensors[i], params[i], states[i], groups[i])
        self.cut_chunks()

        spans = checks.check_disjoint(params, labels, states, state_names)
        self.n_spans = len(spans)
        self.spans = <size_t*> calloc(2 * self.n_spans, sizeof(size_t))
        if self.spans == NULL and self.n_spans:
            raise MemoryError
        self.span_labels = [label for _, _, label in spans]
        for k in range(self.n_spans):
            self.spans[2 * k], self.spans[2 * k + 1] = spans[k][:2]

        if grads is not None:
            self.bound = self.read_gradients(grads)
            for i in range(self.n):
                self.tensors[i].bound = self.tensors[i].g

    def __dealloc__(self):
        free(self.tensors)
        free(self.chunks)
        free(self.settings)
        free(self.spans)

    cdef int plan_tensor(self, Tensor* t, cnp.ndarray p, tuple states,
                         Py_ssize_t group) except -1:
        cdef Py_ssize_t j
        if len(states) > MAX_STATES:
            raise ValueError(f"a rule may have at most {MAX_STATES} states")
        t.p = cnp.PyArray_BYTES(p)
        t.n = p.size
        t.group = group
        t.is_double = cnp.PyArray_TYPE(p) == cnp.NPY_DOUBLE
        t.order = (cnp.NPY_ARRAY_C_CONTIGUOUS if cnp.PyArray_IS_C_CONTIGUOUS(p)
                   else cnp.NPY_ARRAY_F_CONTIGUOUS)
        t.n_states = <int> len(states)
        for j in range(t.n_states):
            t.s[j] = cnp.PyArray_BYTES(<cnp.ndarray> states[j])

    cdef int cut_chunks(self) except -1:
        """Cut each tensor into equal chunks of at most CHUNK elements, whole tiles each.

        All but the first chunk of a large tensor start on a cache line, the first has what is left
        over: 64-byte loads that straddle two lines cost AVX-512 a third of its speed.
        """
        cdef Py_ssize_t i, n, parts, size, head, line
        cdef Py_ssize_t most = 0
        for i in range(self.n):
            most += self.tensors[i].n // CHUNK + 2
        self.chunks = <Chunk*> calloc(most, sizeof(Chunk))
        if self.chunks == NULL:
            raise MemoryError
        for i in range(self.n):
            n, head = self.tensors[i].n, 0
            if n >= ALIGN_FROM:
                line = 64 // (8 if self.tensors[i].is_double else 4)
                head = (64 - <Py_ssize_t> (<size_t> self.tensors[i].p % 64)) * line // 64 % line
            self.add_chunks(i, 0, head, TILE)
            parts = (n - head + CHUNK - 1) // CHUNK
            if parts:
                size = (n - head + parts - 1) // parts
                self.add_chunks(i, head, n, (size + TILE - 1) // TILE * TILE)

    cdef void add_chunks(self, Py_ssize_t tensor, Py_ssize_t offset, Py_ssize_t end,
                         Py_ssize_t size) noexcept:
        """Append chunks of `size` elements, the last one less, from `offset` up to `end`."""
        cdef Chunk* chunk
        while offset < end:
            chunk = &self.chunks[self.n_chunks]
            chunk.tensor, chunk.offset, chunk.n = tensor, offset, min(size, end - offset)
            chunk.before = chunk[-1].before + chunk[-1].n if self.n_chunks else 0
            offset += size
            self.n_chunks += 1

    # ------------------------------------------------------------------------ reading gradients

    cdef list read_gradients(self, grads):
        """Check all gradients and note their pointers; returns the arrays, None where none is."""
        cdef list held = [None] * self.n
        cdef Py_ssize_t at = 0
        if not self.walk(self.structure, grads, held, &at):
            checks.refuse_structure(self.structure, grads)
        return held

    @cython.boundscheck(True)   # an array-like's own code may shorten the list being walked
    cdef bint walk(self, structure, grads, list held, Py_ssize_t* at) except -1:
        """Read the gradients of a part of the structure, in order; False if it isn't the same."""
        cdef Py_ssize_t k
        if structure is None:
            self.read_gradient(at[0], grads, held)
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
                if child is _MISSING or not self.walk(inner, child, held, at):
                    return False
        else:
            if not isinstance(grads, (list, tuple)) or len(grads) != len(<list> structure):
                return False
            for k in range(len(<list> structure)):
                child = (<list> grads)[k] if type(grads) is list else grads[k]
                if not self.walk((<list> structure)[k], child, held, at):
                    return False
        return True

    cdef int read_gradient(self, Py_ssize_t i, grad, list held) except -1:
        cdef Tensor* t = &self.tensors[i]
        cdef const char* g
        if grad is None:
            t.g = NULL
            return 0
        if not (cnp.PyArray_CheckExact(grad) and fits(grad, self.params[i], t.order)):
            grad = checks.as_gradient(grad, self.params[i], f"grads{self.labels[i]}")
        g = cnp.PyArray_BYTES(<cnp.ndarray> grad)
        if g != t.cleared:
            self.check_overlap(i, <size_t> g, cnp.PyArray_NBYTES(<cnp.ndarray> grad))
            t.cleared = g
        t.g = g
        held[i] = grad

    cdef int check_overlap(self, Py_ssize_t i, size_t start, size_t size) except -1:
        """Refuse a gradient that shares memory with anything that a step writes."""
        cdef Py_ssize_t low = 0, high = self.n_spans, middle
        while low < high:      # the first span that ends after the gradient starts
            middle = (low + high) // 2
            if self.spans[2 * middle + 1] <= start:
                low = middle + 1
            else:
                high = middle
        if size and low < self.n_spans and self.spans[2 * low] < start + size:
            raise ValueError(f"grads{self.labels[i]}: shares memory with {self.span_labels[low]}, "
                             "which the step writes; pass a gradient in memory of its own")

    # ----------------------------------------------------------------------------------- a step

    def step(self, grads, configure, double unscale):
        """Update every parameter that has a gradient, and its states, in place.

        Parameters
        ----------
        grads : object or None
            Gradients in the plan's structure; None for those bound beforehand.
        configure : callable
            ``configure(group, t, unscale)``, for the step that makes a parameter's count `t`,
            returns the rule's name, its coefficients, and what the stages are given:
            ``(name, coefficients, grad_scale, weight_decay, decoupled)``.
        unscale : float
            Passed on to `configure`.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not fit; nothing has been changed then.
        RuntimeError
            If called from within itself.

        Notes
        -----
        One thread at a time: the caller sees to that.
        """
        if self.busy:
            raise RuntimeError("step() was called from within a step of the same optimizer")
        self.busy = True
        try:
            self.step_alone(grads, configure, unscale)
        finally:
            self.busy = False

    cdef int step_alone(self, grads, configure, double unscale) except -1:
        cdef Py_ssize_t i, elements = 0
        cdef list held
        cdef dict rules = _rules
        self.check_unmoved()
        if grads is not None:
            held = self.read_gradients(grads)
        elif self.bound is None:
            raise TypeError("step() needs gradients, as no gradients were bound with grads=...")
        else:
            held = self.bound
            for i in range(self.n):
                if held[i] is not None and not is_unmoved(
                        &self.tensors[i], <cnp.ndarray> held[i], self.tensors[i].bound):
                    raise ValueError(f"grads{self.labels[i]}: was given another dtype, shape or "
                                     "memory after it was bound")
                self.tensors[i].g = self.tensors[i].bound
        configured = self.configure(rules, configure, unscale)

        # All checks have passed: from here on nothing fails.
        for i in range(self.n):
            if self.tensors[i].g != NULL:
                self.counts[i] += 1
                elements += self.tensors[i].n
        if rules is None:
            for i in range(self.n):
                if self.tensors[i].g != NULL:
                    name, *settings = configured[self.tensors[i].setting]
                    reference.step(name, self.params[i], held[i], self.states[i], *settings)
        else:
            self.sweep(elements)

    cdef int check_unmoved(self) except -1:
        """Refuse parameters that were made read-only or given other memory since the plan."""
        cdef Py_ssize_t i
        cdef cnp.ndarray p
        for i in range(self.n):
            p = <cnp.ndarray> self.params[i]
            if not (is_unmoved(&self.tensors[i], p, self.tensors[i].p)
                    and cnp.PyArray_ISWRITEABLE(p)):
                raise ValueError(f"params{self.labels[i]}: was made read-only, or given another "
                                 "dtype, shape or memory, after the optimizer was made")

    cdef list configure(self, dict rules, configure, double unscale):
        """Work out the settings of each distinct (group, step count), and point tensors there."""
        cdef Py_ssize_t i, group = -1
        cdef cnp.int64_t step = -1
        cdef Tensor* t
        cdef dict known = {}
        cdef list configured = []
        for i in range(self.n):
            t = &self.tensors[i]
            if t.g == NULL:
                continue
            if t.group != group or self.counts[i] != step:
                group, step = t.group, self.counts[i]
                setting = known.get((group, step))
                if setting is None:
                    if step < 0:
                        raise ValueError(f"{checks.state_label(self.labels[i], 'step')}: "
                                         f"expected a number of at least 0, found {step}")
                    setting = known[group, step] = len(configured)
                    row = configure(group, step + 1, unscale)
                    read_setting(&self.settings[<Py_ssize_t> setting], rules, row)
                    configured.append(row)
            t.setting = setting
            if not t.is_double and not self.settings[t.setting].in_float_range:
                raise ValueError(f"params{self.labels[i]}: its hyper-parameters or grad_scale make "
                                 f"a coefficient out of float32's range: {configured[setting]}")
            if self.settings[t.setting].stages.n_states != t.n_states:
                raise RuntimeError(f"params{self.labels[i]}: its states do not fit the rule")
        return configured

    cdef int sweep(self, Py_ssize_t elements) except -1:
        cdef Py_ssize_t k, threads = 1
        if elements >= PARALLEL_FROM and not _forked:
            threads = _num_threads or fastgd_max_threads()
            threads = min(threads, self.n_chunks)
        with nogil:
            if threads <= 1:
                run(self.tensors, self.settings, self.chunks, self.chunks + self.n_chunks)
            else:
                for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                    run(self.tensors, self.settings,
                        self.chunk_of_share(k, threads), self.chunk_of_share(k + 1, threads))

    cdef Chunk* chunk_of_share(self, Py_ssize_t k, Py_ssize_t shares) noexcept nogil:
        """The first chunk of the k-th of as many equal shares of all elements."""
        cdef Chunk* last = &self.chunks[self.n_chunks - 1]
        cdef Py_ssize_t elements = last.before + last.n, low = 0, high = self.n_chunks, middle
        while low < high:
            middle = (low + high) // 2
            if self.chunks[middle].before * shares < elements * k:
                low = middle + 1
            else:
                high = middle
        return self.chunks + low


cdef inline bint is_unmoved(Tensor* t, cnp.ndarray a, const char* start) noexcept:
    """Whether an array is still the memory that the plan knows it to be."""
    cdef Py_ssize_t n = 1
    cdef int j
    for j in range(cnp.PyArray_NDIM(a)):
        n *= cnp.PyArray_DIM(a, j)
    return (cnp.PyArray_BYTES(a) == start and n == t.n
            and cnp.PyArray_TYPE(a) == (cnp.NPY_DOUBLE if t.is_double else cnp.NPY_FLOAT))


cdef bint fits(cnp.ndarray g, cnp.ndarray p, int order) noexcept:
    """Whether a gradient has its parameter's type, shape and layout."""
    cdef int needed = order | cnp.NPY_ARRAY_ALIGNED
    cdef int j
    if (cnp.PyArray_TYPE(g) != cnp.PyArray_TYPE(p) or cnp.PyArray_NDIM(g) != cnp.PyArray_NDIM(p)
            or (cnp.PyArray_FLAGS(g) & needed) != needed or not cnp.PyArray_ISNOTSWAPPED(g)):
        return False
    for j in range(cnp.PyArray_NDIM(p)):
        if cnp.PyArray_DIM(g, j) != cnp.PyArray_DIM(p, j):
            return False
    return True


cdef int read_setting(Setting* setting, dict rules, tuple row) except -1:
    """Fill a setting from what `configure` returned."""
    cdef Py_ssize_t j
    name, coefficients, grad_scale, weight_decay, decoupled = row
    rule = reference.RULES[name]
    if len(coefficients) != len(rule.coefficients) or len(coefficients) > MAX_COEFFICIENTS:
        raise RuntimeError(f"rule {name} takes {len(rule.coefficients)} coefficients "
                           f"of at most {MAX_COEFFICIENTS}, not {len(coefficients)}")
    for j in range(len(coefficients)):
        setting.c64[j] = coefficients[j]
        setting.c32[j] = <float> setting.c64[j]
    setting.stages.n_states = <int> len(rule.states)
    setting.stages.grad_scale = grad_scale
    setting.stages.weight_decay = weight_decay
    setting.stages.decoupled = decoupled
    # A factor that float32 rounds to 0 would quietly drop all gradients.
    setting.in_float_range = (<float> setting.stages.grad_scale != 0
                              and isfinite(<float> setting.stages.grad_scale)
                              and isfinite(<float> setting.stages.weight_decay)
                              and isfinite(<float> setting.stages.decoupled))
    for j in range(len(coefficients)):
        setting.in_float_range &= isfinite(setting.c32[j])
    setting.stages.flags = ((SCALE if setting.stages.grad_scale != 1.0 else 0)
                            | (L2_DECAY if setting.stages.weight_decay != 0.0 else 0)
                            | (DECOUPLED_DECAY if setting.stages.decoupled != 1.0 else 0))
    if rules is not None:
        loops = rules[name]
        for j in range(2):
            setting.rule[j] = <void*> <size_t> loops[j]
            setting.staged[j] = _staged[j]

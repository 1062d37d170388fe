# A step by the specification itself.  Included by _engine.pyx.

cdef int step_by_reference(Layout layout, list arrays, list configured, tuple average) except -1:
    """What the sweep does, in NumPy; of gradients that are arrays, by what each group's step is."""
    cdef Py_ssize_t i
    cdef Tensor* t
    for i in range(layout.n):
        t = &layout.tensors[i]
        *states, p = layout.coded[i]
        if t.g != NULL:
            name, coefficients, stages = configured[t.group_step]
            stages = reference.Stages(t.factor, *stages[1:])
            keys = [layout.codings[i].key[k] for k in range(t.n_words)]
            g = coded_array.as_coded(arrays[i])
            units = None
            if t.flags & SCALE_UNITS:
                units = np.array([t.factors[k] for k in range(t.n_units)])
            reference.step_coded(name, p, g, states, coefficients, stages, keys, units)
        if t.flags & AVERAGE:
            reference.average(layout.averages[i], p, *average)
        if t.flags & COPY:
            reference.copy(coded_array.as_coded(layout.copies[i]), p)
        if t.flags & ZERO_GRADIENT:
            arrays[i][...] = 0

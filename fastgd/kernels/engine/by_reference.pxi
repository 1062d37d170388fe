# A step by the specification itself.  Included by _engine.pyx.

cdef int step_by_reference(Layout layout, Gradients gradients, list arrays, list configured,
                           tuple average, combine_sums) except -1:
    """What the sweeps do, in NumPy; of gradients that are arrays, by what each group's step is."""
    cdef Py_ssize_t i
    cdef int j
    cdef Tensor* t
    cdef list steps = [None] * layout.n
    cdef Batch whole = layout.whole()
    for i in range(layout.n):
        t = &layout.tensors[i]
        if t.g != NULL and t.rows == NULL:
            steps[i] = tensor_step(layout, i, arrays[i], configured[t.group_step])
            steps[i].begin()
            steps[i].lines()
            steps[i].first()
            if t.own != NULL:
                for j in range(t.info.first.n_terms):
                    t.own.sums[j] = steps[i].sums[j]
    if combine_sums is not None and layout.n_summed:
        combine_terms(layout, &whole, combine_sums)
    if layout.shares:
        add_up_tensors(layout)
    for i in range(layout.n):
        t = &layout.tensors[i]
        if t.rows != NULL:
            rows_by_reference(layout, gradients, i, arrays[i], configured[t.group_step])
            continue
        if t.g != NULL:
            if t.own != NULL:
                for j in range(t.info.first.n_terms):
                    steps[i].sums[j] = t.own.sums[j]
            steps[i].settle()
            steps[i].last()
        *_, p = layout.coded_of(i)
        if t.flags & AVERAGE:
            reference.average(layout.averages[i], p, *average)
        if t.flags & COPY:
            reference.copy(coded_array.as_coded(layout.copies[i]), p)
        if t.flags & ZERO_GRADIENT:
            arrays[i][...] = 0
    if layout.shares:
        share_numbers(layout)


cdef object tensor_step(Layout layout, Py_ssize_t i, g, tuple row):
    """The step of one tensor by the specification."""
    cdef Tensor* t = &layout.tensors[i]
    cdef Py_ssize_t k
    *states, p = layout.coded_of(i)
    name, coefficients, stages = row
    units, means, factors = lines.Axis(t.units.length, t.units.stride), None, None
    if t.flags & CENTRALIZE:
        means = np.array([t.means[k] for k in range(t.n_units)])
    if t.flags & SCALE_UNITS:
        factors = np.array([t.factors[k] for k in range(t.n_units)])
    keys = [layout.codings[i].key[k] for k in range(t.n_words)]
    numbers = dict(zip(reference.RULES[name].numbers, layout.numbers_of(i), strict=True))
    axes = None if layout.axes is None else layout.axes[i]
    return reference.TensorStep(name, p, coded_array.as_coded(g), states, coefficients,
                                reference.Stages(t.factor, *stages[1:]), keys, units, means,
                                factors, numbers, t.size, layout.matrix_of(i), axes)


cdef int rows_by_reference(Layout layout, Gradients gradients, Py_ssize_t i, rows,
                           tuple row) except -1:
    """The step of some rows of a table by the specification."""
    cdef Tensor* t = &layout.tensors[i]
    cdef RowSet own = gradients.row_sets[i]
    cdef Py_ssize_t k
    *states, p = layout.coded_of(i)
    name, coefficients, stages = row
    distinct, g = own.arrays(t.is_double)
    factors = None
    if t.flags & SCALE_UNITS:
        factors = np.array([t.factors[k] for k in range(t.rows.n)])
    keys = [layout.codings[i].key[k] for k in range(t.n_words)]
    numbers = dict(zip(reference.RULES[name].numbers, layout.numbers_of(i), strict=True))
    if t.missed != NULL:
        catch_up_by_reference(layout, layout.missed[i], i, distinct.tolist())
        (<Missed> layout.missed[i]).counts[distinct] += 1
    rows_spec.row_steps(name, p, distinct, g, states, coefficients,
                        reference.Stages(t.factor, *stages[1:]), keys, factors, numbers)
    if t.flags & COPY:
        copied = coded_array.as_coded(layout.copies[i])
        for place in distinct.tolist():
            reference.copy(rows_spec.row_of(copied, place, t.rows.length),
                           rows_spec.row_of(p, place, t.rows.length))
    if t.flags & ZERO_GRADIENT:
        rows.values[...] = 0

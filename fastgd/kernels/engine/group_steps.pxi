# A group's step: what `configure` says of it, for the compiled loops.  Included by _engine.pyx.

cdef int read_row(GroupStep* group_step, Backend backend, tuple row) except -1:
    """Fill in a group's step from what `configure` returned."""
    cdef Py_ssize_t j
    name, coefficients, stages = row
    rule = reference.RULES[name]
    if len(coefficients) != len(rule.coefficients) or len(coefficients) > MAX_COEFFICIENTS:
        raise RuntimeError(f"rule {name} takes {len(rule.coefficients)} coefficients "
                           f"of at most {MAX_COEFFICIENTS}, not {len(coefficients)}")
    for j in range(len(coefficients)):
        group_step.c64[j] = coefficients[j]
        group_step.c32[j] = <float> group_step.c64[j]
    group_step.n_states = <int> len(rule.states)
    (group_step.factor, group_step.stages.weight_decay, group_step.stages.decoupled,
     group_step.stages.clip_value, group_step.clip_norm, group_step.clip_ratio) = stages
    group_step.in_float_range = (not is_lost(group_step.factor)
                                 and isfinite(<float> group_step.stages.weight_decay)
                                 and isfinite(<float> group_step.stages.decoupled))
    for j in range(len(coefficients)):
        group_step.in_float_range &= isfinite(group_step.c32[j])
    group_step.stages.flags = flags_of_stages(&group_step.stages)
    if backend.compiled:
        backend.take_loops(name, group_step)


cdef inline bint is_lost(double factor) noexcept:
    """Whether float32 has no such factor; one that it rounds to 0 would quietly drop gradients."""
    return <float> factor == 0 or not isfinite(<float> factor)


cdef str out_of_range(tuple row):
    """Name what float32 can't hold of a group's step, and its value."""
    cdef double value
    name, coefficients, (factor, weight_decay, decoupled, *_) = row
    if is_lost(factor):
        return f"the factor of the gradient {factor!r}"
    named = {"weight_decay": weight_decay, "the factor of decoupled decay": decoupled}
    named |= {f"{name}'s {key}": value
              for key, value in zip(reference.RULES[name].coefficients, coefficients)}
    return next(f"{key} {value!r}" for key, value in named.items() if not isfinite(<float> value))

# A group's step: what its hyper-parameters make of it, for the compiled loops.
# Included by _engine.pyx.

cdef int read_row(GroupStep* group_step, tuple row) except -1:
    """Fill in a group's step from what `configure` returned."""
    cdef Py_ssize_t j
    name, coefficients, stages = row
    rule = reference.RULES[name]
    group_step.info = &row_of(name).info
    if len(coefficients) != len(rule.coefficients):
        raise RuntimeError(f"rule {name} takes {len(rule.coefficients)} coefficients, not "
                           f"{len(coefficients)}")
    for j in range(len(coefficients)):
        group_step.c64[j] = coefficients[j]
    (group_step.factor, group_step.stages.weight_decay, group_step.stages.decoupled,
     group_step.stages.clip_value, group_step.clip_norm, group_step.clip_ratio) = stages


cdef void complete(GroupStep* group_step) noexcept:
    """Round coefficients, and note what follows from them and from the stages."""
    cdef int j, n = group_step.info.n_given, denominators = group_step.info.denominators
    round_all[float](group_step.c32, group_step.c64, n, denominators)
    round_all[double](group_step.c64, group_step.c64, n, denominators)
    group_step.in_float_range = (not is_lost(group_step.factor)
                                 and isfinite(<float> group_step.stages.weight_decay)
                                 and isfinite(<float> group_step.stages.decoupled))
    for j in range(n):
        if group_step.info.rounded >> j & 1:
            group_step.in_float_range &= isfinite(group_step.c32[j])
    group_step.stages.flags = flags_of_stages(&group_step.stages)


cdef tuple stages_of(const GroupStep* group_step):
    """The stages of a group's step as `configure` returns them."""
    return (group_step.factor, group_step.stages.weight_decay, group_step.stages.decoupled,
            group_step.stages.clip_value, group_step.clip_norm, group_step.clip_ratio)


cdef inline bint is_lost(double factor) noexcept:
    """Whether float32 has no such factor; one that it rounds to 0 would quietly drop gradients."""
    return <float> factor == 0 or not isfinite(<float> factor)


cdef str out_of_range(const GroupStep* group_step, str name):
    """Name what float32 can't hold of a group's step by a rule, and its value."""
    cdef double value
    factor, weight_decay, decoupled, *_ = stages_of(group_step)
    coefficients = [group_step.c64[j] for j in range(MAX_COEFFICIENTS)]
    if is_lost(factor):
        return f"the factor of the gradient {factor!r}"
    named = {"weight_decay": weight_decay, "the factor of decoupled decay": decoupled}
    rule = reference.RULES[name]
    taken = {key for part in (rule.before, rule.matrix, rule.after) if part
             for key in part.coefficients}
    taken.add("lr")
    named |= {f"{name}'s {key}": value
              for key, value in zip(rule.coefficients, coefficients) if key in taken}
    return next(f"{key} {value!r}" for key, value in named.items() if not isfinite(<float> value))

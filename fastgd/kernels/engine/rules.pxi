# What the engine knows of each rule.  Included by _engine.pyx.

include "_arithmetic.pxi"


@cython.final
cdef class RuleRow:
    """A row of `reference.RULES`, for the sweep."""

    cdef RuleInfo info
    cdef object rule

    def __cinit__(self, rule):
        cdef RuleInfo* info = &self.info
        self.rule = rule
        order = (*rule.coefficients, *rule.settled)
        if (len(rule.states) > MAX_STATES or len(order) > MAX_COEFFICIENTS
                or len(rule.numbers) > MAX_NUMBERS or len(rule.sums) > MAX_SUMS):
            raise RuntimeError(f"rule {rule.name}: expected at most {MAX_STATES} states, "
                               f"{MAX_COEFFICIENTS} coefficients, {MAX_NUMBERS} numbers and "
                               f"{MAX_SUMS} sums")
        info.n_states, info.n_numbers = <int> len(rule.states), <int> len(rule.numbers)
        info.n_given, info.n_coefficients = <int> len(rule.coefficients), <int> len(order)
        info.last, info.last_flags = self.sweep(rule.after), -1
        if not info.last.gradient:
            info.last_flags = ~OF_GRADIENT
        taken = set(rule.after.coefficients)
        for part in (rule.lines, rule.rows, rule.columns):
            taken.update(() if part is None else part.coefficients)
        info.rows = info.columns = info.entries = -1
        for j, name in enumerate(rule.states):
            if rule.line_states.get(name) == "rows":
                info.rows = j
            elif rule.line_states.get(name) == "columns":
                info.columns = j
            elif rule.line_states.get(name) == "entries":
                info.entries = j
        if rule.before is not None:
            info.first = self.sweep(rule.before)
            info.first.n_terms = <int> len(rule.sums)
            squares = [k for k, kind in enumerate(rule.sums) if kind == "squares"]
            info.first.squares = bits_of(range(len(rule.sums)), squares)
            taken.update(rule.before.coefficients)
        if rule.matrix is not None:
            taken.update(rule.matrix.coefficients)
            info.matrix_states = bool(rule.matrix.states)
            info.matrix = <matrix_step> <void*> <size_t> MATRIX_STEPS[rule.matrix.name]
            for key in rule.matrix.coefficients:
                info.matrix_c[info.n_matrix_c] = order.index(key)
                info.n_matrix_c += 1
        info.renews, info.own_decay = rule.renew is not None, rule.own_decay
        taken.add("lr")    # which is part of what loops take, wherever it is worked out
        info.rounded = bits_of(order, taken)
        info.denominators = bits_of(order, {DENOMINATOR})
        info.works_out = (rule.begin is not None or rule.settle is not None
                          or rule.matrix is not None)
        info.shared = bits_of(rule.numbers, rule.shared)
        info.totals = bits_of(range(len(rule.sums)),
                              [k for k, kind in enumerate(rule.sums) if kind == "total"])
        if rule.begin is not None:
            info.begin = <arithmetic> <void*> <size_t> ARITHMETIC.get(rule.begin.name, 0)
        if rule.settle is not None:
            info.settle = <arithmetic> <void*> <size_t> ARITHMETIC.get(rule.settle.name, 0)

    cdef Sweep sweep(self, sweep):
        cdef int lines = bits_of(self.rule.states, set(sweep.states) & set(self.rule.line_states))
        return Sweep(sweep.gradient, bits_of(self.rule.states, sweep.states) & ~lines,
                     bits_of(self.rule.states, sweep.written), 0, 0, sweep.kept is not None, lines,
                     sweep.parameter)


cdef int bits_of(order, chosen) except -1:
    """The places of those chosen, as bits."""
    cdef int bits = 0
    for k, key in enumerate(order):
        bits |= (key in chosen) << k
    return bits


cdef dict _rows = {}
cdef list _replaced = []       # never freed: a plan may still point there


cdef RuleRow row_of(name):
    """The row of a rule."""
    rule = reference.RULES[name]
    cdef RuleRow row = _rows.get(name)
    if row is None or row.rule is not rule:
        _replaced.append(row)
        row = _rows[name] = RuleRow(rule)
    return row

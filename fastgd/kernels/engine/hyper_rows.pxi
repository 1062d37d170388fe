# Hyper-parameters as numbers, and what C makes of them.  Included by _engine.pyx.

include "_coefficients.pxi"

# row, step counted from 1, coefficients
ctypedef void (*coefficients_of)(const double*, long long, double*) noexcept nogil

# What there is to be done for a group's row.
cdef enum:
    BY_PYTHON = 0              # it has something that a row doesn't hold
    CONSTANT = 1
    SCHEDULED = 2              # some of it is to be worked out at each step


# What makes the coefficients of a rule.
cdef struct Maker:
    coefficients_of function   # NULL: there is none
    int count                  # of coefficients that it makes


@cython.final
cdef class HyperRows:
    """The hyper-parameters of groups, a row of numbers for each, and the coefficients of these.

    Parameters
    ----------
    groups : sequence of ParamGroup
        The groups.
    functions, places : dict of (int, int), tuple of (str, int, str or None)
        A row of `COEFFICIENTS`.
    decoupled, own_decay : bool
        What a `Contract` says of weight decay.
    """

    cdef object groups, changes
    cdef object filled         # the latest change of groups that is in the rows
    cdef bint any_scheduled
    cdef dict functions
    cdef dict places           # {key: (place in a row, how many numbers, what word is 1)}
    cdef dict missing          # what groups may lack
    cdef bint own_decay
    cdef Py_ssize_t width
    cdef double* rows
    cdef char* kinds           # of each group
    cdef list scheduled        # the keys in each group that are

    def __cinit__(self, groups, dict functions, tuple places, bint decoupled, bint own_decay):
        cdef Py_ssize_t n = len(groups)
        self.groups, self.own_decay = groups, own_decay
        self.functions = functions
        self.places = {}
        for key, size, word in places:
            self.places[key] = self.width, size, word
            self.width += size
        self.missing = {"weight_decay": 0.0, "decoupled_weight_decay": decoupled}
        self.rows = <double*> calloc(n * self.width, sizeof(double))
        self.kinds = <char*> calloc(n, sizeof(char))
        if self.rows == NULL or self.kinds == NULL:
            raise MemoryError
        self.fill()

    def __dealloc__(self):
        free(self.rows)
        free(self.kinds)

    cdef int fill(self) except -1:
        """Take the hyper-parameters of all groups as they are now."""
        cdef Py_ssize_t k
        cdef tuple scheduled
        self.scheduled = [None] * len(self.groups)
        self.changes = self.groups[0]._changes if len(self.groups) else None
        self.filled = None if self.changes is None else self.changes.latest
        self.any_scheduled = False
        for k in range(len(self.groups)):
            group = self.groups[k]
            scheduled = self.scheduled[k] = group.scheduled
            self.kinds[k] = SCHEDULED if scheduled else CONSTANT
            self.any_scheduled = self.any_scheduled or bool(scheduled)
            for key, place in self.places.items():
                if scheduled and key in scheduled:
                    continue
                if not self.put(k, place, (<dict> group).get(key, _MISSING), key):
                    self.kinds[k] = BY_PYTHON
                    break

    cdef bint put(self, Py_ssize_t k, tuple place, value, key) except -1:
        """Put a value into a group's row; False if it is none of ours."""
        cdef Py_ssize_t at = place[0], size = place[1], j
        cdef double* row = self.rows + k * self.width
        if value is _MISSING:
            value = self.missing.get(key)
        if size > 1:
            if type(value) is not tuple or len(<tuple> value) != size:
                return False
            for j in range(size):
                one = (<tuple> value)[j]
                if one is None:
                    row[at + j] = NAN
                    continue
                if type(one) is not float:
                    return False
                row[at + j] = one
            return True
        if place[2] is not None and (value is None or type(value) is str):
            row[at] = value == place[2]
        elif value is None:
            row[at] = INFINITY if CLIP_VALUE_AT <= at <= CLIP_RATIO_AT else NAN
        elif (type(value) is float or type(value) is bool
              or type(value) is int and -2**53 <= value <= 2**53):
            row[at] = value
        else:
            return False
        return True

    cdef Maker maker_of(self, name) except *:
        """What makes the coefficients of a rule: the method of its own, or that of all rules."""
        cdef Maker maker
        address, maker.count = self.functions.get(f"{name}_coefficients",
                                                  self.functions["coefficients"])
        maker.function = <coefficients_of> <void*> <size_t> address
        if maker.count < row_of(name).info.n_given:
            maker.function = NULL
        return maker

    cdef bint make(self, GroupStep* s, Py_ssize_t k, Maker maker, cnp.int64_t step,
                   double unscale) except -1:
        """Fill in coefficients and stages of a group's step, counted from 0, as `settings` does.

        False if Python has to be asked: also where C finds no number, as Python may raise then.
        """
        cdef const double* h = self.rows + k * self.width
        cdef int j
        if self.any_scheduled and self.changes.latest is not self.filled:
            return False    # a schedule, or another thread, changed some group in this step
        if self.kinds[k] == SCHEDULED:
            group = self.groups[k]
            if group.scheduled is not self.scheduled[k]:
                return False    # changed since the step began
            for key in <tuple> self.scheduled[k]:
                value = group.value(key, step)
                if key in self.places and not self.put(k, self.places[key], value, key):
                    self.kinds[k] = BY_PYTHON
        if self.kinds[k] == BY_PYTHON:
            return False
        maker.function(h, step + 1, s.c64)
        for j in range(maker.count):
            if not isfinite(s.c64[j]):
                return False
        s.stages.weight_decay, s.stages.decoupled = 0.0, 1.0
        if s.info.own_decay:
            pass
        elif h[DECOUPLED_WEIGHT_DECAY_AT]:
            s.stages.decoupled = 1.0 - h[LR_AT] * h[WEIGHT_DECAY_AT]
        elif not self.own_decay:
            s.stages.weight_decay = h[WEIGHT_DECAY_AT]
        s.factor = -unscale if h[MAXIMIZE_AT] else unscale
        s.stages.clip_value = h[CLIP_VALUE_AT]
        s.clip_norm, s.clip_ratio = h[CLIP_NORM_AT], h[CLIP_RATIO_AT]
        return True

    def made(self, Py_ssize_t k, name, cnp.int64_t t, double unscale):
        """What C makes for a group's t-th step by a rule, or None: all coefficients, and stages.

        For tests.
        """
        cdef GroupStep s
        cdef Maker maker = self.maker_of(name)
        s.info = &row_of(name).info
        if not self.make(&s, k, maker, t - 1, unscale):
            return None
        return tuple([s.c64[j] for j in range(maker.count)]), stages_of(&s)

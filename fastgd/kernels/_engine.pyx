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
from libc.math cimport copysign, isfinite, isinf, sqrt
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from fastgd.kernels._types cimport *

from fastgd.kernels import buffers, checks, codecs, reference, stored

cdef extern from "codecs.h" nogil:
    cnp.uint64_t fastgd_random_key(cnp.uint64_t, cnp.uint64_t, cnp.uint64_t)

cdef extern from "Python.h":
    int Py_EnterRecursiveCall(const char* where) except 1
    void Py_LeaveRecursiveCall()

cnp.import_array()

# Elements a thread works on at a time, at most.
cdef Py_ssize_t CHUNK = 32768
# From this size on a tensor's chunks are cut to start on cache lines.
cdef Py_ssize_t ALIGN_FROM = 1024
# With fewer elements than this in all, waking a second thread costs more than it saves.
cdef Py_ssize_t PARALLEL_FROM = 32768

cdef object _MISSING = object()

# What a norm is that of, and what to do with gradients that aren't finite.
cdef dict CLIP_BY = {"all": 0, "group": 1, "tensor": 2}
cdef dict NONFINITE = {"propagate": 0, "skip": 1, "raise": 2}

include "_sweep.pxi"
include "_machine.pxi"
include "_norms.pxi"


@cython.freelist(8)
cdef class StepRecord:
    """What a step did.

    Attributes
    ----------
    step : int
        The number of steps that the parameter with the most has taken.
    skipped : bool
        Whether gradients were not finite, so that nothing was updated.
    grad_norm : float or None
        The norm of all gradients after ``grad_scale`` and before clipping, if the step needed it:
        to clip by it, or to see whether gradients are finite.
    clip_factor : float or None
        What gradients were multiplied by to clip their norm, the smallest if several were; 1 if
        none was too large, None if none is clipped.
    """

    cdef readonly long long step
    cdef readonly bint skipped
    cdef readonly object grad_norm, clip_factor

    def __repr__(self):
        return (f"StepRecord(step={self.step}, skipped={self.skipped}, "
                f"grad_norm={self.grad_norm}, clip_factor={self.clip_factor})")


cdef class Plan:
    """The tensors of an optimizer, resolved to pointers, and the step over all of them.

    Parameters
    ----------
    structure : None, list or dict
        The form in which gradients come: None for a bare array, else lists and dicts nested like
        the parameters, with None in place of each array.
    params : list of ndarray or `stored.Stored`
        The parameters in the order of `structure`; contiguous, writeable, of a dtype of floats.
        float64 is computed with as it is, everything else as float32.
    labels : list of str
        What to call each parameter in an error, less the leading ``params``.
    groups : list of int
        The group each parameter belongs to.
    states : list of tuple of ndarray or `stored.Stored`
        The states of each parameter, in the order of its rule.
    state_names : list of tuple of str
        What they are called.
    steps : ndarray of int64, shape (parameters,)
        The number of steps each parameter has taken; counted up in place.
    grads : object, optional
        Gradients to be bound: arrays read by each `step` that is given none.
    averages : list of ndarray, optional
        Arrays like the parameters that average them from step to step.
    average_steps : ndarray of int64, optional
        The number of steps that these have seen; counted up in place.
    copies : list of ndarray or None, optional
        Arrays that get a copy of the parameters, of a dtype of floats.
    clip_by : {"all", "group", "tensor"}
        What a norm that is clipped is the norm of.
    nonfinite : {"propagate", "skip", "raise"}
        What to do with gradients that aren't finite.
    skipped : ndarray of int64, shape (1,), optional
        The number of steps skipped; counted up in place.
    seed : int
        What the random words of stochastic rounding follow from, with step and element.

    Raises
    ------
    TypeError, ValueError
        If an array is not what it has to be, or two of them overlap.
    """

    cdef readonly list params, labels
    cdef list kept              # of each parameter, its states and itself as `stored.Stored`
    cdef list averages, copies
    cdef list borrowed          # what keeps memory that others own from going away
    cdef unsigned long long seed
    cdef cnp.ndarray average_steps, skipped
    cdef int clip_by, nonfinite
    cdef readonly cnp.ndarray steps
    cdef object structure
    cdef readonly list bound    # the gradients' arrays, None where there is none, or None
    cdef cnp.int64_t* counts    # of `steps`
    cdef Py_ssize_t n, n_chunks, n_spans, n_groups
    cdef Py_ssize_t elements    # that this step works on
    cdef Tensor* tensors
    cdef Chunk* chunks
    cdef Setting* settings
    cdef Common common
    cdef Block* blocks          # of all gradients, made when first needed
    cdef Sum* sums              # of each tensor's gradient, then of each group's
    cdef size_t* spans          # start, end of all that a step writes, by address
    cdef list span_labels
    cdef bint busy

    def __cinit__(self, structure, params, list labels, list groups, states,
                  list state_names, cnp.ndarray steps, grads=None, *, list averages=None,
                  cnp.ndarray average_steps=None, copies=None, clip_by="all",
                  nonfinite="propagate", cnp.ndarray skipped=None, unsigned long long seed=0):
        cdef Py_ssize_t i, k
        self.structure, self.labels = structure, labels
        self.kept = [(*map(stored.as_stored, states[i]), stored.as_stored(params[i]))
                     for i in range(len(params))]
        self.params = [stored.as_stored(p).code for p in params]
        self.seed = seed
        self.steps, self.counts = steps, <cnp.int64_t*> cnp.PyArray_DATA(steps)
        self.averages, self.average_steps = averages, average_steps
        self.copies = None if copies is None else list(copies)
        self.clip_by, self.nonfinite, self.skipped = CLIP_BY[clip_by], NONFINITE[nonfinite], skipped
        self.n, self.n_groups = len(params), max(groups) + 1
        self.tensors = <Tensor*> calloc(self.n, sizeof(Tensor))
        self.settings = <Setting*> calloc(self.n, sizeof(Setting))
        self.common.beside = <Beside*> calloc(self.n, sizeof(Beside))
        self.common.codecs = codec_rows
        if self.tensors == NULL or self.settings == NULL or self.common.beside == NULL:
            raise MemoryError
        written = []
        for i in range(self.n):
            written += self.arrays_of(i, state_names[i])
            self.plan_tensor(i, groups[i])
        self.cut_chunks()

        spans = checks.check_disjoint(written)
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
                self.tensors[i].bound_codec = self.tensors[i].g_codec
        self.borrowed = [buffers.lent(a) for arrays in (self.params, self.copies, self.bound)
                         for a in arrays or () if a is not None and a.base is not None]

    def __dealloc__(self):
        free(self.tensors)
        free(self.chunks)
        free(self.settings)
        free(self.common.beside)
        free(self.blocks)
        free(self.sums)
        free(self.spans)

    cdef list arrays_of(self, Py_ssize_t i, names):
        """All arrays of a parameter that a step writes, checked, with what to call them."""
        p, label = self.params[i], self.labels[i]
        arrays = []
        for name, a in zip((*names, None), self.kept[i], strict=True):
            own = f"params{label}" if name is None else checks.state_label(label, name)
            checks.check_stored(a, p, own)
            arrays.append((a.code, own))
            if a.beside is not None:
                arrays.append((a.beside, own))
        if self.averages is not None:
            own, average = f"average{label}", self.averages[i]
            checks.check_average(average, p, own)
            arrays.append((average, own))
        if self.copies is not None and self.copies[i] is not None:
            arrays.append((self.copies[i], f"copy_to{label}"))
        return arrays

    cdef int plan_tensor(self, Py_ssize_t i, Py_ssize_t group) except -1:
        cdef Tensor* t = &self.tensors[i]
        cdef Beside* beside = &self.common.beside[i]
        cdef cnp.ndarray p = self.params[i]
        cdef Py_ssize_t j
        *states, own = self.kept[i]
        if len(states) > MAX_STATES:
            raise ValueError(f"a rule may have at most {MAX_STATES} states")
        *shifts, p_shift = stored.shifts(self.kept[i])
        t.p = cnp.PyArray_BYTES(p)
        t.p_codec = CODEC_NAMES.index(own.codec)
        t.n = p.size
        t.group = group
        t.is_double = t.p_codec == FLOAT64
        t.order = (cnp.NPY_ARRAY_C_CONTIGUOUS if cnp.PyArray_IS_C_CONTIGUOUS(p)
                   else cnp.NPY_ARRAY_F_CONTIGUOUS)
        t.n_states = <int> len(states)
        t.coded = t.p_codec != t.is_double
        beside.p, beside.p_shift = address_of(own.beside), p_shift
        for j in range(t.n_states):
            t.s[j] = cnp.PyArray_BYTES(<cnp.ndarray> states[j].code)
            t.s_codec[j] = CODEC_NAMES.index(states[j].codec)
            t.coded |= t.s_codec[j] != t.is_double
            beside.s[j], beside.s_shift[j] = address_of(states[j].beside), shifts[j]
        t.n_words = (max(p_shift, *shifts, -1) + 32) // 32
        if self.averages is not None:
            t.average = cnp.PyArray_BYTES(<cnp.ndarray> self.averages[i])
        if self.copies is not None and self.copies[i] is not None:
            t.copy = cnp.PyArray_BYTES(<cnp.ndarray> self.copies[i])
            t.copy_codec = codec_of(<cnp.ndarray> self.copies[i])

    cdef int cut_chunks(self) except -1:
        """Cut each tensor into equal chunks of at most CHUNK elements, whole tiles each.

        All but the first chunk of a large tensor start on a cache line, the first has what is left
        over: 64-byte loads that straddle two lines cost AVX-512 a third of its speed.
        """
        cdef Py_ssize_t i, n, parts, size, head
        cdef Py_ssize_t most = 0
        for i in range(self.n):
            most += self.tensors[i].n // CHUNK + 2
        self.chunks = <Chunk*> calloc(most, sizeof(Chunk))
        if self.chunks == NULL:
            raise MemoryError
        for i in range(self.n):
            n, head = self.tensors[i].n, 0
            # Where tiles have scales, chunks are of whole tiles from the start.
            if n >= ALIGN_FROM and all(a.beside is None for a in self.kept[i]):
                size = codec_rows[self.tensors[i].p_codec].size
                head = <Py_ssize_t> ((64 - <size_t> self.tensors[i].p % 64) % 64) // size
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
            chunk.before = (chunk - 1).before + (chunk - 1).n if self.n_chunks else 0
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
        cdef char* g
        if grad is None:
            t.g = NULL
            return 0
        cdef int codec
        if not (cnp.PyArray_CheckExact(grad) and fits(grad, self.params[i], t.order)):
            grad = checks.as_gradient(grad, self.params[i], f"grads{self.labels[i]}")
        g, codec = cnp.PyArray_BYTES(<cnp.ndarray> grad), codec_of(<cnp.ndarray> grad)
        if g != t.cleared or codec != t.g_codec:
            self.check_overlap(i, <size_t> g, cnp.PyArray_NBYTES(<cnp.ndarray> grad))
            t.cleared, t.zeroable = g, NULL
        t.g, t.g_codec = g, codec
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

    def step(self, grads, configure, double unscale, *, tuple average=None, bint zero=False,
             tuple reset=(), cnp.ndarray tally=None, double amount=0.0):
        """Update every parameter that has a gradient, and its states, in place.

        Parameters
        ----------
        grads : object or None
            Gradients in the plan's structure; None for those bound beforehand.
        configure : callable
            ``configure(group, t, unscale)``, for the step that makes a parameter's count `t`,
            returns the rule's name, its coefficients, and the fields of `reference.Stages`.
        unscale : float
            What gradients are to be multiplied by; passed on to `configure`.
        average : tuple of two floats, optional
            How the averages weigh what they were and what the parameters are.
        zero : bool
            Zero the gradients as well, also when the step is skipped.
        reset : tuple of ndarray
            Zero these, too.
        tally : ndarray of float64, shape (1,), optional
            Add `amount` to this, too.

        Returns
        -------
        StepRecord

        Raises
        ------
        TypeError, ValueError
            If a gradient does not fit; nothing has been changed then.
        FloatingPointError
            If a gradient isn't finite and that is to be an error; likewise.
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
            return self.step_alone(grads, configure, unscale, average, zero, reset, tally, amount)
        finally:
            self.busy = False

    cdef StepRecord step_alone(self, grads, configure, double unscale, tuple average, bint zero,
                               tuple reset, cnp.ndarray tally, double amount):
        cdef dict rules = _rules
        cdef StepRecord record = StepRecord.__new__(StepRecord)
        cdef bint finite = True
        cdef int j
        self.check_unmoved()
        held = self.hold_gradients(grads)
        if zero:
            self.check_zeroable(held)
        if average is not None:
            self.common.beta, self.common.gamma = average
        for j in range(2):
            self.common.staged[j] = _staged[j]
        configured, clips = self.configure(rules, configure, unscale)
        if clips or self.nonfinite:
            finite = self.measure(held)
            record.grad_norm = norm_of(&self.sums[self.n + self.n_groups]) * unscale
        if not finite and self.nonfinite == <int> NONFINITE["raise"]:
            self.refuse_nonfinite(held)
        self.mark_stages(rules, record, configured, clips, unscale, zero)

        # All checks have passed: from here on nothing fails, and no Python code runs in which an
        # interrupt could arrive (unless the rules themselves are NumPy's).
        for array in reset:
            (<cnp.ndarray> array).fill(0)
        if tally is not None:
            (<double*> cnp.PyArray_DATA(tally))[0] += amount
        if not finite and self.nonfinite:
            record.skipped = True
            (<cnp.int64_t*> cnp.PyArray_DATA(self.skipped))[0] += 1
            if zero:
                self.zero_gradients()
        else:
            self.count_up(average is not None)
            if rules is None:
                self.step_by_reference(held, configured, average)
            else:
                self.sweep()
        record.step = max_of(self.counts, self.n)
        return record

    cdef list hold_gradients(self, grads):
        """Note the pointers of the gradients, given or bound; returns the arrays."""
        cdef Py_ssize_t i
        cdef Tensor* t
        if grads is not None:
            return self.read_gradients(grads)
        if self.bound is None:
            raise TypeError("step() needs gradients, as no gradients were bound with grads=...")
        for i in range(self.n):
            t = &self.tensors[i]
            if self.bound[i] is not None and not is_unmoved(
                    <cnp.ndarray> self.bound[i], t.bound, t.n, t.bound_codec):
                raise ValueError(f"grads{self.labels[i]}: was given another dtype, shape or "
                                 "memory after it was bound")
            if t.g_codec != t.bound_codec:
                t.cleared = t.zeroable = NULL
            t.g, t.g_codec = t.bound, t.bound_codec
        return self.bound

    cdef int check_unmoved(self) except -1:
        """Refuse parameters that were made read-only or given other memory since the plan."""
        cdef Py_ssize_t i
        cdef Tensor* t
        cdef cnp.ndarray p
        for i in range(self.n):
            t = &self.tensors[i]
            p = <cnp.ndarray> self.params[i]
            if not (is_unmoved(p, t.p, t.n, t.p_codec) and cnp.PyArray_ISWRITEABLE(p)):
                raise ValueError(f"params{self.labels[i]}: was made read-only, or given another "
                                 "dtype, shape or memory, after the optimizer was made")
            if t.copy != NULL:
                p = <cnp.ndarray> self.copies[i]
                if not (is_unmoved(p, t.copy, t.n, t.copy_codec) and cnp.PyArray_ISWRITEABLE(p)):
                    raise ValueError(f"copy_to{self.labels[i]}: was made read-only, or given "
                                     "another shape or memory, after the optimizer was made")

    cdef int check_zeroable(self, list held) except -1:
        """Refuse gradients that can't be zeroed: read-only ones, and two in the same memory."""
        cdef Py_ssize_t i
        cdef bint known = True
        for i in range(self.n):
            if held[i] is not None:
                if not cnp.PyArray_ISWRITEABLE(<cnp.ndarray> held[i]):
                    raise ValueError(f"grads{self.labels[i]}: expected a writeable array, which "
                                     "zero_grads zeroes, found a read-only one")
                known = known and self.tensors[i].zeroable == self.tensors[i].g
        if not known:
            checks.check_disjoint([(held[i], f"grads{self.labels[i]}") for i in range(self.n)
                                   if held[i] is not None])
            # Valid for this very set of gradients.
            for i in range(self.n):
                self.tensors[i].zeroable = self.tensors[i].g

    cdef tuple configure(self, dict rules, configure, double unscale):
        """Work out the settings of each distinct (group, step count), and point tensors there.

        Returns them, and whether one of them clips a norm.
        """
        cdef Py_ssize_t i, group = -1
        cdef cnp.int64_t step = -1
        cdef Tensor* t
        cdef dict known = {}
        cdef list configured = []
        cdef bint clips = False
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
                    clips |= not isinf(self.settings[<Py_ssize_t> setting].clip_norm)
                    configured.append(row)
            t.setting = setting
            if not t.is_double and not self.settings[t.setting].in_float_range:
                raise ValueError(f"params{self.labels[i]}: its hyper-parameters or grad_scale make "
                                 f"a coefficient out of float32's range: {configured[setting]}")
            if self.settings[t.setting].stages.n_states != t.n_states:
                raise RuntimeError(f"params{self.labels[i]}: its states do not fit the rule")
        return configured, clips

    cdef bint measure(self, list held) except -1:
        """Sum up the squares of each gradient, of each group's and of all; False if not finite.

        Gradients that aren't finite make a sum that isn't, and so does nothing else.
        """
        cdef Py_ssize_t i, k = 0, elements = 0
        cdef Tensor* t
        cdef Sum* total
        if self.sums == NULL:
            for i in range(self.n):
                k += cut_blocks(NULL, NULL, self.tensors[i].n, 0)
            free(self.blocks)
            self.blocks = <Block*> calloc(max(k, 1), sizeof(Block))
            self.sums = <Sum*> calloc(self.n + self.n_groups + 1, sizeof(Sum))
            if self.blocks == NULL or self.sums == NULL:
                free(self.sums)
                self.sums = NULL
                raise MemoryError
        k = 0
        for i in range(self.n):
            t = &self.tensors[i]
            if t.g != NULL:
                k += cut_blocks(self.blocks + k, t.g, t.n, t.g_codec)
                elements += t.n
        add_up_blocks(self.blocks, k, elements, held, 1.0)
        total = &self.sums[self.n + self.n_groups]
        memset(&self.sums[0], 0, (self.n + self.n_groups + 1) * sizeof(Sum))
        k = 0
        for i in range(self.n):
            t = &self.tensors[i]
            if t.g != NULL:
                sum_of(self.blocks + k, cut_blocks(NULL, NULL, t.n, 0), held[i], &self.sums[i])
                k += cut_blocks(NULL, NULL, t.n, 0)
                add_to(&self.sums[self.n + t.group], &self.sums[i])
                add_to(total, &self.sums[i])
        return is_finite(total)

    cdef refuse_nonfinite(self, list held):
        for i in range(self.n):
            if held[i] is not None and not is_finite(&self.sums[i]):
                checks.refuse_nonfinite(held[i], f"grads{self.labels[i]}")

    cdef int mark_stages(self, dict rules, StepRecord record, list configured, bint clips,
                         double unscale, bint zero) except -1:
        """Note the factor of each gradient, with its norm clipped, and each tensor's stages."""
        cdef Py_ssize_t i, k
        cdef Tensor* t
        cdef Setting* setting
        cdef Sum* total
        cdef double norm, least = 1.0
        cdef Py_ssize_t elements = 0
        for i in range(self.n):
            t = &self.tensors[i]
            t.flags = (AVERAGE if t.average != NULL else 0) | (COPY if t.copy != NULL else 0)
            if t.g == NULL:
                elements += t.n if t.flags else 0
                continue
            elements += t.n
            setting = &self.settings[t.setting]
            t.factor = setting.factor
            if clips and not isinf(setting.clip_norm):
                total = &self.sums[i if self.clip_by == 2 else
                                   self.n + (t.group if self.clip_by == 1 else self.n_groups)]
                norm = norm_of(total)
                if not norm * unscale <= setting.clip_norm:    # or NaN, which then spreads
                    t.factor = copysign(setting.clip_norm / norm, setting.factor)
                    if not t.is_double and isfinite(norm) and <float> t.factor == 0:
                        raise ValueError(f"grads{self.labels[i]}: a norm of {norm * unscale} can't "
                                         f"be clipped to {setting.clip_norm} in float32")
                    if not setting.clip_norm / (norm * unscale) >= least:
                        least = setting.clip_norm / (norm * unscale)
            t.flags |= setting.stages.flags | (SCALE if t.factor != 1.0 else 0)
            if t.coded or t.g_codec != t.is_double:
                t.flags |= STORED
                for k in range(t.n_words):
                    self.common.beside[i].key[k] = fastgd_random_key(
                        self.seed, self.counts[i] + 1, i + (<cnp.uint64_t> k << 40))
            if zero:
                t.flags |= ZERO_GRADIENT
        if clips:
            record.clip_factor = least
        self.elements = elements

    cdef void count_up(self, bint averaged) noexcept:
        cdef Py_ssize_t i
        cdef cnp.int64_t* averages
        for i in range(self.n):
            self.counts[i] += self.tensors[i].g != NULL
        if averaged:
            averages = <cnp.int64_t*> cnp.PyArray_DATA(self.average_steps)
            for i in range(cnp.PyArray_SIZE(self.average_steps)):
                averages[i] += 1

    cdef void zero_gradients(self) noexcept:
        cdef Py_ssize_t i
        for i in range(self.n):
            if self.tensors[i].g != NULL:
                memset(self.tensors[i].g, 0,
                       self.tensors[i].n * codec_rows[self.tensors[i].g_codec].size)

    cdef int sweep(self) except -1:
        cdef Py_ssize_t k, threads = threads_for(self.elements, self.n_chunks)
        with nogil:
            if threads <= 1:
                run(self.tensors, self.settings, &self.common,
                    self.chunks, self.chunks + self.n_chunks)
            else:
                for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                    run(self.tensors, self.settings, &self.common,
                        share_of(self.chunks, self.n_chunks, k, threads),
                        share_of(self.chunks, self.n_chunks, k + 1, threads))

    cdef int step_by_reference(self, list held, list configured, tuple average) except -1:
        """The same step by the specification itself."""
        cdef Py_ssize_t i
        cdef Tensor* t
        for i in range(self.n):
            t = &self.tensors[i]
            *states, p = self.kept[i]
            if t.g != NULL:
                name, coefficients, stages = configured[t.setting]
                stages = reference.Stages(t.factor, *stages[1:])
                keys = [self.common.beside[i].key[k] for k in range(t.n_words)]
                g = stored.as_stored(held[i])
                reference.step_stored(name, p, g, states, coefficients, stages, keys)
            if t.flags & AVERAGE:
                reference.average(self.averages[i], p, *average)
            if t.flags & COPY:
                reference.copy(stored.as_stored(self.copies[i]), p)
            if t.flags & ZERO_GRADIENT:
                held[i][...] = 0


cdef char* address_of(a) except? NULL:
    return NULL if a is None else cnp.PyArray_BYTES(<cnp.ndarray> a)


cdef inline cnp.int64_t max_of(cnp.int64_t* values, Py_ssize_t n) noexcept:
    cdef cnp.int64_t largest = 0
    cdef Py_ssize_t i
    for i in range(n):
        largest = max(largest, values[i])
    return largest


cdef int _bfloat16 = -1        # NumPy's number of ml_dtypes' type, once it was seen


cdef inline int codec_of_type(int kind) noexcept:
    """The codec of arrays of one of NumPy's types, or -1."""
    if kind == <int> cnp.NPY_FLOAT:
        return FLOAT32
    if kind == <int> cnp.NPY_DOUBLE:
        return FLOAT64
    if kind == <int> cnp.NPY_USHORT or kind == _bfloat16:
        return BFLOAT16
    return FLOAT16 if kind == <int> cnp.NPY_FLOAT16 else -1


cdef int codec_of(cnp.ndarray a) except -1:
    """The codec of an array that was found to be of floats."""
    global _bfloat16
    cdef int codec = codec_of_type(cnp.PyArray_TYPE(a))
    if codec < 0:
        assert a.dtype.name == "bfloat16"
        _bfloat16, codec = cnp.PyArray_TYPE(a), BFLOAT16
    return codec


cdef inline bint is_unmoved(cnp.ndarray a, const char* start, Py_ssize_t size,
                            int codec) noexcept:
    """Whether an array is still the memory that the plan knows it to be."""
    cdef Py_ssize_t n = 1
    cdef int j
    for j in range(cnp.PyArray_NDIM(a)):
        n *= cnp.PyArray_DIM(a, j)
    return (cnp.PyArray_BYTES(a) == start and n == size
            and codec_of_type(cnp.PyArray_TYPE(a)) == (BFLOAT16 if codec == SPLIT else codec))


cdef bint fits(cnp.ndarray g, cnp.ndarray p, int order) noexcept:
    """Whether a gradient is of floats, in its parameter's shape and layout."""
    cdef int needed = order | cnp.NPY_ARRAY_ALIGNED
    cdef int j
    if (codec_of_type(cnp.PyArray_TYPE(g)) < 0 or cnp.PyArray_NDIM(g) != cnp.PyArray_NDIM(p)
            or (cnp.PyArray_FLAGS(g) & needed) != needed or not cnp.PyArray_ISNOTSWAPPED(g)):
        return False
    for j in range(cnp.PyArray_NDIM(p)):
        if cnp.PyArray_DIM(g, j) != cnp.PyArray_DIM(p, j):
            return False
    return True


cdef int read_setting(Setting* setting, dict rules, tuple row) except -1:
    """Fill a setting from what `configure` returned."""
    cdef Py_ssize_t j
    name, coefficients, stages = row
    rule = reference.RULES[name]
    if len(coefficients) != len(rule.coefficients) or len(coefficients) > MAX_COEFFICIENTS:
        raise RuntimeError(f"rule {name} takes {len(rule.coefficients)} coefficients "
                           f"of at most {MAX_COEFFICIENTS}, not {len(coefficients)}")
    for j in range(len(coefficients)):
        setting.c64[j] = coefficients[j]
        setting.c32[j] = <float> setting.c64[j]
    setting.stages.n_states = <int> len(rule.states)
    (setting.factor, setting.stages.weight_decay, setting.stages.decoupled,
     setting.stages.clip_value, setting.clip_norm) = stages
    # A factor that float32 rounds to 0 would quietly drop all gradients.
    setting.in_float_range = (<float> setting.factor != 0
                              and isfinite(<float> setting.factor)
                              and isfinite(<float> setting.stages.weight_decay)
                              and isfinite(<float> setting.stages.decoupled))
    for j in range(len(coefficients)):
        setting.in_float_range &= isfinite(setting.c32[j])
    setting.stages.flags = ((CLIP_VALUE if not isinf(setting.stages.clip_value) else 0)
                            | (L2_DECAY if setting.stages.weight_decay != 0.0 else 0)
                            | (DECOUPLED_DECAY if setting.stages.decoupled != 1.0 else 0))
    if rules is not None:
        loops = rules[name]
        for j in range(2):
            setting.rule[j] = <void*> <size_t> loops[j]


# --------------------------------------------------------------------------------------------------

cdef class Measure:
    """Arrays of a tree, cut into blocks, whose norm is wanted."""

    cdef Block* blocks
    cdef Py_ssize_t n, capacity, elements
    cdef list arrays

    def __dealloc__(self):
        free(self.blocks)

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
        if self.n + more > self.capacity:
            more += 2 * self.capacity + 64
            blocks = <Block*> realloc(self.blocks, (self.n + more) * sizeof(Block))
            if blocks == NULL:
                raise MemoryError
            self.blocks, self.capacity = blocks, self.n + more
        self.n += cut_blocks(self.blocks + self.n, cnp.PyArray_BYTES(x), n, codec_of(x))
        self.elements += n
        self.arrays.append(x)

    cdef double norm(self) except? -1:
        cdef Sum total, one
        cdef Py_ssize_t k = 0, n
        cdef cnp.ndarray x
        add_up_blocks(self.blocks, self.n, self.elements, self.arrays, 1.0)
        total.plain = total.scaled = 0.0
        for x in self.arrays:
            n = cut_blocks(NULL, NULL, cnp.PyArray_SIZE(x), 0)
            sum_of(self.blocks + k, n, x, &one)
            add_to(&total, &one)
            k += n
        return norm_of(&total)


cdef tuple keys_of(path):
    """The keys of a path that is nested as (path of the parent, key), less the outermost."""
    return () if path is None or path[0] is None else (*keys_of(path[0]), path[1])


cdef bint is_plain(cnp.ndarray x) noexcept:
    """Whether an array is of floats in memory that can be read from start to end."""
    return (codec_of_type(cnp.PyArray_TYPE(x)) >= 0 and cnp.PyArray_ISBEHAVED_RO(x)
            and (cnp.PyArray_IS_C_CONTIGUOUS(x) or cnp.PyArray_IS_F_CONTIGUOUS(x)))


def global_norm(tree):
    """The norm of all arrays in a tree; see `fastgd.functional.global_norm`."""
    cdef Measure measure = Measure.__new__(Measure)
    measure.arrays = []
    measure.add(tree, None, None)
    return measure.norm()

"""The engine: checks of every tensor, then one sweep over all of them without the GIL.

A `Plan` resolves the tensors of an optimizer to pointers once and cuts them into chunks.  A step
then reads the gradients' pointers, asks for the coefficients, and runs the rules of the chosen
backend chunk by chunk, on one thread or several.  Nothing is written before everything is checked.
"""

import os
from collections.abc import Mapping

cimport cython
cimport numpy as cnp
import numpy as np
from cython.parallel cimport prange
from libc.math cimport copysign, fabs, isfinite, isinf, isnan, sqrt
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from cpython.pycapsule cimport PyCapsule_CheckExact, PyCapsule_GetPointer

from fastgd.kernels._grad_pointers cimport GIVEN, Given
from fastgd.kernels._types cimport *

from fastgd.kernels import reference
from fastgd.kernels.memory import buffers, checks
from fastgd.kernels.spec import codecs, coded_array

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

# From so many bytes on, parameters and states of all tensors don't stay in a core's own cache.
cdef Py_ssize_t CACHED = 1 << 21

cdef object _MISSING = object()

# What a norm is that of, and what to do with gradients that aren't finite.
cdef dict CLIP_BY = {"all": 0, "group": 1, "tensor": 2}
cdef dict NONFINITE = {"propagate": 0, "skip": 1, "raise": 2}

include "engine/sweep.pxi"
include "engine/backend.pxi"
include "engine/norms/sums.pxi"
include "engine/arrays.pxi"
include "engine/layout.pxi"
include "engine/norms/plan.pxi"
include "engine/norms/tree.pxi"


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
        none was too large, None if none is clipped.  Norms of rows (``clip_ratio``) don't count.
    """

    cdef readonly long long step
    cdef readonly bint skipped
    cdef readonly object grad_norm, clip_factor

    def __repr__(self):
        return (f"StepRecord(step={self.step}, skipped={self.skipped}, "
                f"grad_norm={self.grad_norm}, clip_factor={self.clip_factor})")


cdef class Plan(Measured):
    """The step over all tensors of a `Layout`, whose arguments it takes."""

    def step(self, grads, configure, double unscale, *, tuple average=None, bint zero=False,
             tuple reset=(), cnp.ndarray tally=None, double amount=0.0, combine=None):
        """Update every parameter that has a gradient, and its states, in place.

        Parameters
        ----------
        grads : object or None
            Gradients in the plan's structure; None for those bound beforehand; or a capsule of
            as many `Given` as there are parameters, which are flat then.
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
        combine : callable, optional
            Where others hold the rest of the gradients: called with the sums of squares, of shape
            (parameters + groups + 1, 2); puts those of all in their place.

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
            return self.step_alone(grads, configure, unscale, average, zero, reset, tally, amount,
                                   combine)
        finally:
            self.busy = False

    cdef StepRecord step_alone(self, grads, configure, double unscale, tuple average, bint zero,
                               tuple reset, cnp.ndarray tally, double amount, combine):
        cdef dict rules = _rules
        cdef StepRecord record = StepRecord.__new__(StepRecord)
        cdef bint finite = True, norms
        cdef Sum* total
        cdef int j
        if not PyCapsule_CheckExact(grads):    # else they were looked at with the gradients
            self.check_unmoved()
        held = self.hold_gradients(grads, zero or rules is None)
        if zero:
            self.check_zeroable(held)
        if average is not None:
            self.common.beta, self.common.gamma = average
        for j in range(2):
            self.common.staged[j] = _staged[j]
        configured, clips, units = self.configure(rules, configure, unscale)
        norms = clips or self.nonfinite or combine is not None
        if norms or units:
            self.measure(rules, held, norms, units)
        if norms:
            if combine is not None:
                self.combine_sums(combine)
            total = &self.sums[self.n + self.n_groups]
            finite, record.grad_norm = is_finite(total), norm_of(total) * unscale
        if not finite and self.nonfinite == <int> NONFINITE["raise"]:
            self.refuse_nonfinite(self.given_arrays() if held is None else held)
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

    cdef tuple configure(self, dict rules, configure, double unscale):
        """Work out the settings of each distinct (group, step count), and point tensors there.

        Returns them, and whether one of them clips a norm, and whether one clips those of units.
        """
        cdef Py_ssize_t i, group = -1
        cdef cnp.int64_t step = -1
        cdef Tensor* t
        cdef dict known = {}
        cdef list configured = []
        cdef bint clips = False, units = False
        for i in range(self.n):
            t = &self.tensors[i]
            if t.g == NULL:
                continue
            if t.group != group or self.counts[i] != step:
                group, step = t.group, self.counts[i]
                setting = known.get((group, step))
                if setting is None:
                    if not 0 <= step < 1 << 53:
                        raise ValueError(f"{checks.state_label(self.labels[i], 'step')}: "
                                         f"expected a number from 0 to below 2^53, found {step}")
                    setting = known[group, step] = len(configured)
                    row = configure(group, step + 1, unscale)
                    read_setting(&self.settings[<Py_ssize_t> setting], rules, row)
                    clips |= not isinf(self.settings[<Py_ssize_t> setting].clip_norm)
                    units |= not isinf(self.settings[<Py_ssize_t> setting].clip_ratio)
                    configured.append(row)
            t.setting = setting
            if not t.is_double and not self.settings[t.setting].in_float_range:
                raise ValueError(f"params{self.labels[i]}: its hyper-parameters or grad_scale make "
                                 f"a coefficient out of float32's range: {configured[setting]}")
            if self.settings[t.setting].n_states != t.n_states:
                raise RuntimeError(f"params{self.labels[i]}: its states do not fit the rule")
            t.unit, t.n_units = t.n, 1
            if not isinf(self.settings[t.setting].clip_ratio):
                if t.row == 0:
                    raise RuntimeError(f"params{self.labels[i]}: its rows are no pieces of memory")
                t.unit, t.n_units = t.row, t.n // t.row
        return configured, clips, units

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
            # Where the factor is NaN all of the gradient becomes that.
            if not (isinf(setting.clip_ratio) or isnan(t.factor)) and self.clip_units(i, rules):
                t.flags = t.flags & ~SCALE | SCALE_UNITS
            if t.coded or t.g_codec != t.is_double:
                t.flags |= STORED
                for k in range(t.n_words):
                    self.common.beside[i].key[k] = fastgd_random_key(
                        self.seed, self.counts[i] + 1, self.first + i + (<cnp.uint64_t> k << 40))
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
                g = coded_array.as_stored(held[i])
                units = None
                if t.flags & SCALE_UNITS:
                    units = np.array([t.factors[k] for k in range(t.n_units)])
                reference.step_stored(name, p, g, states, coefficients, stages, keys, units)
            if t.flags & AVERAGE:
                reference.average(self.averages[i], p, *average)
            if t.flags & COPY:
                reference.copy(coded_array.as_stored(self.copies[i]), p)
            if t.flags & ZERO_GRADIENT:
                held[i][...] = 0


cdef inline cnp.int64_t max_of(cnp.int64_t* values, Py_ssize_t n) noexcept:
    cdef cnp.int64_t largest = 0
    cdef Py_ssize_t i
    for i in range(n):
        largest = max(largest, values[i])
    return largest


cdef int read_setting(Setting* setting, dict rules, tuple row) except -1:
    """Fill a setting from what `configure` returned."""
    cdef Py_ssize_t j
    cdef bytes fused
    name, coefficients, stages = row
    rule = reference.RULES[name]
    if len(coefficients) != len(rule.coefficients) or len(coefficients) > MAX_COEFFICIENTS:
        raise RuntimeError(f"rule {name} takes {len(rule.coefficients)} coefficients "
                           f"of at most {MAX_COEFFICIENTS}, not {len(coefficients)}")
    for j in range(len(coefficients)):
        setting.c64[j] = coefficients[j]
        setting.c32[j] = <float> setting.c64[j]
    setting.n_states = <int> len(rule.states)
    (setting.factor, setting.stages.weight_decay, setting.stages.decoupled,
     setting.stages.clip_value, setting.clip_norm, setting.clip_ratio) = stages
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
        fused = _fused[name]
        memcpy(&setting.fused[0], <const char*> fused, sizeof(setting.fused))

"""The engine: checks of every tensor, then one sweep over all of them without the GIL.

A `Plan` has a `Layout`, the tensors of an optimizer resolved to pointers once and cut into chunks;
`Gradients`, which reads those of a step; and `PlanNorms`, which measures what is to be clipped.  A
step reads the gradients' pointers, asks for the coefficients, and runs the rules of the chosen
backend chunk by chunk, on one thread or several.  Nothing is written before everything is checked.
"""

import os
from collections.abc import Mapping

cimport cython
cimport numpy as cnp
import numpy as np
from cython.parallel cimport prange
from libc.math cimport INFINITY, NAN, copysign, fabs, isfinite, isinf, isnan, sqrt
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy, memset

from cpython.object cimport PyObject, PyTypeObject
from cpython.pycapsule cimport PyCapsule_CheckExact, PyCapsule_GetPointer
from cpython.ref cimport Py_INCREF

from fastgd.kernels._grad_pointers cimport GRAD_POINTERS, GradPointer
from fastgd.kernels._types cimport *

from fastgd.kernels import reference
from fastgd.kernels.memory import buffers, checks, rows as memory_rows
from fastgd.kernels.spec import codecs, coded_array, lines
from fastgd.kernels.spec import catch_up as catch_up_spec, elementary, powers, rows as rows_spec
from fastgd.kernels.spec.matrices import as_matrix, matrix_of, renewed
from fastgd.kernels.spec.registry import DENOMINATOR, PAIRS

cdef extern from "fastgd_codecs.h" nogil:
    cnp.uint64_t fastgd_random_key(cnp.uint64_t, cnp.uint64_t, cnp.uint64_t)

cdef extern from "Python.h":
    PyObject* PyList_GET_ITEM(list, Py_ssize_t)    # lent, where Cython would count a reference
    int Py_EnterRecursiveCall(const char* where) except 1
    void Py_LeaveRecursiveCall()

cnp.import_array()

# Elements a thread works on at a time, at most.
cdef Py_ssize_t CHUNK = 32768
# Elements of which a thread takes one portion after the other, where there are more.
cdef Py_ssize_t PIECE = 4 * CHUNK
# From this size on a tensor's chunks are cut to start on cache lines.
cdef Py_ssize_t ALIGN_FROM = 1024
# With fewer elements than this in all, waking a second thread costs more than it saves.
cdef Py_ssize_t PARALLEL_FROM = 32768

# Sums of squares of fewer elements in all are one thread's work, and of each array at most a block.
cdef Py_ssize_t FEW = min(PARALLEL_FROM, <Py_ssize_t> BLOCK)

# Tensors of so many elements at most are swept over twice before the next ones are.
cdef Py_ssize_t BATCH = 1 << 19

# From so many bytes on, parameters and states of all tensors don't stay in a core's own cache.
cdef Py_ssize_t CACHED = 1 << 21

# The sizes that the specification has as well, in spec/sizes.py, as they were compiled.
SIZES = {"TILE": TILE, "LANES": LANES, "BLOCK": BLOCK, "MAX_STATES": MAX_STATES,
         "MAX_COEFFICIENTS": MAX_COEFFICIENTS, "MAX_SUMS": MAX_SUMS,
         "MAX_NUMBERS": MAX_NUMBERS, "SLICES": SLICES}

cdef object _MISSING = object()


def raised(double x, double n):
    """The n-th power of x, with the same bits everywhere: `powers.raised`, compiled."""
    cdef double result = fastgd_raised(x, n)
    return result if isfinite(result) else powers.raised(x, n)


def logarithm(double x):
    """ln x, with the same bits everywhere: `elementary.logarithm`, compiled."""
    cdef double result = fastgd_logarithm(x)
    return result if isfinite(result) else elementary.logarithm(x)


def cospi(double x):
    """cos πx, with the same bits everywhere: `elementary.cospi`, compiled."""
    cdef double result = fastgd_cospi(x)
    return result if isfinite(result) else elementary.cospi(x)


# What a norm is that of, and what to do with gradients that aren't finite.
cdef enum:
    BY_ALL = 0
    BY_GROUP = 1
    BY_TENSOR = 2
    PROPAGATE = 0
    SKIP = 1
    RAISE = 2

# The most steps that the counts of rows may come to.
cdef cnp.int64_t MOST_STEPS = 0xFFFFFFFF

cdef dict CLIP_BY = {"all": BY_ALL, "group": BY_GROUP, "tensor": BY_TENSOR}
cdef dict NONFINITE = {"propagate": PROPAGATE, "skip": SKIP, "raise": RAISE}

include "engine/arrays.pxi"
include "loops/_fused_codecs.pxi"
include "engine/records.pxi"
include "engine/rounding.pxi"
include "engine/matrices.pxi"
include "engine/bases.pxi"
include "engine/rules.pxi"
include "engine/memory.pxi"
include "engine/stage_flags.pxi"
include "engine/step_record.pxi"
include "engine/backend.pxi"
include "engine/group_steps.pxi"
include "engine/hyper_rows.pxi"
include "engine/tuning.pxi"
include "engine/crews.pxi"
include "engine/sweep.pxi"
include "engine/row_sort.pxi"
include "engine/rows.pxi"
include "engine/row_sweep.pxi"
include "engine/lines.pxi"
include "engine/layout.pxi"
include "engine/own_steps.pxi"
include "engine/whole_model.pxi"
include "engine/owners.pxi"
include "engine/catch_up.pxi"
include "engine/gradients.pxi"
include "engine/by_reference.pxi"
include "engine/norms/sums.pxi"
include "engine/norms/rows.pxi"
include "engine/norms/plan.pxi"
include "engine/norms/tree.pxi"


cdef class Plan:
    """The step over all tensors of an optimizer.

    Parameters
    ----------
    structure : None, list or dict
        The form in which gradients come: None for a bare array, else lists and dicts nested like
        the parameters, with None in place of each array.
    params : list of ndarray or `coded_array.CodedArray`
        The parameters in the order of `structure`; contiguous, writeable, of a dtype of floats.
        float64 is computed with as it is, everything else as float32.
    labels : sequence of str
        What to call each parameter in an error, less the leading ``params``; asked for in errors
        alone.
    groups : list of int
        The group each parameter belongs to.
    states : list of tuple of ndarray or `coded_array.CodedArray`
        The states of each parameter, in the order of its rule.
    rules : list of str
        The rule of each parameter.
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
    units : list of Axis or None, optional
        Where the units of each parameter lie, of which the norms may be clipped: contiguous or
        interleaved.  None where they are neither.  By default parameters are one unit each.
    centralized : list of bool, optional
        Whether the mean of each unit of a parameter's gradient is subtracted from it.
    numbers : list of tuple of ndarray of float64, shape (), optional
        The numbers that are kept for each parameter, in the order of its rule.
    owners : list of int, optional
        Whose coefficients each parameter has, as the parameters of a group may follow several
        rules; by default its group.
    sizes : list of int, optional
        The elements that each parameter has in all, where only a shard of it is here.
    axes : list of Axes or None, optional
        Those of each parameter's rows and columns, where its rule has states of these.
    hyper_rows : HyperRows, optional
        What compiled backends take coefficients from, instead of asking for them.
    shapes : list of (tuple, bool), optional
        The shape of each parameter, and whether its rows follow each other in memory, where arrays
        only stand for them; by default the array's.
    lazy : bool
        Whether gradients by rows may leave undone what happens to rows without a gradient.
    sparse : bool
        Whether they may leave undone what a rule does to these, but not decay.
    missed : list of (ndarray, ndarray, ParamGroup) or None, optional
        What `Missed` takes of each parameter whose rows catch up, if that is what they are to do.
    matrices : list of `matrices.Matrix`, optional
        What each parameter is as a matrix, for rules with a matrix step; by default as its array
        is.

    Raises
    ------
    TypeError, ValueError
        If an array is not what it has to be, or two of them overlap.

    Attributes
    ----------
    torn : bool
        Whether a step ended when states had been written and parameters not; may be set.
    """

    cdef Layout layout
    cdef Gradients gradients
    cdef PlanNorms norms
    cdef public unsigned long long seed
    cdef public unsigned long long first   # what random words count the first parameter as
    cdef cnp.ndarray average_steps, skipped
    cdef int clip_by, nonfinite
    cdef readonly cnp.ndarray steps
    cdef cnp.int64_t* counts    # of `steps`
    cdef GroupStep* group_steps
    cdef Owners owners
    cdef readonly HyperRows hyper_rows
    cdef StepArgs args
    cdef Crew crew
    cdef Py_ssize_t parallel_from    # the elements from which on this step uses threads
    cdef Py_ssize_t elements    # that this step works on
    cdef Cohort* cohorts        # of this step, one for each of the group steps
    cdef Py_ssize_t n_cohorts
    cdef cnp.int64_t* stepped   # 1 for each tensor that has a gradient, else 0
    cdef cnp.int64_t* expected  # the counts as the last step left them
    cdef bint settled           # whether the last step did all that it was to do,
    cdef bint alike             # and this one does the same to each tensor
    cdef bint busy
    cdef bint lazy, sparse      # what steps by rows may leave undone
    cdef readonly bint wrote    # whether the last step came to what it writes

    def __cinit__(self, structure, params, labels, list groups, states,
                  list rules, cnp.ndarray steps, grads=None, *, list averages=None,
                  cnp.ndarray average_steps=None, copies=None, clip_by="all",
                  nonfinite="propagate", cnp.ndarray skipped=None, unsigned long long seed=0,
                  list units=None, list centralized=None, list numbers=None, list owners=None,
                  list sizes=None, list matrices=None, list axes=None, HyperRows hyper_rows=None,
                  list shapes=None, bint lazy=False, bint sparse=False,
                  list missed=None):
        cdef Py_ssize_t i
        self.seed = seed
        self.steps, self.counts = steps, <cnp.int64_t*> cnp.PyArray_DATA(steps)
        self.average_steps, self.skipped = average_steps, skipped
        self.clip_by, self.nonfinite = CLIP_BY[clip_by], NONFINITE[nonfinite]
        self.layout = Layout(params, labels, groups, states, rules, averages, copies, units,
                             numbers, sizes, matrices, axes, centralized, shapes)
        self.lazy, self.sparse = lazy or missed is not None, sparse
        self.layout.note_missed(missed)
        for i in range(self.layout.n):
            self.layout.tensors[i].owner = (groups if owners is None else owners)[i]
        self.hyper_rows = hyper_rows
        self.owners = Owners(self.layout, rules, hyper_rows)
        self.gradients = Gradients(self.layout, structure, grads)
        self.norms = PlanNorms(self.layout, self.gradients)
        self.group_steps = <GroupStep*> calloc(self.layout.n, sizeof(GroupStep))
        self.cohorts = <Cohort*> calloc(self.layout.n, sizeof(Cohort))
        self.stepped = <cnp.int64_t*> calloc(self.layout.n, sizeof(cnp.int64_t))
        self.expected = <cnp.int64_t*> calloc(self.layout.n, sizeof(cnp.int64_t))
        if (self.group_steps == NULL or self.cohorts == NULL or self.stepped == NULL
                or self.expected == NULL):
            raise MemoryError
        self.args.codings, self.args.prefetch = self.layout.codings, self.layout.prefetch
        self.parallel_from = PARALLEL_FROM
        size_up(&self.crew, self.layout)

    def __dealloc__(self):
        free(self.group_steps)
        free(self.cohorts)
        free(self.stepped)
        free(self.expected)

    def refresh(self):
        """Take the hyper-parameters of groups as they are now."""
        if self.hyper_rows is not None:
            self.hyper_rows.fill()

    @property
    def bound(self):
        """The bound gradients' arrays, None where there is none; or None."""
        return self.gradients.bound

    def holds(self):
        """Whether parameters, copies and bound gradients are still the memory that they were."""
        try:
            self.layout.check_unmoved()
            self.gradients.check_unmoved()
        except ValueError:
            return False
        return True

    @property
    def torn(self):
        return self.layout.torn

    @torn.setter
    def torn(self, bint value):
        self.layout.torn = value

    cpdef int refuse_torn(self) except -1:
        """Raise RuntimeError if the last step ended between its sweeps."""
        if self.layout.torn:
            raise RuntimeError("step: the last one failed between its two sweeps, when states had "
                               "been changed and parameters not all: go back to a checkpoint")

    def step(self, grads, configure, double unscale, *, tuple average=None, bint zero=False,
             tuple reset=(), cnp.ndarray tally=None, double amount=0.0, combine=None,
             combine_sums=None):
        """Update every parameter that has a gradient, and its states, in place.

        Parameters
        ----------
        grads : object or None
            Gradients in the plan's structure; None for those bound beforehand; or a capsule of
            as many `GradPointer` as there are parameters, which are flat then.
        configure : callable
            ``configure(owner, t, unscale)``, for a parameter's t-th step, returns the rule's name,
            its coefficients, and the fields of `reference.Stages`.
        unscale : float
            The factor of all gradients that undoes the scale of the loss; passed to `configure`.
        average : tuple of two floats, optional
            The weights, in the averages, of what they were and of the parameters.
        zero : bool
            Zero the gradients as well, also when the step is skipped.
        reset : tuple of ndarray
            Zero these, too.
        tally : ndarray of float64, shape (1,), optional
            Add `amount` to this, too, unless the step is skipped.
        combine : callable, optional
            Where other processes have the other shards: called with this one's sums of squares, of
            shape (parameters + groups + 1, 2), which it replaces by the sums over all shards.
        combine_sums : callable, optional
            The same for the sums of terms of rules with two sweeps, of shape (parameters, terms),
            called between these.  If it raises, states have been changed and parameters not.

        Returns
        -------
        StepRecord

        Raises
        ------
        TypeError, ValueError
            If a gradient does not fit; nothing has been changed then.
        FloatingPointError
            If a gradient isn't finite and that is to be an error; nothing has been changed then.
        RuntimeError
            If called from within itself, or if the last step ended between its sweeps.

        Notes
        -----
        One thread at a time: the caller sees to that.
        """
        if self.busy:
            raise RuntimeError("step() was called from within a step of the same optimizer")
        self.refuse_torn()
        self.busy, self.wrote = True, False
        try:
            return self.step_alone(grads, configure, unscale, average, zero, reset, tally, amount,
                                   combine, combine_sums)
        finally:
            self.busy = False

    cdef StepRecord step_alone(self, grads, configure, double unscale, tuple average, bint zero,
                               tuple reset, cnp.ndarray tally, double amount, combine,
                               combine_sums):
        cdef Backend backend = backend_in_use()
        cdef StepRecord record = StepRecord.__new__(StepRecord)
        cdef bint finite = True, norms, settled = self.settled
        cdef Sum* total
        cdef list arrays, renewals = []
        self.settled = False
        if not PyCapsule_CheckExact(grads):    # else they were looked at with the gradients
            self.layout.check_unmoved()
        arrays = self.gradients.take(grads, zero or not backend.compiled, backend)
        if zero:
            self.gradients.check_zeroable(arrays)
        if average is not None:
            self.args.beta, self.args.gamma = average
        self.args.loops = &backend.loops
        configured, clips, units = self.configure(backend, configure, unscale, zero, settled)
        norms = clips or self.nonfinite != PROPAGATE or combine is not None
        if self.crew.tuned:
            self.choose_threads(backend, norms or units,
                                combine is not None or combine_sums is not None)
        if norms or units or self.layout.n_centralized:
            self.norms.measure(backend, self.group_steps, norms, units)
        if norms:
            if combine is not None:
                self.norms.combine(combine)
            total = self.norms.sum_of_all()
            finite, record.grad_norm = is_finite(total), norm_of(total) * unscale
        if not finite and self.nonfinite == RAISE:
            self.norms.refuse_nonfinite(self.gradients.arrays_at_pointers() if arrays is None
                                        else arrays)
        if not self.alike:
            self.mark_stages(backend, record, clips, unscale)

        if self.layout.n_matrices:
            if finite or self.nonfinite == PROPAGATE:
                renewals = renewals_of(self.layout, self.group_steps)
            # Products of matrices may overflow, of which NumPy is not to speak in the middle.
            with np.errstate(all="ignore"):
                self.wrote = bool(renewals)
                renew(renewals)
                self.carry_out(backend, record, finite, arrays, configured, average, zero, reset,
                               tally, amount, combine_sums)
        else:
            self.carry_out(backend, record, finite, arrays, configured, average, zero, reset, tally,
                           amount, combine_sums)
        return record

    cdef int carry_out(self, Backend backend, StepRecord record, bint finite, list arrays,
                       list configured, tuple average, bint zero, tuple reset, cnp.ndarray tally,
                       double amount, combine_sums) except -1:
        """Write what the step writes.

        All checks have passed: from here on nothing fails, and no Python code runs in which an
        interrupt could arrive (unless the rules themselves are NumPy's).
        """
        self.wrote = True
        for array in reset:
            (<cnp.ndarray> array).fill(0)
        if not finite and self.nonfinite != PROPAGATE:
            record.skipped = True
            (<cnp.int64_t*> cnp.PyArray_DATA(self.skipped))[0] += 1
            if zero:
                self.gradients.zero()
        else:
            if tally is not None:
                (<double*> cnp.PyArray_DATA(tally))[0] += amount
            self.count_up(average is not None)
            if self.layout.missed is not None:
                self.settle_rows(backend, True, None)
            if backend.compiled:
                self.sweep(combine_sums)
                if self.crew.kind != NULL:
                    note_step(&self.crew, self.elements)
                self.settled = not self.gradients.has_rows
            else:
                step_by_reference(self.layout, self.gradients, arrays, configured, average,
                                  combine_sums)
            if self.layout.missed is not None:
                self.count_rows()
        record.step = max_of(self.counts, self.layout.n)

    cdef tuple configure(self, Backend backend, configure, double unscale, bint zero,
                         bint settled):
        """Fill in the step of each distinct (owner, step count), and point tensors there.

        Returns what they were filled from, whether one clips a norm, and whether one clips those of
        units.  `settled` says whether the last step may have left tensors as this one wants them;
        it stays in `self.alike`, if that is so: there is nothing to do then for each tensor.
        """
        cdef Py_ssize_t k
        cdef GroupStep* group_step
        cdef Cohort* cohort
        cdef Cohort last
        cdef list configured = []
        cdef bint clips = False, units = False
        self.alike = settled and self.gradients.same and memcmp(
            self.counts, self.expected, self.layout.n * sizeof(cnp.int64_t)) == 0
        if self.alike:
            for k in range(self.n_cohorts):
                self.cohorts[k].step += 1
        else:
            self.form_cohorts()
        self.alike &= not (self.layout.draws or self.layout.n_centralized
                           or self.layout.missed is not None)
        self.owners.use(backend)
        for k in range(self.n_cohorts):
            cohort, group_step = &self.cohorts[k], &self.group_steps[k]
            last = cohort[0]
            if not 0 <= cohort.step < 1 << 53:
                label = checks.state_label(self.layout.labels[cohort.first], "step")
                raise ValueError(f"{label}: expected a number from 0 to below 2^53, found "
                                 f"{cohort.step}")
            configured.append(
                self.owners.make(group_step, cohort.owner, cohort.step, configure, unscale))
            clips |= group_step.clip_norm != INFINITY
            units |= group_step.clip_ratio != INFINITY
            cohort.info, cohort.factor = group_step.info, group_step.factor
            cohort.flags = (group_step.stages.flags | flag_of_scale(cohort.factor)
                            | (ZERO_GRADIENT if zero else 0))
            cohort.in_float_range = group_step.in_float_range
            cohort.plain = group_step.clip_norm == INFINITY and group_step.clip_ratio == INFINITY
            self.alike &= (cohort.plain and last.plain and cohort.info == last.info
                           and cohort.factor == last.factor and cohort.flags == last.flags
                           and cohort.in_float_range == last.in_float_range)
        if not self.alike:
            self.check_tensors(backend, configure)
        return configured, clips, units

    cdef int form_cohorts(self) except -1:
        """Find what is distinct, and point each tensor that has a gradient to its cohort."""
        cdef Py_ssize_t i, k = 0, owner = -1
        cdef cnp.int64_t step = -1
        cdef Tensor* t
        cdef dict known = None
        self.n_cohorts = 0
        for i in range(self.layout.n):
            t = &self.layout.tensors[i]
            self.stepped[i] = t.g != NULL
            if t.g == NULL:
                continue
            if self.n_cohorts == 0 or t.owner != owner or self.counts[i] != step:
                if self.n_cohorts and known is None:    # there is mostly but one
                    known = {(owner, step): 0}
                owner, step = t.owner, self.counts[i]
                k = -1 if known is None else known.get((owner, step), -1)
                if k < 0:
                    k = self.n_cohorts
                    self.n_cohorts += 1
                    memset(&self.cohorts[k], 0, sizeof(Cohort))
                    self.cohorts[k].owner, self.cohorts[k].first = owner, i
                    self.cohorts[k].step = step
                    if known is not None:
                        known[owner, step] = k
            t.group_step = k

    cdef int check_tensors(self, Backend backend, configure) except -1:
        """Refuse tensors that their steps don't fit; note what their units are."""
        cdef Py_ssize_t i
        cdef Tensor* t
        cdef GroupStep* group_step
        for i in range(self.layout.n):
            t = &self.layout.tensors[i]
            if t.g == NULL:
                continue
            group_step = &self.group_steps[t.group_step]
            if not group_step.in_float_range and not t.is_double:
                raise ValueError(f"params{self.layout.labels[i]}: its hyper-parameters or "
                                 f"grad_scale make "
                                 f"{out_of_range(group_step, self.owners.rules[t.owner])}, "
                                 "out of float32's range")
            if group_step.info != t.info:
                raise RuntimeError(f"params{self.layout.labels[i]}: its states do not fit the rule")
            if t.missed != NULL:
                self.look_ahead(i, backend, configure)
            if t.rows != NULL:
                self.check_rows(i, group_step, t.rows.length)
            t.n_units = 1
            t.units = Axis(t.n, 1)
            if t.centralized or group_step.clip_ratio != INFINITY:
                if t.own_units.length == 0:
                    raise RuntimeError(f"params{self.layout.labels[i]}: its units are neither "
                                       "contiguous nor interleaved")
                t.n_units = t.n // t.own_units.length
                t.units = t.own_units

    cdef int mark_stages(self, Backend backend, StepRecord record, bint clips,
                         double unscale) except -1:
        """Note the factor of each gradient, with its norm clipped, and each tensor's stages."""
        cdef Py_ssize_t i, k
        cdef Tensor* t
        cdef GroupStep* group_step
        cdef double least = 1.0
        cdef Py_ssize_t elements = 0
        for i in range(self.layout.n):
            t = &self.layout.tensors[i]
            t.flags = (AVERAGE if t.average != NULL else 0) | (COPY if t.copy != NULL else 0)
            t.straight = False
            if t.g == NULL:
                elements += t.n if t.flags else 0
                continue
            elements += t.n if t.rows == NULL else t.rows.n * t.rows.length
            group_step = &self.group_steps[t.group_step]
            t.factor = group_step.factor
            t.flags |= self.cohorts[t.group_step].flags
            if clips and group_step.clip_norm != INFINITY:
                least = self.clip_norm(i, group_step, unscale, least)
                t.flags = t.flags & ~SCALE | flag_of_scale(t.factor)
            if t.centralized:
                t.flags |= CENTRALIZE
            # Where the factor is NaN all of the gradient becomes that.
            if (group_step.clip_ratio != INFINITY and not isnan(t.factor)
                    and self.norms.clip_units(backend, i, group_step.clip_ratio)):
                t.flags = t.flags & ~SCALE | SCALE_UNITS
            if t.coded or t.g_codec != t.is_double:
                t.flags |= CODED
                for k in range(t.n_words):
                    self.layout.codings[i].key[k] = fastgd_random_key(
                        self.seed, self.counts[i] + 1, self.first + i + (<cnp.uint64_t> k << 40))
            t.straight = (t.flags & t.info.last_flags == 0 and not t.at_once and t.lines == NULL
                          and t.rows == NULL and t.info.entries < 0 and not t.info.last.kept)
        if clips:
            record.clip_factor = least
        self.elements = elements

    cdef double clip_norm(self, Py_ssize_t i, const GroupStep* group_step, double unscale,
                          double least) except? -1:
        """Note the factor that clips the norm of a gradient; returns the least so far."""
        cdef Tensor* t = &self.layout.tensors[i]
        cdef double norm, shrinks
        if self.clip_by == BY_TENSOR:
            norm = norm_of(&self.norms.sums[i])
        elif self.clip_by == BY_GROUP:
            norm = norm_of(self.norms.sum_of_group(t.group))
        else:
            norm = norm_of(self.norms.sum_of_all())
        if norm * unscale <= group_step.clip_norm:
            return least
        # More, or NaN, which then spreads.
        t.factor = copysign(group_step.clip_norm / norm, group_step.factor)
        if (not t.is_double and isfinite(norm) and <float> t.factor == 0
                and group_step.clip_norm != 0):
            raise ValueError(f"grads{self.layout.labels[i]}: a norm of {norm * unscale} can't "
                             f"be clipped to {group_step.clip_norm} in float32")
        shrinks = group_step.clip_norm / (norm * unscale)
        return least if shrinks >= least else shrinks

    cdef void count_up(self, bint averaged) noexcept:
        cdef Py_ssize_t i
        cdef cnp.int64_t* averages
        for i in range(self.layout.n):
            self.counts[i] += self.stepped[i]
            self.expected[i] = self.counts[i]
        if averaged:
            averages = <cnp.int64_t*> cnp.PyArray_DATA(self.average_steps)
            for i in range(cnp.PyArray_SIZE(self.average_steps)):
                averages[i] += 1

    cdef void choose_threads(self, Backend backend, bint norms, bint waits) noexcept:
        """Note whether this step takes one thread or several, where that is tuned."""
        self.crew.kind = NULL
        self.parallel_from = PARALLEL_FROM
        # What waits for other processes, or is done to few rows, says nothing of it.
        if backend.compiled and not waits and not self.gradients.has_rows and most_threads() > 1:
            self.parallel_from = begin_step(&self.crew, self.layout, self.group_steps, norms)
        self.norms.parallel_from = self.parallel_from

    cdef int sweep(self, combine_sums) except -1:
        """The sweeps over all tensors, and what is worked out before each."""
        cdef Py_ssize_t k
        self.args.at_once = combine_sums is None
        if self.layout.prefetch:
            tune(self.layout, self.group_steps, &self.args,
                 threads_from(self.parallel_from, self.elements, self.layout.n_chunks) > 1)
        for k in range(self.layout.n_batches):
            self.sweep_batch(&self.layout.batches[k], combine_sums)
        if self.gradients.has_rows:
            for k in range(self.layout.n):
                if self.layout.tensors[k].rows != NULL:
                    self.sweep_rows(k)

    cdef int sweep_batch(self, const Batch* batch, combine_sums) except -1:
        """The same of some of the tensors."""
        cdef bint apart = self.layout.n_apart or (self.layout.n_own and not self.args.at_once)
        if apart:
            begin(self.layout, self.group_steps, &self.args, batch)
        if self.layout.n_pieces:
            self.sweep_lines(batch)
        if self.layout.n_summed and apart:
            self.run_threads(batch, True)
            add_up_terms(self.layout, &self.args, batch)
            if combine_sums is not None:
                combine_terms(self.layout, batch, combine_sums)
            if self.layout.n_matrices:
                matrix_steps(self.layout, batch)
        if self.layout.shares:
            add_up_tensors(self.layout)
        if apart:
            settle(self.layout, &self.args, batch)
        if self.layout.shares:
            share_numbers(self.layout)
        self.run_threads(batch, False)

    cdef int check_rows(self, Py_ssize_t i, const GroupStep* group_step,
                        Py_ssize_t length) except -1:
        """Refuse a gradient by rows where the step needs all of its parameter, or all rows.

        These have so many elements.
        """
        cdef Tensor* t = &self.layout.tensors[i]
        cdef Py_ssize_t per = 1
        cdef int j
        for j in range(t.n_states):
            per = max(per, codec_rows[t.s_codec[j]].per)
        memory_rows.check_rule(
            reference.RULES[self.layout.rules[i]], f"grads{self.layout.labels[i]}", self.lazy,
            self.sparse, group_step.stages.flags & (L2_DECAY | DECOUPLED_DECAY) != 0,
            group_step.stages.flags & L2_DECAY != 0,
            t.average != NULL, length % per == 0)
        if self.layout.missed is not None:
            memory_rows.check_catch_up(
                reference.RULES[self.layout.rules[i]], f"grads{self.layout.labels[i]}",
                None if t.missed == NULL else (<Missed> self.layout.missed[i]).why,
                not isinf(group_step.clip_ratio))
        if t.centralized or (t.n and not isinf(group_step.clip_ratio)
                             and (t.own_units.length != length or t.own_units.stride != 1)):
            memory_rows.refuse_units(f"grads{self.layout.labels[i]}", t.centralized)
        if self.counts[i] == 0 and "first" in reference.RULES[self.layout.rules[i]].coefficients:
            memory_rows.check_start(self.layout.params[i], f"grads{self.layout.labels[i]}")

    cdef void sweep_rows(self, Py_ssize_t i) noexcept:
        """The sweep over the rows of a table."""
        cdef Tensor* t = &self.layout.tensors[i]
        cdef const Coding* coding = &self.layout.codings[i]
        cdef Py_ssize_t n = t.rows.n, threads = threads_for(n * t.rows.length, n), k
        cdef bint zero = t.flags & ZERO_GRADIENT != 0
        t.flags &= ~ZERO_GRADIENT    # as values may be read where they are, and in part
        if t.own != NULL:
            begin_own(t, self.group_steps)
            settle_own(t)
        if t.rows.length:
            with nogil:
                if threads <= 1:
                    step_rows(t, coding, self.group_steps, &self.args, 0, n)
                else:
                    for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                        step_rows(t, coding, self.group_steps, &self.args, n * k // threads,
                                  n * (k + 1) // threads)
        if zero:
            self.gradients.zero_rows(i)

    cdef int look_ahead(self, Py_ssize_t i, Backend backend, configure) except -1:
        """Note what the rows of a table miss if they have no gradient in this step."""
        cdef Missed missed = self.layout.missed[i]
        if self.counts[i] >= MOST_STEPS:
            raise ValueError(f"params{self.layout.labels[i]}: expected at most {MOST_STEPS} steps "
                             f"of a table whose rows catch up, found {self.counts[i]} taken")
        missed.use(backend)
        missed.ready(self.counts[i])
        missed.look_ahead(self.owners, self.layout.tensors[i].owner, configure)

    cdef int settle_rows(self, Backend backend, bint stepping, list some) except -1:
        """Let rows catch up with what they missed of the steps before.

        In a step by rows those of the gradient will do so one by one, unless steps are no longer
        what they were; here it is all rows, also where the gradient is an array.  Or it is some
        rows of each table, where no step is taken.
        """
        cdef Py_ssize_t i
        cdef int k
        cdef Tensor* t
        cdef Missed missed
        cdef cnp.int64_t taken
        for i in range(self.layout.n):
            t = &self.layout.tensors[i]
            if (t.missed == NULL or (stepping and t.g == NULL)
                    or (some is not None and some[i] is None)):
                continue
            missed, taken = self.layout.missed[i], self.counts[i] - stepping
            t.missed.taken = <cnp.uint32_t> taken
            for k in range(t.n_words):
                t.missed.key[k] = fastgd_random_key(
                    self.seed, taken, self.first + i + (<cnp.uint64_t> k << 40))
            if not (stepping and t.rows != NULL) or missed.changes():
                catch_up_table(self.layout, missed, i, None if some is None else some[i], backend,
                               &self.args)
            if stepping:
                missed.adopt()

    cdef void count_rows(self) noexcept:
        """Let the rows of tables whose gradients were arrays have taken the step."""
        cdef Py_ssize_t i
        cdef Missed missed
        for i in range(self.layout.n):
            if (self.layout.tensors[i].missed != NULL and self.layout.tensors[i].g != NULL
                    and self.layout.tensors[i].rows == NULL):
                missed = self.layout.missed[i]
                missed.set_counts(self.counts[i])

    def catch_up(self, list rows=None):
        """Let rows of tables catch up with what they missed.

        Parameters
        ----------
        rows : list of (Rows, ndarray of int32 or int64, or None), optional
            For each parameter which of its rows, or None for none of them; by default all rows of
            all tables.

        Raises
        ------
        ValueError
            If arrays are no longer where they were, or a parameter has no such rows.
        RuntimeError
            If called from within a step.
        """
        cdef Backend backend = backend_in_use()
        cdef list some = None
        cdef Py_ssize_t i
        cdef Missed missed
        if self.busy:
            raise RuntimeError("catch_up() was called from within a step of the same optimizer")
        self.refuse_torn()
        self.layout.check_unmoved()
        if rows is not None:
            some = [None if rows[i] is None else self.take_distinct(i, rows[i])
                    for i in range(self.layout.n)]
        if self.layout.missed is None:
            return
        self.args.loops = &backend.loops
        for i in range(self.layout.n):
            if self.layout.tensors[i].missed != NULL:
                missed = self.layout.missed[i]
                missed.use(backend)
                missed.ready(self.counts[i])
        self.wrote = True
        self.settle_rows(backend, False, some)

    cdef RowSet take_distinct(self, Py_ssize_t i, rows):
        """Some rows of a parameter, which are checked."""
        cdef str name = f"rows{self.layout.labels[i]}"
        cdef tuple shape = self.layout.shape_of(i)
        cdef RowSet own = RowSet()
        cdef Py_ssize_t bad
        memory_rows.check_catching_up(rows, shape, self.layout.is_in_rows(i, shape),
                                      reference.RULES[self.layout.rules[i]], name)
        indices = rows.indices if type(rows) is Rows else rows
        bad = own.take_distinct(indices, shape[0])
        if bad >= 0:
            memory_rows.refuse_index(indices, bad, shape[0], name)
        return own

    def refuse_rows(self, tables, configure):
        """Raise ValueError if no step by the hyper-parameters of now takes gradients by rows.

        `tables` are the numbers of their parameters; `configure` is as for `step`.
        """
        cdef Backend backend = backend_in_use()
        cdef GroupStep step
        cdef Tensor* t
        cdef Py_ssize_t i
        self.owners.use(backend)
        for i in tables:
            t = &self.layout.tensors[i]
            self.owners.make(&step, t.owner, self.counts[i], configure, 1.0)
            if t.missed != NULL:
                self.look_ahead(i, backend, configure)
            shape = self.layout.shape_of(i)
            self.check_rows(i, &step, t.n // max(shape[0], 1) if len(shape) else 0)

    cdef void run_threads(self, const Batch* batch, bint first) noexcept:
        """One sweep over the chunks of some tensors, but for those with gradients by rows."""
        cdef Batch part
        cdef Py_ssize_t i
        cdef Chunk* chunks = self.layout.chunks
        if not self.gradients.has_rows:
            self.run_chunks(batch, first, self.elements_in(batch))
            return
        part = batch[0]
        for i in range(batch.tensor, batch.end + 1):
            if i < batch.end and self.layout.tensors[i].rows == NULL:
                continue
            part.end = i
            part.chunk_end = (self.layout.tensors[i].first_chunk if i < batch.end
                              else batch.chunk_end)
            if part.chunk < part.chunk_end:
                self.run_chunks(&part, first, chunks[part.chunk_end - 1].before
                                + chunks[part.chunk_end - 1].n - chunks[part.chunk].before)
            part.tensor = i + 1
            part.chunk = (self.layout.tensors[i + 1].first_chunk if i + 1 < batch.end
                          else batch.chunk_end)

    cdef void run_chunks(self, const Batch* batch, bint first, Py_ssize_t elements) noexcept:
        """One sweep over the chunks of some tensors."""
        cdef Chunk* chunks = self.layout.chunks + batch.chunk
        cdef Py_ssize_t n = batch.chunk_end - batch.chunk, k
        cdef Py_ssize_t threads = threads_from(self.parallel_from, elements, n)
        cdef Tensor* tensors = self.layout.tensors
        cdef Shares shares
        if tensors[batch.tensor].info.matrix != NULL:
            # Its sweeps take a few hundredths of what its products take, and other threads, which
            # spin for a while in wait of the next sweep, would be in the way of BLAS's (512 x 512
            # on 2 cores: 1.3 times the time).
            threads = 1
        with nogil:
            if threads <= 1:
                run(tensors, self.group_steps, &self.args, chunks, chunks + n, first)
            else:
                share_out(&shares, elements, threads)
                for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                    run_pieces(tensors, self.group_steps, &self.args, chunks, n, first, &shares, k)

    cdef inline Py_ssize_t elements_in(self, const Batch* batch) noexcept:
        """How many elements this step works on; of a batch that isn't all, roughly."""
        if self.layout.n_batches == 1:
            return self.elements
        if batch.chunk == batch.chunk_end:
            return 0
        cdef Chunk* last = &self.layout.chunks[batch.chunk_end - 1]
        return last.before + last.n - self.layout.chunks[batch.chunk].before

    cdef void sweep_lines(self, const Batch* batch) noexcept:
        """The sweep before the sweeps of rules with states of rows and columns."""
        cdef const LinePiece* pieces = self.layout.pieces + batch.piece
        cdef Tensor* tensors = self.layout.tensors
        cdef Py_ssize_t n = batch.piece_end - batch.piece, k
        cdef Py_ssize_t threads = threads_from(self.parallel_from, self.elements_in(batch), n)
        with nogil:
            if threads <= 1:
                for k in range(n):
                    square_piece(tensors, self.group_steps, &self.args, &pieces[k])
                for k in range(batch.tensor, batch.end):
                    settle_lines(&tensors[k], self.group_steps, &self.args)
            else:
                for k in prange(n, num_threads=threads, schedule="dynamic"):
                    square_piece(tensors, self.group_steps, &self.args, &pieces[k])
                for k in prange(batch.tensor, batch.end, num_threads=threads, schedule="dynamic"):
                    settle_lines(&tensors[k], self.group_steps, &self.args)


cdef inline cnp.int64_t max_of(cnp.int64_t* values, Py_ssize_t n) noexcept:
    cdef cnp.int64_t largest = 0
    cdef Py_ssize_t i
    for i in range(n):
        largest = max(largest, values[i])
    return largest

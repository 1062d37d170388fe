"""The kernels for compiled code: functions that need neither the GIL nor Python.

Every rule is there as ``fastgd_<rule>_f32`` and ``fastgd_<rule>_f64``, where it has two sweeps the
first as ``fastgd_<rule>_before_f32`` and ``…_f64``, and what is worked out before each as
``fastgd_<rule>_begin`` and ``fastgd_<rule>_settle``; where it has one sweep,
``fastgd_<rule>_rows_f32`` and ``…_f64`` step some rows of a table; for every optimizer there is
``fastgd_<optimizer>_coefficients``.  The header ``fastgd.h``, in the folder that
`fastgd.get_include` names, says what they take and do.  Cython reaches them by ``cimport``, C by
the header, Numba and ctypes by their addresses.  They run the backend that `fastgd.set_backend`
chose, and while that is ``"numpy"`` the one compiled that was chosen last, or the best.

Attributes
----------
ABI_VERSION : int
    Raised when a function changes what it takes or means.
ADDRESSES : dict of int
    The address of each function, by name.
TABLE : int
    The address of the table of them all, for ``fastgd_bind`` of the header.

Examples
--------
>>> from ctypes import CFUNCTYPE, c_double, c_ssize_t, c_void_p
>>> import numpy as np
>>> from fastgd.kernels.c_api import ADDRESSES
>>> sgd = CFUNCTYPE(None, c_void_p, c_void_p, c_ssize_t, c_void_p, c_void_p)(
...     ADDRESSES["fastgd_sgd_f64"])
>>> p, g = np.ones(3), np.ones(3)
>>> sgd(p.ctypes.data, g.ctypes.data, 3, (c_double * 1)(0.25), None)
>>> p
array([0.75, 0.75, 0.75])
"""

from importlib import import_module

from cpython.pycapsule cimport PyCapsule_New
from cython cimport floating
from libc.math cimport INFINITY, isinf
from libc.string cimport memset

from fastgd.kernels._types cimport *

from fastgd import kernels

cdef extern from *:
    """
    #define FASTGD_TABLE_ONLY
    #include "fastgd.h"
    """
    const int FASTGD_ABI_VERSION
    ctypedef void (*fastgd_function)() noexcept nogil
    ctypedef struct Entry "fastgd_entry":
        const char* name
        fastgd_function function
    ctypedef struct Table "fastgd_table":
        int abi_version
        int n_entries
        const Entry* entries

cdef void* loops_of_stages[2]
cdef void* loops_of_sums[2]


include "engine/rounding.pxi"
include "engine/stage_flags.pxi"


cdef inline int read_stages(const double* stages, Stages* given) noexcept nogil:
    """Read the stages that a caller wants, if any; returns their flags."""
    if stages == NULL:
        return 0
    given.weight_decay, given.decoupled, given.clip_value = stages[1], stages[2], stages[3]
    given.flags = flags_of_stages(given)
    return given.flags | flag_of_scale(stages[0])


cdef inline void run(const void* rule, floating* p, const floating* g, floating** s, int n_states,
                     Py_ssize_t n, const double* coefficients, int n_coefficients,
                     int denominators, const double* stages) noexcept nogil:
    """A step of one tensor: coefficients rounded once, then the rule, or the loop around it."""
    cdef floating c[MAX_COEFFICIENTS]
    cdef Stages given
    cdef ChunkArgs chunk
    cdef int flags = read_stages(stages, &given)
    round_all[floating](c, coefficients, n_coefficients, denominators)
    if g == NULL:
        flags &= ~OF_GRADIENT
    if flags:
        describe[floating](&chunk, p, g, s, n_states, n, stages[0], flags)
        if floating is float:
            (<staged_f32> loops_of_stages[0])(rule, &chunk, c, &given)
        else:
            (<staged_f64> loops_of_stages[1])(rule, &chunk, c, &given)
    elif floating is float:
        (<rule_f32> rule)(p, g, s, n, c)
    else:
        (<rule_f64> rule)(p, g, s, n, c)


cdef inline void run_rows(const void* rule, floating* p, const floating* g, floating** s,
                          int n_states, Py_ssize_t length, const int64_t* indices, Py_ssize_t n,
                          const double* coefficients, int n_coefficients, int denominators,
                          const double* stages) noexcept nogil:
    """A step of some rows of a table, one after the other."""
    cdef floating* own[MAX_STATES]
    cdef Py_ssize_t k
    cdef int j
    for k in range(n):
        for j in range(n_states):
            own[j] = s[j] + indices[k] * length
        run[floating](rule, p + indices[k] * length, g + k * length, own, n_states, length,
                      coefficients, n_coefficients, denominators, stages)


cdef inline void run_kept(const void* rule, floating* p, const floating* update, floating** s,
                          int n_states, Py_ssize_t n, const double* coefficients,
                          int n_coefficients, int denominators,
                          const double* stages) noexcept nogil:
    """The last sweep of a rule with a matrix step, whose result is no gradient to be scaled."""
    cdef double own[4]
    if stages != NULL:
        own[0], own[1], own[2], own[3] = 1.0, 0.0, stages[2], INFINITY
        stages = own
    run(rule, p, update, s, n_states, n, coefficients, n_coefficients, denominators, stages)


cdef void run_first(const void* rule, floating* p, const floating* g, floating** s, int n_states,
                    Py_ssize_t n, const double* coefficients, int n_coefficients,
                    int denominators, const double* stages, int n_terms, int squares,
                    floating* kept, double* sums) noexcept nogil:
    """The first of two sweeps over one tensor, block by block, and the sums of its terms.

    One that is kept is written to an array, unless that is NULL.
    """
    cdef floating c[MAX_COEFFICIENTS]
    cdef floating* own[MAX_STATES]
    cdef double totals[MAX_SUMS]
    cdef Stages given
    cdef ChunkArgs chunk
    cdef Py_ssize_t start = 0
    cdef int j, flags = read_stages(stages, &given)
    round_all[floating](c, coefficients, n_coefficients, denominators)
    for j in range(n_terms):
        sums[j] = 0.0
    while start < n:
        for j in range(n_states):
            own[j] = s[j] + start
        describe[floating](&chunk, p + start, NULL if g == NULL else g + start, own, n_states,
                           min(<Py_ssize_t> BLOCK, n - start),
                           stages[0] if flags & SCALE else 1.0, flags & OF_GRADIENT)
        chunk.sweep.n_terms, chunk.sweep.squares = n_terms, squares
        if kept != NULL:
            chunk.kept = kept + start
        if floating is float:
            (<summed_f32> loops_of_sums[0])(rule, &chunk, c, &given, totals)
        else:
            (<summed_f64> loops_of_sums[1])(rule, &chunk, c, &given, totals)
        for j in range(n_terms):
            sums[j] += totals[j]
        start += BLOCK


cdef void describe(ChunkArgs* chunk, floating* p, const floating* g, floating** s, int n_states,
                   Py_ssize_t n, double factor, int flags) noexcept nogil:
    """What the engine's loops work on: arrays in one chunk, in the type that is computed with."""
    cdef int j
    memset(chunk, 0, sizeof(ChunkArgs))
    chunk.factor, chunk.n, chunk.flags, chunk.n_states = factor, n, flags, n_states
    chunk.sweep.gradient, chunk.sweep.loads, chunk.sweep.stores = g != NULL, -1, -1
    chunk.p.code, chunk.p.size = <char*> p, sizeof(floating)
    # A tensor without any gradient would not be stepped.
    chunk.g.code, chunk.g.size = <char*> p if g == NULL else <char*> g, sizeof(floating)
    for j in range(n_states):
        chunk.s[j].code, chunk.s[j].size = <char*> s[j], sizeof(floating)


include "engine/_arithmetic.pxi"
include "_c_api.pxi"

cdef Table table
table.abi_version = FASTGD_ABI_VERSION
table.n_entries = sizeof(entries) // sizeof(entries[0])
table.entries = entries
fill_entries()


def _use_backend(module):
    """Take the loops of a backend's module; None, the NumPy reference, has none to take."""
    cdef int j, k
    if module is None:
        return
    for j in range(2):
        for k in range(len(RULE_NAMES)):
            rules[2 * k + j] = <void*> <size_t> module.RULES[RULE_NAMES[k]][j]
            if RULE_NAMES[k] in module.FIRST:
                firsts[2 * k + j] = <void*> <size_t> module.FIRST[RULE_NAMES[k]][j]
        loops_of_stages[j] = <void*> <size_t> module.STAGED[j]
        loops_of_sums[j] = <void*> <size_t> module.SUMMED[j]


# Something compiled in any case, then what is in use now and later on.
_use_backend(import_module(f"fastgd.kernels._{kernels.available_backends()[0]}"))
kernels._follow(_use_backend)

ABI_VERSION = FASTGD_ABI_VERSION
TABLE = <size_t> &table
ADDRESSES = {
    entries[k].name.decode(): <size_t> <void*> entries[k].function for k in range(table.n_entries)
}
_C_API = PyCapsule_New(&table, "fastgd.kernels.c_api._C_API", NULL)

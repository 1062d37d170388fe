"""The kernels for compiled code: functions that need neither the GIL nor Python.

Every rule is there as ``fastgd_<rule>_f32`` and ``fastgd_<rule>_f64``, and for every optimizer
``fastgd_<optimizer>_coefficients``; the header ``fastgd.h``, in the folder that
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
from libc.math cimport isinf
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


include "engine/stage_flags.pxi"


cdef inline void run(const void* rule, floating* p, const floating* g, floating** s, int n_states,
                     Py_ssize_t n, const double* coefficients, int n_coefficients,
                     const double* stages) noexcept nogil:
    """A step of one tensor: coefficients rounded once, then the rule, or the loop around it."""
    cdef floating c[MAX_COEFFICIENTS]
    cdef Stages given
    cdef int j, flags = 0
    for j in range(n_coefficients):
        c[j] = <floating> coefficients[j]
    if stages != NULL:
        given.weight_decay, given.decoupled, given.clip_value = stages[1], stages[2], stages[3]
        given.flags = flags_of_stages(&given)
        flags = given.flags | flag_of_scale(stages[0])
    if flags:
        run_staged[floating](rule, p, g, s, n_states, n, c, stages[0], &given, flags)
    elif floating is float:
        (<rule_f32> rule)(p, g, s, n, c)
    else:
        (<rule_f64> rule)(p, g, s, n, c)


cdef void run_staged(const void* rule, floating* p, const floating* g, floating** s, int n_states,
                     Py_ssize_t n, const floating* c, double factor, const Stages* stages,
                     int flags) noexcept nogil:
    """The same with the stages before the rule, by the engine's loop: the tensor is one chunk."""
    cdef ChunkArgs chunk
    cdef int j
    memset(&chunk, 0, sizeof(chunk))
    chunk.factor, chunk.n, chunk.flags, chunk.n_states = factor, n, flags, n_states
    chunk.p.code, chunk.p.size = <char*> p, sizeof(floating)
    chunk.g.code, chunk.g.size = <char*> g, sizeof(floating)
    for j in range(n_states):
        chunk.s[j].code, chunk.s[j].size = <char*> s[j], sizeof(floating)
    if floating is float:
        (<staged_f32> loops_of_stages[0])(rule, &chunk, c, stages)
    else:
        (<staged_f64> loops_of_stages[1])(rule, &chunk, c, stages)


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
        loops_of_stages[j] = <void*> <size_t> module.STAGED[j]


# Something compiled in any case, then what is in use now and later on.
_use_backend(import_module(f"fastgd.kernels._{kernels.available_backends()[0]}"))
kernels._follow(_use_backend)

ABI_VERSION = FASTGD_ABI_VERSION
TABLE = <size_t> &table
ADDRESSES = {
    entries[k].name.decode(): <size_t> <void*> entries[k].function for k in range(table.n_entries)
}
_C_API = PyCapsule_New(&table, "fastgd.kernels.c_api._C_API", NULL)

# What a step runs on: the rules of a backend, and a number of threads.  Included by _engine.pyx.

cdef extern from "cpu.h" nogil:
    int fastgd_x86_64_level()

cdef extern from "threads.h" nogil:
    int fastgd_max_threads()
    const int FASTGD_OPENMP

# The rule loops of the chosen backend, {name: (f32, f64)}, or None for the NumPy reference.
cdef dict _rules = None
cdef void* _staged[2]
cdef void* _sums[2]


def use_backend(module):
    """Take rules and stages from a compiled backend module; None means the NumPy reference."""
    global _rules
    cdef int j
    if module is None:
        _rules = None
        return
    for j in range(2):
        _staged[j] = <void*> <size_t> module.STAGED[j]
        _sums[j] = <void*> <size_t> module.SUM_OF_SQUARES[j]
    _rules = module.RULES


def x86_64_level():
    """The x86-64 level (1, 3 or 4) that processor and operating system support; 0 elsewhere."""
    return fastgd_x86_64_level()


cdef int _num_threads = 0      # 0: as many as OpenMP would take
cdef bint _forked = False      # OpenMP's threads don't survive a fork, and waking them would hang


def _after_fork_in_child():
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def set_num_threads(int n):
    """Let steps use up to `n` threads; 0 means as many as OpenMP would take."""
    global _num_threads
    _num_threads = n


def get_num_threads():
    """The number of threads a large step would use now."""
    if _forked or not FASTGD_OPENMP:
        return 1
    return _num_threads or fastgd_max_threads()


def has_openmp():
    """Whether the engine was built with OpenMP."""
    return bool(FASTGD_OPENMP)

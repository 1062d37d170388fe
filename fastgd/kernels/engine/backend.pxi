# What a step runs on: the rules of a backend, and a number of threads.  Included by _engine.pyx.

cdef extern from "cpu.h" nogil:
    int fastgd_x86_64_level()

cdef extern from "threads.h" nogil:
    int fastgd_max_threads()
    const int FASTGD_OPENMP

# The rule loops of the chosen backend, {name: (f32, f64)}, or None for the NumPy reference.
cdef dict _rules = None
cdef dict _fused = None        # of the rules, {name: the addresses for a setting's `fused`}
cdef void* _staged[2]
cdef void* _sums[3]

# The rows of its codecs, in the order of `codecs.CODECS`.  The first two are the types that are
# computed with, by their value of `is_double`.
cdef enum:
    FLOAT32 = 0
    FLOAT64 = 1
    BFLOAT16 = 2
    FLOAT16 = 3
    SPLIT = 4
    N_CODECS = 7

# How parameter and states are kept that some rules load and store themselves: the rows of FUSED.
cdef list FUSED_CODECS = [
    (p, *states)
    for states in (("float32",), ("bfloat16",), ("e4m3",), ("ue5m3",), ("float32", "float32"),
                   ("bfloat16", "bfloat16"), ("e4m3", "ue5m3"))
    for p in ("float32", "bfloat16", "split")
]

cdef Codec codec_rows[N_CODECS]
cdef list CODEC_NAMES = list(codecs.CODECS)


def _fill_codec_rows():
    """Note what the codecs keep, which is the same for all backends."""
    cdef int k, j
    assert CODEC_NAMES[:5] == ["float32", "float64", "bfloat16", "float16", "split"]
    assert len(CODEC_NAMES) == N_CODECS
    for k in range(N_CODECS):
        row = codecs.CODECS[CODEC_NAMES[k]]
        codec_rows[k].size, codec_rows[k].per = row.code.itemsize, row.per
        codec_rows[k].beside_size = 0 if row.beside is None else row.beside.itemsize


_fill_codec_rows()


def use_backend(module):
    """Take rules and stages from a compiled backend module; None means the NumPy reference."""
    global _rules, _fused
    cdef int j, k
    if module is None:
        _rules = None
        return
    assert len(FUSED_CODECS) == N_FUSED
    for j in range(3):
        _sums[j] = <void*> <size_t> module.SUM_OF_SQUARES[j]
    for k in range(N_CODECS):
        load, nearest, stochastic = module.CODECS[CODEC_NAMES[k]]
        for j in range(2):
            codec_rows[k].load[j] = <void*> <size_t> load[j]
            codec_rows[k].nearest[j] = <void*> <size_t> nearest[j]
            if stochastic is not None:
                codec_rows[k].stochastic[j] = <void*> <size_t> stochastic[j]
    for j in range(2):
        _staged[j] = <void*> <size_t> module.STAGED[j]
    _rules = module.RULES
    _fused = {name: fused_rows(module.FUSED.get(name, {})) for name in module.RULES}


cdef bytes fused_rows(dict loops):
    """The addresses of a rule's fused loops, a row for each of FUSED_CODECS; 0 for none."""
    assert loops.keys() <= set(FUSED_CODECS)
    return np.array([loops.get(kept, (0, 0)) for kept in FUSED_CODECS], np.uintp).tobytes()


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

# What a step runs on: the loops of a backend, and a number of threads.  Included by _engine.pyx.

cdef extern from "cpu.h" nogil:
    int fastgd_x86_64_level()

cdef extern from "fastgd_threads.h" nogil:
    int fastgd_max_threads()
    int fastgd_take(int*, int)
    const int FASTGD_OPENMP

# The sizes of all codecs, in the order of `codecs.CODECS`: rows without loops.
cdef Codec codec_rows[N_CODECS]
cdef list CODEC_NAMES = list(codecs.CODECS)
cdef dict CODEC_OF = {name: k for k, name in enumerate(CODEC_NAMES)}


def _fill_codec_rows():
    """Note the sizes of what the codecs store, which are the same for all backends."""
    cdef int k
    assert CODEC_NAMES[:5] == ["float32", "float64", "bfloat16", "float16", "split"]
    assert len(CODEC_NAMES) == N_CODECS
    for k in range(N_CODECS):
        row = codecs.CODECS[CODEC_NAMES[k]]
        codec_rows[k].size, codec_rows[k].per = row.code.itemsize, row.per
        codec_rows[k].aux_size = 0 if row.aux is None else row.aux.itemsize


_fill_codec_rows()


@cython.final
cdef class Backend:
    """The loops of a compiled backend; the NumPy reference has none.

    Each step takes the one in use when it begins, and keeps it to its end.
    """

    cdef bint compiled         # whether there are loops; else the reference is called
    cdef dict rules            # {name: (f32, f64)}
    cdef dict first            # {name: (f32, f64)} of those with two sweeps
    cdef list lines            # three of {name: (f32, f64)} of those with states of lines
    cdef dict fused            # {name: the addresses for a step's `fused`}
    cdef Loops loops

    def __cinit__(self, module):
        cdef int j, k
        memcpy(self.loops.codecs, codec_rows, sizeof(codec_rows))
        self.compiled = module is not None
        if not self.compiled:
            return
        for j in range(2):
            self.loops.sum_of_squares[j] = <void*> <size_t> module.SUM_OF_SQUARES[j]
        self.loops.sum_of_coded = <void*> <size_t> module.SUM_OF_CODED
        self.loops.sum_apart = <void*> <size_t> module.SUM_APART
        for k in range(N_CODECS):
            load, nearest, stochastic = module.CODECS[CODEC_NAMES[k]]
            for j in range(2):
                self.loops.codecs[k].load[j] = <void*> <size_t> load[j]
                self.loops.codecs[k].nearest[j] = <void*> <size_t> nearest[j]
                if stochastic is not None:
                    self.loops.codecs[k].stochastic[j] = <void*> <size_t> stochastic[j]
        for j in range(2):
            self.loops.staged[j] = <void*> <size_t> module.STAGED[j]
            self.loops.summed[j] = <void*> <size_t> module.SUMMED[j]
            self.loops.summed_tile[j] = <void*> <size_t> module.SUMMED_TILE[j]
            self.loops.squared[j] = <void*> <size_t> module.SQUARED[j]
            self.loops.settled[j] = <void*> <size_t> module.SETTLED[j]
            self.loops.mean_square[j] = <void*> <size_t> module.MEAN_SQUARE[j]
            self.loops.fill[j] = <void*> <size_t> module.FILL[j]
            self.loops.add[j] = <void*> <size_t> module.ADD[j]
        self.rules, self.first = module.RULES, module.FIRST
        self.lines = [module.LINES, module.ROWS, module.COLUMNS]
        self.fused = {name: fused_rows(module.FUSED.get(name, {})) for name in module.RULES}

    cdef int take_loops(self, name, GroupStep* group_step) except -1:
        """Note the loops of a rule."""
        if name not in self.rules:
            raise RuntimeError(f"rule {name}: is not in the compiled backend in use; make build, "
                               'or fastgd.set_backend("numpy")')
        cdef bytes fused = self.fused[name]
        cdef tuple loops = self.rules[name], first = self.first.get(name, (0, 0))
        cdef tuple over
        cdef int j, k
        for j in range(2):
            group_step.rule[j] = <void*> <size_t> loops[j]
            group_step.first[j] = <void*> <size_t> first[j]
            for k in range(3):
                over = self.lines[k].get(name, (0, 0))
                group_step.lines[j][k] = <void*> <size_t> over[j]
        memcpy(&group_step.fused[0], <const char*> fused, sizeof(group_step.fused))


cdef bytes fused_rows(dict loops):
    """The addresses of a rule's fused loops, a row for each of FUSED_CODECS; 0 for none."""
    assert loops.keys() <= set(FUSED_CODECS)
    return np.array([loops.get(key, (0, 0)) for key in FUSED_CODECS], np.uintp).tobytes()


cdef Backend _backend = Backend(None)
# Without a GIL, who takes a reference to it must not meet who drops the last one.
cdef object _choice = object()


cdef inline Backend backend_in_use():
    """The backend, for one that keeps to it to its end, whatever is set meanwhile."""
    cdef Backend found
    with cython.critical_section(_choice):
        found = _backend
    return found


def use_backend(module):
    """Run steps from now on with a compiled backend's module; None means the NumPy reference."""
    global _backend
    cdef Backend chosen = Backend(module)
    with cython.critical_section(_choice):
        _backend = chosen


def x86_64_level():
    """The x86-64 level (1, 3 or 4) that processor and operating system support; 0 elsewhere."""
    return fastgd_x86_64_level()


cdef int _num_threads = 0      # 0: as many as OpenMP would take,
cdef int _most_threads = 0     # up to so many; 0: any number
cdef bint _forked = False      # OpenMP's threads don't survive a fork, and waking them would hang


def _after_fork_in_child():
    global _forked
    _forked = True
    recover_tuning()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def set_num_threads(int n):
    """Let steps use up to `n` threads; 0 means as many as OpenMP would take."""
    global _num_threads
    _num_threads = n


def set_most_threads(int n):
    """Let OpenMP's number of threads count up to `n`; 0 for no limit."""
    global _most_threads
    _most_threads = n


cdef inline int usual_threads() noexcept:
    cdef int n = fastgd_max_threads()
    return min(n, _most_threads) if _most_threads else n


def get_num_threads():
    """The number of threads a large step would use now."""
    if _forked or not FASTGD_OPENMP:
        return 1
    return _num_threads or usual_threads()


cdef inline int most_threads() noexcept:
    """How many threads a step may use."""
    return 1 if _forked else _num_threads or usual_threads()


cdef inline Py_ssize_t threads_from(Py_ssize_t parallel_from, Py_ssize_t elements,
                                    Py_ssize_t chunks) noexcept:
    """How many threads to wake if they are worth it from so many elements on."""
    if elements < parallel_from:
        return 1
    return min(most_threads(), chunks)


cdef inline Py_ssize_t threads_for(Py_ssize_t elements, Py_ssize_t chunks) noexcept:
    """The same where nothing is known of that."""
    return threads_from(PARALLEL_FROM, elements, chunks)


cdef struct Shares:
    # A sweep that several threads go through.  Each has its share, always the same one, so that
    # what it wrote is in its cache and its part of memory; it goes through it in pieces, and then
    # through the pieces of others that nobody has begun.  So a slow core, or one that something
    # else runs on, holds up the others by a piece at most.  Who does a piece changes no bit.
    Py_ssize_t n               # how many shares, one for each thread,
    int pieces                 # of how many pieces each;
    int taken[256]             # how many of them are done or begun


cdef inline void share_out(Shares* shares, Py_ssize_t elements, Py_ssize_t threads) noexcept nogil:
    """Cut a sweep into shares and pieces.  More than 256 threads begin with shares of others."""
    shares.n = min(threads, <Py_ssize_t> 256)
    shares.pieces = <int> max(elements // (shares.n * PIECE), <Py_ssize_t> 1)
    memset(shares.taken, 0, sizeof(shares.taken))


cdef inline Py_ssize_t next_piece(Shares* shares, Py_ssize_t thread) noexcept nogil:
    """A piece for a thread, as a number below `n * pieces`, or -1."""
    cdef Py_ssize_t k, share
    cdef int piece
    for k in range(shares.n):
        share = (thread + k) % shares.n
        piece = fastgd_take(&shares.taken[share], shares.pieces)
        if piece >= 0:
            return share * shares.pieces + piece
    return -1


def hand_out(Py_ssize_t elements, Py_ssize_t threads, asking):
    """The pieces that threads get which ask one after the other, by their numbers; for tests."""
    cdef Shares shares
    share_out(&shares, elements, threads)
    return [next_piece(&shares, thread) for thread in asking]


def threads_are_set():
    """Whether `set_num_threads` said how many."""
    return _num_threads != 0


def has_openmp():
    """Whether the engine was built with OpenMP."""
    return bool(FASTGD_OPENMP)

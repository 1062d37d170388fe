# The sweep: the records of a step, and the loop over its chunks, without a Python object in sight.
# Included by _engine.pyx.

cdef struct Tensor:
    char* p
    char* g                    # this step's gradient, or NULL: no gradient, not updated
    char* bound                # the gradient bound when the plan was made, or NULL
    char* cleared              # the last gradient found not to overlap anything that is written
    char* zeroable             # the last gradient found not to overlap another gradient
    char* s[MAX_STATES]
    char* average              # of the parameter, or NULL
    char* copy                 # of the parameter, or NULL
    int copy_type
    int n_states
    int is_double
    int order                  # the contiguity flag that parameter and gradient share
    int flags                  # this step's stages
    double factor              # of this step's gradient
    Py_ssize_t n
    Py_ssize_t group
    Py_ssize_t setting         # this step's

cdef struct Chunk:
    Py_ssize_t tensor
    Py_ssize_t offset
    Py_ssize_t n
    Py_ssize_t before          # elements in all chunks before this one

# What the tensors of one group at the same step count share.
cdef struct Setting:
    void* rule[2]              # float32, float64
    void* staged[2]
    float c32[MAX_COEFFICIENTS]
    double c64[MAX_COEFFICIENTS]
    Stages stages
    double factor              # of the gradient, before its norm is clipped
    double clip_norm           # infinite: not to be clipped
    bint in_float_range        # whether float32 can hold all of these

# What all tensors share in a step.
cdef struct Common:
    double beta                # of the weights' average
    double gamma
    void* staged[2]

ctypedef fused real:
    float
    double


cdef inline void run_plain(real* p, Tensor* t, Chunk* chunk, const real* c,
                           void* rule) noexcept nogil:
    """The rule alone, straight over the caller's memory."""
    cdef real* s[MAX_STATES]
    cdef const real* g = <const real*> t.g + chunk.offset
    cdef int j
    p += chunk.offset
    for j in range(t.n_states):
        s[j] = <real*> t.s[j] + chunk.offset
    if real is float:
        (<rule_f32> rule)(p, g, s, chunk.n, c)
    else:
        (<rule_f64> rule)(p, g, s, chunk.n, c)


cdef inline void run_staged(real* p, Tensor* t, Chunk* chunk, Setting* setting, const real* c,
                            Common* common) noexcept nogil:
    """The rule and all that is to happen around it."""
    cdef Part part
    cdef int kind = t.is_double, j
    part.p = p + chunk.offset
    part.g = NULL if t.g == NULL else <real*> t.g + chunk.offset
    for j in range(t.n_states):
        part.s[j] = <real*> t.s[j] + chunk.offset
    part.n, part.flags, part.factor = chunk.n, t.flags, t.factor
    part.beta, part.gamma = common.beta, common.gamma
    part.average = <real*> t.average + chunk.offset
    part.copy = t.copy + chunk.offset * (2 if t.copy_type == BFLOAT16 else 4)
    part.copy_type = t.copy_type
    if real is float:
        (<staged_f32> common.staged[0])(setting.rule[0], &part, c, &setting.stages)
    else:
        (<staged_f64> common.staged[1])(setting.rule[1], &part, c, &setting.stages)


cdef void run(Tensor* tensors, Setting* settings, Common* common, Chunk* chunk,
              Chunk* end) noexcept nogil:
    cdef Tensor* t
    cdef Setting* setting
    while chunk < end:
        t = &tensors[chunk.tensor]
        setting = &settings[t.setting]
        if t.flags:
            if t.is_double:
                run_staged[double](<double*> t.p, t, chunk, setting, setting.c64, common)
            else:
                run_staged[float](<float*> t.p, t, chunk, setting, setting.c32, common)
        elif t.g != NULL:
            if t.is_double:
                run_plain[double](<double*> t.p, t, chunk, setting.c64, setting.rule[1])
            else:
                run_plain[float](<float*> t.p, t, chunk, setting.c32, setting.rule[0])
        chunk += 1


cdef inline Chunk* share_of(Chunk* chunks, Py_ssize_t n, Py_ssize_t k,
                            Py_ssize_t shares) noexcept nogil:
    """The first chunk of the k-th of as many equal shares of all elements."""
    cdef Chunk* last = &chunks[n - 1]
    cdef Py_ssize_t elements = last.before + last.n, low = 0, high = n, middle
    while low < high:
        middle = (low + high) // 2
        if chunks[middle].before * shares < elements * k:
            low = middle + 1
        else:
            high = middle
    return chunks + low


cdef inline Py_ssize_t threads_for(Py_ssize_t elements, Py_ssize_t chunks) noexcept:
    """How many threads are worth waking."""
    if elements < PARALLEL_FROM or _forked:
        return 1
    return min(_num_threads or fastgd_max_threads(), chunks)

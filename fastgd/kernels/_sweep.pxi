# The sweep: the records of a step, and the loop over its chunks, without a Python object in sight.
# Included by _engine.pyx.

cdef struct Tensor:
    char* p
    const char* g              # this step's gradient, or NULL: no gradient, not updated
    const char* bound          # the gradient bound when the plan was made, or NULL
    const char* cleared        # the last gradient found not to overlap anything that is written
    char* s[MAX_STATES]
    int n_states
    int is_double
    int order                  # the contiguity flag that parameter and gradient share
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
    bint in_float_range        # whether float32 can hold all of these

ctypedef fused real:
    float
    double


cdef inline void run_chunk(real* p, Tensor* t, Chunk* chunk, Setting* setting, const real* c,
                           void* rule, void* staged) noexcept nogil:
    cdef real* s[MAX_STATES]
    cdef const real* g = <const real*> t.g + chunk.offset
    cdef int j
    p += chunk.offset
    for j in range(t.n_states):
        s[j] = <real*> t.s[j] + chunk.offset
    if setting.stages.flags:
        if real is float:
            (<staged_f32> staged)(rule, p, g, s, chunk.n, c, &setting.stages)
        else:
            (<staged_f64> staged)(rule, p, g, s, chunk.n, c, &setting.stages)
    else:
        if real is float:
            (<rule_f32> rule)(p, g, s, chunk.n, c)
        else:
            (<rule_f64> rule)(p, g, s, chunk.n, c)


cdef void run(Tensor* tensors, Setting* settings, Chunk* chunk, Chunk* end) noexcept nogil:
    cdef Tensor* t
    cdef Setting* setting
    while chunk < end:
        t = &tensors[chunk.tensor]
        if t.g != NULL:
            setting = &settings[t.setting]
            if t.is_double:
                run_chunk[double](<double*> t.p, t, chunk, setting, setting.c64,
                                  setting.rule[1], setting.staged[1])
            else:
                run_chunk[float](<float*> t.p, t, chunk, setting, setting.c32,
                                 setting.rule[0], setting.staged[0])
        chunk += 1

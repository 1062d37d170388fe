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
    int n_states
    int is_double              # what is computed with
    int order                  # the contiguity flag that parameter and gradient share
    int flags                  # this step's stages
    double factor              # of this step's gradient
    double* factors            # of its units: their norms until these are known
    double* totals             # sums of squares of its units' pieces, then of the parameter's
    Py_ssize_t n
    Py_ssize_t row             # elements of each row, or 0: rows are no pieces of memory
    Py_ssize_t unit            # elements of what this step measures the norms of,
    Py_ssize_t n_units         # and how many of these there are
    Py_ssize_t group
    Py_ssize_t setting         # this step's
    unsigned char p_codec      # how each array is kept, as rows of `codec_rows`
    unsigned char g_codec
    unsigned char bound_codec
    unsigned char copy_codec
    unsigned char s_codec[MAX_STATES]
    unsigned char coded        # whether parameter or states are not what is computed with
    unsigned char n_words      # random words for each element
    unsigned char fusable      # by a row of FUSED, counted from 1; 0: stage by stage; and the
    unsigned char fusable_in_tile   # same for a parameter loaded to float32

# What arrays have that are not kept in the type that is computed with; as many as tensors.
cdef struct Beside:
    char* p
    char* s[MAX_STATES]
    int p_shift                # of the random bits of a store, or -1: to nearest
    int s_shift[MAX_STATES]
    cnp.uint64_t key[3]        # of this step's random words
    Py_ssize_t origin          # what these count the first element as

# A row of the backend's CODECS.
cdef struct Codec:
    void* load[2]              # float32, float64
    void* nearest[2]
    void* stochastic[2]
    int size
    int beside_size
    int per

cdef struct Chunk:
    Py_ssize_t tensor
    Py_ssize_t offset
    Py_ssize_t n
    Py_ssize_t before          # elements in all chunks before this one

# What the tensors of one group at the same step count share.
cdef struct Setting:
    void* rule[2]              # float32, float64
    void* fused[N_FUSED][2]    # for gradients in float32 and bfloat16, or NULL: see FUSED
    float c32[MAX_COEFFICIENTS]
    double c64[MAX_COEFFICIENTS]
    Stages stages
    int n_states               # that the rule has
    double factor              # of the gradient, before its norm is clipped
    double clip_norm           # infinite: not to be clipped
    double clip_ratio          # likewise
    bint in_float_range        # whether float32 can hold all of these

# What all tensors share in a step.
cdef struct Common:
    bint ahead                 # whether memory is to be asked for ahead: not in cache
    double beta                # of the weights' average
    double gamma
    void* staged[2]
    Beside* beside
    Codec* codecs

ctypedef fused real:
    float
    double


cdef inline void run_plain(real* p, Tensor* t, Chunk* chunk, const real* c, void* rule,
                           bint ahead) noexcept nogil:
    """The rule alone, straight over the caller's memory."""
    cdef real* s[MAX_STATES]
    cdef const real* g = <const real*> t.g + chunk.offset
    cdef Py_ssize_t start = 0, piece = PIECE if ahead else chunk.n, n
    cdef int j
    p += chunk.offset
    for j in range(t.n_states):
        s[j] = <real*> t.s[j] + chunk.offset
    while start < chunk.n:
        n = min(piece, chunk.n - start)
        if ahead and start + TILE + n <= chunk.n:
            fastgd_prefetch(<char*> (p + TILE), n * sizeof(real))
            fastgd_prefetch(<char*> (g + TILE), n * sizeof(real))
            for j in range(t.n_states):
                fastgd_prefetch(<char*> (s[j] + TILE), n * sizeof(real))
        if real is float:
            (<rule_f32> rule)(p, g, s, n, c)
        else:
            (<rule_f64> rule)(p, g, s, n, c)
        p += n
        g += n
        for j in range(t.n_states):
            s[j] += n
        start += n


cdef inline void describe(Stored* a, Codec* codec, char* code, char* beside, int shift,
                          int is_double, Py_ssize_t offset) noexcept nogil:
    """Where a chunk of an array is, and by which loops it is read and written."""
    a.code = code + offset * codec.size
    a.beside = beside + offset // codec.per * codec.beside_size
    a.size, a.beside_size, a.per, a.shift = codec.size, codec.beside_size, codec.per, shift
    a.load = codec.load[is_double]
    a.store = codec.nearest[is_double] if shift < 0 else codec.stochastic[is_double]


cdef inline void describe_native(Stored* a, char* code, int size, Py_ssize_t offset) noexcept nogil:
    """Where a chunk of an array is that is computed with where it is."""
    a.code = code + offset * size
    a.beside = NULL
    a.load = a.store = NULL
    a.size, a.beside_size, a.per, a.shift = size, 0, 1, -1


cdef void run_staged(Tensor* t, Chunk* chunk, Setting* setting, Common* common) noexcept nogil:
    """The rule and all that is to happen around it."""
    cdef Part part
    cdef Beside* beside = common.beside + chunk.tensor
    cdef int kind = t.is_double, size = 8 if t.is_double else 4, j
    if t.p_codec == kind:
        describe_native(&part.p, t.p, size, chunk.offset)
    else:
        describe(&part.p, &common.codecs[t.p_codec], t.p, beside.p, beside.p_shift, kind,
                 chunk.offset)
    if t.g == NULL:
        part.g.code = NULL
    elif t.g_codec == kind:
        describe_native(&part.g, t.g, size, chunk.offset)
    else:
        describe(&part.g, &common.codecs[t.g_codec], t.g, NULL, -1, kind, chunk.offset)
    for j in range(t.n_states):
        if t.s_codec[j] == kind:
            describe_native(&part.s[j], t.s[j], size, chunk.offset)
        else:
            describe(&part.s[j], &common.codecs[t.s_codec[j]], t.s[j], beside.s[j],
                     beside.s_shift[j], kind, chunk.offset)
    if t.copy != NULL:
        describe(&part.copy, &common.codecs[t.copy_codec], t.copy, NULL, -1, kind, chunk.offset)
    part.average, part.average_size = t.average + chunk.offset * size, 0
    if t.flags & AVERAGE:
        part.average_size = size
    part.n_states = t.n_states
    part.fused = part.fused_in_tile = NULL
    if t.fusable and t.g != NULL and t.g_codec in (FLOAT32, BFLOAT16):
        part.fused = setting.fused[t.fusable - 1][t.g_codec == BFLOAT16]
    if t.fusable_in_tile:
        part.fused_in_tile = setting.fused[t.fusable_in_tile - 1][0]
    part.n, part.flags, part.factor = chunk.n, t.flags, t.factor
    part.factors, part.unit = t.factors, t.unit
    part.beta, part.gamma, part.ahead = common.beta, common.gamma, common.ahead
    part.n_words, part.offset = t.n_words, beside.origin + chunk.offset
    for j in range(t.n_words):
        part.key[j] = beside.key[j]
    if kind:
        (<staged_f64> common.staged[1])(setting.rule[1], &part, setting.c64, &setting.stages)
    else:
        (<staged_f32> common.staged[0])(setting.rule[0], &part, setting.c32, &setting.stages)


cdef void run(Tensor* tensors, Setting* settings, Common* common, Chunk* chunk,
              Chunk* end) noexcept nogil:
    cdef Tensor* t
    cdef Setting* setting
    while chunk < end:
        t = &tensors[chunk.tensor]
        setting = &settings[t.setting]
        if t.flags:
            run_staged(t, chunk, setting, common)
        elif t.g != NULL:
            if t.is_double:
                run_plain[double](<double*> t.p, t, chunk, setting.c64, setting.rule[1],
                                  common.ahead)
            else:
                run_plain[float](<float*> t.p, t, chunk, setting.c32, setting.rule[0],
                                 common.ahead)
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

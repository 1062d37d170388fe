# The records of a step, which the sweep reads without a Python object in sight.
# Included by _engine.pyx.

# A tensor of the layout, and what this step does with it.
cdef struct Tensor:
    char* p
    char* g                    # this step's gradient, or NULL: no gradient, not updated
    char* s[MAX_STATES]
    char* average              # of the parameter, or NULL
    char* copy                 # of the parameter, or NULL
    int n_states
    int is_double              # what is computed with
    int order                  # the contiguity flag that parameter and gradient share
    int flags                  # this step's stages
    double factor              # of this step's gradient,
    double* factors            # or of each of its units, where SCALE_UNITS is on
    Py_ssize_t n
    Py_ssize_t unit_length     # elements of each unit, or 0: units are not contiguous
    Py_ssize_t unit            # elements of what this step measures the norms of: a unit, or all,
    Py_ssize_t n_units         # and how many of these there are
    Py_ssize_t group
    Py_ssize_t group_step      # this step's
    unsigned char p_codec      # the codec of each array, as rows of `codec_rows`
    unsigned char g_codec
    unsigned char copy_codec
    unsigned char s_codec[MAX_STATES]
    unsigned char coded        # whether parameter or states are not what is computed with
    unsigned char n_words      # random words for each element
    unsigned char fusable      # by a row of FUSED, counted from 1; 0: stage by stage; and the
    unsigned char fusable_in_tile   # same for a parameter loaded to float32

# How a tensor's arrays are coded: aux arrays, and the random bits of stores; one for each tensor.
cdef struct Coding:
    char* p_aux
    char* s_aux[MAX_STATES]
    int p_bit_offset           # of the random bits of a store, or -1: to nearest
    int s_bit_offset[MAX_STATES]
    cnp.uint64_t key[MAX_WORDS]    # of this step's random words
    Py_ssize_t origin          # what these count the first element as

# A row of the backend's CODECS.
cdef struct Codec:
    void* load[2]              # float32, float64
    void* nearest[2]
    void* stochastic[2]
    int size                   # bytes of an element,
    int aux_size               # of an element of aux,
    int per                    # one for so many elements

# What the engine calls of a compiled backend, besides the rules.
cdef struct Loops:
    void* staged[2]            # float32, float64
    void* sum_of_squares[3]    # of float32, of float64, of what a codec stores
    Codec codecs[N_CODECS]

# A chunk: a thread's piece of work, consecutive elements of one tensor.
cdef struct Chunk:
    Py_ssize_t tensor
    Py_ssize_t offset
    Py_ssize_t n
    Py_ssize_t before          # elements in all chunks before this one

# What the tensors of one group at the same step count share.
cdef struct GroupStep:
    void* rule[2]              # float32, float64
    void* fused[N_FUSED][2]    # for gradients in float32 and bfloat16, or NULL: see FUSED
    float c32[MAX_COEFFICIENTS]
    double c64[MAX_COEFFICIENTS]
    Stages stages
    int n_states               # that the rule has
    double factor              # of the gradient, before its norm is clipped
    double clip_norm           # infinite: not to be clipped
    double clip_ratio          # infinite: not to be clipped
    bint in_float_range        # whether float32 can hold all of these

# What all tensors share in a step.
cdef struct StepArgs:
    bint prefetch              # whether to prefetch: the arrays don't all stay in cache
    double beta                # of the weights' average
    double gamma
    const Loops* loops
    const Coding* codings

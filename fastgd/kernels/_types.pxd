# The sizes and records that the engine and the backends share, and the types of their loops.

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "numeric.h" nogil:
    const int TILE "FASTGD_TILE"
    const int HALF_TILE "FASTGD_HALF_TILE"
    const int STRIDE "FASTGD_STRIDE"
    const int LANES "FASTGD_LANES"
    const int BLOCK "FASTGD_BLOCK"
    const int SLICES "FASTGD_SLICES"
    const int MAX_STATES "FASTGD_MAX_STATES"
    const int MAX_COEFFICIENTS "FASTGD_MAX_COEFFICIENTS"
    const int MAX_SUMS "FASTGD_MAX_SUMS"
    const int MAX_NUMBERS "FASTGD_MAX_NUMBERS"
    const int MAX_WORDS "FASTGD_MAX_WORDS"
    const int N_SCRATCH "FASTGD_N_SCRATCH"
    ctypedef void apart_void "FASTGD_APART_VOID"

    ctypedef struct Scratch "fastgd_scratch":
        unsigned char tile[N_SCRATCH][TILE]    # of TILE doubles each; C knows the size
        uint32_t words[MAX_WORDS][TILE]
        uint32_t table[MAX_WORDS][TILE]
        uint32_t paired[MAX_WORDS][TILE]
        uint32_t lower[TILE]
        uint32_t upper[TILE]

    void fastgd_prefetch(const char*, Py_ssize_t)
    void fastgd_prefetch_row(const char*, Py_ssize_t)

cdef extern from "powers.h" nogil:
    double fastgd_raised(double, double)

cdef extern from "elementary.h" nogil:
    double fastgd_logarithm(double)
    double fastgd_cospi(double)

# The stages of a step.  SCALE to DECOUPLED_DECAY come before the rule, CENTRALIZE before these and
# SCALE_UNITS in the place of SCALE; the next three after it.  CODED says that some array is not
# stored in the type that is computed with.
cdef enum:
    SCALE = 1
    CLIP_VALUE = 2
    L2_DECAY = 4
    DECOUPLED_DECAY = 8
    AVERAGE = 16
    COPY = 32
    ZERO_GRADIENT = 64
    CODED = 128
    SCALE_UNITS = 256
    CENTRALIZE = 512
    OF_GRADIENT = CENTRALIZE | SCALE | SCALE_UNITS | CLIP_VALUE | L2_DECAY

# What the stages before the rule are given: the same for all tensors of a group at one step count.
cdef struct Stages:
    int flags
    double weight_decay
    double decoupled
    double clip_value

# Where the chunk of an array starts, and the codec it is stored by.
cdef struct CodedPtr:
    char* code
    char* aux                  # scales or remainders, if it has any
    const void* load           # the codec's loops; NULL: in the type that is computed with
    const void* store
    int size                   # bytes of an element,
    int aux_size               # of an element of aux,
    int per                    # one for so many elements
    int bit_offset             # of the random bits of a store; negative: to nearest

# What one sweep of a rule does, besides its loop.  Sets of states and terms are bits by places.
cdef struct Sweep:
    bint gradient              # whether it takes the gradient
    int loads                  # the states that it takes,
    int stores                 # and those of them that it writes
    int n_terms                # that it returns to be summed up,
    int squares                # and those of them whose squares are
    bint kept                  # whether it takes the kept term in the gradient's place
    int lines                  # the states that are numbers of rows or columns: only read
    bint parameter             # whether it reads the parameter

# An axis of an array as it lies in memory.
cdef struct Axis:
    Py_ssize_t length          # elements of a line,
    Py_ssize_t stride          # and how many elements of the array they are apart

# The rows and columns of a tensor: where they lie, their states, and room for sums.
cdef struct Lines:
    Axis axes[3]               # of rows, of columns, and of the rows' numbers along a matrix
    Py_ssize_t size            # elements of the tensor
    char* state[2]             # of rows, of columns
    double* blocks[2]          # the sum of each block of a line
    char* mean                 # of each line, of rows or columns
    char* seen[2]              # what sweeps see of rows, of columns

# What one call of a staged step works on: a chunk of a tensor, and where each array's starts.
cdef struct ChunkArgs:
    Sweep sweep
    CodedPtr p
    CodedPtr g                 # without a gradient there is no rule, only what comes after it
    CodedPtr copy
    CodedPtr s[MAX_STATES]
    Axis axes[MAX_STATES]      # of states that are numbers of lines, which start with the first
    const void* fused          # the rule's loop that loads and stores itself, or NULL; and the
    const void* fused_in_tile  # same for a parameter and a gradient loaded to tiles
    Py_ssize_t n
    int prefetch               # so many elements at a time, if the arrays don't all stay in cache
    int flags
    double factor              # of the gradient,
    const double* factors      # or of each of its units,
    const double* means        # and what is subtracted from each before,
    Axis units                 # which are lines of the tensor
    void* kept                 # the term of the first sweep, for what comes after it; or NULL
    void* average
    int average_size           # bytes of an element, or 0: there is none
    double beta                # of the average
    double gamma
    int n_states               # of the rule
    uint64_t key[MAX_WORDS]    # of random words
    int n_words                # how many of them are wanted for each element
    Py_ssize_t offset          # of the chunk in its tensor, or in what that is a shard of

# p, g, states, n, coefficients
ctypedef void (*rule_f32)(
    float*, const float*, float**, Py_ssize_t, const float*) noexcept nogil
ctypedef void (*rule_f64)(
    double*, const double*, double**, Py_ssize_t, const double*) noexcept nogil
# rule, chunk, coefficients, stages
ctypedef void (*staged_f32)(
    const void*, const ChunkArgs*, const float*, const Stages*) noexcept nogil
ctypedef void (*staged_f64)(
    const void*, const ChunkArgs*, const double*, const Stages*) noexcept nogil
# p, g, states, n, coefficients, terms
ctypedef void (*first_f32)(
    const float*, const float*, float**, Py_ssize_t, const float*, float**) noexcept nogil
ctypedef void (*first_f64)(
    const double*, const double*, double**, Py_ssize_t, const double*, double**) noexcept nogil
# rule, chunk, coefficients, stages, the total of each term
ctypedef void (*summed_f32)(
    const void*, const ChunkArgs*, const float*, const Stages*, double*) noexcept nogil
ctypedef void (*summed_f64)(
    const void*, const ChunkArgs*, const double*, const Stages*, double*) noexcept nogil
# rule, sweep, p, g, states, n, coefficients, the total of each term
ctypedef void (*tile_f32)(
    const void*, const Sweep*, const float*, const float*, float**, Py_ssize_t, const float*,
    double*) noexcept nogil
ctypedef void (*tile_f64)(
    const void*, const Sweep*, const double*, const double*, double**, Py_ssize_t, const double*,
    double*) noexcept nogil
# chunk, stages, lines, how often there are the chunk's elements, and how far apart
ctypedef void (*squared_lines)(
    const ChunkArgs*, const Stages*, const Lines*, Py_ssize_t, Py_ssize_t) noexcept nogil
# lines, the loops over their numbers: over all, for what is seen of rows, of columns; coefficients
ctypedef void (*settled_f32)(const Lines*, const void**, const float*) noexcept nogil
ctypedef void (*settled_f64)(const Lines*, const void**, const double*) noexcept nogil
# chunk, stages
ctypedef double (*mean_square)(const ChunkArgs*, const Stages*) noexcept nogil
# out, what it is filled with, n
ctypedef void (*fill_f32)(float*, float, Py_ssize_t) noexcept nogil
ctypedef void (*fill_f64)(double*, double, Py_ssize_t) noexcept nogil
# out, what is added to it, n
ctypedef void (*add_f32)(float*, const float*, Py_ssize_t) noexcept nogil
ctypedef void (*add_f64)(double*, const double*, Py_ssize_t) noexcept nogil
# x, n, factor
ctypedef double (*sum_f32)(const float*, Py_ssize_t, double) noexcept nogil
ctypedef double (*sum_f64)(const double*, Py_ssize_t, double) noexcept nogil
# x, n, factor, what is subtracted before, whether squares are summed up
ctypedef double (*sum_coded)(const CodedPtr*, Py_ssize_t, double, double, bint) noexcept nogil
# x, units, the place of n elements, n, how often, how far apart, factor, means, whether squares,
# the totals of all blocks
ctypedef void (*sums_apart)(
    const CodedPtr*, const Axis*, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, double,
    const double*, bint, double*) noexcept nogil
# The loops of codecs: out, code, aux, n
ctypedef void (*load_f32)(float*, const void*, const void*, Py_ssize_t) noexcept nogil
ctypedef void (*load_f64)(double*, const void*, const void*, Py_ssize_t) noexcept nogil
# code, aux, x, n, words, shift
ctypedef void (*store_f32)(
    void*, void*, const float*, Py_ssize_t, const uint32_t*, int) noexcept nogil
ctypedef void (*store_f64)(
    void*, void*, const double*, Py_ssize_t, const uint32_t*, int) noexcept nogil

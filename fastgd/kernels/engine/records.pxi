# The records of a step, which the sweep reads without a Python object in sight.
# Included by _engine.pyx.

# Works out numbers and coefficients, in place, from these, from sums, and the tensor's elements.
ctypedef void (*arithmetic)(double*, double*, const double*, double) noexcept nogil

# Transforms the kept term in a `Workspace`, given the sum of its squares and coefficients.
ctypedef void (*matrix_step)(void*, double, const double*)

# What a rule is made of, besides its loops.
cdef struct RuleInfo:
    Sweep first                # without terms: there is none
    Sweep last
    int last_flags             # the stages that the last sweep may have
    int n_states
    int n_given                # coefficients that the optimizer's class returns,
    int n_coefficients         # and those with what is worked out
    int rounded                # the coefficients that loops take, as bits: float32 has to hold them
    int denominators           # those that are added to denominators, as bits
    int n_numbers
    int shared                 # of these those that all tensors have alike, as bits
    int totals                 # the terms whose sums go over all tensors, as bits
    bint works_out             # whether each tensor has coefficients of its own
    int rows                   # the place of the state of rows, or -1: there are none
    int columns                # and that of columns
    int entries                # the place of the state of entries along the first axis, or -1
    arithmetic begin           # or NULL
    arithmetic settle          # or NULL
    matrix_step matrix         # or NULL
    bint matrix_states         # whether the matrix step takes states
    bint renews                # whether states are to be renewed before a step
    bint own_decay             # whether the rule decays weights by itself
    int matrix_c[MAX_COEFFICIENTS]    # the places of its coefficients,
    int n_matrix_c             # and how many

# The step of a tensor whose rule works out coefficients for each tensor.
cdef struct OwnStep:
    float c32[MAX_COEFFICIENTS]
    double c64[MAX_COEFFICIENTS]
    double* numbers[MAX_NUMBERS]
    double sums[MAX_SUMS]
    double* totals             # of the terms of each chunk

# The distinct rows of a gradient by rows, in ascending order.
cdef struct RowList:
    cnp.uint64_t* entries      # of each row its index, and in the lower bits where its gradient is:
    int bits                   # so many,
    cnp.uint64_t mask          # all of them set
    Py_ssize_t n               # distinct rows
    Py_ssize_t length          # elements of each,
    Py_ssize_t size            # and bytes of its gradient
    Py_ssize_t given           # places below this are of values, others of sums
    char* values
    char* sums                 # of rows that came several times
    double* totals             # sums of squares of the blocks of each row,
    double* norms              # its norm,
    double* factors            # and what its gradient is multiplied by

# The rows of a table that catch up with what they missed; see `Missed`.
cdef struct MissedRows:
    cnp.uint32_t* counts       # of each row, the steps that it has taken or caught up with
    Py_ssize_t n               # rows
    cnp.uint32_t taken         # the steps that the table has taken, of which rows missed some
    int n_states               # of the rule, with an element for each of the parameter,
    bint signs                 # whether it takes signs,
    int width                  # and how many numbers there are of a step that was missed:
    double* built              # these,
    double* powers[4]          # and their powers by each digit of how many there were,
    int levels                 # for so many digits
    bint moves                 # whether such a step changes anything
    bint is_double
    const RuleInfo* info       # of the rule by which rows catch up,
    void* rule[2]              # and its loops: float32, float64
    cnp.uint64_t key[MAX_WORDS]    # of the random words of the last step taken

# What is known of loops of one kind: which policy they take, and the evidence for it.
cdef struct Kind:
    const void* rule           # the rule's loop, which stands for backend and compute type, too
    const RuleInfo* info
    cnp.uint64_t ways          # storage, stages, size and threads: see `ways_of`
    int all                    # the policies that it may take, as bits
    int policy                 # the choice,
    int rival                  # what it is tried against,
    int rivals                 # and what it is to be tried against after that, as bits
    bint trying                # whether evidence is being gathered
    Py_ssize_t least           # pairs that a verdict takes,
    Py_ssize_t most            # and after which there is one at the latest
    Py_ssize_t pairs           # of runs by choice and rival, one after the other,
    double total               # and the sum of their differences,
    double squares             # and of the squares of these
    double waiting[2]          # the rate of a run without a partner, of the choice and the rival
    double tried               # elements since evidence is being gathered, or ticks of steps,
    double left                # and those left until it is gathered again
    double until               # or until when it is not, in ticks
    double alone               # ticks of an element of the steps that were tried on one thread,
    Py_ssize_t alones          # added up over so many,
    double rested              # and elements of all steps since then
    int looks                  # how often there was a verdict
    Py_ssize_t last_pairs      # what the last one was based on,
    double gain                # what prefetching gains by it, as a difference,
    double finer               # and what doing so in smaller portions does

# Whether the steps of a plan take one thread or all, and what that is found out by.
cdef struct Crew:
    bint tuned                 # whether the plan is one for which it is found out,
    bint large                 # and one of those that are in no hurry to
    int magnitude              # of its elements, as a power of two
    Kind* kind                 # of this step, or NULL: nothing is found out,
    int policy                 # its choice when the step began,
    int rival                  # what that was tried against,
    bint trying                # if it was,
    int takes                  # and which of them the step took
    unsigned int turn          # steps that were tried
    cnp.uint64_t start         # when the step began

# A tensor of the layout, and what this step does with it.
cdef struct Tensor:
    char* p
    char* g                    # this step's gradient, or NULL: no gradient, not updated
    char* s[MAX_STATES]
    const RuleInfo* info
    OwnStep* own               # its own coefficients, or NULL: those of its group's step
    const Lines* lines         # of a rule with states of rows and columns, or NULL
    Py_ssize_t group_step      # this step's
    int flags                  # this step's stages
    int is_double              # what is computed with
    bint straight              # whether the rule alone is all that its last sweep does,
    bint at_once               # and whether all that it wants is done at once, chunk by chunk
    int n_states               # up to here a small tensor's sweep looks: two lines of cache
    char* average              # of the parameter, or NULL
    char* copy                 # of the parameter, or NULL
    char* kept                 # the kept term, where the rule has a matrix step, or NULL
    RowList* rows              # this step's gradient, where it is one by rows; or NULL
    MissedRows* missed         # of a table whose rows catch up; or NULL
    char* seen                 # what sweeps see of the number of a row that this is, or NULL
    int order                  # the contiguity flag that parameter and gradient share
    double factor              # of this step's gradient,
    double* factors            # or of each of its units, where SCALE_UNITS is on
    double* means              # of each of its units, where CENTRALIZE is on
    Py_ssize_t n
    double size                # elements of the parameter, of which this may be a shard
    Py_ssize_t row_length      # elements of each row, where the step or the rule is by rows
    bint centralized           # whether the mean of each unit of its gradient is subtracted
    Axis own_units             # where its units lie; of length 0: not as lines along an axis
    Axis units                 # what this step measures the norms of: these, or all as one,
    Py_ssize_t n_units         # and how many of them there are
    Py_ssize_t first_chunk     # the place of its first chunk, which its others follow
    Py_ssize_t group
    Py_ssize_t owner           # the group with one of its rules: whose coefficients it has
    unsigned char p_codec      # the codec of each array, as rows of `codec_rows`
    unsigned char g_codec
    unsigned char copy_codec
    unsigned char s_codec[MAX_STATES]
    unsigned char coded        # whether parameter or states are not what is computed with
    unsigned char n_words      # random words for each element
    Kind* kind                 # the kind of its loops, as tuning has it, or NULL
    unsigned char policy       # what this step does of what may be tuned, as to prefetch,
    unsigned char rival        # and what it does in turn with it, to compare; the same: nothing
    unsigned char fusable      # by a row of FUSED, counted from 1; 0: stage by stage; and the
    unsigned char fusable_in_tile   # same for a parameter loaded to float32

# The memory of an array, by address, and whose it is.
cdef struct Range:
    size_t start
    size_t end
    Py_ssize_t tensor
    int array                  # which one of the tensor's arrays

# How a tensor's arrays are coded: aux arrays, and the random bits of stores; one for each tensor.
cdef struct Coding:
    char* p_aux
    char* s_aux[MAX_STATES]
    int p_bit_offset           # of the random bits of a store, or -1: to nearest
    int s_bit_offset[MAX_STATES]
    cnp.uint64_t key[MAX_WORDS]    # of this step's random words
    Py_ssize_t first           # of its arrays among those of the layout
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
    void* summed[2]            # float32, float64
    void* summed_tile[2]       # float32, float64
    void* squared[2]           # float32, float64
    void* settled[2]           # float32, float64
    void* mean_square[2]       # float32, float64
    void* fill[2]              # float32, float64
    void* add[2]               # float32, float64
    void* sum_of_squares[2]    # of float32, of float64
    void* sum_of_coded         # of what a codec stores
    void* sum_apart            # the same of interleaved units
    Codec codecs[N_CODECS]

# A chunk: a thread's piece of work, consecutive elements of one tensor.
cdef struct Chunk:
    Py_ssize_t tensor
    Py_ssize_t offset
    Py_ssize_t n
    Py_ssize_t before          # elements in all chunks before this one

# Tensors that are stepped together: where rules have two sweeps, few enough to stay in cache
# between them.
cdef struct Batch:
    Py_ssize_t tensor          # the first one,
    Py_ssize_t end             # and the one after the last
    Py_ssize_t chunk           # the same of their chunks
    Py_ssize_t chunk_end
    Py_ssize_t piece           # and of the pieces over whose lines is summed up
    Py_ssize_t piece_end

# What the tensors of one owner at the same step count share.
cdef struct GroupStep:
    const RuleInfo* info
    void* first[2]             # float32, float64; or NULL
    void* rule[2]              # float32, float64
    void* lines[2][3]          # float32, float64: over numbers of lines, of rows, of columns
    void* fused[N_FUSED][2]    # for gradients in float32 and bfloat16, or NULL: see FUSED
    float c32[MAX_COEFFICIENTS]
    double c64[MAX_COEFFICIENTS]
    Stages stages
    double factor              # of the gradient, before its norm is clipped
    double clip_norm           # infinite: not to be clipped
    double clip_ratio          # infinite: not to be clipped
    bint in_float_range        # whether float32 can hold all of these

# What the tensors of one group step have alike, as it was in the last step.
cdef struct Cohort:
    Py_ssize_t owner
    Py_ssize_t first           # the first of the tensors
    cnp.int64_t step           # counted from 0
    const RuleInfo* info
    double factor              # of their gradients,
    int flags                  # and the stages that all of them have
    bint in_float_range
    bint plain                 # whether nothing is clipped by norms, so that the factor is all

# What all tensors share in a step.
cdef struct StepArgs:
    int prefetch               # so many elements at a time, if the arrays don't all stay in cache
    bint each                  # or whether each tensor has a policy of its own; and which one
    bint turn                  # comes first where both are tried, turn by turn
    bint at_once               # whether tensors that allow it are done at once
    double beta                # of the weights' average
    double gamma
    const Loops* loops
    const Coding* codings

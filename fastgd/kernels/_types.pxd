# The C types that pass between the engine and the backends; declared in src_c/numeric.h.

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "numeric.h" nogil:
    const int TILE "FASTGD_TILE"
    const int PIECE "FASTGD_PIECE"
    const int STRIDE "FASTGD_STRIDE"
    const int MAX_STATES "FASTGD_MAX_STATES"
    const int MAX_COEFFICIENTS "FASTGD_MAX_COEFFICIENTS"
    const int N_FUSED "FASTGD_N_FUSED"
    const int LANES "FASTGD_LANES"
    const int BLOCK "FASTGD_BLOCK"

    const int SCALE "FASTGD_SCALE"
    const int CLIP_VALUE "FASTGD_CLIP_VALUE"
    const int L2_DECAY "FASTGD_L2_DECAY"
    const int DECOUPLED_DECAY "FASTGD_DECOUPLED_DECAY"
    const int AVERAGE "FASTGD_AVERAGE"
    const int COPY "FASTGD_COPY"
    const int ZERO_GRADIENT "FASTGD_ZERO_GRADIENT"

    const int STORED "FASTGD_STORED"
    const int SCALE_UNITS "FASTGD_SCALE_UNITS"

    ctypedef struct Scratch "fastgd_scratch":
        unsigned char tile[7][2048]
        uint32_t words[3][256]
        uint32_t table[3][256]

    ctypedef struct Stages "fastgd_stages":
        int flags
        double weight_decay
        double decoupled
        double clip_value

    ctypedef struct Stored "fastgd_stored":
        char* code
        char* beside
        const void* load
        const void* store
        int size
        int beside_size
        int per
        int shift

    ctypedef struct Part "fastgd_part":
        Stored p
        Stored g
        Stored copy
        Stored s[4]
        const void* fused
        const void* fused_in_tile
        Py_ssize_t n
        int ahead
        int flags
        double factor
        const double* factors
        Py_ssize_t unit
        void* average
        int average_size
        int n_states
        double beta
        double gamma
        uint64_t key[3]
        int n_words
        Py_ssize_t offset

    void fastgd_prefetch(const char*, Py_ssize_t)

# p, g, states, n, coefficients
ctypedef void (*rule_f32)(
    float*, const float*, float**, Py_ssize_t, const float*) noexcept nogil
ctypedef void (*rule_f64)(
    double*, const double*, double**, Py_ssize_t, const double*) noexcept nogil
# rule, part, coefficients, stages
ctypedef void (*staged_f32)(const void*, const Part*, const float*, const Stages*) noexcept nogil
ctypedef void (*staged_f64)(const void*, const Part*, const double*, const Stages*) noexcept nogil
# g, n, scale
ctypedef double (*sum_f32)(const float*, Py_ssize_t, double) noexcept nogil
ctypedef double (*sum_f64)(const double*, Py_ssize_t, double) noexcept nogil
# array, n, scale: of what is kept in fewer bytes
ctypedef double (*sum_coded)(const Stored*, Py_ssize_t, double) noexcept nogil
# The loops of codecs: out, code, beside, n
ctypedef void (*load_f32)(float*, const void*, const void*, Py_ssize_t) noexcept nogil
ctypedef void (*load_f64)(double*, const void*, const void*, Py_ssize_t) noexcept nogil
# code, beside, x, n, words, shift
ctypedef void (*store_f32)(
    void*, void*, const float*, Py_ssize_t, const uint32_t*, int) noexcept nogil
ctypedef void (*store_f64)(
    void*, void*, const double*, Py_ssize_t, const uint32_t*, int) noexcept nogil
# seed, step, tensor
ctypedef uint64_t (*random_key_t)(uint64_t, uint64_t, uint64_t) noexcept nogil

# The C types that pass between the engine and the backends; declared in src_c/numeric.h.

cdef extern from "numeric.h" nogil:
    const int TILE "FASTGD_TILE"
    const int MAX_STATES "FASTGD_MAX_STATES"
    const int MAX_COEFFICIENTS "FASTGD_MAX_COEFFICIENTS"
    const int SCALE "FASTGD_SCALE"
    const int L2_DECAY "FASTGD_L2_DECAY"
    const int DECOUPLED_DECAY "FASTGD_DECOUPLED_DECAY"

    ctypedef struct Scratch "fastgd_scratch":
        unsigned char tile[2][2048]

    ctypedef struct Stages "fastgd_stages":
        int flags
        int n_states
        double grad_scale
        double weight_decay
        double decoupled

# p, g, states, n, coefficients
ctypedef void (*rule_f32)(
    float*, const float*, float**, Py_ssize_t, const float*) noexcept nogil
ctypedef void (*rule_f64)(
    double*, const double*, double**, Py_ssize_t, const double*) noexcept nogil
# rule, p, g, states, n, coefficients, stages
ctypedef void (*staged_f32)(
    const void*, float*, const float*, float**, Py_ssize_t, const float*,
    const Stages*) noexcept nogil
ctypedef void (*staged_f64)(
    const void*, double*, const double*, double**, Py_ssize_t, const double*,
    const Stages*) noexcept nogil

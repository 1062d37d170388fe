# Gradients that are given to a plan as pointers: whoever does so has found that they fit their
# parameters and that these are where they were, and keeps all there until the step is done.

cdef extern from *:
    """#define FASTGD_GRAD_POINTERS "fastgd.gradients" """
    # The name of the capsule of an array of these.
    const char* GRAD_POINTERS "FASTGD_GRAD_POINTERS"

cdef struct GradPointer:
    char* data                 # NULL: no gradient
    int kind                   # NumPy's number of a dtype of floats

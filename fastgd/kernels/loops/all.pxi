# All loops of a backend, in the order in which they use each other.
from cython cimport floating
from libc.float cimport DBL_EPSILON, DBL_MAX, DBL_MIN, FLT_EPSILON, FLT_MAX, FLT_MIN
from libc.math cimport fabs, fabsf, sqrt, sqrtf

from fastgd.kernels._types cimport *

include "arithmetic.pxi"
include "_rules.pxi"
include "codecs.pxi"
include "_fused_rules.pxi"
include "fused.pxi"
include "_fused_table.pxi"
include "stages.pxi"
include "lines.pxi"
include "rows.pxi"
include "units.pxi"

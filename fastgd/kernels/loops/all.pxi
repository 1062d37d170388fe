# All loops of a backend, in the order in which they use each other.
from cython cimport floating
from libc.math cimport sqrt, sqrtf

from fastgd.kernels._types cimport *

include "arithmetic.pxi"
include "_rules.pxi"
include "codecs.pxi"
include "_fused_rules.pxi"
include "fused.pxi"
include "_fused_table.pxi"
include "stages.pxi"

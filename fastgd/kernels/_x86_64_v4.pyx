# The kernels for x86-64-v4 processors: see _baseline.pyx.
from cython cimport floating
from libc.math cimport sqrt, sqrtf

from fastgd.kernels._types cimport *

include "loops/arithmetic.pxi"
include "loops/_rules.pxi"
include "loops/codecs.pxi"
include "loops/_fused_rules.pxi"
include "loops/fused.pxi"
include "loops/_fused_table.pxi"
include "loops/stages.pxi"

# The kernels for any processor of the architecture; _x86_64_v3.pyx and _x86_64_v4.pyx are the same
# includes, compiled with other flags (BACKENDS in setup.py).
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

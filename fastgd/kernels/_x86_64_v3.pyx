# The kernels for x86-64-v3 processors: see _baseline.pyx.
from cython cimport floating
from libc.math cimport sqrt, sqrtf

from fastgd.kernels._types cimport *

include "_rules.pxi"
include "_codecs.pxi"
include "_fused.pxi"
include "_stages.pxi"

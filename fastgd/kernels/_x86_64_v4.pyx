# The kernels for x86-64-v4 processors: see _baseline.pyx.
include "loops/all.pxi"

# The kernels for x86-64-v3 processors: see _baseline.pyx.
include "loops/all.pxi"

# The kernels for any processor of the architecture; _x86_64_v3.pyx and _x86_64_v4.pyx are the same,
# compiled with other flags (BACKENDS in setup.py).
include "loops/all.pxi"

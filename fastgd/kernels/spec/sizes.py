"""The sizes that the specification and the compiled loops share.

They are set here alone: the build writes ``src_c/_sizes.h`` from this file, by the same names with
``FASTGD_`` before them.
"""

# Elements that a staged step works on at a time, that share the scale of an 8-bit codec, and whose
# random words have one half in common.  Scratch tiles and the arrays' own fit in L1.
TILE = 256

# Sums run in so many lanes side by side, so that their order is the same for every vector width;
# and over blocks of at most so many elements, so that it is the same for every number of threads.
LANES = 16
BLOCK = 32768

# Sums over an axis whose elements are apart in memory run over blocks of so many of them.
SLICES = 64

# The most that a rule may have of each; the engine refuses more.
MAX_STATES = 6
MAX_COEFFICIENTS = 20
MAX_SUMS = 4
MAX_NUMBERS = 4

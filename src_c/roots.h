/* Cube roots, as far as bits are needed for them: fastgd/kernels/loops/arithmetic.pxi has the rest, and
 * fastgd/kernels/spec/registry.py specifies both.  A function of integers without a branch or a division,
 * so that compilers vectorise it for every instruction set. */
#ifndef FASTGD_ROOTS_H
#define FASTGD_ROOTS_H

#include <stdint.h>
#include <string.h>

/* One over a normal number's cube root, to about a twentieth.  Its bits, read as an integer, are about
 * its logarithm: a constant less a third of them, by shifts, are the bits of what is looked for. */
static inline float fastgd_near_inverse_cube_root_f32(float x)
{
    uint32_t n, third;
    memcpy(&n, &x, sizeof n);
    third = (n >> 2) + (n >> 4);
    third += third >> 4;
    third += third >> 8;
    n = 0x54A1E000 - third;
    memcpy(&x, &n, sizeof x);
    return x;
}

static inline double fastgd_near_inverse_cube_root_f64(double x)
{
    uint64_t n, third;
    memcpy(&n, &x, sizeof n);
    third = (n >> 2) + (n >> 4);
    third += third >> 4;
    third += third >> 8;
    n = 0x553ED00000000000 - third;
    memcpy(&x, &n, sizeof x);
    return x;
}

#endif

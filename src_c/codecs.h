/* Numbers as they are stored: to and from the types that kernels compute in. */
#ifndef FASTGD_CODECS_H
#define FASTGD_CODECS_H

#include <stdint.h>
#include <string.h>

/* The bfloat16 nearest to x, ties to even; a NaN stays one, and becomes quiet. */
static inline uint16_t fastgd_bfloat16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    uint32_t nan = bits >> 16 | 0x40u;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

#endif

/* The numbers and records shared by the engine and the kernels of every backend. */
#ifndef FASTGD_NUMERIC_H
#define FASTGD_NUMERIC_H

#include <stdalign.h>

/* Elements a staged step works on at a time: two scratch tiles and the tensors' own fit in L1. */
#define FASTGD_TILE 256
/* The most a rule may have of each; the engine refuses more. */
#define FASTGD_MAX_STATES 4
#define FASTGD_MAX_COEFFICIENTS 8

/* Scratch tiles of a staged step, aligned to a cache line: AVX-512 loads that straddle two lines
 * made a staged step 1.4 times slower. */
typedef struct {
    alignas(64) unsigned char tile[2][FASTGD_TILE * sizeof(double)];
} fastgd_scratch;

/* Which stages a step has, and what they are given. */
enum { FASTGD_SCALE = 1, FASTGD_L2_DECAY = 2, FASTGD_DECOUPLED_DECAY = 4 };

typedef struct {
    int flags;
    int n_states;
    double grad_scale;
    double weight_decay;
    double decoupled;
} fastgd_stages;

#endif

/* The numbers and records shared by the engine and the kernels of every backend. */
#ifndef FASTGD_NUMERIC_H
#define FASTGD_NUMERIC_H

#include <stdalign.h>
#include <stddef.h>

/* Elements a staged step works on at a time: two scratch tiles and the tensors' own fit in L1. */
#define FASTGD_TILE 256
/* The most a rule may have of each; the engine refuses more. */
#define FASTGD_MAX_STATES 4
#define FASTGD_MAX_COEFFICIENTS 8
/* Sums run in so many lanes side by side, so that their order is the same for every vector width;
 * and over blocks of so many elements, so that it is the same for every number of threads. */
#define FASTGD_LANES 16
#define FASTGD_BLOCK 32768

/* Scratch tiles of a staged step, aligned to a cache line: AVX-512 loads that straddle two lines
 * made a staged step 1.4 times slower. */
typedef struct {
    alignas(64) unsigned char tile[2][FASTGD_TILE * sizeof(double)];
} fastgd_scratch;

/* The stages around a rule.  SCALE to DECOUPLED_DECAY come before it, the others after. */
enum {
    FASTGD_SCALE = 1,
    FASTGD_CLIP_VALUE = 2,
    FASTGD_L2_DECAY = 4,
    FASTGD_DECOUPLED_DECAY = 8,
    FASTGD_AVERAGE = 16,
    FASTGD_COPY = 32,
    FASTGD_ZERO_GRADIENT = 64
};

/* What the tensors of one group at the same step count share. */
typedef struct {
    int flags;
    int n_states;
    double weight_decay;
    double decoupled;
    double clip_value;
} fastgd_stages;

/* What the copy of a parameter is stored as. */
enum { FASTGD_FLOAT32 = 0, FASTGD_BFLOAT16 = 1 };

/* The part of a tensor that one call of a staged step works on: where each array's part starts. */
typedef struct {
    void *p;
    const void *g; /* NULL: no rule, only what comes after it */
    void *s[FASTGD_MAX_STATES];
    ptrdiff_t n;
    int flags;
    double factor; /* of the gradient */
    void *average;
    double beta, gamma; /* of the average */
    void *copy;
    int copy_type;
} fastgd_part;

#endif

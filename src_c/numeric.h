/* The numbers and records shared by the engine and the kernels of every backend. */
#ifndef FASTGD_NUMERIC_H
#define FASTGD_NUMERIC_H

#include <stdalign.h>
#include <stddef.h>
#include <stdint.h>

/* Elements a staged step works on at a time: two scratch tiles and the tensors' own fit in L1. */
#define FASTGD_TILE 256
/* The same where nothing needs scratch, and memory is asked for a tile ahead. */
#define FASTGD_PIECE 128
/* The same of a tile's loop that does all; a quarter of a tile. */
#define FASTGD_STRIDE 64
/* The most a rule may have of each; the engine refuses more. */
#define FASTGD_MAX_STATES 4
#define FASTGD_MAX_COEFFICIENTS 8
/* Ways to keep parameter and states for which a backend has loops that load and store themselves. */
#define FASTGD_N_FUSED 21
/* Sums run in so many lanes side by side, so that their order is the same for every vector width;
 * and over blocks of so many elements, so that it is the same for every number of threads. */
#define FASTGD_LANES 16
#define FASTGD_BLOCK 32768

/* Scratch tiles of a staged step, aligned to a cache line: AVX-512 loads that straddle two lines
 * made a staged step 1.4 times slower.  Two for the gradient, one for the parameter, one for each
 * state; and random words, which serve two stores each, with the tables they are made from. */
typedef struct {
    alignas(64) unsigned char tile[3 + FASTGD_MAX_STATES][FASTGD_TILE * sizeof(double)];
    alignas(64) uint32_t words[3][FASTGD_TILE];
    alignas(64) uint32_t table[3][FASTGD_TILE];
} fastgd_scratch;

/* The stages around a rule.  SCALE to DECOUPLED_DECAY come before it, the next three after; STORED
 * says that some array is not kept in the type that is computed with; SCALE_UNITS comes in the place
 * of SCALE. */
enum {
    FASTGD_SCALE = 1,
    FASTGD_CLIP_VALUE = 2,
    FASTGD_L2_DECAY = 4,
    FASTGD_DECOUPLED_DECAY = 8,
    FASTGD_AVERAGE = 16,
    FASTGD_COPY = 32,
    FASTGD_ZERO_GRADIENT = 64,
    FASTGD_STORED = 128,
    FASTGD_SCALE_UNITS = 256
};

/* What the tensors of one group at the same step count share. */
typedef struct {
    int flags;
    double weight_decay;
    double decoupled;
    double clip_value;
} fastgd_stages;

/* Where the part of an array starts, and how it is kept. */
typedef struct {
    char *code;
    char *beside;      /* the remainders or scales beside it, if it has any */
    const void *load;  /* a codec's loops; NULL: computed with where it is */
    const void *store;
    int size;          /* bytes of an element, */
    int beside_size;   /* of what stands beside it, */
    int per;           /* one for as many elements */
    int shift;         /* of the random bits for it; negative: to nearest */
} fastgd_stored;

/* The part of a tensor that one call of a staged step works on: where each array's part starts. */
typedef struct {
    fastgd_stored p, g, copy; /* without a gradient no rule, only what comes after it */
    fastgd_stored s[FASTGD_MAX_STATES];
    const void *fused;         /* the rule's loop that loads and stores itself, or NULL; and the */
    const void *fused_in_tile; /* same for a parameter and a gradient loaded to tiles */
    ptrdiff_t n;
    int ahead; /* whether memory is to be asked for ahead, as it isn't in cache */
    int flags;
    double factor;         /* of the gradient, */
    const double *factors; /* or of each of its units, */
    ptrdiff_t unit;        /* which have so many elements, from the tensor's first on */
    void *average;
    int average_size;      /* bytes of an element, or 0: there is none */
    double beta, gamma;    /* of the average */
    int n_states;          /* of the rule */
    uint64_t key[3];       /* of random words */
    int n_words;           /* how many of them are wanted for each element */
    ptrdiff_t offset;      /* of the part in its tensor, or in what that is a piece of */
} fastgd_part;

/* Ask for memory that will be worked on a tile from now.  The processor fetches ahead by itself, but
 * not far enough where it waits for its divider, and it loses the thread where many arrays are worked
 * on in turn: out of cache, Adam took 1.12 of the stream's time without this, 1.00 with it; with
 * bfloat16 states 0.97 and 0.80.  Little at a time, as more is in flight otherwise than the processor
 * can hold: twice as much at once gained nothing.  In cache it only costs. */
static inline void fastgd_prefetch(const char *start, ptrdiff_t bytes)
{
#if defined(__GNUC__)
    for (ptrdiff_t k = 0; k < bytes; k += 64) {
        __builtin_prefetch(start + k, 1);
        /* GCC takes a function that does no more for one that does nothing, and drops its calls. */
        __asm__ volatile("");
    }
#else
    (void)start, (void)bytes;
#endif
}

#endif

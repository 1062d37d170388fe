/* What the engine and the kernels of every backend need of C: sizes, scratch memory, prefetching.
 * The records that pass between them are declared in fastgd/kernels/_types.pxd. */
#ifndef FASTGD_NUMERIC_H
#define FASTGD_NUMERIC_H

#include <stdalign.h>
#include <stddef.h>
#include <stdint.h>

#include "_sizes.h" /* written by the build from fastgd/kernels/spec/sizes.py */

enum {
    FASTGD_HALF_TILE = FASTGD_TILE / 2, /* what a loop that prefetches works on at a time, */
    FASTGD_STRIDE = FASTGD_TILE / 4,    /* and what a fused loop does */
    /* For gradient (two), parameter, states, and terms to be summed up. */
    FASTGD_N_SCRATCH = 3 + FASTGD_MAX_STATES + FASTGD_MAX_SUMS,
    /* Random words of an element: each serves two of the stores of parameter and states. */
    FASTGD_MAX_WORDS = (FASTGD_MAX_STATES + 2) / 2
};

/* What a function returns that is not to be inlined, and nothing else. */
#if defined(__GNUC__)
#define FASTGD_APART_VOID __attribute__((noinline)) void
#elif defined(_MSC_VER)
#define FASTGD_APART_VOID __declspec(noinline) void
#else
#define FASTGD_APART_VOID void
#endif

/* Scratch tiles of a staged step, and random words with the tables they are made from, in order and
 * as loops in pairs take them; of the first, the bits that two states in 8 bits take.  Aligned to a cache line: AVX-512 loads that straddle two lines made a
 * staged step 1.4 times slower. */
typedef struct {
    alignas(64) unsigned char tile[FASTGD_N_SCRATCH][FASTGD_TILE * sizeof(double)];
    alignas(64) uint32_t words[FASTGD_MAX_WORDS][FASTGD_TILE];
    alignas(64) uint32_t table[FASTGD_MAX_WORDS][FASTGD_TILE];
    alignas(64) uint32_t paired[FASTGD_MAX_WORDS][FASTGD_TILE];
    alignas(64) uint32_t lower[FASTGD_TILE], upper[FASTGD_TILE];
} fastgd_scratch;

/* Prefetch memory that will be worked on a tile from now.  The processor prefetches by itself, but
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

/* The same for a row that may lie anywhere: all lines that it has a part of.  Rows of 256 bytes that
 * don't start on a line, as those of NumPy's large arrays don't, have part of five lines, not four. */
static inline void fastgd_prefetch_row(const char *start, ptrdiff_t bytes)
{
    const ptrdiff_t ahead = (ptrdiff_t)((size_t)start % 64);
    fastgd_prefetch(start - ahead, bytes + ahead);
}

#endif

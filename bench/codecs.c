/* Calls a codec's loop over and over on the same tile, in L1.  Compiled and loaded by codecs.py. */
#include <stddef.h>
#include <stdint.h>

typedef void load(void *, const void *, const void *, ptrdiff_t);
typedef void store(void *, void *, const void *, ptrdiff_t, const uint32_t *, int);
typedef void words(uint32_t *, const uint32_t *, uint64_t, ptrdiff_t, ptrdiff_t);

void repeat_load(load *f, void *out, const void *code, const void *aux, ptrdiff_t n, long times)
{
    while (times-- > 0)
        f(out, code, aux, n);
}

void repeat_store(store *f, void *code, void *aux, const void *x, ptrdiff_t n,
                  const uint32_t *random, int shift, long times)
{
    while (times-- > 0)
        f(code, aux, x, n, random, shift);
}

void repeat_words(words *f, uint32_t *out, const uint32_t *table, ptrdiff_t n, long times)
{
    for (long k = 0; k < times; k++)
        f(out, table, 7, k * n, n);
}

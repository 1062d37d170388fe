/* The machine's own limit for a rule: read a gradient, read and write a parameter and `k` states,
 * with as little arithmetic as will touch everything.  Compiled and loaded by stream.py. */
#include <stddef.h>
#include <stdint.h>

#define SWEEP(...)                                                                   \
    _Pragma("omp parallel for simd num_threads(threads) schedule(static)")           \
    for (ptrdiff_t i = 0; i < n; i++) {                                              \
        const float x = g[i];                                                        \
        __VA_ARGS__                                                                  \
    }

/* The same for a sweep that only reads: a norm's. */
double read_all(const float *restrict g, ptrdiff_t n, int threads)
{
    double total = 0;
    _Pragma("omp parallel for simd num_threads(threads) schedule(static) reduction(+ : total)")
    for (ptrdiff_t i = 0; i < n; i++)
        total += g[i];
    return total;
}

void stream(float *restrict p, const float *restrict g, float *restrict a, float *restrict b,
            float *restrict c, float *restrict d, int k, ptrdiff_t n, int threads)
{
    switch (k) {
    case 0: SWEEP(p[i] += x;) break;
    case 1: SWEEP(a[i] += x; p[i] += x;) break;
    case 2: SWEEP(a[i] += x; b[i] += x; p[i] += x;) break;
    case 3: SWEEP(a[i] += x; b[i] += x; c[i] += x; p[i] += x;) break;
    default: SWEEP(a[i] += x; b[i] += x; c[i] += x; d[i] += x; p[i] += x;)
    }
}

/* Reads rows of `values`, and adds each to a row of every table, as a step by rows has to move them;
   `lines` has a number for each row of the tables, or is NULL.  Threads may race for a row. */
void move_rows(float *const *tables, int count, float *lines, const float *values,
               const int64_t *indices, ptrdiff_t k, ptrdiff_t length, int threads)
{
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (ptrdiff_t i = 0; i < k; i++) {
        const float *restrict from = values + i * length;
        for (int t = 0; t < count; t++) {
            if (i + 8 < k)
                for (ptrdiff_t j = 0; j < length; j += 16)
                    __builtin_prefetch(tables[t] + indices[i + 8] * length + j, 1);
            float *restrict to = tables[t] + indices[i] * length;
            for (ptrdiff_t j = 0; j < length; j++)
                to[j] += from[j];
        }
        if (lines)
            lines[indices[i]] += from[0];
    }
}

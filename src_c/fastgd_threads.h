/* OpenMP's thread count, or one where the package was built without OpenMP; and what threads share. */
#ifndef FASTGD_THREADS_H
#define FASTGD_THREADS_H

#ifdef _MSC_VER
#include <intrin.h>
#endif

#ifdef _OPENMP
#include <omp.h>
#define FASTGD_OPENMP 1
static inline int fastgd_max_threads(void) { return omp_in_parallel() ? 1 : omp_get_max_threads(); }
#else
#define FASTGD_OPENMP 0
static inline int fastgd_max_threads(void) { return 1; }
#endif

/* The next of the numbers from 0 to n - 1, each for one thread alone; -1 if none is left. */
static inline int fastgd_take(int *taken, int n)
{
    int k;
#if defined(__GNUC__)
    if (__atomic_load_n(taken, __ATOMIC_RELAXED) >= n)
        return -1;
    k = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
#elif defined(_MSC_VER)
    if (*(volatile int *)taken >= n)
        return -1;
    k = (int)_InterlockedExchangeAdd((volatile long *)taken, 1);
#elif FASTGD_OPENMP
#error "fastgd_take: no atomic operation of this compiler's is known"
#else
    k = (*taken)++;
#endif
    return k < n ? k : -1;
}

#endif

/* OpenMP's thread count, or one where the package was built without OpenMP. */
#ifndef FASTGD_THREADS_H
#define FASTGD_THREADS_H

#ifdef _OPENMP
#include <omp.h>
#define FASTGD_OPENMP 1
static inline int fastgd_max_threads(void) { return omp_in_parallel() ? 1 : omp_get_max_threads(); }
#else
#define FASTGD_OPENMP 0
static inline int fastgd_max_threads(void) { return 1; }
#endif

#endif

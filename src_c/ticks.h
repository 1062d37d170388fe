/* What tuning needs of C: a clock that costs some ten nanoseconds, and a lock that nobody waits for. */
#ifndef FASTGD_TICKS_H
#define FASTGD_TICKS_H

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <x86intrin.h>
#define FASTGD_CLOCK "time-stamp counter"
static inline uint64_t fastgd_ticks(void) { return __rdtsc(); }
#elif defined(__aarch64__) && defined(__GNUC__)
#define FASTGD_CLOCK "virtual counter"
static inline uint64_t fastgd_ticks(void)
{
    uint64_t t;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(t));
    return t;
}
#else
#include <time.h>
#ifdef CLOCK_MONOTONIC
#define FASTGD_CLOCK "clock_gettime"
static inline uint64_t fastgd_ticks(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
#else
#define FASTGD_CLOCK ""
static inline uint64_t fastgd_ticks(void) { return 0; }
#endif
#endif

/* Takes the lock if it is free; where there are no atomic operations it never is. */
static inline int fastgd_try_lock(int *lock)
{
#if defined(__GNUC__)
    return !__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE);
#else
    (void)lock;
    return 0;
#endif
}

static inline void fastgd_unlock(int *lock)
{
#if defined(__GNUC__)
    __atomic_store_n(lock, 0, __ATOMIC_RELEASE);
#else
    (void)lock;
#endif
}

#endif

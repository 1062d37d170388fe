/* One fault of each kind, to see that a sanitizer which reports nothing would report something. */
#include <stdlib.h>

/* Read an element past the end. */
int heap(int n)
{
    volatile int *a = calloc((size_t)n, sizeof *a);
    int x = a[n];
    free((void *)a);
    return x;
}

/* Overflow a signed sum. */
int overflow(int n) { return 2147483647 - 1 + n; }

/* Decide by a number that nobody wrote. */
int uninitialised(int n)
{
    volatile int *a = malloc((size_t)n * sizeof *a);
    int x = a[n - 1] > 0 ? 2 : 1;
    free((void *)a);
    return x;
}

/* Add up in one place from several threads. */
int race(int n)
{
    int sum = 0;
#pragma omp parallel for num_threads(2)
    for (int i = 0; i < n; i++)
        sum += i % 3;
    return sum;
}

/* Write to places of their own from several threads, and read them afterwards: no fault. */
int no_race(int n)
{
    static int place[1000];
    int sum = 0;
#pragma omp parallel for num_threads(2)
    for (int i = 0; i < n; i++)
        place[i % 1000] = 1;
    for (int i = 0; i < n; i++)
        sum += place[i % 1000];
    return sum;
}

/* Add up in one place: a race between threads of Python's that don't hold the GIL. */
int add(int n)
{
    static int sum;
    for (int i = 0; i < n; i++) {
        sum += 1;
        __asm__ volatile("" ::: "memory");
    }
    return sum;
}

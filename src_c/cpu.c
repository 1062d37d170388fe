#include "cpu.h"

#if defined(__x86_64__) || defined(_M_X64)

#include <stdint.h>
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif

enum { EAX, EBX, ECX, EDX };

static void cpuid(uint32_t leaf, uint32_t r[4])
{
#ifdef _MSC_VER
    __cpuidex((int *)r, (int)leaf, 0);
#else
    __cpuid_count(leaf, 0, r[EAX], r[EBX], r[ECX], r[EDX]);
#endif
}

/* The register sets that the operating system saves on a context switch. */
static uint64_t xcr0(void)
{
#ifdef _MSC_VER
    return _xgetbv(0);
#else
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
#endif
}

static int has(uint32_t reg, uint32_t bits) { return (reg & bits) == bits; }
#define BIT(n) (UINT32_C(1) << (n))

int fastgd_x86_64_level(void)
{
    uint32_t basic[4], features[4], more[4], extended[4];
    cpuid(0, basic);
    if (basic[EAX] < 7)
        return 1;
    cpuid(1, features);
    cpuid(7, more);
    cpuid(UINT32_C(0x80000001), extended);

    /* FMA, MOVBE, OSXSAVE, AVX, F16C; then BMI1, AVX2, BMI2; then LZCNT. */
    int v3 = has(features[ECX], BIT(12) | BIT(22) | BIT(27) | BIT(28) | BIT(29))
             && has(more[EBX], BIT(3) | BIT(5) | BIT(8)) && has(extended[ECX], BIT(5))
             && (xcr0() & 0x06) == 0x06; /* XMM and YMM */
    if (!v3)
        return 1;
    /* AVX512F, DQ, CD, BW, VL. */
    int v4 = has(more[EBX], BIT(16) | BIT(17) | BIT(28) | BIT(30) | BIT(31))
             && (xcr0() & 0xe6) == 0xe6; /* ... opmasks and ZMM */
    return v4 ? 4 : 3;
}

#else

int fastgd_x86_64_level(void) { return 0; }

#endif

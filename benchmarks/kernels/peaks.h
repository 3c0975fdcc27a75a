/* The binary throughput of the vector units alone, from registers, in GOP/s (two operations per multiply-accumulate). In
 * assembly: compilers spill some of these registers. */
#ifndef PEAKS_H
#define PEAKS_H

#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#if defined(__x86_64__)
/* AVX2: one table look-up and one addition, 128 multiply-accumulates. */
#define LOOK_UP(acc, table, x, temporary)                    \
    "vpshufb %%ymm" #x ", %%ymm" #table ", %%ymm" #temporary \
    "\n\tvpaddb %%ymm" #temporary ", %%ymm" #acc ", %%ymm" #acc "\n\t"

__attribute__((target("avx2"))) static double peak_avx2(long rounds) {
    double start = now();
    for (long r = 0; r < rounds; r++)
        __asm__ volatile(LOOK_UP(0, 8, 12, 14) LOOK_UP(1, 8, 13, 15) LOOK_UP(2, 9, 12, 14) LOOK_UP(3, 9, 13, 15)
                         LOOK_UP(4, 10, 12, 14) LOOK_UP(5, 10, 13, 15) LOOK_UP(6, 11, 12, 14) LOOK_UP(7, 11, 13, 15)
                         ::: "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10",
                         "ymm11", "ymm12", "ymm13", "ymm14", "ymm15");
    return 2.0 * 8 * 128 * (double)rounds / (now() - start) * 1e-9;
}

/* AVX-512: xor, popcount of 16-bit lanes and addition, 512 multiply-accumulates. */
#define POPCOUNT(acc, temporary)                              \
    "vpxord %%zmm28, %%zmm29, %%zmm" #temporary               \
    "\n\tvpopcntw %%zmm" #temporary ", %%zmm" #temporary      \
    "\n\tvpaddw %%zmm" #temporary ", %%zmm" #acc ", %%zmm" #acc "\n\t"

__attribute__((target("avx512f"))) static double peak_avx512(long rounds) {
    double start = now();
    for (long r = 0; r < rounds; r++)
        __asm__ volatile(POPCOUNT(0, 16) POPCOUNT(1, 17) POPCOUNT(2, 18) POPCOUNT(3, 19) POPCOUNT(4, 20) POPCOUNT(5, 21)
                         POPCOUNT(6, 22) POPCOUNT(7, 23) POPCOUNT(8, 16) POPCOUNT(9, 17) POPCOUNT(10, 18)
                         POPCOUNT(11, 19) POPCOUNT(12, 20) POPCOUNT(13, 21) POPCOUNT(14, 22) POPCOUNT(15, 23)
                         ::: "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10",
                         "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20",
                         "zmm21", "zmm22", "zmm23");
    return 2.0 * 16 * 512 * (double)rounds / (now() - start) * 1e-9;
}
#endif

#endif

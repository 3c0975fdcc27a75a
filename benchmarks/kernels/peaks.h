/* The throughput of the vector units alone, from registers, in GOP/s (two operations per multiply-accumulate): binary,
 * and of int8 dot products. In assembly: compilers spill some of these registers. */
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

/* int8, AVX2: 32 multiply-accumulates to int16 and on to int32, and the same where sums stay in int16 for a while. */
#define PAIRS(acc, temporary)                                   \
    "vpmaddubsw %%ymm12, %%ymm13, %%ymm" #temporary             \
    "\n\tvpmaddwd %%ymm" #temporary ", %%ymm14, %%ymm" #temporary \
    "\n\tvpaddd %%ymm" #temporary ", %%ymm" #acc ", %%ymm" #acc "\n\t"
#define WORDS(acc, temporary)                       \
    "vpmaddubsw %%ymm12, %%ymm13, %%ymm" #temporary \
    "\n\tvpaddw %%ymm" #temporary ", %%ymm" #acc ", %%ymm" #acc "\n\t"
#define SIX(step) step(0, 6) step(1, 7) step(2, 8) step(3, 9) step(4, 10) step(5, 11)

/* int8, VNNI: 32 or 64 multiply-accumulates in one instruction. */
#define DOTS(register, acc) "vpdpbusd %%" register "28, %%" register "29, %%" register #acc "\n\t"
#define DOTS8(r, a, b, c, d, e, f, g, h) \
    DOTS(r, a) DOTS(r, b) DOTS(r, c) DOTS(r, d) DOTS(r, e) DOTS(r, f) DOTS(r, g) DOTS(r, h)

#define PEAK_INT8(name, isa, macs, steps, registers)                     \
    __attribute__((target(isa))) static double name(long rounds) {       \
        double start = now();                                            \
        for (long r = 0; r < rounds; r++) __asm__ volatile(steps ::: registers); \
        return 2.0 * macs * (double)rounds / (now() - start) * 1e-9;     \
    }
#define SIXTEEN(r) \
    r "0", r "1", r "2", r "3", r "4", r "5", r "6", r "7", r "8", r "9", r "10", r "11", r "12", r "13", r "14", r "15"

PEAK_INT8(peak_int8_pairs, "avx2", 6 * 32, SIX(PAIRS), SIXTEEN("ymm"))
PEAK_INT8(peak_int8_words, "avx2", 6 * 32, SIX(WORDS), SIXTEEN("ymm"))
PEAK_INT8(peak_int8_vnni256, "avx512vl", 16 * 32, DOTS8("ymm", 0, 1, 2, 3, 4, 5, 6, 7) DOTS8("ymm", 8, 9, 10, 11, 12, 13,
          14, 15), SIXTEEN("ymm"))
PEAK_INT8(peak_int8_vnni512, "avx512f", 16 * 64, DOTS8("zmm", 0, 1, 2, 3, 4, 5, 6, 7) DOTS8("zmm", 8, 9, 10, 11, 12, 13,
          14, 15), SIXTEEN("zmm"))
#endif

#endif

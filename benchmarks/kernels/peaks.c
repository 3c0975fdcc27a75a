/* The peaks of peaks.h as JSON: {"avx2": GOP/s, "avx512": GOP/s}, the best of several measurements, 0 where missing. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>

#include "peaks.h"

int main(void) {
    double avx2 = 0, avx512 = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    for (int i = 0; i < 9; i++) {
        double gops = __builtin_cpu_supports("avx2") ? peak_avx2(1000000) : 0;
        avx2 = gops > avx2 ? gops : avx2;
        gops = __builtin_cpu_supports("avx512bitalg") ? peak_avx512(1000000) : 0;
        avx512 = gops > avx512 ? gops : avx512;
    }
#endif
    printf("{\"avx2\": %.0f, \"avx512\": %.0f}\n", avx2, avx512);
    return 0;
}

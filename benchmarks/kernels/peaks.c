/* The peaks of peaks.h as JSON, in GOP/s, the best of several measurements, 0 where missing: {"avx2", "avx512"} binary,
 * {"int8_pairs", "int8_words"} (AVX2), {"int8_vnni256", "int8_vnni512"}. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>

#include "peaks.h"

#if defined(__x86_64__)
static void print(const char *name, int there, double (*peak)(long)) {
    double best = 0;
    for (int i = 0; there && i < 9; i++) {
        double gops = peak(1000000);
        best = gops > best ? gops : best;
    }
    printf("\"%s\": %.0f", name, best);
}
#endif

int main(void) {
    printf("{");
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") != 0;
    int vnni = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl");
    print("avx2", avx2, peak_avx2);
    printf(", "), print("avx512", __builtin_cpu_supports("avx512bitalg") != 0, peak_avx512);
    printf(", "), print("int8_pairs", avx2, peak_int8_pairs);
    printf(", "), print("int8_words", avx2, peak_int8_words);
    printf(", "), print("int8_vnni256", vnni, peak_int8_vnni256);
    printf(", "), print("int8_vnni512", vnni, peak_int8_vnni512);
#endif
    printf("}\n");
    return 0;
}

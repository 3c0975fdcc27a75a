/* NEON has a popcount of bytes: eor, cnt and a pairwise widening add make 128 multiply-accumulates in three
 * instructions, and sums of 16 bits that need no further widening. */
#include <string.h>

#include "vectors.h"

#include "../popcount/finish.h"

#ifdef IRSTD_ARMV8
#define SUM_TILE
#endif
#include "../popcount/bconv.h"

#ifdef IRSTD_ARMV8
/* The tile of 4 channels by 4 vectors in assembly, since compilers gather the loads of several words and then spill.
 * For each word one load brings the weights of 4 channels, two the pixels, and 48 instructions 2048 MACs. The sums stay
 * in registers of the compiler's choice; v4 to v15 are used here. */
#define COUNT(w, a, b, c, d)                                                                                        \
    "eor v12.16b, v4.16b, v" w ".16b\n eor v13.16b, v5.16b, v" w ".16b\n"                                          \
    "eor v14.16b, v6.16b, v" w ".16b\n eor v15.16b, v7.16b, v" w ".16b\n"                                          \
    "cnt v12.16b, v12.16b\n cnt v13.16b, v13.16b\n cnt v14.16b, v14.16b\n cnt v15.16b, v15.16b\n"                 \
    "uadalp %" a ".8h, v12.16b\n uadalp %" b ".8h, v13.16b\n uadalp %" c ".8h, v14.16b\n uadalp %" d ".8h, v15.16b\n"
#define WORD(x)                                                                                                     \
    "ldp q4, q5, [" x "]\n ld4r {v8.8h, v9.8h, v10.8h, v11.8h}, [%[w]], #8\n ldp q6, q7, [" x ", #32]\n"           \
    COUNT("8", "0", "1", "2", "3") COUNT("9", "4", "5", "6", "7") COUNT("10", "8", "9", "10", "11")                 \
    COUNT("11", "12", "13", "14", "15")
#define RUN "ldr x9, [x12], #8\n add x10, x9, #2\n add x11, x9, #4\n" WORD("x9") WORD("x10") WORD("x11")
#define START(a, b, c, d) "ldp %q" a ", %q" b ", [%[start]]\n ldp %q" c ", %q" d ", [%[start], #32]\n"
#define NEXT "add %[start], %[start], %[step]\n"

IRSTD_INLINE void sum_tile(V acc[TILE][VECTORS], const row_words *words, const weight_t *w, const int16_t *start,
                           int64_t step, const int tile) {
    if (tile < TILE) { /* a single channel */
        const char *const *at = words->words;
        UNROLL
        for (int v = 0; v < VECTORS; v++) acc[0][v] = v_load(start + v * VL);
        for (int64_t i = 3 * words->nines + words->runs; i > 0; i--, at++)
            for (int u = 0; u < 3; u++, w++) v_step(acc, *at + 2 * u, w, 1);
        for (int64_t i = words->singles; i > 0; i--, w++) v_step(acc, *at++, w, 1);
        return;
    }
    __asm__ volatile(START("0", "1", "2", "3") NEXT START("4", "5", "6", "7") NEXT START("8", "9", "10", "11") NEXT
                     START("12", "13", "14", "15")
                     "ldp x12, x13, [%[words]]\n cbz x13, 2f\n"
                     "1:\n" RUN RUN RUN "subs x13, x13, #1\n b.ne 1b\n"
                     "2: ldr x13, [%[words], #16]\n cbz x13, 6f\n ldp x13, x14, [%[words], #24]\n cbz x13, 4f\n"
                     "3:\n" RUN "subs x13, x13, #1\n b.ne 3b\n"
                     "4: cbz x14, 6f\n"
                     "5: ldr x9, [x12], #8\n" WORD("x9") "subs x14, x14, #1\n b.ne 5b\n"
                     "6:\n"
                     : "=&w"(acc[0][0]), "=&w"(acc[0][1]), "=&w"(acc[0][2]), "=&w"(acc[0][3]), "=&w"(acc[1][0]),
                       "=&w"(acc[1][1]), "=&w"(acc[1][2]), "=&w"(acc[1][3]), "=&w"(acc[2][0]), "=&w"(acc[2][1]),
                       "=&w"(acc[2][2]), "=&w"(acc[2][3]), "=&w"(acc[3][0]), "=&w"(acc[3][1]), "=&w"(acc[3][2]),
                       "=&w"(acc[3][3]), [w] "+r"(w), [start] "+r"(start)
                     : [words] "r"(words), [step] "r"(2 * step)
                     : "x9", "x10", "x11", "x12", "x13", "x14", "cc", "memory", "v4", "v5", "v6", "v7", "v8", "v9",
                       "v10", "v11", "v12", "v13", "v14", "v15");
}
#endif

extern const irstd_row_kernels irstd_rows_neon;

const irstd_kernels irstd_kernels_neon = {
    .isa = "neon", .needs = IRSTD_CPU_NEEDS, .bit_channels = BIT_CHANNELS, .bit_bytes = BIT_BYTES, .zero_element = -1, .block = BLOCK,
    .packed_bytes = packed_bytes, .pack = pack, .sums = sums, .row = row, .signs = signs,
    .rows = &irstd_rows_neon, .name = "bconv2d_cnt",
};

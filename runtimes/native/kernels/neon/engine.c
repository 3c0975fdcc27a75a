/* NEON has a popcount of bytes: eor, cnt and a pairwise widening add make 128 multiply-accumulates in three
 * instructions, and sums of 16 bits that need no further widening. */
#include "vectors.h"

#if defined(__aarch64__) && !defined(IRSTD_SIMDE)
/* The tile of 4 channels by 4 vectors in assembly, since compilers gather the loads of several words and then spill.
 * For each word one load brings the weights of 4 channels, two the pixels, and 48 instructions 2048 MACs. */
#define COUNT(w, a, b, c, d)                                                                                       \
    "eor v28.16b, v20.16b, v" w ".16b\n eor v29.16b, v21.16b, v" w ".16b\n"                                       \
    "eor v30.16b, v22.16b, v" w ".16b\n eor v31.16b, v23.16b, v" w ".16b\n"                                       \
    "cnt v28.16b, v28.16b\n cnt v29.16b, v29.16b\n cnt v30.16b, v30.16b\n cnt v31.16b, v31.16b\n"                \
    "uadalp v" a ".8h, v28.16b\n uadalp v" b ".8h, v29.16b\n uadalp v" c ".8h, v30.16b\n uadalp v" d ".8h, v31.16b\n"
#define WORD                                                                                                       \
    "ldr x9, [%[words]], #8\n ld4r {v24.8h, v25.8h, v26.8h, v27.8h}, [%[w]], #8\n add x9, x9, %[column]\n"        \
    "ldp q20, q21, [x9]\n ldp q22, q23, [x9, #32]\n"                                                              \
    COUNT("24", "0", "1", "2", "3") COUNT("25", "4", "5", "6", "7")                                                \
    COUNT("26", "8", "9", "10", "11") COUNT("27", "12", "13", "14", "15")
#define COPY(n) "mov v" #n ".16b, v0.16b\n"

static void sum_words_4(const char *const *words, int64_t count, int64_t column, const weight_t *w, int64_t start,
                        int16_t *sums, int64_t stride) {
    int64_t threes = count / 3;
    count %= 3;
    __asm__ volatile("dup v0.8h, %w[start]\n"
                     COPY(1) COPY(2) COPY(3) COPY(4) COPY(5) COPY(6) COPY(7) COPY(8) COPY(9) COPY(10) COPY(11) COPY(12)
                     COPY(13) COPY(14) COPY(15)
                     "cbz %[threes], 2f\n"
                     "1:\n" WORD WORD WORD "subs %[threes], %[threes], #1\n b.ne 1b\n"
                     "2: cbz %[count], 4f\n"
                     "3:\n" WORD "subs %[count], %[count], #1\n b.ne 3b\n"
                     "4: stp q0, q1, [%[sums]]\n stp q2, q3, [%[sums], #32]\n add %[sums], %[sums], %[stride]\n"
                     "stp q4, q5, [%[sums]]\n stp q6, q7, [%[sums], #32]\n add %[sums], %[sums], %[stride]\n"
                     "stp q8, q9, [%[sums]]\n stp q10, q11, [%[sums], #32]\n add %[sums], %[sums], %[stride]\n"
                     "stp q12, q13, [%[sums]]\n stp q14, q15, [%[sums], #32]\n"
                     : [words] "+r"(words), [w] "+r"(w), [threes] "+r"(threes), [count] "+r"(count), [sums] "+r"(sums)
                     : [column] "r"(2 * column), [start] "r"(start), [stride] "r"(2 * stride)
                     : "x9", "cc", "memory", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11",
                       "v12", "v13", "v14", "v15", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29",
                       "v30", "v31");
}

#define SUM_WORDS
IRSTD_INLINE void sum_words(const char *const *words, int count, int64_t column, const weight_t *w, int16_t start,
                            int16_t *sums, int64_t stride, const void *edges, const int tile) {
    (void)edges; /* added in memory */
    if (tile == 4) {
        sum_words_4(words, count, column, w, start, sums, stride);
        return;
    }
    V acc[TILE][VECTORS]; /* a single channel */
    UNROLL
    for (int v = 0; v < VECTORS; v++) acc[0][v] = v_all(start);
    for (int i = 0; i < count; i++, w++) v_step(acc, words[i] + 2 * column, w, 1);
    UNROLL
    for (int v = 0; v < VECTORS; v++) v_store(sums + v * VL, acc[0][v]);
}
#endif

#include "../popcount/bconv.h"
#include "../popcount/finish.h"

extern const irstd_row_kernels irstd_rows_neon;

const irstd_kernels irstd_kernels_neon = {
    .isa = "neon", .bit_channels = BIT_CHANNELS, .bit_bytes = BIT_BYTES, .zero_element = -1,
    .packed_bytes = packed_bytes, .pack = pack, .sums = sums, .finish = finish, .sum_signs = sum_signs, .signs = signs,
    .rows = &irstd_rows_neon, .name = "bconv2d_cnt",
};

/* 16 lanes of int16 in AVX2 registers; packed maps of 4 channels a byte. */
#ifndef IRSTD_AVX2_VECTORS_H
#define IRSTD_AVX2_VECTORS_H

#include <immintrin.h>
#include <stdint.h>

#include "../../engine/engine.h"

enum { VL = 16, VECTORS = 2, BIT_CHANNELS = 4, BIT_BYTES = 1 };
#define UNROLL _Pragma("GCC unroll 4")
#define IRSTD_INLINE static inline __attribute__((always_inline))

typedef __m256i V;

IRSTD_INLINE V v_load(const int16_t *p) { return _mm256_load_si256((const V *)(const void *)p); }
IRSTD_INLINE void v_store(int16_t *p, V v) { _mm256_store_si256((V *)(void *)p, v); }
IRSTD_INLINE V v_all(int16_t x) { return _mm256_set1_epi16(x); }
IRSTD_INLINE V v_constant(const int32_t *p) { return _mm256_set1_epi32(*p); }
IRSTD_INLINE V v_next_constant(const int32_t **p) { return v_constant((*p)++); }
#define STEP(p, by) ((p) += (by))
IRSTD_INLINE V v_adds(V a, V b) { return _mm256_adds_epi16(a, b); }

typedef struct {
    V multiplier, offset, slope, shift_out;
} CONSTANTS;
IRSTD_INLINE CONSTANTS constants_of(const irstd_finish **at, const int rprelu) {
    const irstd_finish *f = (*at)++;
    CONSTANTS k = {.multiplier = v_constant(&f->multiplier), .offset = v_constant(&f->offset)};
    if (rprelu) {
        k.slope = v_constant(&f->slope);
        k.shift_out = v_constant(&f->shift_out);
    }
    return k;
}
IRSTD_INLINE V times_multiplier(V v, CONSTANTS k) { return _mm256_mulhrs_epi16(v, k.multiplier); }
IRSTD_INLINE V times_slope(V v, CONSTANTS k) { return _mm256_mulhrs_epi16(v, k.slope); }

IRSTD_INLINE V v_max(V a, V b) { return _mm256_max_epi16(a, b); }
typedef __m128i SHIFT;
IRSTD_INLINE SHIFT shift_of(int count) { return _mm_cvtsi32_si128(count); }
IRSTD_INLINE V v_shl(V a, SHIFT count) { return _mm256_sll_epi16(a, count); }
IRSTD_INLINE V v_average(V a, V b) {
    const V sign = _mm256_set1_epi16(INT16_MIN);
    return _mm256_xor_si256(_mm256_avg_epu16(_mm256_xor_si256(a, sign), _mm256_xor_si256(b, sign)), sign);
}

typedef V BITS;
IRSTD_INLINE BITS bits_zero(void) { return _mm256_setzero_si256(); }
typedef int TILE_BITS;
IRSTD_INLINE TILE_BITS tile_bits_of(int c) { return c; }
IRSTD_INLINE void bits_push(BITS *b, const V *x, V threshold, TILE_BITS c, int t) {
    V below = _mm256_packs_epi16(_mm256_cmpgt_epi16(threshold, x[0]), _mm256_cmpgt_epi16(threshold, x[1]));
    *b = _mm256_or_si256(*b, _mm256_andnot_si256(below, _mm256_set1_epi8((char)(1 << (c + t)))));
}
IRSTD_INLINE void bits_store(char *to, BITS b, int count) {
    (void)count;
    _mm256_storeu_si256((V *)(void *)to, _mm256_permute4x64_epi64(b, 0xd8));
}

#endif

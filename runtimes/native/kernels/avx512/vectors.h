/* 32 lanes of int16 in AVX-512 registers. */
#ifndef IRSTD_AVX512_VECTORS_H
#define IRSTD_AVX512_VECTORS_H

#ifdef IRSTD_SIMDE
#include "emulated.h"
#define PIN(v) /* no such register */
#else
#include <immintrin.h>
#define PIN(v) __asm__("" : "+v"(v))
#endif
#include <stdint.h>

#include "../../engine/engine.h"

enum { VL = 32, VECTORS = 2, BIT_CHANNELS = 16, BIT_BYTES = 2 };
#define TILE 8
#define UNROLL _Pragma("GCC unroll 16")
#define IRSTD_INLINE static inline __attribute__((always_inline))

typedef __m512i V;
typedef uint32_t weight_t; /* 16 bits twice, for a broadcasting load */

IRSTD_INLINE V v_load(const int16_t *p) { return _mm512_load_si512(p); }
IRSTD_INLINE V v_loadu(const void *p) { return _mm512_loadu_si512(p); }
IRSTD_INLINE void v_store(int16_t *p, V v) { _mm512_store_si512(p, v); }
IRSTD_INLINE V v_all(int16_t x) { return _mm512_set1_epi16(x); }
IRSTD_INLINE V v_add(V a, V b) { return _mm512_add_epi16(a, b); }
typedef __m128i FACTOR;
IRSTD_INLINE FACTOR factor_of(int shift) { return _mm_cvtsi32_si128(shift); }
IRSTD_INLINE V v_add_shifted(V a, V b, FACTOR f) { return _mm512_add_epi16(a, _mm512_sll_epi16(b, f)); }
/* The additions are pinned to their registers: else the compiler gathers the popcounts of several words, and spills. */
IRSTD_INLINE void v_step(V acc[TILE][VECTORS], const char *x, const weight_t *w, const int tile) {
    const V x0 = _mm512_loadu_si512(x), x1 = _mm512_loadu_si512(x + 64);
    UNROLL
    for (int t = 0; t < tile; t++) {
        const V weight = _mm512_set1_epi32((int)w[t]);
        acc[t][0] = _mm512_add_epi16(acc[t][0], _mm512_popcnt_epi16(_mm512_xor_si512(x0, weight)));
        PIN(acc[t][0]);
        acc[t][1] = _mm512_add_epi16(acc[t][1], _mm512_popcnt_epi16(_mm512_xor_si512(x1, weight)));
        PIN(acc[t][1]);
    }
}
IRSTD_INLINE V v_constant(const int32_t *p) { return _mm512_set1_epi32(*p); }
IRSTD_INLINE V v_next_constant(const int32_t **p) { return v_constant((*p)++); }
#define STEP(p, by) ((p) += (by))
IRSTD_INLINE V v_adds(V a, V b) { return _mm512_adds_epi16(a, b); }

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
IRSTD_INLINE V times_multiplier(V v, CONSTANTS k) { return _mm512_mulhrs_epi16(v, k.multiplier); }
IRSTD_INLINE V times_slope(V v, CONSTANTS k) { return _mm512_mulhrs_epi16(v, k.slope); }

IRSTD_INLINE V v_max(V a, V b) { return _mm512_max_epi16(a, b); }
typedef __m128i SHIFT;
IRSTD_INLINE SHIFT shift_of(int count) { return _mm_cvtsi32_si128(count); }
IRSTD_INLINE V v_shl(V a, SHIFT count) { return _mm512_sll_epi16(a, count); }
IRSTD_INLINE V v_average(V a, V b) {
    const V sign = _mm512_set1_epi16(INT16_MIN);
    return _mm512_xor_si512(_mm512_avg_epu16(_mm512_xor_si512(a, sign), _mm512_xor_si512(b, sign)), sign);
}

typedef struct {
    V v[2];
} BITS;
IRSTD_INLINE BITS bits_zero(void) { return (BITS){{_mm512_setzero_si512(), _mm512_setzero_si512()}}; }
typedef int TILE_BITS;
IRSTD_INLINE TILE_BITS tile_bits_of(int c) { return c; }
IRSTD_INLINE void bits_push(BITS *b, const V *x, V threshold, TILE_BITS c, int t) {
#define TWICE(n) (int32_t)(0x10001u << n)
    static const int32_t bits[16] = {TWICE(0), TWICE(1), TWICE(2), TWICE(3), TWICE(4), TWICE(5), TWICE(6), TWICE(7),
                                     TWICE(8), TWICE(9), TWICE(10), TWICE(11), TWICE(12), TWICE(13), TWICE(14), TWICE(15)};
#undef TWICE
    const V bit = _mm512_set1_epi32(bits[c + t]); /* a broadcasting load */
    b->v[0] = _mm512_mask_add_epi16(b->v[0], _mm512_cmpge_epi16_mask(x[0], threshold), b->v[0], bit);
    b->v[1] = _mm512_mask_add_epi16(b->v[1], _mm512_cmpge_epi16_mask(x[1], threshold), b->v[1], bit);
}
IRSTD_INLINE void bits_store(char *to, BITS b, int count) {
    (void)count;
    _mm512_storeu_si512(to, b.v[0]);
    _mm512_storeu_si512(to + 64, b.v[1]);
}

#endif

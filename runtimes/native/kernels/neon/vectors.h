/* 8 lanes of int16 in NEON registers, ARMv8 and ARMv7 alike. */
#ifndef IRSTD_NEON_VECTORS_H
#define IRSTD_NEON_VECTORS_H

#ifdef IRSTD_SIMDE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/arm/neon.h>
#else
#include <arm_neon.h>
#endif
#include <stdint.h>

#include "../../engine/engine.h"


enum { VL = 8, BIT_CHANNELS = 16, BIT_BYTES = 2 };
#define TILE 4
#if defined(__arm__)
enum { VECTORS = 2 }; /* half as many registers */
#else
enum { VECTORS = 4 };
#endif
#define UNROLL _Pragma("GCC unroll 16")
#define IRSTD_INLINE static inline __attribute__((always_inline))

typedef int16x8_t V;
typedef uint16_t weight_t;

IRSTD_INLINE V v_load(const int16_t *p) { return vld1q_s16(p); }
IRSTD_INLINE void v_store(int16_t *p, V v) { vst1q_s16(p, v); }
IRSTD_INLINE V v_all(int16_t x) { return vdupq_n_s16(x); }
IRSTD_INLINE V v_constant(const int32_t *p) { return vld1q_dup_s16((const int16_t *)(const void *)p); }
IRSTD_INLINE V v_add(V a, V b) { return vaddq_s16(a, b); }
IRSTD_INLINE V v_sub(V a, V b) { return vsubq_s16(a, b); }

/* eor, cnt, uadalp: 128 multiply-accumulates. */
IRSTD_INLINE void v_step(V acc[TILE][VECTORS], const char *x, const weight_t *w, const int tile) {
    UNROLL
    for (int t = 0; t < tile; t++) {
        const uint8x16_t weight = vreinterpretq_u8_u16(vdupq_n_u16(w[t]));
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            uint8x16_t bits = vcntq_u8(veorq_u8(vld1q_u8((const uint8_t *)x + 16 * v), weight));
            acc[t][v] = vreinterpretq_s16_u16(vpadalq_u8(vreinterpretq_u16_s16(acc[t][v]), bits));
        }
    }
}

IRSTD_INLINE V v_adds(V a, V b) { return vqaddq_s16(a, b); }

/* One load brings all of them, two are multiplied by as lanes: 0 and 1 multiplier, 2 offset, 4 slope, 6 shift_out.
 * sqrdmulh saturates only where both factors are -32768. */
typedef struct {
    V all, offset, shift_out;
} CONSTANTS;
IRSTD_INLINE CONSTANTS constants_of(const irstd_finish *f, const int rprelu) {
    CONSTANTS k = {.all = vld1q_s16((const int16_t *)(const void *)f)};
    k.offset = vdupq_lane_s16(vget_low_s16(k.all), 2);
    if (rprelu) k.shift_out = vdupq_lane_s16(vget_high_s16(k.all), 2);
    return k;
}
IRSTD_INLINE V times_multiplier(V v, CONSTANTS k) { return vqrdmulhq_lane_s16(v, vget_low_s16(k.all), 0); }
IRSTD_INLINE V times_slope(V v, CONSTANTS k) { return vqrdmulhq_lane_s16(v, vget_high_s16(k.all), 0); }

IRSTD_INLINE V v_max(V a, V b) { return vmaxq_s16(a, b); }
typedef V SHIFT;
IRSTD_INLINE SHIFT shift_of(int count) { return vdupq_n_s16((int16_t)count); }
IRSTD_INLINE V v_shl(V a, SHIFT count) { return vshlq_s16(a, count); }
IRSTD_INLINE V v_average(V a, V b) { return vrhaddq_s16(a, b); }

/* A lane that is set is -1: less that times the bit of the channel. */
typedef struct {
    V v[VECTORS], bit;
} BITS;
IRSTD_INLINE BITS bits_zero(void) {
    BITS b;
    UNROLL
    for (int n = 0; n < VECTORS; n++) b.v[n] = vdupq_n_s16(0);
    b.bit = vdupq_n_s16(1);
    return b;
}
IRSTD_INLINE void bits_push(BITS *b, const V *x, V threshold, int c) {
    (void)c;
    UNROLL
    for (int n = 0; n < VECTORS; n++) b->v[n] = vmlsq_s16(b->v[n], vreinterpretq_s16_u16(vcgeq_s16(x[n], threshold)), b->bit);
    b->bit = vaddq_s16(b->bit, b->bit);
}
IRSTD_INLINE void bits_store(char *to, BITS b, int count) {
    (void)count;
    UNROLL
    for (int n = 0; n < VECTORS; n++) v_store((int16_t *)(void *)to + n * VL, b.v[n]);
}

#endif

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


#if defined(__aarch64__) && !defined(IRSTD_SIMDE)
#define IRSTD_ARMV8 /* assembly may be used */
#endif

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
IRSTD_INLINE V v_loadu(const void *p) { return vreinterpretq_s16_u8(vld1q_u8(p)); }
IRSTD_INLINE void v_store(int16_t *p, V v) { vst1q_s16(p, v); }
IRSTD_INLINE V v_all(int16_t x) { return vdupq_n_s16(x); }
IRSTD_INLINE V v_constant(const int32_t *p) { return vld1q_dup_s16((const int16_t *)(const void *)p); }
/* That of the next channel. */
IRSTD_INLINE V v_next_constant(const int32_t **p) {
#ifdef IRSTD_ARMV8
    V v;
    __asm__("ld1r {%0.4s}, [%1], #4" : "=w"(v), "+r"(*p) : "m"(**p));
    return v;
#else
    return v_constant((*p)++);
#endif
}
/* A pointer that the compiler shall step, not compute anew. */
#ifdef IRSTD_ARMV8
#define STEP(p, by) ((p) += (by), ({ __asm__("" : "+r"(p)); }))
#else
#define STEP(p, by) ((p) += (by))
#endif
IRSTD_INLINE V v_add(V a, V b) { return vaddq_s16(a, b); }
typedef V FACTOR;
IRSTD_INLINE FACTOR factor_of(int shift) { return vdupq_n_s16((int16_t)(1 << shift)); }
IRSTD_INLINE V v_add_shifted(V a, V b, FACTOR f) { return vmlaq_s16(a, b, f); }

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

/* sqrdmulh saturates only where both factors are -32768. */
typedef struct {
    V multiplier, offset, slope, shift_out;
} CONSTANTS;
IRSTD_INLINE CONSTANTS constants_of(const irstd_finish **f, const int rprelu) {
#ifdef IRSTD_ARMV8 /* one load, which compilers address by additions */
    (void)rprelu;
    int32x4x4_t k;
    __asm__("ld4r {%S0.4s - %V0.4s}, [%1], #16" : "=w"(k), "+r"(*f) : "m"(**f));
    return (CONSTANTS){vreinterpretq_s16_s32(k.val[0]), vreinterpretq_s16_s32(k.val[1]),
                       vreinterpretq_s16_s32(k.val[2]), vreinterpretq_s16_s32(k.val[3])};
#else
    CONSTANTS k = {.multiplier = v_constant(&(*f)->multiplier), .offset = v_constant(&(*f)->offset)};
    if (rprelu) {
        k.slope = v_constant(&(*f)->slope);
        k.shift_out = v_constant(&(*f)->shift_out);
    }
    ++*f;
    return k;
#endif
}
IRSTD_INLINE V times_multiplier(V v, CONSTANTS k) { return vqrdmulhq_s16(v, k.multiplier); }
IRSTD_INLINE V times_slope(V v, CONSTANTS k) { return vqrdmulhq_s16(v, k.slope); }

IRSTD_INLINE V v_max(V a, V b) { return vmaxq_s16(a, b); }
typedef V SHIFT;
IRSTD_INLINE SHIFT shift_of(int count) { return vdupq_n_s16((int16_t)count); }
IRSTD_INLINE V v_shl(V a, SHIFT count) { return vshlq_s16(a, count); }
IRSTD_INLINE V v_average(V a, V b) { return vrhaddq_s16(a, b); }

typedef struct {
    V v[VECTORS];
} BITS;
IRSTD_INLINE BITS bits_zero(void) {
    BITS b;
    UNROLL
    for (int n = 0; n < VECTORS; n++) b.v[n] = vdupq_n_s16(0);
    return b;
}
/* The bits of four channels, as lanes; a lane that is set is -1: less that times the bit of the channel. */
typedef int16x4_t TILE_BITS;
IRSTD_INLINE TILE_BITS tile_bits_of(int c) {
    static const int16_t bits[19] = {1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 9,
                                     1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, INT16_MIN};
    return vld1_s16(bits + c);
}
IRSTD_INLINE void bits_push(BITS *b, const V *x, V threshold, TILE_BITS bits, const int t) {
    UNROLL
    for (int n = 0; n < VECTORS; n++) {
        const V set = vreinterpretq_s16_u16(vcgeq_s16(x[n], threshold));
#ifdef IRSTD_ARMV8 /* compilers take the lane out first */
        __asm__("mls %0.8h, %1.8h, %2.h[%3]" : "+w"(b->v[n]) : "w"(set), "x"(bits), "i"(t));
#else
        const int16_t lanes[4] = {vget_lane_s16(bits, 0), vget_lane_s16(bits, 1), vget_lane_s16(bits, 2),
                                  vget_lane_s16(bits, 3)};
        b->v[n] = vmlsq_s16(b->v[n], set, vdupq_n_s16(lanes[t]));
#endif
    }
}
IRSTD_INLINE void bits_store(char *to, BITS b, int count) {
    (void)count;
    UNROLL
    for (int n = 0; n < VECTORS; n++) v_store((int16_t *)(void *)to + n * VL, b.v[n]);
}

#endif

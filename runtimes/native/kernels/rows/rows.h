/* What the row kernels share: vectors of floats in GCC's vector types. */
#ifndef IRSTD_ROWS_H
#define IRSTD_ROWS_H

#include <math.h>
#include <string.h>

#include "../../engine/engine.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define PASTE2(a, b) a##b
#define PASTE(a, b) PASTE2(a, b)
#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX2__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef int16_t vh __attribute__((vector_size(LANES * 2)));

static inline vf load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
static inline vf all(float x) { return x - (vf){0}; }
static inline vf blend(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

/* LANES int16 as floats. */
static inline vf widened(const int16_t *p) {
#if defined(__ARM_NEON) /* GCC converts lane by lane */
    return (vf)vcvtq_f32_s32(vmovl_s16(vld1_s16(p)));
#elif defined(__AVX2__) && !defined(__AVX512F__) /* and in halves */
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
#else
    vh v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, vf);
#endif
}

#endif

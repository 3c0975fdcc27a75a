/* What the row kernels share: vectors of floats in GCC's vector types, planes of a row, activations. */
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

static inline float step_of(const irstd_tensor *t) { return 1.0f / (float)(1 << t->fraction_bits); }

/* One plane of a row as float, n elements. */
static inline void read_plane(const irstd_tensor *t, const char *row, int channel, int64_t n, float *to) {
    if (t->type == IRSTD_TENSOR_TYPE_FLOAT32) {
        memcpy(to, (const float *)(const void *)row + channel * t->stride, (size_t)n * sizeof *to);
        return;
    }
    const int16_t *from = (const int16_t *)(const void *)row + channel * t->stride;
    float step = step_of(t);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, widened(from + i) * step);
    for (; i < n; i++) to[i] = (float)from[i] * step;
}

/* clamp(floor(x * 2^f + 1/2)) to `bits` bits; a NaN becomes the lowest value. */
static inline void to_fixed(const float *from, int64_t n, int fraction_bits, int bits, int16_t *to) {
    const float scale = (float)(1 << fraction_bits), high = (float)((1 << (bits - 1)) - 1), low = -high - 1;
    int64_t i = 0;
#if defined(__AVX512BW__)
    for (; i + 32 <= n; i += 32) {
        __m512i half[2];
        for (int k = 0; k < 2; k++) {
            __m512 v = _mm512_fmadd_ps(_mm512_loadu_ps(from + i + 16 * k), _mm512_set1_ps(scale), _mm512_set1_ps(0.5f));
            v = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(low)), _mm512_set1_ps(high)); /* max(NaN, low) is low */
            half[k] = _mm512_cvt_roundps_epi32(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
        }
        _mm256_storeu_si256((__m256i *)(void *)(to + i), _mm512_cvtepi32_epi16(half[0]));
        _mm256_storeu_si256((__m256i *)(void *)(to + i + 16), _mm512_cvtepi32_epi16(half[1]));
    }
#elif defined(__AVX2__)
    for (; i + 16 <= n; i += 16) {
        __m256i half[2];
        for (int k = 0; k < 2; k++) {
            __m256 v = _mm256_fmadd_ps(_mm256_loadu_ps(from + i + 8 * k), _mm256_set1_ps(scale), _mm256_set1_ps(0.5f));
            v = _mm256_min_ps(_mm256_max_ps(_mm256_floor_ps(v), _mm256_set1_ps(low)), _mm256_set1_ps(high));
            half[k] = _mm256_cvttps_epi32(v);
        }
        _mm256_storeu_si256((__m256i *)(void *)(to + i), _mm256_permute4x64_epi64(_mm256_packs_epi32(half[0], half[1]), 0xd8));
    }
#elif defined(__aarch64__)
    for (; i + 8 <= n; i += 8) {
        int16x4_t half[2];
        for (int k = 0; k < 2; k++) {
            float32x4_t v = vfmaq_n_f32(vdupq_n_f32(0.5f), vld1q_f32(from + i + 4 * k), scale);
            v = vminq_f32(vmaxnmq_f32(v, vdupq_n_f32(low)), vdupq_n_f32(high)); /* maxnm(NaN, low) is low */
            half[k] = vmovn_s32(vcvtmq_s32_f32(v));
        }
        vst1q_s16(to + i, vcombine_s16(half[0], half[1]));
    }
#endif
    for (; i < n; i++) {
        float v = floorf(from[i] * scale + 0.5f);
        v = v > low ? v : low;
        v = v < high ? v : high;
        to[i] = (int16_t)(int32_t)v;
    }
}

/* y += x, saturating; whole steps of planes may be touched. */
static inline void add_saturating(int16_t *y, const int16_t *x, int64_t n) {
    int64_t i = 0;
#if defined(__AVX512BW__)
    for (; i < n; i += 32)
        _mm512_storeu_si512(y + i, _mm512_adds_epi16(_mm512_loadu_si512(y + i), _mm512_loadu_si512(x + i)));
#elif defined(__AVX2__)
    for (; i < n; i += 16)
        _mm256_storeu_si256((__m256i *)(void *)(y + i),
                            _mm256_adds_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(y + i)),
                                              _mm256_loadu_si256((const __m256i *)(const void *)(x + i))));
#elif defined(__ARM_NEON)
    for (; i < n; i += 8) vst1q_s16(y + i, vqaddq_s16(vld1q_s16(y + i), vld1q_s16(x + i)));
#endif
    for (; i < n; i++) {
        int32_t v = y[i] + x[i];
        y[i] = (int16_t)(v < INT16_MIN ? INT16_MIN : v > INT16_MAX ? INT16_MAX : v);
    }
}

static inline void write_plane(const irstd_tensor *t, char *row, int channel, int64_t n, const float *from) {
    if (t->type == IRSTD_TENSOR_TYPE_FLOAT32)
        memcpy((float *)(void *)row + channel * t->stride, from, (size_t)n * sizeof *from);
    else
        to_fixed(from, n, t->fraction_bits, 16, (int16_t *)(void *)row + channel * t->stride);
}

/* exp for |x| <= 88, relative error below 2e-7: 2^n times a polynomial on [-ln2 / 2, ln2 / 2]. */
static inline vf exp_of(vf x) {
    vf t = x * 1.44269504f + 12582912.0f; /* rounds to an integer in the low bits */
    vi n = (vi)t - 0x4b400000;
    vf whole = t - 12582912.0f, r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vf p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vf)((n + 127) << 23);
}

static inline vf sigmoid_of(vf x) {
    x = blend(x > 88.0f, all(88.0f), blend(x < -87.0f, all(-87.0f), x));
    return 1.0f / (1.0f + exp_of(-x));
}

/* The activations that cost an instruction or two; a NaN stays one. */
static inline vf relu(vf v) { return blend(v < 0.0f, all(0), v); }
static inline vf prelu(vf v, float slope) { return blend(v >= 0.0f, v, v * slope); }
static inline vf clamped(vf v, const float *f) {
    v = blend(v < f[0], all(f[0]), v);
    return blend(v > f[1], all(f[1]), v);
}

/* n elements from x to y, which may be x; whole vectors may be touched. */
static inline void activate(const float *x, float *y, int64_t n, int activation, float slope, const float *f) {
    if (activation == IRSTD_FLOAT_ACTIVATION_NONE && x == y) return;
    for (int64_t i = 0; i < n; i += LANES) {
        vf v = load(x + i);
        switch (activation) {
        case IRSTD_FLOAT_ACTIVATION_NONE: break;
        case IRSTD_FLOAT_ACTIVATION_RELU: v = relu(v); break;
        case IRSTD_FLOAT_ACTIVATION_PRELU: v = prelu(v, slope); break;
        case IRSTD_FLOAT_ACTIVATION_CLAMP: v = clamped(v, f); break;
        case IRSTD_FLOAT_ACTIVATION_SIGMOID: v = sigmoid_of(v); break;
        default: v = 2.0f * sigmoid_of(2.0f * v) - 1.0f; break;
        }
        store(y + i, v);
    }
}

/* Scratch of a node: planes of floats of this many elements, with room for whole vectors. */
static inline int64_t padded(int64_t n) { return (n + 3 * ROW_STEP) / ROW_STEP * ROW_STEP; }

/* A plane of a row whose float32 vectors may be read or written whole: in the arena, not in a caller's buffer. */
static inline int is_planar(const irstd_tensor *t) { return t->type == IRSTD_TENSOR_TYPE_FLOAT32 && !t->external; }
static inline float *plane_of(const irstd_tensor *t, int64_t row, int channel) {
    return (float *)irstd_tensor_row(t, row) + channel * t->stride;
}

/* A plane of a row to read as floats: itself, or its n elements in `copy`. */
static inline const float *floats_of(const irstd_tensor *t, int64_t row, int channel, int64_t n, float *copy) {
    if (is_planar(t)) return plane_of(t, row, channel);
    read_plane(t, irstd_tensor_row(t, row), channel, n, copy);
    return copy;
}

/* Where to write a plane of a row as floats: itself, or scratch that write_back takes from. */
static inline float *result_of(const irstd_tensor *t, int64_t row, int channel, float *copy) {
    return is_planar(t) ? plane_of(t, row, channel) : copy;
}
static inline void write_back(const irstd_tensor *t, int64_t row, int channel, int64_t n, const float *from) {
    if (!is_planar(t)) write_plane(t, irstd_tensor_row(t, row), channel, n, from);
}

#endif

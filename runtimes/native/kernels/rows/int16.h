#ifndef IRSTD_INT16_H
#define IRSTD_INT16_H
#include "rows.h"

/* Row kernels of int16 tensors, of conv.c and rows.c. Planes are read and written in whole steps (ROW_STEP). */

/* ---- convolution in integers: pairs of taps are multiplied and summed to int32 ---- */

enum { FIXED_CHANNELS = 4 };
#if defined(__AVX512BW__)
enum { FIXED_PIXELS = 32 };
typedef __m512i vp;
#define VP(name) _mm512_##name
#define VP_LOAD(p) _mm512_loadu_si512(p)
#define VP_STORE(p, v) _mm512_storeu_si512(p, v)
#elif defined(__AVX2__)
enum { FIXED_PIXELS = 16 };
typedef __m256i vp;
#define VP(name) _mm256_##name
#define VP_LOAD(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define VP_STORE(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)
#elif defined(__ARM_NEON)
enum { FIXED_PIXELS = 16 };
#else
enum { FIXED_PIXELS = 8 };
#endif

#if defined(__aarch64__)
/* All columns of 4 channels; `pairs` is a constant where the weights shall stay in registers. Where y is the upper half
 * of the sum, its addition narrows. */
static inline __attribute__((always_inline)) void fixed_columns(const irstd_fixed_conv *f, const int16_t *const *taps,
                                                                int oc, int channels, int64_t width, int16_t *y,
                                                                int64_t stride, const int pairs, const int odd) {
    const int32_t *w = f->weights + oc * pairs;
    int32x4_t bias[FIXED_CHANNELS];
    for (int c = 0; c < FIXED_CHANNELS; c++) bias[c] = vdupq_n_s32(f->bias[oc + c]);
    const int32x4_t shift = vdupq_n_s32(-f->shift);
    for (int64_t column = 0; column < width; column += FIXED_PIXELS) {
        int32x4_t sum[FIXED_CHANNELS][4];
#define CHANNEL(c, lane)                                                         \
    sum[c][0] = vmlal_laneq_s16(sum[c][0], vget_low_s16(a), weight, lane);       \
    sum[c][1] = vmlal_high_laneq_s16(sum[c][1], a, weight, lane);                \
    sum[c][2] = vmlal_laneq_s16(sum[c][2], vget_low_s16(b), weight, lane);       \
    sum[c][3] = vmlal_high_laneq_s16(sum[c][3], b, weight, lane);
#define FIRST(c, lane)                                                           \
    sum[c][0] = vmull_laneq_s16(vget_low_s16(a), weight, lane);                  \
    sum[c][1] = vmull_high_laneq_s16(a, weight, lane);                           \
    sum[c][2] = vmull_laneq_s16(vget_low_s16(b), weight, lane);                  \
    sum[c][3] = vmull_high_laneq_s16(b, weight, lane);
#pragma GCC unroll 8
        for (int p = 0; p < pairs; p++) {
            const int16x8_t weight = vreinterpretq_s16_s32(vld1q_s32(w + p * FIXED_CHANNELS));
            int16x8_t a = vld1q_s16(taps[2 * p] + column), b = vld1q_s16(taps[2 * p] + column + 8);
            if (p == 0) {
                FIRST(0, 0) FIRST(1, 2) FIRST(2, 4) FIRST(3, 6)
            } else {
                CHANNEL(0, 0) CHANNEL(1, 2) CHANNEL(2, 4) CHANNEL(3, 6)
            }
            if (odd && p + 1 == pairs) break;
            a = vld1q_s16(taps[2 * p + 1] + column), b = vld1q_s16(taps[2 * p + 1] + column + 8);
            CHANNEL(0, 1) CHANNEL(1, 3) CHANNEL(2, 5) CHANNEL(3, 7)
        }
#undef FIRST
#undef CHANNEL
#pragma GCC unroll 4
        for (int c = 0; c < FIXED_CHANNELS; c++)
            for (int v = 0; v < 4 && c < channels; v += 2) {
                const int32x4_t low = sum[c][v], high = sum[c][v + 1];
                vst1q_s16(y + c * stride + column + 4 * v,
                          f->shift == 16 ? vaddhn_high_s32(vaddhn_s32(low, bias[c]), high, bias[c])
                                         : vqmovn_high_s32(vqmovn_s32(vshlq_s32(vaddq_s32(low, bias[c]), shift)),
                                                           vshlq_s32(vaddq_s32(high, bias[c]), shift)));
            }
    }
}

static inline void fixed_channels(const irstd_fixed_conv *f, const int16_t *const *taps, int oc, int channels, int64_t width,
                           int16_t *y, int64_t stride) {
    if (f->taps == 9 && f->shift == 16 && channels >= FIXED_CHANNELS) {
        const int16_t *nine[10];
        memcpy(nine, taps, sizeof nine);
        const irstd_fixed_conv same = {9, f->weights, f->bias, 16, 0};
        fixed_columns(&same, nine, oc, FIXED_CHANNELS, width, y, stride, 5, 1);
    } else {
        fixed_columns(f, taps, oc, channels, width, y, stride, (f->taps + 1) / 2, f->taps % 2);
    }
}
#else
/* FIXED_PIXELS pixels of the 4 channels from oc on, of which `channels` exist. */
static inline void fixed_tile(const irstd_fixed_conv *f, const int16_t *const *taps, int oc, int channels, int64_t column,
                       int16_t *y, int64_t stride) {
    const int pairs = (f->taps + 1) / 2;
    const int32_t *w = f->weights + oc * pairs;
#if defined(__AVX2__)
    vp low[FIXED_CHANNELS], high[FIXED_CHANNELS];
    for (int c = 0; c < FIXED_CHANNELS; c++) low[c] = high[c] = VP(set1_epi32)(f->bias[oc + c]);
    for (int p = 0; p < pairs; p++, w += FIXED_CHANNELS) {
        vp a = VP_LOAD(taps[2 * p] + column), b = VP_LOAD(taps[2 * p + 1] + column);
        vp first = VP(unpacklo_epi16)(a, b), second = VP(unpackhi_epi16)(a, b);
        for (int c = 0; c < FIXED_CHANNELS; c++) {
            low[c] = VP(add_epi32)(low[c], VP(madd_epi16)(first, VP(set1_epi32)(w[c])));
            high[c] = VP(add_epi32)(high[c], VP(madd_epi16)(second, VP(set1_epi32)(w[c])));
        }
    }
    const __m128i shift = _mm_cvtsi32_si128(f->shift);
    for (int c = 0; c < FIXED_CHANNELS; c++) /* packing undoes the order of the unpacking */
        if (c < channels)
            VP_STORE(y + c * stride + column, VP(packs_epi32)(VP(sra_epi32)(low[c], shift), VP(sra_epi32)(high[c], shift)));
#elif defined(__ARM_NEON)
    int32x4_t sum[FIXED_CHANNELS][4];
    for (int c = 0; c < FIXED_CHANNELS; c++)
        for (int v = 0; v < 4; v++) sum[c][v] = vdupq_n_s32(f->bias[oc + c]);
#define CHANNEL(c, lane, half)                                                        \
    sum[c][0] = vmlal_lane_s16(sum[c][0], vget_low_s16(a), vget_##half##_s16(weight), lane);  \
    sum[c][1] = vmlal_lane_s16(sum[c][1], vget_high_s16(a), vget_##half##_s16(weight), lane); \
    sum[c][2] = vmlal_lane_s16(sum[c][2], vget_low_s16(b), vget_##half##_s16(weight), lane);  \
    sum[c][3] = vmlal_lane_s16(sum[c][3], vget_high_s16(b), vget_##half##_s16(weight), lane);
    for (int p = 0; p < pairs; p++, w += FIXED_CHANNELS) {
        const int16x8_t weight = vreinterpretq_s16_s32(vld1q_s32(w));
        int16x8_t a = vld1q_s16(taps[2 * p] + column), b = vld1q_s16(taps[2 * p] + column + 8);
        CHANNEL(0, 0, low) CHANNEL(1, 2, low) CHANNEL(2, 0, high) CHANNEL(3, 2, high)
        if (2 * p + 1 == f->taps) break;
        a = vld1q_s16(taps[2 * p + 1] + column), b = vld1q_s16(taps[2 * p + 1] + column + 8);
        CHANNEL(0, 1, low) CHANNEL(1, 3, low) CHANNEL(2, 1, high) CHANNEL(3, 3, high)
    }
#undef CHANNEL
    const int32x4_t shift = vdupq_n_s32(-f->shift);
    for (int c = 0; c < FIXED_CHANNELS; c++)
        for (int v = 0; v < 4 && c < channels; v += 2)
            vst1q_s16(y + c * stride + column + 4 * v,
                      vcombine_s16(vqmovn_s32(vshlq_s32(sum[c][v], shift)), vqmovn_s32(vshlq_s32(sum[c][v + 1], shift))));
#else
    for (int c = 0; c < channels; c++)
        for (int64_t j = column; j < column + FIXED_PIXELS; j++) {
            int32_t sum = f->bias[oc + c];
            for (int t = 0; t < f->taps; t++)
                sum += (int16_t)(w[t / 2 * FIXED_CHANNELS + c] >> t % 2 * 16) * taps[t][j];
            sum >>= f->shift;
            y[c * stride + j] = (int16_t)(sum < INT16_MIN ? INT16_MIN : sum > INT16_MAX ? INT16_MAX : sum);
        }
#endif
}

static inline void fixed_channels(const irstd_fixed_conv *f, const int16_t *const *taps, int oc, int channels, int64_t width,
                           int16_t *y, int64_t stride) {
    for (int64_t column = 0; column < width; column += FIXED_PIXELS) fixed_tile(f, taps, oc, channels, column, y, stride);
}
#endif

static inline void fixed_conv_row(const irstd_node *n, int64_t row, char *scratch) {
    const int32_t *i = n->i;
    const irstd_fixed_conv *f = n->fixed_conv;
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    const int64_t left = i[IRSTD_CONV2D_PAD_LEFT], line = padded(left + x->width + i[IRSTD_CONV2D_PAD_RIGHT]);
    const int16_t **taps = (const int16_t **)(void *)scratch;
    int16_t *lines = (int16_t *)(void *)(scratch + irstd_round_up((f->taps + 1) * (int64_t)sizeof *taps, 64));
    int t = 0;
    for (int c = 0; c < x->channels; c++)
        for (int r = 0; r < i[IRSTD_CONV2D_KERNEL_H]; r++, lines += line) {
            int64_t source = row * i[IRSTD_CONV2D_STRIDE_H] - i[IRSTD_CONV2D_PAD_TOP] + (int64_t)r * i[IRSTD_CONV2D_DILATION_H];
            memset(lines, 0, (size_t)line * sizeof *lines);
            if (source >= 0 && source < x->height) {
                const int16_t *from = (const int16_t *)irstd_tensor_row(x, source) + c * x->stride;
                for (int64_t j = 0; j < x->width; j++) lines[left + j] = (int16_t)(from[j] * (1 << f->raised));
            }
            for (int k = 0; k < i[IRSTD_CONV2D_KERNEL_W]; k++) taps[t++] = lines + (int64_t)k * i[IRSTD_CONV2D_DILATION_W];
        }
    if (t % 2) taps[t] = taps[t - 1]; /* its weight is 0 */
    int16_t *to = irstd_tensor_row(y, row);
    for (int oc = 0; oc < y->channels; oc += FIXED_CHANNELS, to += FIXED_CHANNELS * y->stride)
        fixed_channels(f, taps, oc, y->channels - oc, y->width, to, y->stride);
}

/* ---- pools, 2x2 ---- */

/* Whole steps of a plane are written. */
static inline void average_pool2(const int16_t *top, const int16_t *bottom, int64_t width, int16_t *y) {
#if defined(__AVX512BW__)
    const __m512i one = _mm512_set1_epi16(1), two = _mm512_set1_epi32(2);
    for (int64_t j = 0; j < width; j += 16) {
        __m512i sum = _mm512_add_epi32(_mm512_madd_epi16(_mm512_loadu_si512(top + 2 * j), one),
                                       _mm512_madd_epi16(_mm512_loadu_si512(bottom + 2 * j), one));
        _mm256_storeu_si256((__m256i *)(void *)(y + j),
                            _mm512_cvtepi32_epi16(_mm512_srai_epi32(_mm512_add_epi32(sum, two), 2)));
    }
#elif defined(__ARM_NEON)
    for (int64_t j = 0; j < width; j += 16)
        for (int64_t k = j; k < j + 16; k += 8) {
            const int32x4_t low = vpadalq_s16(vpaddlq_s16(vld1q_s16(top + 2 * k)), vld1q_s16(bottom + 2 * k));
            const int32x4_t high = vpadalq_s16(vpaddlq_s16(vld1q_s16(top + 2 * k + 8)), vld1q_s16(bottom + 2 * k + 8));
            vst1q_s16(y + k, vcombine_s16(vrshrn_n_s32(low, 2), vrshrn_n_s32(high, 2)));
        }
#else
    for (int64_t j = 0; j < width; j++)
        y[j] = (int16_t)((top[2 * j] + top[2 * j + 1] + bottom[2 * j] + bottom[2 * j + 1] + 2) >> 2);
#endif
}

/* Whole steps of a plane are written. */
static inline void max_pool2(const int16_t *top, const int16_t *bottom, int64_t width, int16_t *y) {
#if defined(__AVX512BW__)
    for (int64_t j = 0; j < width; j += 16) { /* the larger of each pair, in the low half */
        __m512i v = _mm512_max_epi16(_mm512_loadu_si512(top + 2 * j), _mm512_loadu_si512(bottom + 2 * j));
        v = _mm512_max_epi16(v, _mm512_srli_epi32(v, 16));
        _mm256_storeu_si256((__m256i *)(void *)(y + j), _mm512_cvtepi32_epi16(v));
    }
#elif defined(__aarch64__)
    for (int64_t j = 0; j < width; j += 16)
        for (int64_t k = j; k < j + 16; k += 8)
            vst1q_s16(y + k, vpmaxq_s16(vmaxq_s16(vld1q_s16(top + 2 * k), vld1q_s16(bottom + 2 * k)),
                                        vmaxq_s16(vld1q_s16(top + 2 * k + 8), vld1q_s16(bottom + 2 * k + 8))));
#elif defined(__ARM_NEON)
    for (int64_t j = 0; j < width; j += 4) {
        int16x8_t v = vmaxq_s16(vld1q_s16(top + 2 * j), vld1q_s16(bottom + 2 * j));
        vst1_s16(y + j, vpmax_s16(vget_low_s16(v), vget_high_s16(v)));
    }
#else
    for (int64_t j = 0; j < width; j++) {
        int16_t a = top[2 * j] > top[2 * j + 1] ? top[2 * j] : top[2 * j + 1];
        int16_t b = bottom[2 * j] > bottom[2 * j + 1] ? bottom[2 * j] : bottom[2 * j + 1];
        y[j] = a > b ? a : b;
    }
#endif
}

/* ---- resize ---- */

#if defined(__aarch64__)
/* Three of near and one of far, 8 columns. */
static inline int32x4x2_t column_sums(const int16_t *near, const int16_t *far) {
    const int16x8_t a = vld1q_s16(near), b = vld1q_s16(far);
    return (int32x4x2_t){{vaddw_s16(vmull_n_s16(vget_low_s16(a), 3), vget_low_s16(b)),
                          vaddw_high_s16(vmull_high_n_s16(a, 3), b)}};
}
/* Three of these columns and one of their neighbours, in sixteenths, rounded. */
static inline int16x8_t sixteenths(int32x4x2_t m, int32x4_t low, int32x4_t high) {
    return vcombine_s16(vrshrn_n_s32(vmlaq_n_s32(low, m.val[0], 3), 4), vrshrn_n_s32(vmlaq_n_s32(high, m.val[1], 3), 4));
}
/* 16 pixels of the result from 8 columns and those beside them. */
static inline int16x8x2_t resize8(int32x4_t left, int32x4x2_t m, int32x4_t right) {
    const int32x4_t before = vextq_s32(m.val[0], m.val[1], 3), behind = vextq_s32(m.val[0], m.val[1], 1);
    const int16x8_t even = sixteenths(m, vextq_s32(left, m.val[0], 3), before);
    const int16x8_t odd = sixteenths(m, behind, vextq_s32(m.val[1], right, 1));
    return (int16x8x2_t){{vzip1q_s16(even, odd), vzip2q_s16(even, odd)}};
}
static inline __attribute__((always_inline)) void resize_columns(const int16_t *near, const int16_t *far, int64_t width,
                                                                 const int16_t *addend, int16_t *y, const int added) {
    int32x4x2_t m = column_sums(near, far);
    int32x4_t left = vdupq_laneq_s32(m.val[0], 0);
    for (int64_t j = 0; j < width; j += 16, near += 16, far += 16, addend += added ? 32 : 0, y += 32) {
        const int64_t behind = j + 16 < width ? 16 : 0; /* the last plane of a ring may be the last of its memory */
        const int32x4x2_t second = column_sums(near + 8, far + 8), next = column_sums(near + behind, far + behind);
        const int16x8x2_t a = resize8(left, m, second.val[0]), b = resize8(m.val[1], second, next.val[0]);
        int16x8_t out[4] = {a.val[0], a.val[1], b.val[0], b.val[1]};
        for (int k = 0; k < 4 && added; k++) out[k] = vqaddq_s16(out[k], vld1q_s16(addend + 8 * k));
        for (int k = 0; k < 4; k++) vst1q_s16(y + 8 * k, out[k]);
        left = second.val[1];
        m = next;
    }
}
#endif

/* Bilinear x2: 9, 3, 3, 1 sixteenths, plus an addend (saturating) where there is one. mid: width + 2 and a vector.
 * Whole steps of a plane are written; two pixels of the result are the halves of one 32-bit lane. */
static inline void resize2(const int16_t *near, const int16_t *far, int64_t width, int32_t *mid, const int16_t *addend,
                    int16_t *y) {
#if defined(__aarch64__)
    (void)mid;
    if (addend)
        resize_columns(near, far, width, addend, y, 1);
    else
        resize_columns(near, far, width, NULL, y, 0);
    /* Nothing follows the last column. */
    int32_t last = (3 * near[width - 1] + far[width - 1] + 2) >> 2;
    if (addend) last += addend[2 * width - 1];
    y[2 * width - 1] = (int16_t)(last < INT16_MIN ? INT16_MIN : last > INT16_MAX ? INT16_MAX : last);
#elif defined(__ARM_NEON)
    for (int64_t j = 0; j < width; j += 8) {
        int16x8_t a = vld1q_s16(near + j), b = vld1q_s16(far + j);
        vst1q_s32(mid + 1 + j, vaddw_s16(vmull_n_s16(vget_low_s16(a), 3), vget_low_s16(b)));
        vst1q_s32(mid + 5 + j, vaddw_s16(vmull_n_s16(vget_high_s16(a), 3), vget_high_s16(b)));
    }
    mid[0] = mid[1];
    mid[width + 1] = mid[width];
    for (int64_t j = 0; j < width; j += 8) {
        int16x4x2_t even, odd;
        for (int k = 0; k < 2; k++) {
            int32x4_t m = vld1q_s32(mid + 1 + j + 4 * k);
            m = vaddq_s32(m, vshlq_n_s32(m, 1));
            even.val[k] = vrshrn_n_s32(vaddq_s32(m, vld1q_s32(mid + j + 4 * k)), 4);
            odd.val[k] = vrshrn_n_s32(vaddq_s32(m, vld1q_s32(mid + 2 + j + 4 * k)), 4);
        }
        int16x8x2_t out = vzipq_s16(vcombine_s16(even.val[0], even.val[1]), vcombine_s16(odd.val[0], odd.val[1]));
        for (int k = 0; k < 2; k++) {
            int16x8_t v = out.val[k];
            vst1q_s16(y + 2 * j + 8 * k, addend ? vqaddq_s16(v, vld1q_s16(addend + 2 * j + 8 * k)) : v);
        }
    }
#else
    for (int64_t j = 0; j < width; j += LANES) {
        vh a, b;
        memcpy(&a, near + j, sizeof a);
        memcpy(&b, far + j, sizeof b);
        vi m = __builtin_convertvector(a, vi) * 3 + __builtin_convertvector(b, vi);
        memcpy(mid + 1 + j, &m, sizeof m);
    }
    mid[0] = mid[1];
    mid[width + 1] = mid[width];
    for (int64_t j = 0; j < width; j += LANES) {
        vi left, here, right;
        memcpy(&left, mid + j, sizeof left);
        memcpy(&here, mid + 1 + j, sizeof here);
        memcpy(&right, mid + 2 + j, sizeof right);
        here = here * 3 + 8;
        vi out = ((here + left) >> 4 & 0xffff) | (here + right) >> 4 << 16;
        memcpy(y + 2 * j, &out, sizeof out);
        if (addend) add_saturating(y + 2 * j, addend + 2 * j, 2 * LANES);
    }
#endif
}

/* ---- pointwise, to one channel of floats: sums = bias + the channels' weights times their values ---- */

static inline void project(const int16_t *x, int64_t stride, int channels, const float *weight, float step, float bias,
                    int64_t width, float *sums) {
    enum { PARTS = LANES == 16 ? 4 : 8 };
    for (int64_t j = 0; j < width; j += PARTS * LANES) {
        vf sum[PARTS];
        for (int v = 0; v < PARTS; v++) sum[v] = all(bias);
        const int16_t *from = x + j;
        for (int c = 0; c < channels; c++, from += stride) {
            const vf w = all(weight[c] * step);
#if defined(__aarch64__)
            for (int v = 0; v < PARTS; v += 2) {
                const int16x8_t q = vld1q_s16(from + v * LANES);
                sum[v] += (vf)vcvtq_f32_s32(vmovl_s16(vget_low_s16(q))) * w;
                sum[v + 1] += (vf)vcvtq_f32_s32(vmovl_high_s16(q)) * w;
            }
#else
            for (int v = 0; v < PARTS; v++) sum[v] += widened(from + v * LANES) * w;
#endif
        }
        for (int v = 0; v < PARTS; v++) store(sums + j + v * LANES, sum[v]);
    }
}

#endif

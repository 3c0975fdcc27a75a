/* Row kernels of the operators that are not binary, in plain C and GCC's vector types: compiled once for every
 * instruction set, under the name irstd_rows_<IRSTD_ROWS>. */
#include "rows.h"

#define NAME PASTE(irstd_rows_, IRSTD_ROWS)

static inline float step_of(const irstd_tensor *t) { return 1.0f / (float)(1 << t->fraction_bits); }

/* One plane of a row as float, n elements. */
static void read_plane(const irstd_tensor *t, const char *row, int channel, int64_t n, float *to) {
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
static void to_fixed(const float *from, int64_t n, int fraction_bits, int bits, int16_t *to) {
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

static void write_plane(const irstd_tensor *t, char *row, int channel, int64_t n, const float *from) {
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

/* n elements in place; whole vectors may be touched. */
static void activate(float *x, int64_t n, int activation, float slope, const float *f) {
    if (activation == IRSTD_FLOAT_ACTIVATION_NONE) return;
    for (int64_t i = 0; i < n; i += LANES) {
        vf v = load(x + i);
        switch (activation) {
        case IRSTD_FLOAT_ACTIVATION_RELU: v = blend(v > 0.0f, v, all(0)); break;
        case IRSTD_FLOAT_ACTIVATION_PRELU: v = blend(v >= 0.0f, v, v * slope); break;
        case IRSTD_FLOAT_ACTIVATION_CLAMP:
            v = blend(v > f[0], v, all(f[0]));
            v = blend(v < f[1], v, all(f[1]));
            break;
        case IRSTD_FLOAT_ACTIVATION_SIGMOID: v = sigmoid_of(v); break;
        default: v = 2.0f * sigmoid_of(2.0f * v) - 1.0f; break;
        }
        store(x + i, v);
    }
}

/* Scratch of a node: planes of floats of this many elements, with room for whole vectors. */
static int64_t padded(int64_t n) { return (n + 3 * ROW_STEP) / ROW_STEP * ROW_STEP; }

/* ---- convolution: input rows are copied with their padding, then tiles of 4 channels by 2 vectors are summed ---- */

#if defined(__AVX512F__) || defined(__aarch64__)
enum { TILE_CHANNELS = 4, TILE_VECTORS = 4 };
#else
enum { TILE_CHANNELS = 4, TILE_VECTORS = 2 };
#endif

static inline __attribute__((always_inline)) void conv_tile(const float *const *taps, int count, const float *weight,
                                                            int64_t weight_step, const int channels, const float *bias,
                                                            int64_t column, float *y, int64_t y_stride) {
    vf sum[TILE_CHANNELS][TILE_VECTORS];
    for (int c = 0; c < channels; c++)
        for (int v = 0; v < TILE_VECTORS; v++) sum[c][v] = all(bias ? bias[c] : 0);
    for (int t = 0; t < count; t++) {
        vf x[TILE_VECTORS];
        for (int v = 0; v < TILE_VECTORS; v++) x[v] = load(taps[t] + column + v * LANES);
        for (int c = 0; c < channels; c++)
            for (int v = 0; v < TILE_VECTORS; v++) sum[c][v] += x[v] * weight[c * weight_step + t];
    }
    for (int c = 0; c < channels; c++)
        for (int v = 0; v < TILE_VECTORS; v++) store(y + c * y_stride + column + v * LANES, sum[c][v]);
}

/* ---- convolution of int16 in integers: pairs of taps are multiplied and summed to int32 ---- */

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

/* FIXED_PIXELS pixels of the 4 channels from oc on, of which `channels` exist. */
static void fixed_tile(const irstd_fixed_conv *f, const int16_t *const *taps, int oc, int channels, int64_t column,
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

static void fixed_conv_row(const irstd_node *n, int64_t row, char *scratch) {
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
            if (source >= 0 && source < x->height)
                memcpy(lines + left, (const int16_t *)irstd_tensor_row(x, source) + c * x->stride,
                       (size_t)x->width * sizeof *lines);
            for (int k = 0; k < i[IRSTD_CONV2D_KERNEL_W]; k++) taps[t++] = lines + (int64_t)k * i[IRSTD_CONV2D_DILATION_W];
        }
    if (t % 2) taps[t] = taps[t - 1]; /* its weight is 0 */
    int16_t *to = irstd_tensor_row(y, row);
    for (int oc = 0; oc < y->channels; oc += FIXED_CHANNELS, to += FIXED_CHANNELS * y->stride)
        for (int64_t column = 0; column < y->width; column += FIXED_PIXELS)
            fixed_tile(f, taps, oc, y->channels - oc, column, to, y->stride);
}

/* A pointwise convolution of an int16 tensor to few channels: converted in registers. */
static int is_projection(const irstd_node *n) {
    const int32_t *i = n->i;
    return n->inputs[0]->type == IRSTD_TENSOR_TYPE_INT16 && n->output->channels <= TILE_CHANNELS &&
           i[IRSTD_CONV2D_KERNEL_H] == 1 && i[IRSTD_CONV2D_KERNEL_W] == 1 && i[IRSTD_CONV2D_STRIDE_H] == 1 &&
           i[IRSTD_CONV2D_STRIDE_W] == 1 && i[IRSTD_CONV2D_GROUPS] == 1 && !i[IRSTD_CONV2D_PAD_TOP] &&
           !i[IRSTD_CONV2D_PAD_LEFT] && !i[IRSTD_CONV2D_PAD_BOTTOM] && !i[IRSTD_CONV2D_PAD_RIGHT];
}

static void project_row(const irstd_node *n, int64_t row, float *sums) {
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    const float *weight = n->constants[IRSTD_CONV2D_WEIGHT], *bias = n->constants[IRSTD_CONV2D_BIAS];
    const float *slope = n->constants[IRSTD_CONV2D_SLOPE], step = step_of(x);
    const int16_t *from = irstd_tensor_row(x, row);
    for (int o = 0; o < y->channels; o++) {
        for (int64_t j = 0; j < y->width; j += 2 * LANES) {
            vf low = all(bias ? bias[o] : 0), high = low;
            for (int c = 0; c < x->channels; c++) {
                const int16_t *at = from + c * x->stride + j;
                float w = weight[o * x->channels + c] * step;
                low += widened(at) * w;
                high += widened(at + LANES) * w;
            }
            store(sums + j, low);
            store(sums + j + LANES, high);
        }
        activate(sums, y->width, n->i[IRSTD_CONV2D_ACTIVATION], slope ? slope[o] : 0, n->f);
        write_plane(y, irstd_tensor_row(y, row), o, y->width, sums);
    }
}

static void conv_row(const irstd_node *n, int64_t row, char *scratch) {
    if (n->fixed_conv) {
        fixed_conv_row(n, row, scratch);
        return;
    }
    if (is_projection(n)) {
        project_row(n, row, (float *)(void *)scratch);
        return;
    }
    const int32_t *i = n->i;
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    const int groups = i[IRSTD_CONV2D_GROUPS], ic = x->channels / groups, oc = y->channels / groups;
    const int kh = i[IRSTD_CONV2D_KERNEL_H], kw = i[IRSTD_CONV2D_KERNEL_W], sw = i[IRSTD_CONV2D_STRIDE_W];
    const int dw = i[IRSTD_CONV2D_DILATION_W];
    const int64_t left = i[IRSTD_CONV2D_PAD_LEFT], taps = (int64_t)ic * kh * kw;
    const int64_t line = padded(left + x->width + i[IRSTD_CONV2D_PAD_RIGHT]), out = padded(y->width);
    const float *weight = n->constants[IRSTD_CONV2D_WEIGHT], *bias = n->constants[IRSTD_CONV2D_BIAS];
    const float *slope = n->constants[IRSTD_CONV2D_SLOPE];
    char *result = irstd_tensor_row(y, row);
    const float **tap = (const float **)(void *)scratch;
    float *lines = (float *)(void *)(scratch + irstd_round_up(taps * (int64_t)sizeof *tap, 64));
    float *split = lines + ic * kh * line, *sums = split + (sw > 1 ? taps * out : 0);
    for (int g = 0; g < groups; g++) {
        for (int c = 0; c < ic; c++)
            for (int r = 0; r < kh; r++) {
                float *to = lines + (c * kh + r) * line;
                int64_t source = row * i[IRSTD_CONV2D_STRIDE_H] - i[IRSTD_CONV2D_PAD_TOP] +
                                 (int64_t)r * i[IRSTD_CONV2D_DILATION_H];
                memset(to, 0, (size_t)line * sizeof *to);
                if (source >= 0 && source < x->height)
                    read_plane(x, irstd_tensor_row(x, source), g * ic + c, x->width, to + left);
                for (int k = 0; k < kw; k++) {
                    int64_t t = (int64_t)(c * kh + r) * kw + k;
                    tap[t] = to + (int64_t)k * dw;
                    if (sw > 1) {
                        float *columns = split + t * out;
                        for (int64_t j = 0; j < y->width; j++) columns[j] = to[j * sw + (int64_t)k * dw];
                        tap[t] = columns;
                    }
                }
            }
        for (int o = 0; o < oc; o += TILE_CHANNELS) {
            int first = g * oc + o, channels = (int)irstd_min(TILE_CHANNELS, oc - o);
            const float *w = weight + first * taps, *b = bias ? bias + first : NULL;
            for (int64_t column = 0; column < y->width; column += TILE_VECTORS * LANES) {
                if (channels == TILE_CHANNELS)
                    conv_tile(tap, (int)taps, w, taps, TILE_CHANNELS, b, column, sums, out);
                else
                    for (int c = 0; c < channels; c++)
                        conv_tile(tap, (int)taps, w + c * taps, taps, 1, b ? b + c : NULL, column, sums + c * out, out);
            }
            for (int c = 0; c < channels; c++) {
                activate(sums + c * out, y->width, i[IRSTD_CONV2D_ACTIVATION], slope ? slope[first + c] : 0, n->f);
                write_plane(y, result, first + c, y->width, sums + c * out);
            }
        }
    }
}

static size_t conv_scratch(const irstd_node *n) {
    const int32_t *i = n->i;
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    int64_t ic = x->channels / i[IRSTD_CONV2D_GROUPS], kh = i[IRSTD_CONV2D_KERNEL_H];
    int64_t taps = ic * kh * i[IRSTD_CONV2D_KERNEL_W];
    int64_t line = padded(i[IRSTD_CONV2D_PAD_LEFT] + x->width + i[IRSTD_CONV2D_PAD_RIGHT]), out = padded(y->width);
    int64_t floats = ic * kh * line + (i[IRSTD_CONV2D_STRIDE_W] > 1 ? taps * out : 0) + TILE_CHANNELS * out;
    return (size_t)(irstd_round_up(taps * (int64_t)sizeof(float *), 64) + floats * (int64_t)sizeof(float));
}

/* Transposed: every input row that reaches this output row is scattered. */
static void conv_transpose_row(const irstd_node *n, int64_t row, char *scratch) {
    const int32_t *i = n->i;
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    const int groups = i[IRSTD_CONV2D_GROUPS], ic = x->channels / groups, oc = y->channels / groups;
    const int kh = i[IRSTD_CONV2D_KERNEL_H], kw = i[IRSTD_CONV2D_KERNEL_W];
    const int64_t sh = i[IRSTD_CONV2D_STRIDE_H], sw = i[IRSTD_CONV2D_STRIDE_W];
    const float *weight = n->constants[IRSTD_CONV2D_WEIGHT], *bias = n->constants[IRSTD_CONV2D_BIAS];
    const float *slope = n->constants[IRSTD_CONV2D_SLOPE];
    float *sum = (float *)(void *)scratch, *in = sum + padded(y->width);
    for (int o = 0; o < y->channels; o++) {
        for (int64_t j = 0; j < y->width; j++) sum[j] = bias ? bias[o] : 0;
        for (int r = 0; r < kh; r++) {
            int64_t top = row + i[IRSTD_CONV2D_PAD_TOP] - (int64_t)r * i[IRSTD_CONV2D_DILATION_H];
            if (top < 0 || top % sh || top / sh >= x->height) continue;
            const char *source = irstd_tensor_row(x, top / sh);
            for (int c = 0; c < ic; c++) {
                int from = o / oc * ic + c;
                read_plane(x, source, from, x->width, in);
                for (int k = 0; k < kw; k++) {
                    float w = weight[(((int64_t)from * oc + o % oc) * kh + r) * kw + k];
                    int64_t first = (int64_t)k * i[IRSTD_CONV2D_DILATION_W] - i[IRSTD_CONV2D_PAD_LEFT];
                    int64_t begin = first < 0 ? (-first + sw - 1) / sw : 0;
                    int64_t end = irstd_min(x->width, first < y->width ? (y->width - first + sw - 1) / sw : 0);
                    for (int64_t j = begin; j < end; j++) sum[first + j * sw] += w * in[j];
                }
            }
        }
        activate(sum, y->width, i[IRSTD_CONV2D_ACTIVATION], slope ? slope[o] : 0, n->f);
        write_plane(y, irstd_tensor_row(y, row), o, y->width, sum);
    }
}

/* ---- pools ---- */

static int alike(const irstd_tensor *a, const irstd_tensor *b) {
    return a->type == IRSTD_TENSOR_TYPE_INT16 && b->type == a->type && a->fraction_bits == b->fraction_bits;
}

/* Whole steps of a plane are written. */
static void average_pool2(const int16_t *top, const int16_t *bottom, int64_t width, int16_t *y) {
#if defined(__AVX512BW__)
    const __m512i one = _mm512_set1_epi16(1), two = _mm512_set1_epi32(2);
    for (int64_t j = 0; j < width; j += 16) {
        __m512i sum = _mm512_add_epi32(_mm512_madd_epi16(_mm512_loadu_si512(top + 2 * j), one),
                                       _mm512_madd_epi16(_mm512_loadu_si512(bottom + 2 * j), one));
        _mm256_storeu_si256((__m256i *)(void *)(y + j),
                            _mm512_cvtepi32_epi16(_mm512_srai_epi32(_mm512_add_epi32(sum, two), 2)));
    }
#elif defined(__ARM_NEON)
    for (int64_t j = 0; j < width; j += 4)
        vst1_s16(y + j, vrshrn_n_s32(vpadalq_s16(vpaddlq_s16(vld1q_s16(top + 2 * j)), vld1q_s16(bottom + 2 * j)), 2));
#else
    for (int64_t j = 0; j < width; j++)
        y[j] = (int16_t)((top[2 * j] + top[2 * j + 1] + bottom[2 * j] + bottom[2 * j + 1] + 2) >> 2);
#endif
}

/* Whole steps of a plane are written. */
static void max_pool2(const int16_t *top, const int16_t *bottom, int64_t width, int16_t *y) {
#if defined(__AVX512BW__)
    for (int64_t j = 0; j < width; j += 16) { /* the larger of each pair, in the low half */
        __m512i v = _mm512_max_epi16(_mm512_loadu_si512(top + 2 * j), _mm512_loadu_si512(bottom + 2 * j));
        v = _mm512_max_epi16(v, _mm512_srli_epi32(v, 16));
        _mm256_storeu_si256((__m256i *)(void *)(y + j), _mm512_cvtepi32_epi16(v));
    }
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

static void pool_row(const irstd_node *n, int64_t row, char *scratch) {
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    const int kh = n->i[0], kw = n->i[1], sh = n->i[2], sw = n->i[3], average = n->op == IRSTD_OP_AVERAGE_POOL;
    char *result = irstd_tensor_row(y, row);
    float *in = (float *)(void *)scratch, *out = in + padded(x->width);
    const float share = 1.0f / (float)(kh * kw);
    for (int c = 0; c < y->channels; c++) {
        if (kh == 2 && kw == 2 && sh == 2 && sw == 2 && alike(x, y)) {
            (average ? average_pool2 : max_pool2)((const int16_t *)irstd_tensor_row(x, 2 * row) + c * x->stride,
                          (const int16_t *)irstd_tensor_row(x, 2 * row + 1) + c * x->stride, y->width,
                          (int16_t *)(void *)result + c * y->stride);
            continue;
        }
        for (int64_t j = 0; j < y->width; j++) out[j] = average ? 0 : -INFINITY;
        for (int r = 0; r < kh; r++) {
            read_plane(x, irstd_tensor_row(x, row * sh + r), c, x->width, in);
            for (int k = 0; k < kw; k++)
                for (int64_t j = 0; j < y->width; j++) {
                    float v = in[j * sw + k];
                    out[j] = average ? out[j] + v : v > out[j] ? v : out[j];
                }
        }
        if (average)
            for (int64_t j = 0; j < y->width; j++) out[j] *= share;
        write_plane(y, result, c, y->width, out);
    }
}

static void global_pool(const irstd_node *n, char *scratch) {
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    float *in = (float *)(void *)scratch;
    for (int c = 0; c < y->channels; c++) {
        double sum = 0;
        for (int64_t r = 0; r < x->height; r++) {
            read_plane(x, irstd_tensor_row(x, r), c, x->width, in);
            float part = 0;
            for (int64_t j = 0; j < x->width; j++) part += in[j];
            sum += (double)part;
        }
        float mean = (float)(sum / ((double)x->height * (double)x->width));
        write_plane(y, irstd_tensor_row(y, 0), c, 1, &mean);
    }
}

/* ---- resize ---- */

/* Where output index `to` reads: source and weight of the next one. */
static int64_t source_of(int64_t to, int64_t scale, int64_t size, int mode, float *fraction) {
    float at;
    if (mode == IRSTD_RESIZE_MODE_NEAREST) {
        *fraction = 0;
        return to / scale;
    }
    if (mode == IRSTD_RESIZE_MODE_BILINEAR)
        at = ((float)to + 0.5f) / (float)scale - 0.5f;
    else
        at = size * scale > 1 ? (float)to * (float)(size - 1) / (float)(size * scale - 1) : 0;
    if (at < 0) at = 0;
    int64_t first = irstd_min((int64_t)at, size - 1);
    *fraction = at - (float)first;
    return first;
}

/* Bilinear x2: 9, 3, 3, 1 sixteenths, plus an addend (saturating) where there is one. mid: width + 2 and a vector.
 * Whole steps of a plane are written; two pixels of the result are the halves of one 32-bit lane. */
static void resize2(const int16_t *near, const int16_t *far, int64_t width, int32_t *mid, const int16_t *addend,
                    int16_t *y) {
#if defined(__ARM_NEON)
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

static void add_planes(const irstd_tensor *b, const char *row, int c, const irstd_tensor *y, char *result, int64_t n,
                       float *sum, float *other);

static void resize_row(const irstd_node *n, int64_t row, char *scratch) {
    const irstd_tensor *x = n->inputs[0], *y = n->output, *addend = n->input_count == 2 ? n->inputs[1] : NULL;
    const int64_t scale_h = n->i[0], scale_w = n->i[1];
    const int mode = n->i[2];
    char *result = irstd_tensor_row(y, row);
    if (mode == IRSTD_RESIZE_MODE_BILINEAR && scale_h == 2 && scale_w == 2 && alike(x, y) &&
        (!addend || alike(addend, y))) {
        int64_t near = row / 2, far = irstd_max(0, irstd_min(x->height - 1, row % 2 ? near + 1 : near - 1));
        for (int c = 0; c < y->channels; c++) {
            int16_t *to = (int16_t *)(void *)result + c * y->stride;
            resize2((const int16_t *)irstd_tensor_row(x, near) + c * x->stride,
                    (const int16_t *)irstd_tensor_row(x, far) + c * x->stride, x->width, (int32_t *)(void *)scratch,
                    addend ? (const int16_t *)irstd_tensor_row(addend, row) + c * addend->stride : NULL, to);
        }
        return;
    }
    float *near = (float *)(void *)scratch, *far = near + padded(x->width), *out = far + padded(x->width), fraction;
    float *other = out + padded(y->width);
    int64_t first = source_of(row, scale_h, x->height, mode, &fraction);
    int64_t second = fraction > 0 ? irstd_min(first + 1, x->height - 1) : first; /* a row that is not there yet may be NaN */
    for (int c = 0; c < y->channels; c++) {
        read_plane(x, irstd_tensor_row(x, first), c, x->width, near);
        if (mode != IRSTD_RESIZE_MODE_NEAREST) {
            read_plane(x, irstd_tensor_row(x, second), c, x->width, far);
            for (int64_t j = 0; j < x->width; j++) near[j] = near[j] * (1 - fraction) + far[j] * fraction;
        }
        for (int64_t j = 0; j < y->width; j++) {
            float part;
            int64_t at = source_of(j, scale_w, x->width, mode, &part), next = irstd_min(at + 1, x->width - 1);
            out[j] = near[at] * (1 - part) + near[next] * part;
        }
        if (addend)
            add_planes(addend, irstd_tensor_row(addend, row), c, y, result, y->width, out, other);
        else
            write_plane(y, result, c, y->width, out);
    }
}

/* sum, put on the grid of y where it has one, plus a plane of b. */
static void add_planes(const irstd_tensor *b, const char *row, int c, const irstd_tensor *y, char *result, int64_t n,
                       float *sum, float *other) {
    if (y->type == IRSTD_TENSOR_TYPE_INT16) {
        write_plane(y, result, c, n, sum);
        read_plane(y, result, c, n, sum);
    }
    read_plane(b, row, c, n, other);
    for (int64_t j = 0; j < n; j++) sum[j] += other[j];
    write_plane(y, result, c, n, sum);
}

/* ---- elementwise ---- */

static void pair_row(const irstd_node *n, int64_t row, char *scratch) {
    const irstd_tensor *a = n->inputs[0], *b = n->inputs[1], *y = n->output;
    const char *from = irstd_tensor_row(a, row), *other = irstd_tensor_row(b, b->height == 1 ? 0 : row);
    char *result = irstd_tensor_row(y, row);
    const int product = n->op == IRSTD_OP_MULTIPLY, activation = product ? 0 : n->i[0];
    const float *slope = product ? NULL : n->constants[IRSTD_ADD_SLOPE];
    float *s = (float *)(void *)scratch, *t = s + padded(y->width);
    for (int c = 0; c < y->channels; c++) {
        if (!product && !activation && alike(a, y) && alike(b, y)) {
            int16_t *to = (int16_t *)(void *)result + c * y->stride;
            memcpy(to, (const int16_t *)(const void *)from + c * a->stride, (size_t)y->width * sizeof *to);
            add_saturating(to, (const int16_t *)(const void *)other + c * b->stride, y->width);
            continue;
        }
        read_plane(a, from, c, y->width, s);
        read_plane(b, other, c, b->width, t);
        if (b->width == 1)
            for (int64_t j = 0; j < y->width; j++) s[j] = product ? s[j] * t[0] : s[j] + t[0];
        else
            for (int64_t j = 0; j < y->width; j++) s[j] = product ? s[j] * t[j] : s[j] + t[j];
        activate(s, y->width, activation, slope ? slope[c] : 0, n->f);
        write_plane(y, result, c, y->width, s);
    }
}

static void unary_row(const irstd_node *n, int64_t row, char *scratch) {
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    const char *from = irstd_tensor_row(x, row);
    char *result = irstd_tensor_row(y, row);
    const float *slope = n->constants[IRSTD_ACTIVATION_SLOPE];
    float *s = (float *)(void *)scratch;
    for (int c = 0; c < y->channels; c++) {
        read_plane(x, from, c, y->width, s);
        if (n->op == IRSTD_OP_FIXED_POINT) {
            to_fixed(s, y->width, y->fraction_bits, n->i[IRSTD_FIXED_POINT_BITS],
                     (int16_t *)(void *)result + c * y->stride);
            continue;
        }
        activate(s, y->width, n->i[0], slope ? slope[c] : 0, n->f);
        write_plane(y, result, c, y->width, s);
    }
}

static void concat_row(const irstd_node *n, int64_t row) {
    const irstd_tensor *y = n->output;
    const size_t size = y->type == IRSTD_TENSOR_TYPE_INT16 ? 2 : 4;
    char *to = irstd_tensor_row(y, row);
    for (int k = 0; k < n->input_count; k++) {
        const irstd_tensor *x = n->inputs[k];
        for (int c = 0; c < x->channels; c++, to += (size_t)y->stride * size)
            memcpy(to, (const char *)irstd_tensor_row(x, row) + (size_t)(c * x->stride) * size, (size_t)y->width * size);
    }
}

static void run(const irstd_node *n, int64_t row, char *scratch) {
    switch (n->op) {
    case IRSTD_OP_CONV2D: conv_row(n, row, scratch); break;
    case IRSTD_OP_CONV_TRANSPOSE2D: conv_transpose_row(n, row, scratch); break;
    case IRSTD_OP_AVERAGE_POOL:
    case IRSTD_OP_MAX_POOL: pool_row(n, row, scratch); break;
    case IRSTD_OP_RESIZE: resize_row(n, row, scratch); break;
    case IRSTD_OP_ADD:
    case IRSTD_OP_MULTIPLY: pair_row(n, row, scratch); break;
    case IRSTD_OP_FIXED_POINT:
    case IRSTD_OP_ACTIVATION: unary_row(n, row, scratch); break;
    case IRSTD_OP_CONCAT: concat_row(n, row); break;
    default: global_pool(n, scratch); break;
    }
}

static size_t scratch_bytes(const irstd_node *n) {
    if (n->op == IRSTD_OP_CONV2D) return conv_scratch(n);
    int64_t width = n->output->width;
    for (int k = 0; k < n->input_count; k++) width = irstd_max(width, n->inputs[k]->width);
    return (size_t)(4 * padded(width)) * sizeof(float);
}

void PASTE(irstd_finish_, IRSTD_ROWS)(const irstd_bconv *, const int16_t *, const irstd_tensor *, const char *,
                                      const irstd_tensor *, char *, char *);
void PASTE(irstd_signs_, IRSTD_ROWS)(const irstd_tensor *, const float *, const irstd_map *, int, char *);

const irstd_row_kernels NAME = {run, scratch_bytes, PASTE(irstd_finish_, IRSTD_ROWS), PASTE(irstd_signs_, IRSTD_ROWS)};

/* Rows of binary convolutions beside float maps, once for every instruction set: the signs of floats, and results in
 * the specification's float32 steps, equal to irstd_bconv_value to the last bit; compiled without contraction. */
#include "rows.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))
enum { VECTORS = 4 };

/* ---- signs ---- */

static unsigned signs_of(const float *x, int64_t step, const float *threshold, int count) {
    unsigned bits = 0;
    for (int c = 0; c < count; c++) bits |= (unsigned)(x[c * step] >= threshold[c]) << c;
    return bits;
}

static void store_element(char *plane, int64_t j, int bytes, unsigned bits) {
    if (bytes == 1)
        ((uint8_t *)plane)[j] = (uint8_t)bits;
    else
        ((uint16_t *)(void *)plane)[j] = (uint16_t)bits;
}

/* The elements of `vectors` vectors of pixels. */
ALWAYS_INLINE void store_elements(char *plane, int64_t j, int bytes, const vi *bits, const int vectors) {
#if defined(__AVX512F__)
    (void)bytes;
    for (int v = 0; v < vectors; v++)
        _mm256_storeu_si256((__m256i *)(void *)(plane + 2 * (j + v * LANES)), _mm512_cvtepi32_epi16((__m512i)bits[v]));
#elif defined(__ARM_NEON)
    (void)bytes;
    for (int v = 0; v < vectors; v++)
        vst1_u16((uint16_t *)(void *)plane + j + v * LANES, vmovn_u32((uint32x4_t)bits[v]));
#else
#if defined(__AVX2__)
    if (bytes == 1 && vectors == 4) {
        const __m256i low = _mm256_packs_epi32((__m256i)bits[0], (__m256i)bits[1]);
        const __m256i high = _mm256_packs_epi32((__m256i)bits[2], (__m256i)bits[3]);
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256((__m256i *)(void *)(plane + j),
                            _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order));
        return;
    }
#endif
    for (int v = 0; v < vectors; v++)
        for (int l = 0; l < LANES; l++) store_element(plane, j + v * LANES + l, bytes, (unsigned)bits[v][l]);
#endif
}

/* One element each of the first `vectors` vectors of pixels. */
ALWAYS_INLINE void sign_pixels(const float *x, int64_t stride, const float *threshold, int count, char *plane, int64_t j,
                               int bytes, const int vectors) {
    vi bits[VECTORS] = {{0}};
    for (int c = 0; c < count; c++) {
        const vf t = threshold[c] - (vf){0};
        const vi bit = (1 << c) - (vi){0};
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            vf value;
            memcpy(&value, x + c * stride + j + v * LANES, sizeof value);
            bits[v] |= (value >= t) & bit;
        }
    }
    store_elements(plane, j, bytes, bits, vectors);
}

/* Channels in planes: lanes are pixels. */
static void sign_planes(const irstd_tensor *x, const float *row, const float *threshold, int count, int bytes, char *plane) {
    int64_t j = 0;
    for (; j + VECTORS * LANES <= x->width; j += VECTORS * LANES)
        sign_pixels(row, x->stride, threshold, count, plane, j, bytes, VECTORS);
    for (; j + LANES <= x->width; j += LANES) sign_pixels(row, x->stride, threshold, count, plane, j, bytes, 1);
    for (; j < x->width; j++) store_element(plane, j, bytes, signs_of(row + j, x->stride, threshold, count));
}

/* The signs of 4 channels of a pixel. */
ALWAYS_INLINE unsigned four_signs(const float *x, const float *threshold) {
#if defined(__x86_64__)
    return (unsigned)_mm_movemask_ps(_mm_cmpge_ps(_mm_loadu_ps(x), _mm_loadu_ps(threshold)));
#elif defined(__aarch64__)
    static const uint32_t bit[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgeq_f32(vld1q_f32(x), vld1q_f32(threshold)), vld1q_u32(bit)));
#else
    return signs_of(x, 1, threshold, 4);
#endif
}

/* Channels of a pixel side by side. */
ALWAYS_INLINE unsigned sign_channels(const float *x, const float *threshold, int count) {
#if defined(__AVX512F__)
    const __mmask16 some = (__mmask16)((1u << count) - 1);
    return _mm512_mask_cmp_ps_mask(some, _mm512_maskz_loadu_ps(some, x), _mm512_maskz_loadu_ps(some, threshold), _CMP_GE_OQ);
#else
    unsigned bits = 0;
    int c = 0;
    for (; c + 4 <= count; c += 4) bits |= four_signs(x + c, threshold + c) << c;
    return c < count ? bits | signs_of(x + c, 1, threshold + c, count - c) << c : bits;
#endif
}

void PASTE(irstd_signs_, IRSTD_ROWS)(const irstd_tensor *x, const float *row, const irstd_map *map, int bit_channels,
                                     char *bits) {
    const int bytes = bit_channels > 8 ? 2 : 1;
    for (int g = 0; g < map->groups; g++)
        for (int p = 0; p < map->group_planes; p++) {
            const int first = g * map->group_channels + p * bit_channels, left = map->group_channels - p * bit_channels;
            const int count = left < bit_channels ? left : bit_channels;
            const float *threshold = map->threshold + first;
            char *plane = bits + (int64_t)(g * map->group_planes + p) * map->stride * bytes;
            if (x->step == 1) {
                sign_planes(x, row + first * x->stride, threshold, count, bytes, plane);
                continue;
            }
            const float *from = row + first;
            if (bit_channels == 4 && count == 4)
                for (int64_t j = 0; j < x->width; j++) plane[j] = (char)four_signs(from + j * x->step, threshold);
            else
                for (int64_t j = 0; j < x->width; j++)
                    store_element(plane, j, bytes, sign_channels(from + j * x->step, threshold, count));
        }
}

/* ---- results ---- */

/* The first n of LANES floats; the others are 0. */
ALWAYS_INLINE vf load_some(const float *p, int64_t n) {
    vf v = {0};
    memcpy(&v, p, n < LANES ? (size_t)n * sizeof *p : sizeof v);
    return v;
}

/* The second where one is NaN. */
ALWAYS_INLINE vf larger(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return blend(a > b, a, b);
#endif
}
ALWAYS_INLINE vf smaller(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return blend(a < b, a, b);
#endif
}

ALWAYS_INLINE vf rounded_down(vf v) {
#if defined(__AVX512F__)
    return (vf)_mm512_roundscale_ps((__m512)v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return (vf)_mm256_floor_ps((__m256)v);
#elif defined(__aarch64__)
    return (vf)vrndmq_f32((float32x4_t)v);
#else
    for (int l = 0; l < LANES; l++) v[l] = floorf(v[l]);
    return v;
#endif
}

ALWAYS_INLINE vf saturated(vf q) { return smaller(larger(q, all(-32768)), all(32767)); }
ALWAYS_INLINE vf on_grid(vf v) { return saturated(rounded_down(v + 0.5f)); }

/* Lanes are the pixels of channel oc, or (`each` has constants of its own) the channels of one pixel. */
typedef struct {
    const irstd_bconv *c;
    int64_t n;
    int oc;
    int64_t rows, sum_step, r_step, y_step; /* as many pixels with the same constants, and from one to the next */
} lanes;

typedef enum { NO_SUM, SUM_FIRST, SUM_LAST } summing; /* where the residual is added */

/* Of LANES lanes. */
typedef struct {
    vf scale, offset, before, slope, after, low, high;
} constants;

ALWAYS_INLINE vf constant(const float *p, int oc, int64_t j, int64_t n, const int each) {
    return each ? load_some(p + oc + j, n) : all(p[oc]);
}

/* Those of lanes j and on, n of them at most. */
ALWAYS_INLINE constants constants_of(const lanes *at, int64_t j, int64_t n, const int each, const int rprelu) {
    const irstd_bconv *c = at->c;
    constants k = {.scale = constant(c->scale, at->oc, j, n, each), .offset = constant(c->offset, at->oc, j, n, each),
                   .low = all(c->low), .high = all(c->high)};
    if (!rprelu) return k;
    k.before = constant(c->before, at->oc, j, n, each);
    k.slope = constant(c->slope, at->oc, j, n, each);
    k.after = constant(c->after, at->oc, j, n, each);
    return k;
}

ALWAYS_INLINE vf activated(vf v, constants k, const int fixed, const int rprelu) {
    if (!rprelu) return smaller(k.high, larger(k.low, v)); /* a NaN stays one */
    vf t = v - k.before;
    if (fixed) t = saturated(t);
    vf s = t * k.slope;
    if (fixed) s = on_grid(s);
    t = blend(t >= 0, t, s) + k.after;
    return fixed ? saturated(t) : t;
}

/* Everything but `modulate`; fixed-point results are integers times `back`. Up to n lanes, which may be LANES. */
ALWAYS_INLINE void result(const int16_t *sums, const float *r, float *y, int64_t n, constants k, float unit, float step,
                          float back, const int fixed, const int rprelu, const int active, const summing sum) {
    vf v = widened(sums) * unit * k.scale;
    if (fixed) v = on_grid(v * step);
    v = v + k.offset;
    if (fixed) v = saturated(v);
    vf rest = {0};
    if (sum != NO_SUM) rest = load_some(r, n);
    if (sum != NO_SUM && fixed) rest = on_grid(rest * step);
    if (sum == SUM_FIRST) v = fixed ? saturated(v + rest) : v + rest;
    if (active) v = activated(v, k, fixed, rprelu);
    if (sum == SUM_LAST) v = fixed ? saturated(v + rest) : v + rest;
    if (fixed) v = v * back;
    memcpy(y, &v, n < LANES ? (size_t)n * sizeof *y : sizeof v);
}

/* Sums may be read in whole vectors. */
ALWAYS_INLINE void results(const lanes *at, const int16_t *sums, const float *r, float *y, float back, const int each,
                           const int fixed, const int rprelu, const int active, const summing sum) {
    const float unit = (float)at->c->unit, step = fixed ? (float)(1 << at->c->a.fraction_bits) : 1;
    const int64_t rows = each ? at->rows : 1, sum_step = at->sum_step, r_step = at->r_step, y_step = at->y_step;
    constants k = constants_of(at, 0, at->n, each, rprelu);
    int64_t j = 0;
    for (; j + LANES <= at->n; j += LANES) {
        if (each) k = constants_of(at, j, LANES, each, rprelu);
        for (int64_t i = 0; i < rows; i++)
            result(sums + i * sum_step + j, r + i * r_step + j, y + i * y_step + j, LANES, k, unit, step, back, fixed, rprelu,
                   active, sum);
    }
    if (j == at->n) return;
    if (each) k = constants_of(at, j, at->n - j, each, rprelu);
    for (int64_t i = 0; i < rows; i++)
        result(sums + i * sum_step + j, r + i * r_step + j, y + i * y_step + j, at->n - j, k, unit, step, back, fixed, rprelu,
               active, sum);
}

#define SUMMED(fixed, rprelu, active)                                                             \
    switch (sum) {                                                                                \
    case NO_SUM: results(at, sums, r, y, back, each, fixed, rprelu, active, NO_SUM); break;       \
    case SUM_FIRST: results(at, sums, r, y, back, each, fixed, rprelu, active, SUM_FIRST); break; \
    default: results(at, sums, r, y, back, each, fixed, rprelu, active, SUM_LAST); break;         \
    }

ALWAYS_INLINE void any_results(const lanes *at, const int16_t *sums, const float *r, float *y, float back, const int each,
                               int active, summing sum) {
    const int rprelu = at->c->a.activation == IRSTD_ACTIVATION_RPRELU, fixed = at->c->a.fraction_bits >= 0;
    active = active && at->c->a.activation != IRSTD_ACTIVATION_NONE;
    if (fixed && !active) {
        SUMMED(1, 0, 0)
    } else if (fixed && rprelu) {
        SUMMED(1, 1, 1)
    } else if (fixed) {
        SUMMED(1, 0, 1)
    } else if (!active) {
        SUMMED(0, 0, 0)
    } else if (rprelu) {
        SUMMED(0, 1, 1)
    } else {
        SUMMED(0, 0, 1)
    }
}

static void plane_results(const lanes *at, const int16_t *sums, const float *r, float *y, float back, int active, summing sum) {
    any_results(at, sums, r, y, back, 0, active, sum);
}
static void pixel_results(const lanes *at, const int16_t *sums, const float *r, float *y, float back, int active, summing sum) {
    any_results(at, sums, r, y, back, 1, active, sum);
}

/* Behind the results before the residual, in place: r + r * tanh(v), and what follows it. */
static void modulate(const lanes *at, const float *r, float *y, float back, int each) {
    const irstd_bconv *c = at->c;
    const int fixed = c->a.fraction_bits >= 0, rprelu = c->a.activation == IRSTD_ACTIVATION_RPRELU;
    const int active = !c->a.activation_first && c->a.activation != IRSTD_ACTIVATION_NONE;
    const float step = fixed ? (float)(1 << c->a.fraction_bits) : 1, unit = 1 / step;
    for (int64_t j = 0; j < at->n; j += LANES) {
        const int64_t n = irstd_min(LANES, at->n - j);
        vf v = load_some(y + j, n) * unit, rest = load_some(r + j, n);
        if (fixed) rest = on_grid(rest * step) * unit;
        for (int l = 0; l < n; l++) v[l] = tanhf(v[l]);
        v = rest + rest * v;
        if (fixed) v = on_grid(v * step);
        if (active) v = activated(v, constants_of(at, j, n, each, rprelu), fixed, rprelu);
        if (fixed) v = v * back;
        memcpy(y + j, &v, (size_t)n * sizeof *y);
    }
}

/* to = or += n values of a residual, on the grid of a fixed-point operator where they are averaged. */
static void read_values(const irstd_tensor *r, const char *row, int64_t first, int64_t n, float step, int add, float *to) {
    const float unit = 1.0f / (float)(1 << irstd_max(0, r->fraction_bits)), back = 1 / step;
    for (int64_t j = 0; j < n; j += LANES) {
        const int64_t some = irstd_min(LANES, n - j);
        vf v = r->type == IRSTD_TENSOR_TYPE_FLOAT32 ? load_some((const float *)(const void *)row + first + j, some)
                                                    : widened((const int16_t *)(const void *)row + first + j) * unit;
        if (step > 0) v = on_grid(v * step) * back;
        if (add) v = load_some(to + j, some) + v;
        memcpy(to + j, &v, (size_t)some * sizeof *to);
    }
}

/* The residual of at's lanes, its channels repeated or averaged: where it is already, or brought to `to`. */
static const float *matched(const lanes *at, const irstd_tensor *r, const char *row, int64_t pixel, int each, float *to) {
    const irstd_bconv *c = at->c;
    const int channels = c->a.out_channels, count = r->channels / channels, fixed = c->a.fraction_bits >= 0;
    const int64_t first = each ? pixel * r->step : at->oc % r->channels * r->stride;
    if (each && count < 1) {
        for (int done = 0; done < channels; done += r->channels) read_values(r, row, first, r->channels, 0, 0, to + done);
        return to;
    }
    if (count <= 1) {
        if (r->type == IRSTD_TENSOR_TYPE_FLOAT32) return (const float *)(const void *)row + first;
        read_values(r, row, first, at->n, 0, 0, to);
        return to;
    }
    const float step = fixed ? (float)(1 << c->a.fraction_bits) : 0, parts = (float)count;
    for (int k = 0; k < count; k++)
        read_values(r, row, first + k * (each ? channels : channels * r->stride), at->n, step, k, to);
    for (int64_t j = 0; j < at->n; j++) { /* in units, where it is fixed point: half up */
        to[j] = fixed ? to[j] * step : to[j];
        to[j] /= parts;
        if (fixed) to[j] = floorf(to[j] + 0.5f) / step;
    }
    return to;
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (eight){__VA_ARGS__})
#endif
typedef int16_t eight __attribute__((vector_size(16)));

/* Sums [channels][stride] to [columns][channels], in blocks of 8 x 8. */
static void transpose(const int16_t *from, int64_t stride, int64_t columns, int64_t channels, int16_t *to) {
    for (int64_t c = 0; c < channels; c += 8)
        for (int64_t j = 0; j < columns; j += 8) {
            eight a[8], b[8];
            for (int k = 0; k < 8; k++) memcpy(&a[k], from + (c + k) * stride + j, sizeof a[k]);
            for (int round = 0; round < 3; round++) { /* interleaves halves: a transposition after three rounds */
                for (int k = 0; k < 4; k++) {
                    b[2 * k] = SHUFFLE(a[k], a[k + 4], 0, 8, 1, 9, 2, 10, 3, 11);
                    b[2 * k + 1] = SHUFFLE(a[k], a[k + 4], 4, 12, 5, 13, 6, 14, 7, 15);
                }
                memcpy(a, b, sizeof a);
            }
            for (int k = 0; k < 8; k++) memcpy(to + (j + k) * channels + c, &a[k], sizeof a[k]);
        }
}

void PASTE(irstd_finish_, IRSTD_ROWS)(const irstd_bconv *c, const int16_t *sums, const irstd_tensor *r, const char *residual,
                   const irstd_tensor *y, char *to, char *scratch) {
    const irstd_bconv2d_attributes *a = &c->a;
    const int each = y->step > 1 || (r && r->step > 1), modulated = a->residual == IRSTD_RESIDUAL_MODULATE;
    const int fixed = a->fraction_bits >= 0, stored_fixed = y->type == IRSTD_TENSOR_TYPE_INT16;
    const int64_t padded = irstd_round_up(a->out_channels, 16), count = each ? y->width : a->out_channels;
    const summing sum = !r || modulated ? NO_SUM : a->activation_first ? SUM_LAST : SUM_FIRST;
    const float back = fixed && !stored_fixed ? 1 / (float)(1 << a->fraction_bits) : 1;
    const int active = !modulated || a->activation_first;
    float *rest_values = (float *)(void *)(scratch + c->layout.rest), *values = (float *)(void *)(scratch + c->layout.values);
    lanes at = {c, each ? a->out_channels : y->width, 0, 1, padded, r ? r->step : 0, y->step};
    int64_t stride = c->layout.stride;
    /* Some pixels at once, where their residuals are in place. */
    const int64_t most = each && !modulated && (!r || r->channels == a->out_channels) ? 16 : 1;
    if (each) {
        int16_t *turned = (int16_t *)(void *)(scratch + c->layout.turned);
        transpose(sums, stride, irstd_round_up(y->width, 8), padded, turned);
        sums = turned;
        stride = padded;
    }
    for (int64_t i = 0; i < count; i += at.rows, sums += at.rows * stride) {
        if (!each) at.oc = (int)i;
        at.rows = irstd_min(most, count - i);
        float *result = stored_fixed ? values : (float *)(void *)to + i * (each ? y->step : y->stride);
        const float *rest = r ? matched(&at, r, residual, i, each, rest_values) : result; /* not read */
        (each ? pixel_results : plane_results)(&at, sums, rest, result, modulated ? 1 : back, active, sum);
        if (modulated) modulate(&at, rest, result, back, each);
        if (!stored_fixed) continue;
        int16_t *q = (int16_t *)(void *)to + i * y->stride;
        for (int64_t j = 0; j < at.n; j++) q[j] = (int16_t)(int32_t)values[j];
    }
}

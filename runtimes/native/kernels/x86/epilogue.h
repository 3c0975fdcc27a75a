/* From integer accumulators of one tile to float outputs, 8 lanes at a time: scale, bias, activation,
 * residual, in the order and rounding of irstd_edge/opspec.py; fixed-point steps are on integers held as
 * float. NCHW: lanes are pixels; NHWC: lanes are channels. The frequent combinations are compiled as
 * straight-line code; the others run the same code with run-time choices. */
#ifndef IRSTD_X86_EPILOGUE_H
#define IRSTD_X86_EPILOGUE_H

#include <immintrin.h>
#include <math.h>

#include "internal.h"

#define IRSTD_INLINE static inline __attribute__((always_inline))

enum { IRSTD_TILE = 64, IRSTD_LANES = 8 };

/* Element type of the accumulator tiles, which are [channels][IRSTD_TILE]. */
typedef enum { ACC_INT8 = 1, ACC_INT16 = 2, ACC_INT32 = 4 } irstd_acc;

/* What the inner loops branch on; constants where a combination is specialised. */
typedef struct {
    int activation, residual, activation_first, fixed, average;
} irstd_style;

typedef struct {
    __m256 scale, bias, shift_in, slope, shift_out;
} irstd_lane_constants;

/* Made once per call: divisions are as dear as many lanes of the epilogue. The bounds of the clamp are integers where
 * the operator is fixed point. */
typedef struct {
    __m256 low, high, step, inverse, count;
    int64_t parts; /* residual channels averaged to one */
} irstd_shared_constants;

static const int32_t irstd_lane_mask[2 * IRSTD_LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};

/* The first n of 8 lanes. */
IRSTD_INLINE __m256i irstd_first_lanes(int64_t n) {
    return _mm256_loadu_si256((const __m256i *)(irstd_lane_mask + IRSTD_LANES - n));
}

IRSTD_INLINE __m256 irstd_load(const float *p, int full, __m256i mask) {
    return full ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, mask);
}

IRSTD_INLINE void irstd_store(float *p, __m256 v, int full, __m256i mask) {
    if (full)
        _mm256_storeu_ps(p, v);
    else
        _mm256_maskstore_ps(p, mask, v);
}

IRSTD_INLINE __m256i irstd_load_acc(const void *tile, int64_t index, irstd_acc kind) {
    const char *p = (const char *)tile + index * (int64_t)kind;
    if (kind == ACC_INT8) return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
    if (kind == ACC_INT16) return _mm256_cvtepi16_epi32(_mm_load_si128((const __m128i *)p));
    return _mm256_load_si256((const __m256i *)p);
}

/* Operand order makes a NaN pass, as in the reference. */
IRSTD_INLINE __m256 irstd_clamp(__m256 v, __m256 low, __m256 high) {
    return _mm256_min_ps(high, _mm256_max_ps(low, v));
}

/* Half up. */
IRSTD_INLINE __m256 irstd_round(__m256 v) { return _mm256_floor_ps(_mm256_add_ps(v, _mm256_set1_ps(0.5f))); }

/* The range of 16 bits. Operand order makes a NaN the lowest value. */
IRSTD_INLINE __m256 irstd_saturate(__m256 q) {
    return _mm256_min_ps(_mm256_max_ps(q, _mm256_set1_ps(-32768.0f)), _mm256_set1_ps(32767.0f));
}

/* In units of the fixed-point step. */
IRSTD_INLINE __m256 irstd_to_integer(__m256 v, __m256 step) {
    return irstd_saturate(irstd_round(_mm256_mul_ps(v, step)));
}

/* An added constant of the fixed-point steps. */
IRSTD_INLINE __m256 irstd_integer_constant(__m256 v, const irstd_shared_constants *shared, irstd_style style) {
    return style.fixed ? irstd_round(_mm256_mul_ps(v, shared->step)) : v;
}

/* The result of a sum that saturates where the operator is fixed point. */
IRSTD_INLINE __m256 irstd_sum(__m256 v, irstd_style style) { return style.fixed ? irstd_saturate(v) : v; }

/* The one tanhf of the C library, so that every variant rounds alike. */
static inline __m256 irstd_tanh(__m256 v) {
    float lanes[IRSTD_LANES];
    _mm256_storeu_ps(lanes, v);
    for (int i = 0; i < IRSTD_LANES; i++) lanes[i] = tanhf(lanes[i]);
    return _mm256_loadu_ps(lanes);
}

IRSTD_INLINE __m256 irstd_activate(__m256 v, const irstd_lane_constants *lane, const irstd_shared_constants *shared,
                                   irstd_style style) {
    if (style.activation == IRSTD_ACTIVATION_RPRELU) {
        __m256 t = irstd_sum(_mm256_sub_ps(v, lane->shift_in), style);
        __m256 positive = _mm256_cmp_ps(t, _mm256_setzero_ps(), _CMP_GE_OQ);
        __m256 sloped = _mm256_mul_ps(t, lane->slope);
        if (style.fixed) sloped = irstd_saturate(irstd_round(sloped));
        t = _mm256_blendv_ps(sloped, t, positive);
        return irstd_sum(_mm256_add_ps(t, lane->shift_out), style);
    }
    return style.activation == IRSTD_ACTIVATION_CLAMP ? irstd_clamp(v, shared->low, shared->high) : v;
}

IRSTD_INLINE __m256 irstd_modulate(__m256 v, __m256 r) { return _mm256_add_ps(r, _mm256_mul_ps(r, irstd_tanh(v))); }

IRSTD_INLINE __m256 irstd_combine(__m256 v, __m256 r, const irstd_shared_constants *shared, irstd_style style) {
    if (style.residual == IRSTD_RESIDUAL_ADD) return irstd_sum(_mm256_add_ps(v, r), style);
    if (style.residual != IRSTD_RESIDUAL_MODULATE) return v;
    if (!style.fixed) return irstd_modulate(v, r);
    v = irstd_modulate(_mm256_mul_ps(v, shared->inverse), _mm256_mul_ps(r, shared->inverse));
    return irstd_to_integer(v, shared->step);
}

IRSTD_INLINE __m256 irstd_finish(__m256i acc, __m256 r, const irstd_lane_constants *lane,
                                 const irstd_shared_constants *shared, irstd_style style) {
    __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(acc), lane->scale);
    if (style.fixed) v = irstd_to_integer(v, shared->step);
    v = irstd_sum(_mm256_add_ps(v, lane->bias), style);
    if (style.activation_first)
        v = irstd_combine(irstd_activate(v, lane, shared, style), r, shared, style);
    else
        v = irstd_activate(irstd_combine(v, r, shared, style), lane, shared, style);
    return style.fixed ? _mm256_mul_ps(v, shared->inverse) : v;
}

/* The addends of 8 lanes become integers where the operator is fixed point. */
IRSTD_INLINE irstd_lane_constants irstd_lane(__m256 scale, __m256 bias, __m256 shift_in, __m256 slope, __m256 shift_out,
                                             const irstd_shared_constants *shared, irstd_style style) {
    irstd_lane_constants lane = {
        scale, irstd_integer_constant(bias, shared, style), irstd_integer_constant(shift_in, shared, style), slope,
        irstd_integer_constant(shift_out, shared, style),
    };
    return lane;
}

IRSTD_INLINE irstd_shared_constants irstd_shared(const irstd_image *image) {
    const irstd_bconv2d *op = image->op;
    int64_t parts = image->residual_channels / op->a.out_channels;
    irstd_shared_constants shared = {
        _mm256_set1_ps(op->a.clamp_min), _mm256_set1_ps(op->a.clamp_max), _mm256_set1_ps(op->fraction_step),
        /* A power of two: multiplying by the inverse is dividing. */
        _mm256_set1_ps(1.0f / op->fraction_step), _mm256_set1_ps((float)parts), parts,
    };
    if (op->a.fraction_bits >= 0) {
        shared.low = irstd_to_integer(shared.low, shared.step);
        shared.high = irstd_to_integer(shared.high, shared.step);
    }
    return shared;
}

/* The residual channel of an output channel, the first one where several are averaged. */
IRSTD_INLINE int64_t irstd_residual_channel(const irstd_image *image, int oc) {
    return oc < image->residual_channels ? oc : oc % (int)image->residual_channels;
}

IRSTD_INLINE __m256 irstd_residual_value(__m256 r, const irstd_shared_constants *shared, irstd_style style) {
    return style.fixed ? irstd_to_integer(r, shared->step) : r;
}

/* The residual of 8 lanes: step is the distance in floats of the channels averaged to one. */
IRSTD_INLINE __m256 irstd_residual(const float *from, int64_t step, const irstd_shared_constants *shared,
                                   irstd_style style, int full, __m256i mask) {
    if (!style.residual) return _mm256_setzero_ps();
    __m256 r = irstd_residual_value(irstd_load(from, full, mask), shared, style);
    if (!style.average) return r;
    for (int64_t j = 1; j < shared->parts; j++)
        r = _mm256_add_ps(r, irstd_residual_value(irstd_load(from + j * step, full, mask), shared, style));
    r = _mm256_div_ps(r, shared->count);
    return style.fixed ? irstd_round(r) : r;
}

/* NCHW: `count` pixels of channel oc from (row, column). acc is this channel's row of the tile. */
IRSTD_INLINE void irstd_finish_pixels(const irstd_image *image, const irstd_shared_constants *shared, const void *acc,
                                      irstd_acc kind, int oc, int64_t row, int64_t column, int64_t count,
                                      irstd_style style) {
    const irstd_bconv2d *op = image->op;
    const int64_t channels = op->a.out_channels, plane = image->size.out_height * image->size.out_width;
    const int64_t pixel = row * image->size.out_width + column;
    const float *parameters = op->activation_parameters + oc;
    const irstd_lane_constants lane =
        irstd_lane(_mm256_set1_ps(op->scale[oc]), _mm256_set1_ps(op->bias[oc]), _mm256_set1_ps(parameters[0]),
                   _mm256_set1_ps(parameters[channels]), _mm256_set1_ps(parameters[2 * channels]), shared, style);
    const float *residual =
        style.residual ? image->residual + irstd_residual_channel(image, oc) * plane + pixel : image->y;
    float *y = image->y + oc * plane + pixel;
    __m256i mask = _mm256_setzero_si256();
    int64_t i = 0;
    for (; i + IRSTD_LANES <= count; i += IRSTD_LANES) {
        __m256 r = irstd_residual(residual + i, channels * plane, shared, style, 1, mask);
        irstd_store(y + i, irstd_finish(irstd_load_acc(acc, i, kind), r, &lane, shared, style), 1, mask);
    }
    if (i < count) {
        mask = irstd_first_lanes(count - i);
        __m256 r = irstd_residual(residual + i, channels * plane, shared, style, 0, mask);
        irstd_store(y + i, irstd_finish(irstd_load_acc(acc, i, kind), r, &lane, shared, style), 0, mask);
    }
}

IRSTD_INLINE void irstd_transpose(__m256i v[8]) {
    __m256i a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

/* NHWC: channels oc.. (8, or fewer where not full) of `count` pixels from (row, column). acc is the tile
 * row of channel oc; the tile has 8 rows from there on, the last ones possibly unused. */
IRSTD_INLINE void irstd_finish_channels(const irstd_image *image, const irstd_shared_constants *shared,
                                        const void *acc, irstd_acc kind, int oc, int64_t row, int64_t column,
                                        int64_t count, irstd_style style, int full) {
    const irstd_bconv2d *op = image->op;
    const int64_t channels = op->a.out_channels, residual_channels = image->residual_channels;
    const int64_t pixel = row * image->size.out_width + column;
    const __m256i mask = full ? _mm256_setzero_si256() : irstd_first_lanes(channels - oc);
    const float *parameters = op->activation_parameters + oc;
    const irstd_lane_constants lane =
        irstd_lane(irstd_load(op->scale + oc, full, mask), irstd_load(op->bias + oc, full, mask),
                   irstd_load(parameters, full, mask), irstd_load(parameters + channels, full, mask),
                   irstd_load(parameters + 2 * channels, full, mask), shared, style);
    /* A repeated residual whose period is no multiple of the lanes is gathered. */
    const int gather = style.residual && residual_channels < channels && residual_channels % IRSTD_LANES;
    __m256i indices = _mm256_setzero_si256();
    const float *residual = image->y;
    if (style.residual) residual = image->residual + pixel * residual_channels;
    if (gather) {
        int32_t index[IRSTD_LANES];
        for (int i = 0; i < IRSTD_LANES; i++) index[i] = (oc + i) % (int)residual_channels;
        indices = _mm256_loadu_si256((const __m256i *)index);
    } else if (style.residual) {
        residual += irstd_residual_channel(image, oc);
    }
    float *y = image->y + pixel * channels + oc;
    for (int64_t i = 0; i < count; i += IRSTD_LANES) {
        __m256i v[IRSTD_LANES];
        for (int c = 0; c < IRSTD_LANES; c++) v[c] = irstd_load_acc(acc, c * IRSTD_TILE + i, kind);
        irstd_transpose(v);
        int pixels = count - i < IRSTD_LANES ? (int)(count - i) : IRSTD_LANES;
        for (int p = 0; p < pixels; p++, residual += residual_channels, y += channels) {
            __m256 r = gather ? irstd_residual_value(_mm256_i32gather_ps(residual, indices, 4), shared, style)
                              : irstd_residual(residual, channels, shared, style, full, mask);
            irstd_store(y, irstd_finish(v[p], r, &lane, shared, style), full, mask);
        }
    }
}

/* Finishes channels oc..oc+channels-1 of a tile; `kind` must be a constant at every call. */
IRSTD_INLINE void irstd_finish_tile_style(const irstd_image *image, const irstd_shared_constants *shared,
                                          const void *acc, irstd_acc kind, int oc, int channels, int64_t row,
                                          int64_t column, int64_t count, irstd_style style) {
    const char *tile = acc;
    const int64_t tile_row = IRSTD_TILE * (int)kind;
    int i = 0;
    if (image->op->layout == IRSTD_NCHW) {
        for (; i < channels; i++, tile += tile_row)
            irstd_finish_pixels(image, shared, tile, kind, oc + i, row, column, count, style);
        return;
    }
    for (; i + IRSTD_LANES <= channels; i += IRSTD_LANES, tile += IRSTD_LANES * tile_row)
        irstd_finish_channels(image, shared, tile, kind, oc + i, row, column, count, style, 1);
    if (i < channels) irstd_finish_channels(image, shared, tile, kind, oc + i, row, column, count, style, 0);
}

IRSTD_INLINE void irstd_finish_tile(const irstd_image *image, const irstd_shared_constants *shared, const void *acc,
                                    irstd_acc kind, int oc, int channels, int64_t row, int64_t column,
                                    int64_t count) {
    const irstd_bconv2d_attributes *a = &image->op->a;
    irstd_style style = {a->activation, a->residual, a->activation_first, a->fraction_bits >= 0,
                         image->residual_channels > a->out_channels};
    if (style.activation == IRSTD_ACTIVATION_RPRELU && style.residual == IRSTD_RESIDUAL_ADD &&
        style.activation_first && style.fixed) {
        irstd_style hot = {IRSTD_ACTIVATION_RPRELU, IRSTD_RESIDUAL_ADD, 1, 1, 0};
        if (!style.average) {
            irstd_finish_tile_style(image, shared, acc, kind, oc, channels, row, column, count, hot);
        } else {
            hot.average = 1;
            irstd_finish_tile_style(image, shared, acc, kind, oc, channels, row, column, count, hot);
        }
    } else {
        irstd_finish_tile_style(image, shared, acc, kind, oc, channels, row, column, count, style);
    }
}

#endif

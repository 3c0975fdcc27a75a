/* From sums to int16 values and signs, VECTORS vectors of pixels at a time; included after an instruction set's vectors:
 *   CONSTANTS with members offset and shift_out, constants_of (an irstd_finish), times_multiplier and times_slope
 *   (x * y / 2^15, rounded half up), v_adds (saturating), v_max, SHIFT, shift_of, v_shl, v_average (rounded half up),
 *   v_constant (of an int16 stored twice), v_next_constant (which steps the pointer; constants_of does too), STEP,
 *   BITS, bits_zero, TILE_BITS, tile_bits_of (channel c), bits_push (lanes >= threshold become bit c + t),
 *   bits_store (elements of `count` channels).
 *
 * A sum is shifted left as far as int16 allows and multiplied by a 15-bit fraction: floor(sum * scale + 1/2). */
#include "../../engine/engine.h"

IRSTD_INLINE V finish_vector(V sum, CONSTANTS k, SHIFT shift, const int rprelu, const int residual, const int16_t *r,
                             const int16_t *other) {
    V v = v_adds(times_multiplier(v_shl(sum, shift), k), k.offset);
    if (rprelu) v = v_adds(v_max(v, times_slope(v, k)), k.shift_out);
    if (residual == 1) v = v_adds(v, v_load(r));
    if (residual == 2) v = v_adds(v, v_average(v_load(r), v_load(other)));
    return v;
}

/* residual: 0 none, 1 one channel, 2 the mean of two. All flags are constants once inlined. */
IRSTD_INLINE void finish_style(const irstd_bconv *c, const int16_t *sums, int64_t stride, int64_t width,
                               const irstd_tensor *r, const int16_t *residual_row, int16_t *y, const irstd_map *map,
                               char *bits, const int rprelu, const int residual, const int stored, const int mapped) {
    const int oc_count = c->a.out_channels;
    const int groups = mapped ? map->groups : 1, group = mapped ? map->group_channels : oc_count;
    const int64_t r_stride = residual ? r->stride : 0;
    const int r_count = residual == 1 ? r->channels : oc_count;
    const SHIFT shift = shift_of(c->shift);
    for (int g = 0; g < groups; g++)
        for (int p = 0; p * BIT_CHANNELS < group; p++) {
            const int first = g * group + p * BIT_CHANNELS, left = group - p * BIT_CHANNELS;
            const int count = left < BIT_CHANNELS ? left : BIT_CHANNELS;
            char *plane = mapped ? bits + (int64_t)(g * map->group_planes + p) * map->stride * BIT_BYTES : NULL;
            for (int64_t j = 0; j < width; j += VECTORS * VL) {
                const irstd_finish *constants = c->finish + first;
                const int32_t *threshold = mapped ? map->fixed_threshold + first : NULL;
                const int16_t *sum = sums + first * stride + j, *near = NULL;
                int16_t *to = stored ? y + first * stride + j : NULL;
                BITS b = bits_zero();
                int r_channel = first % r_count;
                if (residual) near = residual_row + r_channel * r_stride + j;
                for (int i = 0; i < count; i++, sum += stride) {
                    const CONSTANTS k = constants_of(&constants, rprelu);
                    V v[VECTORS];
                    UNROLL
                    for (int n = 0; n < VECTORS; n++)
                        v[n] = finish_vector(v_load(sum + n * VL), k, shift, rprelu, residual, near + n * VL,
                                             near + oc_count * r_stride + n * VL);
                    if (residual) {
                        near += r_stride;
                        if (residual == 1 && ++r_channel == r_count) { /* repeated */
                            near -= r_count * r_stride;
                            r_channel = 0;
                        }
                    }
                    if (stored) {
                        UNROLL
                        for (int n = 0; n < VECTORS; n++) v_store(to + n * VL, v[n]);
                        to += stride;
                    }
                    if (mapped) bits_push(&b, v, v_next_constant(&threshold), tile_bits_of(i), 0);
                }
                if (mapped) bits_store(plane + j * BIT_BYTES, b, count);
            }
        }
}

static void finish(const irstd_bconv *c, const int16_t *sums, int64_t stride, int64_t width, const irstd_tensor *r,
                   const int16_t *residual, int16_t *y, const irstd_map *map, char *bits) {
#define STYLE(rprelu, kind)                                                                      \
    if (y && map)                                                                                \
        finish_style(c, sums, stride, width, r, residual, y, map, bits, rprelu, kind, 1, 1);     \
    else if (y)                                                                                  \
        finish_style(c, sums, stride, width, r, residual, y, NULL, bits, rprelu, kind, 1, 0);    \
    else                                                                                         \
        finish_style(c, sums, stride, width, r, residual, NULL, map, bits, rprelu, kind, 0, 1)
    if (!c->rprelu)
        finish_style(c, sums, stride, width, r, residual, y, map, bits, 0, !r ? 0 : c->average, y != NULL, map != NULL);
    else if (!r) {
        STYLE(1, 0);
    } else if (c->average == 2) {
        STYLE(1, 2);
    } else {
        STYLE(1, 1);
    }
#undef STYLE
}

IRSTD_INLINE void push_signs(BITS *b, const int16_t *x, V threshold, TILE_BITS bits, const int t) {
    V v[VECTORS];
    UNROLL
    for (int n = 0; n < VECTORS; n++) v[n] = v_load(x + n * VL);
    bits_push(b, v, threshold, bits, t);
}

/* Planes of signs of [channels][stride] int16 rows against one threshold per channel. */
IRSTD_INLINE void compare_rows(const int16_t *x, int64_t stride, int64_t width, const int32_t *thresholds,
                               const irstd_map *map, char *bits) {
    for (int g = 0; g < map->groups; g++)
        for (int p = 0; p < map->group_planes; p++) {
            const int first = g * map->group_channels + p * BIT_CHANNELS, left = map->group_channels - p * BIT_CHANNELS;
            const int count = left < BIT_CHANNELS ? left : BIT_CHANNELS;
            char *plane = bits + (int64_t)(g * map->group_planes + p) * map->stride * BIT_BYTES;
            for (int64_t j = 0; j < width; j += VECTORS * VL) {
                BITS b = bits_zero();
                const int16_t *from = x + first * stride + j;
                const int32_t *threshold = thresholds + first;
                int i = 0;
                for (; i + 4 <= count; i += 4) {
                    const TILE_BITS tile_bits = tile_bits_of(i);
                    UNROLL
                    for (int t = 0; t < 4; t++) {
                        push_signs(&b, from, v_next_constant(&threshold), tile_bits, t);
                        STEP(from, stride);
                    }
                }
                for (; i < count; i++, from += stride)
                    push_signs(&b, from, v_next_constant(&threshold), tile_bits_of(i), 0);
                bits_store(plane + j * BIT_BYTES, b, count);
            }
        }
}

/* What row() is where sums are in memory. */
static void finish_sums(const irstd_bconv *c, const irstd_bconv_row *row, const irstd_tensor *r,
                        const int16_t *residual, int16_t *y, const irstd_map *map, char *bits) {
    if (c->sign_sum)
        compare_rows(row->sums, row->stride, row->width, c->sign_sum, map, bits);
    else
        finish(c, row->sums, row->stride, row->width, r, residual, y, map, bits);
}

static void signs(const irstd_map *map, const int16_t *x, int64_t stride, int64_t width, char *bits) {
    compare_rows(x, stride, width, map->fixed_threshold, map, bits);
}

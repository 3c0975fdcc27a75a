/* Binary convolution by popcounts: lanes are pixels, elements are 16 channels, sums are kept in registers.
 *
 * Included once per instruction set, after a header that defines, for vectors V of VL int16 lanes:
 *   v_load, v_store, v_all (one value), v_add, v_sub, weight_t, UNROLL,
 *   TILE output channels by VECTORS vectors of sums, which fit the registers, and
 *   v_step(acc, x, w, tile): adds the popcounts of x xor w for one word of `tile` channels;
 *   or SUM_WORDS and its own sum_words. */
#include "../../engine/engine.h"

/* Matching signs are counted: x xor not w. A sum is then matches - half of all in units of two. */
static int tile_of(int left) { return left > 4 ? TILE : left > 1 ? 4 : 1; }

static int group_planes(const irstd_bconv *c) { return (c->ic_group + 15) / 16; }

static size_t packed_bytes(const irstd_bconv *c) {
    size_t per_channel = (size_t)(c->a.kernel_h * c->a.kernel_w * group_planes(c)) * sizeof(weight_t);
    return (size_t)(c->a.out_channels + c->a.groups * TILE) * per_channel;
}

static uint16_t inverted(const irstd_bconv *c, int oc, int tap, int plane) {
    const uint32_t *words = c->words + ((size_t)oc * (size_t)(c->a.kernel_h * c->a.kernel_w) + (size_t)tap) *
                                           (size_t)c->words_per_tap;
    uint32_t bits = words[plane / 2] >> plane % 2 * 16;
    if (!(c->negated && c->negated[oc])) bits = ~bits;
    int channels = c->ic_group - 16 * plane;
    return (uint16_t)(channels < 16 ? bits & ((1u << channels) - 1) : bits);
}

static void pack(const irstd_bconv *c, void *packed) {
    weight_t *to = packed;
    const int planes = group_planes(c);
    for (int g = 0; g < c->a.groups; g++)
        for (int first = 0, tile; first < c->oc_group; first += tile) {
            tile = tile_of(c->oc_group - first);
            for (int kh = 0; kh < c->a.kernel_h; kh++)
                for (int p = 0; p < planes; p++)
                    for (int kw = 0; kw < c->a.kernel_w; kw++)
                        for (int t = 0; t < tile; t++) {
                            int oc = first + t < c->oc_group ? g * c->oc_group + first + t : -1;
                            uint32_t w = oc < 0 ? 0 : inverted(c, oc, kh * c->a.kernel_w + kw, p);
                            *to++ = (weight_t)(sizeof(weight_t) == 4 ? w | w << 16 : w);
                        }
        }
}


/* Padding of exact zeros is counted as -1: `lack` [edge][step] of `count` columns, from a tile's first channel on. */
typedef struct {
    int64_t count, step;
    const int64_t *column;
    const int16_t *lack;
} edges;

#ifndef SUM_WORDS
/* sums[t][v] = start + the popcounts of `count` words, for `tile` channels by VECTORS vectors; and what edges lack. */
IRSTD_INLINE void sum_words(const char *const *words, int count, int64_t column, const weight_t *w, int16_t start,
                            int16_t *sums, int64_t stride, const edges *e, const int tile) {
    V acc[TILE][VECTORS];
    UNROLL
    for (int t = 0; t < tile; t++)
        UNROLL
        for (int v = 0; v < VECTORS; v++) acc[t][v] = v_all(start);
    if (count % 3 == 0)
        for (int i = 0; i < count; i += 3)
            UNROLL
            for (int u = 0; u < 3; u++, w += tile) v_step(acc, words[i + u] + (size_t)column * 2, w, tile);
    else
        for (int i = 0; i < count; i++, w += tile) v_step(acc, words[i] + (size_t)column * 2, w, tile);
#ifdef EDGES_IN_REGISTERS
    for (int64_t k = 0; k < e->count; k++) {
        const int64_t lane = e->column[k] - column;
        if (lane < 0 || lane >= VECTORS * VL) continue;
        const int16_t *lack = e->lack + k * e->step;
        const LANE low = lane_of(lane), high = lane_of(lane - VL);
        UNROLL
        for (int t = 0; t < tile; t++) {
            acc[t][0] = v_add_at(acc[t][0], low, lack[t]);
            acc[t][1] = v_add_at(acc[t][1], high, lack[t]);
        }
    }
#else
    (void)e;
#endif
    UNROLL
    for (int t = 0; t < tile; t++)
        UNROLL
        for (int v = 0; v < VECTORS; v++) v_store(sums + t * stride + v * VL, acc[t][v]);
}
#endif

/* Rows of sums behind the last channel of a group are written too: the next group, or nobody, has them. */
#define SUM_TILES(tile)                                                                                              \
    static void sum_tiles_##tile(const irstd_bconv *c, const char *const *words, int count, int64_t width,          \
                                 int64_t stride, const weight_t *w, const edges *e, int16_t *sums) {                \
        const int total = count / group_planes(c) * c->ic_group;                                                    \
        const int16_t start = (int16_t)(c->unit == 2 ? -total / 2 : 0);                                             \
        for (int64_t column = 0; column < width; column += VECTORS * VL)                                            \
            sum_words(words, count, column, w, start, sums + column, stride, e, tile);                              \
    }

#if TILE == 8
SUM_TILES(8)
#endif
SUM_TILES(4)
SUM_TILES(1)

/* An odd number of channels: twice the matches less all of them. */
static void double_sums(const irstd_bconv *c, int total, int64_t width, int64_t stride, int16_t *sums) {
    for (int oc = 0; oc < c->a.out_channels; oc++, sums += stride)
        for (int64_t j = 0; j < width; j += VL)
            v_store(sums + j, v_sub(v_add(v_load(sums + j), v_load(sums + j)), v_all((int16_t)total)));
}

static void sums(const irstd_bconv *c, const char **taps, size_t plane_bytes, int row_class, int64_t width,
                 int64_t stride, int16_t *to) {
    const int planes = group_planes(c), kw_count = c->a.kernel_w, *rows = c->class_rows[row_class];
    const char **words = taps + c->a.kernel_h * kw_count;
    const weight_t *w = c->packed;
    const int64_t padded = irstd_round_up(c->a.out_channels, 16);
    const edges all = {c->edges, padded, c->edge_column, c->edge_sum + row_class * c->edges * padded};
    for (int g = 0; g < c->a.groups; g++) {
        int count = 0;
        for (int kh = rows[0]; kh < rows[1]; kh++)
            for (int p = 0; p < planes; p++)
                for (int kw = 0; kw < kw_count; kw++)
                    words[count++] = taps[kh * kw_count + kw] + (size_t)(g * planes + p) * plane_bytes;
        for (int first = 0, tile; first < c->oc_group; first += tile) {
            int left = c->oc_group - first, oc = g * c->oc_group + first;
            tile = tile_of(left);
            int16_t *here = to + oc * stride;
            const edges e = {c->unit == 2 ? all.count : 0, padded, all.column, all.lack + oc};
            const weight_t *from = w + (size_t)(rows[0] * planes * kw_count * tile);
#if TILE == 8
            if (tile == 8)
                sum_tiles_8(c, words, count, width, stride, from, &e, here);
            else
#endif
            if (tile == 4)
                sum_tiles_4(c, words, count, width, stride, from, &e, here);
            else
                sum_tiles_1(c, words, count, width, stride, from, &e, here);
            w += (size_t)(c->a.kernel_h * kw_count * planes * tile);
        }
    }
    if (c->unit == 1) double_sums(c, (rows[1] - rows[0]) * kw_count * c->ic_group, width, stride, to);
#if defined(EDGES_IN_REGISTERS)
    if (c->unit == 2) return; /* else doubling came in between */
#endif
    for (int64_t k = 0; k < all.count; k++) {
        int16_t *at = to + all.column[k];
        for (int oc = 0; oc < c->a.out_channels; oc++, at += stride) *at = (int16_t)(*at + all.lack[k * all.step + oc]);
    }
}

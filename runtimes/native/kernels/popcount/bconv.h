/* Binary convolution by popcounts: lanes are pixels, elements are 16 channels, sums are kept in registers until they are
 * the next layer's values and signs.
 *
 * Included once per instruction set, after finish.h and a header that defines, for vectors V of VL int16 lanes:
 *   v_load, v_loadu, v_store, v_all (one value), v_add, v_add_shifted (by a FACTOR: factor_of a count), weight_t,
 *   UNROLL, TILE output channels by VECTORS vectors of sums, which fit the registers, and
 *   v_step(acc, x, w, tile): adds the popcounts of x xor w for one word of `tile` channels;
 *   or SUM_TILE and its own sum_tile. */
#include "../../engine/engine.h"

enum { BLOCK = VECTORS * VL };

/* What the sums of a group are counted from: runs of three neighbouring elements, then single ones. The runs are told
 * as three by three and the rest; `rest` is zero where only those are. */
typedef struct {
    const char **words;
    int64_t nines, rest, runs, singles;
} row_words;

/* Matching signs are counted: x xor not w. */
static int tile_of(int left) { return left > 4 ? TILE : left > 1 ? 4 : 1; }

static int group_planes(const irstd_bconv *c) { return (c->ic_group + 15) / 16; }
/* Planes whose taps have words of their own. */
static int full_planes(const irstd_bconv *c) { return group_planes(c) - (c->merge > 1); }
static int merged_words(const irstd_bconv *c) { return c->merge > 1 ? (int)irstd_merged_words(c) : 0; }
static int tile_words(const irstd_bconv *c) {
    return c->a.kernel_h * c->a.kernel_w * full_planes(c) + merged_words(c);
}

static size_t packed_bytes(const irstd_bconv *c) {
    return (size_t)(c->a.out_channels + c->a.groups * TILE) * (size_t)tile_words(c) * sizeof(weight_t);
}

static uint32_t inverted(const irstd_bconv *c, int oc, int tap, int plane) {
    const uint32_t *words = c->words + ((size_t)oc * (size_t)(c->a.kernel_h * c->a.kernel_w) + (size_t)tap) *
                                           (size_t)c->words_per_tap;
    uint32_t bits = words[plane / 2] >> plane % 2 * 16;
    if (!(c->negated && c->negated[oc])) bits = ~bits;
    int channels = c->ic_group - 16 * plane;
    return bits & ((1u << (channels < 16 ? channels : 16)) - 1);
}

/* Tiles of channels of a group: [KH][plane][KW][tile], then [merged word][tile]. */
static void pack(const irstd_bconv *c, void *packed) {
    weight_t *to = packed;
    const int planes = full_planes(c), kw = c->a.kernel_w, taps = c->a.kernel_h * kw, tail = c->ic_group % 16;
    for (int g = 0; g < c->a.groups; g++)
        for (int first = 0, tile; first < c->oc_group; first += tile) {
            tile = tile_of(c->oc_group - first);
            for (int i = 0; i < tile_words(c); i++)
                for (int t = 0; t < tile; t++) {
                    const int oc = g * c->oc_group + first + t, merged = i - taps * planes;
                    uint32_t w = 0;
                    if (first + t < c->oc_group && merged < 0)
                        w = inverted(c, oc, i / (planes * kw) * kw + i % kw, i / kw % planes);
                    for (int m = 0; first + t < c->oc_group && merged >= 0 && m < c->merge; m++)
                        if (merged * c->merge + m < taps) w |= inverted(c, oc, merged * c->merge + m, planes) << m * tail;
                    *to++ = (weight_t)(sizeof(weight_t) == 4 ? w | w << 16 : w);
                }
        }
}

IRSTD_INLINE void add_row(int16_t *to, const char *from, int64_t width, FACTOR factor, const int begun) {
    for (int64_t j = 0; j < width; j += BLOCK, to += BLOCK, from += BLOCK * 2) {
        V v[VECTORS];
        UNROLL
        for (int n = 0; n < VECTORS; n++)
            v[n] = v_add_shifted(begun ? v_load(to + n * VL) : v_all(0), v_loadu(from + n * VL * 2), factor);
        UNROLL
        for (int n = 0; n < VECTORS; n++) v_store(to + n * VL, v[n]);
    }
}

/* Words of taps whose channels are few: several taps side by side in an element. */
static void merge_taps(const irstd_bconv *c, const irstd_bconv_row *row, int plane, const char **words) {
    const int taps = c->a.kernel_h * c->a.kernel_w, tail = c->ic_group % 16;
    char *to = row->merged;
    for (int first = 0; first < taps; first += c->merge, to += (row->stride + ROW_STEP) * 2) {
        const int last = first + c->merge < taps ? first + c->merge : taps;
        int16_t *word = (int16_t *)(void *)to;
        int begun = 0;
        for (int t = first; t < last; t++) {
            if (!row->taps[t]) continue;
            const char *from = row->taps[t] + (size_t)plane * row->plane_bytes;
            const FACTOR factor = factor_of((t - first) * tail);
            if (begun++)
                add_row(word, from, row->stride, factor, 1);
            else
                add_row(word, from, row->stride, factor, 0);
        }
        if (!begun) memset(word, 0, (size_t)row->stride * sizeof *word);
        *words++ = to;
    }
}

static row_words find_words(const irstd_bconv *c, const irstd_bconv_row *row, const int *rows, int g) {
    const int planes = full_planes(c), kw_count = c->a.kernel_w;
    row_words w = {.words = row->taps + c->a.kernel_h * kw_count};
    const int run = kw_count == 3 && c->a.stride_w == 1 && c->a.dilation_w == 1 ? 3 : 1;
    char *zeros = row->merged + irstd_merged_words(c) * (size_t)(row->stride + ROW_STEP) * 2;
    int count = 0;
    for (int kh = rows[0]; kh < rows[1] && planes; kh++) {
        const char *const *taps = row->taps + kh * kw_count;
        if (!taps[0]) memset(zeros, 0, (size_t)(row->stride + ROW_STEP) * 2);
        for (int p = 0; p < planes; p++)
            for (int kw = 0; kw < kw_count; kw += run)
                w.words[count++] = taps[kw] ? taps[kw] + (size_t)(g * group_planes(c) + p) * row->plane_bytes : zeros;
    }
    w.nines = run == 3 ? count / 3 : 0;
    w.runs = run == 3 ? count % 3 : 0;
    w.singles = run == 3 ? 0 : count;
    if (c->merge > 1) {
        merge_taps(c, row, g * group_planes(c) + planes, w.words + count);
        w.singles += merged_words(c);
    }
    w.rest = w.runs + w.singles;
    return w;
}

static void next_block(const row_words *w) {
    for (int64_t i = 0; i < 3 * w->nines + w->rest; i++) w->words[i] += BLOCK * 2;
}

#ifdef SUM_TILE
IRSTD_INLINE void sum_tile(V acc[TILE][VECTORS], const row_words *words, const weight_t *w, const int16_t *start,
                           int64_t step, const int tile);
#else
/* acc[t][v] = start + the popcounts of all words, for `tile` channels by VECTORS vectors. */
IRSTD_INLINE void sum_tile(V acc[TILE][VECTORS], const row_words *words, const weight_t *w, const int16_t *start,
                           int64_t step, const int tile) {
    UNROLL
    for (int t = 0; t < tile; t++)
        UNROLL
        for (int v = 0; v < VECTORS; v++) acc[t][v] = v_load(start + t * step + v * VL);
    const char *const *at = words->words;
    for (int64_t i = 3 * words->nines + words->runs; i > 0; i--) {
        const char *x = *at++;
        UNROLL
        for (int u = 0; u < 3; u++, w += tile) v_step(acc, x + 2 * u, w, tile);
    }
    for (int64_t i = words->singles; i > 0; i--, w += tile) v_step(acc, *at++, w, tile);
}
#endif

/* Where an odd number of channels is counted: twice the matches less all of them, which is what `start` has. */
IRSTD_INLINE void store_sums(const irstd_bconv *c, const row_words *words, const weight_t *w, irstd_start start,
                             int16_t *sums, int64_t stride, const int tile) {
    static const int16_t zeros[BLOCK] __attribute__((aligned(ROW_ALIGNMENT)));
    V acc[TILE][VECTORS];
    sum_tile(acc, words, w, c->unit == 1 ? zeros : start.values, c->unit == 1 ? 0 : start.step, tile);
    UNROLL
    for (int t = 0; t < tile; t++)
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            V sum = acc[t][v];
            if (c->unit == 1) sum = v_add(v_add(sum, sum), v_load(start.values + t * start.step + v * VL));
            v_store(sums + t * stride + v * VL, sum);
        }
}

/* Rows of sums behind the last channel of a group are written too: the next group, or nobody, has them. */
static void sums(const irstd_bconv *c, const irstd_bconv_row *row) {
    const int *rows = c->class_rows[row->row_class], all[2] = {0, c->a.kernel_h};
    if (c->merge > 1) rows = all;
    const weight_t *w = c->packed;
    for (int g = 0; g < c->a.groups; g++) {
        row_words words = find_words(c, row, rows, g);
        const size_t skipped = (size_t)(rows[0] * c->a.kernel_w * full_planes(c));
        for (int64_t b = 0; b < c->blocks; b++) {
            const weight_t *from = w;
            for (int first = 0, tile; first < c->oc_group; first += tile, from += tile * tile_words(c)) {
                const int oc = g * c->oc_group + first;
                irstd_start start = c->starts[row->row_class * c->blocks + b];
                start.values += oc * start.step;
                int16_t *to = row->sums + oc * row->stride + b * BLOCK;
                tile = tile_of(c->oc_group - first);
                const weight_t *at = from + skipped * (size_t)tile;
                if (tile == TILE)
                    store_sums(c, &words, at, start, to, row->stride, TILE);
                else if (tile == 4)
                    store_sums(c, &words, at, start, to, row->stride, 4);
                else
                    store_sums(c, &words, at, start, to, row->stride, 1);
            }
            next_block(&words);
        }
        for (int first = 0, tile; first < c->oc_group; first += tile, w += tile * tile_words(c))
            tile = tile_of(c->oc_group - first);
    }
}

/* Sums, then in registers: values of int16, their signs, or (signs) the signs of the sums alone. */
IRSTD_INLINE void row_style(const irstd_bconv *c, const irstd_bconv_row *row, const irstd_tensor *r,
                            const int16_t *residual_row, int16_t *y, const irstd_map *map, char *bits, const int signs,
                            const int rprelu, const int residual, const int stored, const int mapped) {
    const int *rows = c->class_rows[row->row_class], all[2] = {0, c->a.kernel_h};
    if (c->merge > 1) rows = all;
    const SHIFT shift = shift_of(c->shift);
    const int64_t stride = row->stride, r_stride = residual ? r->stride : 0;
    const int per_tile = TILE * tile_words(c), oc_group = c->oc_group, oc_count = c->a.out_channels;
    const int r_count = residual == 1 ? r->channels : oc_count;
    const weight_t *w = (const weight_t *)c->packed + rows[0] * c->a.kernel_w * full_planes(c) * TILE;
    const irstd_start *starts = c->starts + row->row_class * c->blocks;
    const int32_t *thresholds = signs ? c->sign_sum : mapped ? map->fixed_threshold : NULL;
    const int64_t plane = mapped ? map->stride * BIT_BYTES : 0;
    for (int g = 0; g < c->a.groups; g++, w += oc_group / TILE * per_tile) {
        const row_words words = find_words(c, row, rows, g);
        for (int64_t b = 0; b < c->blocks; b++) {
            const weight_t *from = w;
            const int64_t column = b * BLOCK, step = starts[b].step;
            const int16_t *start = starts[b].values + g * oc_group * step;
            int oc = g * oc_group;
            const irstd_finish *constants = c->finish + oc;
            const int32_t *threshold = mapped ? thresholds + oc : NULL;
            int16_t *to = stored ? y + oc * stride + column : NULL;
            char *plane_bits = mapped ? bits + oc / 16 * plane + column * BIT_BYTES : NULL;
            for (int p = 0; p < oc_group; p += 16) {
                const int count = oc_group - p < 16 ? oc_group - p : 16;
                const int16_t *near = residual ? residual_row + (oc + p) % r_count * r_stride + column : NULL;
                BITS found = bits_zero();
                for (int i = 0; i < count; i += TILE) {
                    V acc[TILE][VECTORS];
                    sum_tile(acc, &words, from, start, step, TILE);
                    from += per_tile;
                    start += TILE * step;
                    const TILE_BITS tile_bits = tile_bits_of(i);
                    UNROLL
                    for (int t = 0; t < TILE; t++) {
                        if (!signs) {
                            const CONSTANTS k = constants_of(&constants, rprelu);
                            UNROLL
                            for (int n = 0; n < VECTORS; n++)
                                acc[t][n] = finish_vector(acc[t][n], k, shift, rprelu, residual, near + n * VL,
                                                          near + oc_count * r_stride + n * VL);
                            if (residual) STEP(near, r_stride);
                        }
                        if (stored) {
                            UNROLL
                            for (int n = 0; n < VECTORS; n++) v_store(to + n * VL, acc[t][n]);
                            STEP(to, stride);
                        }
                        if (mapped) bits_push(&found, acc[t], v_next_constant(&threshold), tile_bits, t);
                    }
                }
                if (mapped) {
                    bits_store(plane_bits, found, count);
                    plane_bits += plane;
                }
            }
            next_block(&words);
        }
    }
}

/* Planes of signs and of residuals that do not begin where 16 channels of sums do, and the last few channels. */
static int is_regular(const irstd_bconv *c, const irstd_tensor *r, const irstd_map *map) {
    return c->unit == 2 && c->oc_group % TILE == 0 && (c->a.groups == 1 || c->oc_group % 16 == 0) &&
           (!map || map->groups == 1 || map->group_channels % 16 == 0) &&
           (!r || r->channels >= c->a.out_channels || r->channels % 16 == 0);
}

static void row(const irstd_bconv *c, const irstd_bconv_row *row, const irstd_tensor *r, const int16_t *residual,
                int16_t *y, const irstd_map *map, char *bits) {
    if (!is_regular(c, r, map)) {
        sums(c, row);
        finish_sums(c, row, r, residual, y, map, bits);
        return;
    }
    if (c->sign_sum) {
        row_style(c, row, NULL, NULL, NULL, map, bits, 1, 0, 0, 0, 1);
        return;
    }
#define STYLE(rprelu, kind)                                                                          \
    if (y && map)                                                                                    \
        row_style(c, row, r, residual, y, map, bits, 0, rprelu, kind, 1, 1);                         \
    else if (y)                                                                                      \
        row_style(c, row, r, residual, y, NULL, NULL, 0, rprelu, kind, 1, 0);                        \
    else                                                                                             \
        row_style(c, row, r, residual, NULL, map, bits, 0, rprelu, kind, 0, 1)
    if (!c->rprelu)
        row_style(c, row, r, residual, y, map, bits, 0, 0, !r ? 0 : c->average, y != NULL, map != NULL);
    else if (!r) {
        STYLE(1, 0);
    } else if (c->average == 2) {
        STYLE(1, 2);
    } else {
        STYLE(1, 1);
    }
#undef STYLE
}

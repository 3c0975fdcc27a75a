/* AVX2 has no popcount of vectors, so sums are looked up: one vpshufb gives the dot product of 4 weight signs with the
 * 4 input signs of 32 pixels, and one vpaddb adds it: 128 multiply-accumulates in two instructions. A byte with its top
 * bit set looks up 0, which makes exact zero padding free. Dot products of an even number of channels are halved. */
#include "vectors.h"

#include "../popcount/finish.h"

enum { TABLE = 16, TILE = 4, PIXELS = 32, OUTSIDE = 0x80 };

static int nibbles_of(const irstd_bconv *c) { return (c->ic_group + 3) / 4; }

static size_t packed_bytes(const irstd_bconv *c) {
    return (size_t)(c->a.out_channels + TILE * c->a.groups) * (size_t)(c->a.kernel_h * c->a.kernel_w * nibbles_of(c)) * TABLE;
}

static void fill_table(const irstd_bconv *c, int oc, int tap, int nibble, int8_t *table) {
    const uint32_t *words = c->words + ((size_t)oc * (size_t)(c->a.kernel_h * c->a.kernel_w) + (size_t)tap) *
                                           (size_t)c->words_per_tap;
    unsigned weight = words[nibble / 8] >> nibble % 8 * 4 & 15u;
    int channels = c->ic_group - 4 * nibble < 4 ? c->ic_group - 4 * nibble : 4;
    int sign = c->negated && c->negated[oc] ? -1 : 1;
    for (unsigned v = 0; v < TABLE; v++) {
        int dot = 0;
        for (int i = 0; i < channels; i++) dot += ((v ^ weight) >> i & 1) ? -sign : sign;
        table[v] = (int8_t)(dot / c->unit);
    }
}

/* Blocks of 4 channels of a group: [KH][nibble][KW][4][TABLE]. */
static void pack(const irstd_bconv *c, void *packed) {
    int8_t *to = packed;
    for (int g = 0; g < c->a.groups; g++)
        for (int first = 0; first < c->oc_group; first += TILE)
            for (int kh = 0; kh < c->a.kernel_h; kh++)
                for (int n = 0; n < nibbles_of(c); n++)
                    for (int kw = 0; kw < c->a.kernel_w; kw++)
                        for (int t = 0; t < TILE; t++, to += TABLE)
                            if (first + t < c->oc_group)
                                fill_table(c, g * c->oc_group + first + t, kh * c->a.kernel_w + kw, n, to);
}

/* Adds int8 sums of 32 pixels to a row of int16 sums, or starts it. */
IRSTD_INLINE void spill(V acc, int16_t *to, int started) {
    V low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(acc)), high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(acc, 1));
    if (started) {
        low = _mm256_add_epi16(low, v_load(to));
        high = _mm256_add_epi16(high, v_load(to + VL));
    }
    v_store(to, low);
    v_store(to + VL, high);
}

/* Pins a value to a register: compilers like to reorder the sums of several taps, and then spill. */
#define PIN(v) __asm__("" : "+x"(v))

IRSTD_INLINE void sum_tile(const irstd_bconv *c, const char *const *taps, size_t plane_bytes, const int *rows, int exist,
                           int64_t column, int64_t stride, const int8_t *tables, int16_t *sums, const int vectors,
                           const int kernel_w) {
    const int kw_count = kernel_w ? kernel_w : c->a.kernel_w, nibbles = nibbles_of(c);
    const int limit = c->unit == 2 ? 63 : 31; /* look-ups that int8 can sum */
    V acc[TILE][2];
    int summed = 0, started = 0;
    UNROLL
    for (int t = 0; t < TILE; t++)
        UNROLL
        for (int v = 0; v < vectors; v++) acc[t][v] = _mm256_setzero_si256();
    tables += rows[0] * nibbles * kw_count * TILE * TABLE;
    for (int kh = rows[0]; kh < rows[1]; kh++) {
        const char *const *row = taps + kh * kw_count;
        size_t at = (size_t)column;
        for (int n = 0; n < nibbles; n++, at += plane_bytes) {
            if (summed + kw_count > limit) {
                UNROLL
                for (int t = 0; t < TILE; t++)
                    UNROLL
                    for (int v = 0; v < vectors; v++) {
                        if (t < exist) spill(acc[t][v], sums + t * stride + column + v * PIXELS, started);
                        acc[t][v] = _mm256_setzero_si256();
                    }
                started = 1;
                summed = 0;
            }
            summed += kw_count;
            UNROLL
            for (int kw = 0; kw < kw_count; kw++, tables += TILE * TABLE) {
                V x[2];
                UNROLL
                for (int v = 0; v < vectors; v++) x[v] = _mm256_loadu_si256((const V *)(const void *)(row[kw] + at + v * PIXELS));
                UNROLL
                for (int t = 0; t < TILE; t++) {
                    V table = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)(const void *)(tables + t * TABLE)));
                    UNROLL
                    for (int v = 0; v < vectors; v++) {
                        acc[t][v] = _mm256_add_epi8(acc[t][v], _mm256_shuffle_epi8(table, x[v]));
                        PIN(acc[t][v]);
                    }
                }
            }
        }
    }
    UNROLL
    for (int t = 0; t < TILE; t++)
        UNROLL
        for (int v = 0; v < vectors; v++)
            if (t < exist) spill(acc[t][v], sums + t * stride + column + v * PIXELS, started);
}

static void sums(const irstd_bconv *c, const irstd_bconv_row *row) {
    const int8_t *tables = c->packed;
    const int *rows = c->class_rows[row->row_class];
    const char **taps = row->taps;
    const size_t plane_bytes = row->plane_bytes;
    const int64_t width = row->width, stride = row->stride;
    const int per_tile = c->a.kernel_h * c->a.kernel_w * nibbles_of(c) * TILE * TABLE;
    const int tap_count = c->a.kernel_h * c->a.kernel_w;
    const char **from = taps + tap_count;
    for (int g = 0; g < c->a.groups; g++) {
        for (int t = 0; t < tap_count; t++) from[t] = taps[t] ? taps[t] + (size_t)(g * nibbles_of(c)) * plane_bytes : NULL;
        for (int first = 0; first < c->oc_group; first += TILE, tables += per_tile) {
            int exist = c->oc_group - first < TILE ? c->oc_group - first : TILE;
            int16_t *here = row->sums + (g * c->oc_group + first) * stride;
            if (c->a.kernel_w == 3)
                for (int64_t column = 0; column < width; column += 2 * PIXELS)
                    sum_tile(c, from, plane_bytes, rows, exist, column, stride, tables, here, 2, 3);
            else
                for (int64_t column = 0; column < width; column += 2 * PIXELS)
                    sum_tile(c, from, plane_bytes, rows, exist, column, stride, tables, here, 2, 0);
        }
    }
}

static void row(const irstd_bconv *c, const irstd_bconv_row *row, const irstd_tensor *r, const int16_t *residual,
                int16_t *y, const irstd_map *map, char *bits) {
    sums(c, row);
    finish_sums(c, row, r, residual, y, map, bits);
}

extern const irstd_row_kernels irstd_rows_avx2;

const irstd_kernels irstd_kernels_avx2 = {
    .isa = "avx2", .needs = IRSTD_CPU_NEEDS, .bit_channels = BIT_CHANNELS, .bit_bytes = BIT_BYTES, .zero_element = OUTSIDE,
    .packed_bytes = packed_bytes, .pack = pack, .sums = sums, .row = row, .signs = signs,
    .rows = &irstd_rows_avx2, .name = "bconv2d_lut",
};

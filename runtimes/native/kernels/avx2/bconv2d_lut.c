/* Binary convolution by tables: lanes are 32 output pixels, and one vpshufb looks up the dot product of
 * four weight signs with the four input signs of each pixel. 128 multiply-accumulates take a vpshufb and
 * a vpaddb, about three times less than xor and a popcount emulated by vpshufb.
 *
 * Input: one byte plane per 4 channels of a group, a pixel's byte being its 4 sign bits (0..15). A byte
 * with the top bit set makes vpshufb return 0: exact zero padding for nothing.
 * Weights: a 16-byte table per (output channel, tap, 4 channels). Where the group's channels are a
 * multiple of 4 all dot products are even and the table holds their halves (-2..2; the scale is doubled),
 * so that 63 of them fit an int8 lane; otherwise it holds them in full (-4..4, 31 fit). */
#include <float.h>
#include <stdlib.h>

#include "../x86/stream.h"

enum { NIBBLE = 4, TABLE = 16, OUTSIDE = 0x80 };

typedef struct {
    int nibbles;    /* byte planes of one group */
    int limit;      /* look-ups that an int8 lane can sum */
    irstd_acc kind; /* what the sum of all taps needs */
    /* Per channel; groups are padded to whole bytes of 8 channels with NaN, which no input reaches. */
    const float *threshold;
    int padded_group;
    const int8_t *tables; /* by blocks of at most 4 channels: [KH][nibbles][KW][block][TABLE] */
} lut;

static const lut *lut_of(const irstd_bconv2d *op) { return op->packed; }

static size_t channel_tables(const irstd_bconv2d *op, int nibbles) {
    return (size_t)op->a.kernel_h * (size_t)op->a.kernel_w * (size_t)nibbles * TABLE;
}

/* Doubling must be exact, also where denormals are flushed. */
static int can_double(const irstd_bconv2d *op) {
    if (op->ic_group % NIBBLE) return 0;
    for (int oc = 0; oc < op->a.out_channels; oc++) {
        float size = fabsf(op->scale[oc]);
        if ((size > 0 && size < FLT_MIN) || (size > FLT_MAX / 2 && size <= FLT_MAX)) return 0;
    }
    return 1;
}

static void fill_table(int8_t table[TABLE], unsigned weight, int channels, int halve) {
    for (unsigned v = 0; v < TABLE; v++) {
        int dot = 0;
        for (int c = 0; c < channels; c++) dot += ((v ^ weight) >> c & 1) ? -1 : 1;
        table[v] = (int8_t)(halve ? dot / 2 : dot);
    }
}

static irstd_status pack(irstd_bconv2d *op, const int32_t *weight, irstd_error *error) {
    const irstd_bconv2d_attributes *a = &op->a;
    int nibbles = (op->ic_group + NIBBLE - 1) / NIBBLE, padded_group = (int)irstd_round_up(op->ic_group, 8);
    size_t header = (sizeof(lut) + 63) / 64 * 64, bytes = 64;
    if (irstd_add_product(&bytes, (size_t)a->out_channels, channel_tables(op, nibbles)) ||
        irstd_add_product(&bytes, (size_t)padded_group * sizeof(float), (size_t)a->groups) ||
        __builtin_add_overflow(bytes, header, &bytes) || bytes > PTRDIFF_MAX)
        return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "weight tables exceed the address space");
    lut *l = op->packed = aligned_alloc(64, bytes / 64 * 64);
    if (!l) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory: %zu bytes of weight tables", bytes);

    int halve = can_double(op);
    l->nibbles = nibbles;
    l->padded_group = padded_group;
    l->limit = halve ? 63 : 31;
    int64_t lookups = (int64_t)a->kernel_h * a->kernel_w * nibbles;
    l->kind = lookups <= l->limit ? ACC_INT8 : lookups * (halve ? 2 : 4) <= INT16_MAX ? ACC_INT16 : ACC_INT32;
    if (halve)
        for (int oc = 0; oc < a->out_channels; oc++) op->scale[oc] *= 2;

    int8_t *tables = (int8_t *)l + header;
    l->tables = tables;
    for (int oc = 0, block; oc < a->out_channels; oc += block) {
        block = irstd_block(op, oc);
        for (int kh = 0; kh < a->kernel_h; kh++)
            for (int n = 0; n < nibbles; n++)
                for (int kw = 0; kw < a->kernel_w; kw++)
                    for (int i = 0; i < block; i++, tables += TABLE) {
                        size_t tap = ((size_t)(oc + i) * (size_t)a->kernel_h + (size_t)kh) * (size_t)a->kernel_w +
                                     (size_t)kw;
                        uint32_t word = (uint32_t)weight[tap * (size_t)op->words + (size_t)n / 8];
                        fill_table(tables, word >> n % 8 * NIBBLE & 15u,
                                   (int)irstd_min(NIBBLE, op->ic_group - n * NIBBLE), halve);
                    }
    }
    float *threshold = (float *)tables;
    l->threshold = threshold;
    for (int g = 0; g < a->groups; g++)
        for (int c = 0; c < padded_group; c++)
            *threshold++ = c < op->ic_group ? op->threshold[g * op->ic_group + c] : NAN;
    return IRSTD_OK;
}

/* 32 pixels of at most 4 channels; `count` of them exist if not full. */
IRSTD_INLINE __m256i pack_pixels(const float *x, int64_t plane, const float *threshold, int channels, int full,
                                 int64_t count) {
    __m256i nibbles = _mm256_setzero_si256();
    for (int c = channels - 1; c >= 0; c--, nibbles = c >= 0 ? _mm256_add_epi8(nibbles, nibbles) : nibbles) {
        __m256 t = _mm256_set1_ps(threshold[c]);
        __m256i positive[4];
        for (int i = 0; i < 4; i++) {
            const float *from = x + c * plane + i * 8;
            int64_t lanes = irstd_max(0, irstd_min(8, count - i * 8));
            __m256 v = full ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, irstd_first_lanes(lanes));
            positive[i] = _mm256_castps_si256(_mm256_cmp_ps(v, t, _CMP_GE_OQ));
        }
        __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(positive[0], positive[1]),
                                           _mm256_packs_epi32(positive[2], positive[3]));
        nibbles = _mm256_sub_epi8(nibbles, bytes); /* a set lane is -1 */
    }
    return _mm256_permutevar8x32_epi32(nibbles, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

static void pack_planar(const irstd_image *image, int64_t row, uint8_t *lines, int64_t stride) {
    const irstd_bconv2d *op = image->op;
    const lut *l = lut_of(op);
    int64_t width = image->size.width, plane = image->size.height * width;
    for (int g = 0; g < op->a.groups; g++)
        for (int n = 0; n < l->nibbles; n++, lines += stride) {
            int first = g * op->ic_group + n * NIBBLE, channels = (int)irstd_min(NIBBLE, op->ic_group - n * NIBBLE);
            const float *x = image->x + first * plane + row * width, *threshold = op->threshold + first;
            int64_t i = 0;
            if (channels == NIBBLE)
                for (; i + 32 <= width; i += 32)
                    _mm256_storeu_si256((__m256i *)(lines + i), pack_pixels(x + i, plane, threshold, NIBBLE, 1, 32));
            else
                for (; i + 32 <= width; i += 32)
                    _mm256_storeu_si256((__m256i *)(lines + i), pack_pixels(x + i, plane, threshold, channels, 1, 32));
            if (i < width)
                _mm256_storeu_si256((__m256i *)(lines + i),
                                    pack_pixels(x + i, plane, threshold, channels, 0, width - i));
        }
}

/* NHWC: vmovmskps gives the sign byte of 8 channels. A whole row of bytes is written before it is split
 * into two planes: a vector load right behind byte stores would wait for them. */
IRSTD_INLINE void sign_bytes(const float *x, int64_t channels, int64_t width, __m256 threshold, int full,
                             __m256i mask, uint8_t *bytes) {
    for (int64_t i = 0; i < width; i++, x += channels)
        bytes[i] = (uint8_t)_mm256_movemask_ps(_mm256_cmp_ps(irstd_load(x, full, mask), threshold, _CMP_GE_OQ));
}

static void pack_interleaved(const irstd_image *image, int64_t row, uint8_t *lines, int64_t stride) {
    const irstd_bconv2d *op = image->op;
    const lut *l = lut_of(op);
    int64_t width = image->size.width, channels = op->a.in_channels;
    const __m256i low = _mm256_set1_epi8(15);
    for (int g = 0; g < op->a.groups; g++)
        for (int c = 0; c < op->ic_group; c += 8) {
            int count = (int)irstd_min(8, op->ic_group - c);
            __m256 threshold = _mm256_loadu_ps(l->threshold + (size_t)g * (size_t)l->padded_group + c);
            const float *x = image->x + row * width * channels + g * op->ic_group + c;
            if (count == 8)
                sign_bytes(x, channels, width, threshold, 1, low, lines);
            else
                sign_bytes(x, channels, width, threshold, 0, irstd_first_lanes(count), lines);
            if (count > NIBBLE) {
                for (int64_t i = 0; i < width; i += 32) {
                    __m256i both = _mm256_loadu_si256((const __m256i *)(lines + i));
                    _mm256_storeu_si256((__m256i *)(lines + i), _mm256_and_si256(both, low));
                    _mm256_storeu_si256((__m256i *)(lines + stride + i),
                                        _mm256_and_si256(_mm256_srli_epi16(both, 4), low));
                }
                lines += stride;
            }
            lines += stride;
        }
}

static void pack_row(const irstd_image *image, int64_t row, void *lines, int64_t stride) {
    if (image->op->layout == IRSTD_NCHW)
        pack_planar(image, row, lines, stride);
    else
        pack_interleaved(image, row, lines, stride);
}

static uint32_t padding(const irstd_bconv2d *op, int plane) {
    (void)plane;
    return op->a.pad_value == 0 ? OUTSIDE : op->a.pad_value > 0 ? 15 : 0;
}

/* Moves int8 lanes to the wider tile. */
IRSTD_INLINE void flush(__m256i acc, void *tile, int64_t index, irstd_acc kind, int first) {
    if (kind == ACC_INT16) {
        __m256i *to = (__m256i *)((int16_t *)tile + index);
        __m256i low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(acc));
        __m256i high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(acc, 1));
        _mm256_store_si256(to, first ? low : _mm256_add_epi16(low, _mm256_load_si256(to)));
        _mm256_store_si256(to + 1, first ? high : _mm256_add_epi16(high, _mm256_load_si256(to + 1)));
        return;
    }
    int8_t bytes[32] __attribute__((aligned(32)));
    _mm256_store_si256((__m256i *)bytes, acc);
    for (int i = 0; i < 4; i++) {
        __m256i *to = (__m256i *)((int32_t *)tile + index) + i;
        __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(bytes + 8 * i)));
        _mm256_store_si256(to, first ? wide : _mm256_add_epi32(wide, _mm256_load_si256(to)));
    }
}

/* Pins a value to a register here: compilers like to reorder the sums of several taps, and then spill. */
#define PIN(v) __asm__("" : "+x"(v))

/* `block` channels by `vectors` times 32 pixels; all but the pointers are constants after inlining
 * (kernel_w is 0 where it is not). */
IRSTD_INLINE void accumulate_block(const irstd_bconv2d *op, const irstd_stream *s, const void *const *rows,
                                   int64_t first_plane, const int8_t *tables, int64_t column, void *tile,
                                   irstd_acc kind, const int block, const int vectors, const int kernel_w) {
    const lut *l = lut_of(op);
    const int taps = kernel_w ? kernel_w : op->a.kernel_w;
    const int64_t *offsets = s->tap_offset;
    int64_t plane = s->plane_elements;
    __m256i acc[4][2];
    IRSTD_UNROLL
    for (int i = 0; i < block; i++)
        IRSTD_UNROLL
        for (int v = 0; v < vectors; v++) acc[i][v] = _mm256_setzero_si256();
    int summed = 0, first = 1;
    for (int kh = 0; kh < op->a.kernel_h; kh++) {
        const uint8_t *x = rows[kh];
        if (!x) {
            tables += l->nibbles * taps * block * TABLE;
            continue;
        }
        x += first_plane * plane + column;
        for (int n = 0; n < l->nibbles; n++, x += plane) {
            if (summed + taps > l->limit) {
                IRSTD_UNROLL
                for (int i = 0; i < block; i++)
                    IRSTD_UNROLL
                    for (int v = 0; v < vectors; v++) {
                        flush(acc[i][v], tile, i * IRSTD_TILE + v * 32, kind, first);
                        acc[i][v] = _mm256_setzero_si256();
                    }
                summed = first = 0;
            }
            summed += taps;
            IRSTD_UNROLL_TAPS
            for (int kw = 0; kw < taps; kw++, tables += block * TABLE) {
                __m256i pixels[2];
                IRSTD_UNROLL
                for (int v = 0; v < vectors; v++)
                    pixels[v] = _mm256_loadu_si256((const __m256i *)(x + offsets[kw]) + v);
                IRSTD_UNROLL
                for (int i = 0; i < block; i++) {
                    __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)tables + i));
                    IRSTD_UNROLL
                    for (int v = 0; v < vectors; v++) {
                        acc[i][v] = _mm256_add_epi8(acc[i][v], _mm256_shuffle_epi8(table, pixels[v]));
                        PIN(acc[i][v]);
                    }
                }
            }
        }
    }
    IRSTD_UNROLL
    for (int i = 0; i < block; i++)
        IRSTD_UNROLL
        for (int v = 0; v < vectors; v++) {
            if (kind == ACC_INT8)
                _mm256_store_si256((__m256i *)((int8_t *)tile + i * IRSTD_TILE + v * 32), acc[i][v]);
            else
                flush(acc[i][v], tile, i * IRSTD_TILE + v * 32, kind, first);
        }
}

static void accumulate(const irstd_bconv2d *op, const irstd_stream *s, const void *const *rows, int oc, int channels,
                       int64_t column, int64_t count, void *tile) {
    const lut *l = lut_of(op);
    int64_t plane = (int64_t)(oc / op->oc_group) * l->nibbles;
    const int8_t *tables = l->tables + (size_t)oc * channel_tables(op, l->nibbles);
#define RUN(block, vectors, kernel_w) \
    accumulate_block(op, s, rows, plane, tables, column, tile, l->kind, block, vectors, kernel_w)
#define RUN_KERNEL(block, vectors)                                \
    do {                                                          \
        if (op->a.kernel_w == 3) RUN(block, vectors, 3);          \
        else if (op->a.kernel_w == 1) RUN(block, vectors, 1);     \
        else RUN(block, vectors, 0);                              \
    } while (0)
    if (channels == 4 && count > 32) RUN_KERNEL(4, 2);
    else if (channels == 4) RUN_KERNEL(4, 1);
    else if (channels == 3) RUN(3, 2, 0);
    else if (channels == 2) RUN(2, 2, 0);
    else RUN_KERNEL(1, 2);
#undef RUN_KERNEL
#undef RUN
}

static const irstd_stream_kernel kernel = {pack_row, padding, accumulate};

static irstd_stream plan(const irstd_bconv2d *op, const irstd_size *size) {
    const lut *l = lut_of(op);
    return irstd_stream_plan(op, size, op->a.groups * l->nibbles, 1, (int)l->kind);
}

static size_t scratch_bytes(const irstd_bconv2d *op, const irstd_size *size, int *overflow) {
    irstd_stream s = plan(op, size);
    return irstd_stream_bytes(&s, overflow);
}

static void rows(const irstd_image *image, int64_t first, int64_t last, void *scratch) {
    irstd_stream s = plan(image->op, &image->size);
    irstd_stream_rows(image, &s, kernel, lut_of(image->op)->kind, first, last, scratch);
}

const irstd_bconv2d_kernel irstd_bconv2d_avx2 = {"bconv2d_lut__avx2", "avx2", pack, scratch_bytes, rows};

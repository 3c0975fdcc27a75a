/* Binary convolution by vpopcntd: lanes are 16 output pixels over planar words of 32 channels' signs.
 * A last plane tells which columns are inside the image: (x ^ w) & inside is one vpternlogd, and the sum
 * of `inside` over the taps is the number of valid ones, so that zero padding is exact:
 * dot = channels * valid - 2 * popcount. */
#ifdef IRSTD_SIMDE
#include "emulated.h"
#endif

#include <stdlib.h>

#include "../x86/stream.h"

enum { VECTOR = 16 };

typedef struct {
    const uint32_t *weight; /* by blocks of at most 4 channels: [KH][KW][words][block] */
} planar;

static irstd_status pack(irstd_bconv2d *op, const int32_t *weight, irstd_error *error) {
    const irstd_bconv2d_attributes *a = &op->a;
    size_t taps = (size_t)(a->kernel_h * a->kernel_w * op->words);
    planar *p = op->packed = malloc(sizeof(planar) + (size_t)a->out_channels * taps * sizeof(uint32_t));
    if (!p) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory");
    uint32_t *to = (uint32_t *)(p + 1);
    p->weight = to;
    for (int oc = 0, block; oc < a->out_channels; oc += block) {
        block = irstd_block(op, oc);
        for (size_t tap = 0; tap < taps; tap++)
            for (int i = 0; i < block; i++) *to++ = (uint32_t)weight[(size_t)(oc + i) * taps + tap];
    }
    return IRSTD_OK;
}

static void pack_planar(const irstd_image *image, int64_t row, uint32_t *lines, int64_t stride) {
    const irstd_bconv2d *op = image->op;
    int64_t width = image->size.width, plane = image->size.height * width;
    for (int g = 0; g < op->a.groups; g++)
        for (int word = 0; word < op->words; word++, lines += stride) {
            int first = g * op->ic_group + word * 32, channels = (int)irstd_min(32, op->ic_group - word * 32);
            const float *x = image->x + first * plane + row * width;
            for (int64_t i = 0; i < width; i += VECTOR, x += VECTOR) {
                __mmask16 lanes = (__mmask16)(width - i < VECTOR ? (1u << (width - i)) - 1 : 0xffffu);
                __m512i bits = _mm512_setzero_si512();
                for (int c = 0; c < channels; c++) {
                    __m512 v = _mm512_maskz_loadu_ps(lanes, x + c * plane);
                    __mmask16 positive = _mm512_cmp_ps_mask(v, _mm512_set1_ps(op->threshold[first + c]), _CMP_GE_OQ);
                    bits = _mm512_mask_or_epi32(bits, positive, bits, _mm512_set1_epi32((int)(1u << c)));
                }
                _mm512_storeu_si512(lines + i, bits);
            }
        }
}

static void pack_interleaved(const irstd_image *image, int64_t row, uint32_t *lines, int64_t stride) {
    const irstd_bconv2d *op = image->op;
    int64_t width = image->size.width, channels = op->a.in_channels;
    for (int g = 0; g < op->a.groups; g++)
        for (int word = 0; word < op->words; word++, lines += stride) {
            int first = g * op->ic_group + word * 32, count = (int)irstd_min(32, op->ic_group - word * 32);
            uint32_t all = count < 32 ? (1u << count) - 1 : ~0u;
            __mmask16 low = (__mmask16)all, high = (__mmask16)(all >> 16);
            const float *t = op->threshold + first;
            /* No pointer may pass the end of its array, loaded from or not. */
            int upper = high ? VECTOR : 0;
            __m512 t_low = _mm512_maskz_loadu_ps(low, t), t_high = _mm512_maskz_loadu_ps(high, t + upper);
            const float *x = image->x + row * width * channels + first;
            for (int64_t i = 0; i < width; i++, x += channels) {
                uint32_t bits = _mm512_mask_cmp_ps_mask(low, _mm512_maskz_loadu_ps(low, x), t_low, _CMP_GE_OQ);
                if (high)
                    bits |= (uint32_t)_mm512_mask_cmp_ps_mask(high, _mm512_maskz_loadu_ps(high, x + upper), t_high,
                                                              _CMP_GE_OQ)
                            << 16;
                lines[i] = bits;
            }
        }
}

static void pack_row(const irstd_image *image, int64_t row, void *lines, int64_t stride) {
    if (image->op->layout == IRSTD_NCHW)
        pack_planar(image, row, lines, stride);
    else
        pack_interleaved(image, row, lines, stride);
    uint32_t *inside = (uint32_t *)lines + (int64_t)image->op->a.groups * image->op->words * stride;
    irstd_fill(inside, 4, 0, image->size.width, ~0u);
}

static uint32_t padding(const irstd_bconv2d *op, int plane) {
    if (plane == op->a.groups * op->words) return op->a.pad_value ? ~0u : 0;
    int tail = plane % op->words == op->words - 1 ? op->ic_group % 32 : 0;
    return op->a.pad_value <= 0 ? 0 : tail ? (1u << tail) - 1 : ~0u;
}

IRSTD_INLINE void accumulate_block(const irstd_bconv2d *op, const irstd_stream *s, const void *const *rows,
                                   int64_t first_plane, const uint32_t *weight, int64_t column, int32_t *tile,
                                   const int block, const int vectors) {
    const int words = op->words;
    const int64_t plane = s->plane_elements, inside_plane = (int64_t)op->a.groups * words * plane;
    __m512i count[4][4], valid[4];
    IRSTD_UNROLL
    for (int v = 0; v < vectors; v++) {
        valid[v] = _mm512_setzero_si512();
        IRSTD_UNROLL
        for (int i = 0; i < block; i++) count[i][v] = _mm512_setzero_si512();
    }
    for (int kh = 0; kh < op->a.kernel_h; kh++) {
        if (!rows[kh]) {
            weight += op->a.kernel_w * words * block;
            continue;
        }
        for (int kw = 0; kw < op->a.kernel_w; kw++) {
            const uint32_t *x = (const uint32_t *)rows[kh] + s->tap_offset[kw] + column;
            __m512i inside[4];
            IRSTD_UNROLL
            for (int v = 0; v < vectors; v++) {
                inside[v] = _mm512_loadu_si512(x + inside_plane + v * VECTOR);
                valid[v] = _mm512_sub_epi32(valid[v], inside[v]); /* inside is -1 */
            }
            x += first_plane * plane;
            for (int word = 0; word < words; word++, x += plane, weight += block)
                IRSTD_UNROLL
                for (int v = 0; v < vectors; v++) {
                    __m512i pixels = _mm512_loadu_si512(x + v * VECTOR);
                    IRSTD_UNROLL
                    for (int i = 0; i < block; i++) {
                        __m512i w = _mm512_set1_epi32((int)weight[i]);
                        __m512i differ = _mm512_ternarylogic_epi32(pixels, w, inside[v], 0x28); /* (x ^ w) & inside */
                        count[i][v] = _mm512_add_epi32(count[i][v], _mm512_popcnt_epi32(differ));
                    }
                }
        }
    }
    IRSTD_UNROLL
    for (int v = 0; v < vectors; v++) {
        __m512i all = _mm512_mullo_epi32(valid[v], _mm512_set1_epi32(op->ic_group));
        IRSTD_UNROLL
        for (int i = 0; i < block; i++)
            _mm512_storeu_si512(tile + i * IRSTD_TILE + v * VECTOR,
                                _mm512_sub_epi32(all, _mm512_slli_epi32(count[i][v], 1)));
    }
}

static void accumulate(const irstd_bconv2d *op, const irstd_stream *s, const void *const *rows, int oc, int channels,
                       int64_t column, int64_t count, void *tile) {
    int64_t plane = (int64_t)(oc / op->oc_group) * op->words;
    const planar *p = op->packed;
    const uint32_t *weight = p->weight + (size_t)oc * (size_t)(op->a.kernel_h * op->a.kernel_w * op->words);
    if (channels == 4 && count > 32) accumulate_block(op, s, rows, plane, weight, column, tile, 4, 4);
    else if (channels == 4) accumulate_block(op, s, rows, plane, weight, column, tile, 4, 2);
    else if (channels == 3) accumulate_block(op, s, rows, plane, weight, column, tile, 3, 4);
    else if (channels == 2) accumulate_block(op, s, rows, plane, weight, column, tile, 2, 4);
    else accumulate_block(op, s, rows, plane, weight, column, tile, 1, 4);
}

static const irstd_stream_kernel kernel = {pack_row, padding, accumulate};

static irstd_stream plan(const irstd_bconv2d *op, const irstd_size *size) {
    return irstd_stream_plan(op, size, op->a.groups * op->words + 1, 4, ACC_INT32);
}

static size_t scratch_bytes(const irstd_bconv2d *op, const irstd_size *size, int *overflow) {
    irstd_stream s = plan(op, size);
    return irstd_stream_bytes(&s, overflow);
}

static void rows(const irstd_image *image, int64_t first, int64_t last, void *scratch) {
    irstd_stream s = plan(image->op, &image->size);
    irstd_stream_rows(image, &s, kernel, ACC_INT32, first, last, scratch);
}

const irstd_bconv2d_kernel irstd_bconv2d_avx512 = {"bconv2d_popcnt__avx512", "avx512", pack, scratch_bytes, rows};

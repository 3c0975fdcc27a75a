/* Row-streamed execution shared by the x86 kernels: a ring of packed input rows follows the output rows,
 * so that the working set stays in the cache whatever the image size.
 *
 * A packed row is [planes][phases][columns] of the kernel's element: columns of the padded image are
 * split by stride phase, so that one kernel tap reads contiguous elements for contiguous outputs. Only
 * phases that some tap uses are kept. */
#ifndef IRSTD_X86_STREAM_H
#define IRSTD_X86_STREAM_H

#include <string.h>

#include "epilogue.h"

/* All loops over a block are unrolled: its accumulators must live in registers. */
#ifdef __clang__
#define IRSTD_UNROLL _Pragma("clang loop unroll(full)")
#define IRSTD_UNROLL_TAPS
#else
#define IRSTD_UNROLL _Pragma("GCC unroll 4")
#define IRSTD_UNROLL_TAPS IRSTD_UNROLL
#endif

typedef struct {
    int planes, element;                  /* planes of a packed row, bytes of an element */
    int phases;
    int phase[IRSTD_MAX_KERNEL];          /* column residue of each phase */
    int64_t tap_offset[IRSTD_MAX_KERNEL]; /* elements, from a plane's first */
    int64_t columns, plane_elements;
    int64_t line_elements;                /* an unsplit plane, where stride_w > 1 */
    int64_t strip;                        /* output rows computed together */
    int64_t ring;                         /* input rows held */
    size_t row_bytes, lines_bytes, acc_bytes;
} irstd_stream;

/* acc_bytes: bytes of an accumulator. */
static irstd_stream irstd_stream_plan(const irstd_bconv2d *op, const irstd_size *size, int planes, int element,
                                      int acc_bytes) {
    const irstd_bconv2d_attributes *a = &op->a;
    irstd_stream s = {.planes = planes, .element = element};
    int index[IRSTD_MAX_KERNEL], furthest = (op->extent_w - 1) / a->stride_w;
    for (int kw = 0; kw < a->kernel_w; kw++) {
        int residue = kw * a->dilation_w % a->stride_w, p = 0;
        while (p < s.phases && s.phase[p] != residue) p++;
        if (p == s.phases) s.phase[s.phases++] = residue;
        index[kw] = p;
    }
    /* Tiles read past the last output, and rows are packed in whole vectors. */
    s.columns = irstd_round_up(irstd_round_up(size->out_width, IRSTD_TILE) + furthest + 32, 32);
    for (int kw = 0; kw < a->kernel_w; kw++)
        s.tap_offset[kw] = index[kw] * s.columns + kw * a->dilation_w / a->stride_w;
    s.plane_elements = s.phases * s.columns;
    s.row_bytes = (size_t)(planes * s.plane_elements * element);
    if (a->stride_w > 1) {
        s.line_elements = irstd_round_up(a->pad_left + size->width + a->pad_right + 32, 64);
        s.lines_bytes = (size_t)(planes * s.line_elements * element);
    }
    /* Few rows keep the planes in L1, several reuse the weights of a channel block. */
    int64_t fitting = (int64_t)(16384 / (s.row_bytes * (size_t)a->stride_h));
    s.strip = irstd_max(1, irstd_min(irstd_min(8, fitting), size->out_height));
    s.ring = irstd_min((s.strip - 1) * a->stride_h + op->extent_h, size->height);
    s.acc_bytes = (size_t)acc_bytes * IRSTD_TILE *
                  (op->layout == IRSTD_NCHW ? 4 : (size_t)irstd_round_up(a->out_channels, IRSTD_LANES) + 4);
    return s;
}

/* The ring, one row of padding, the unsplit lines, the accumulators. */
static size_t irstd_stream_bytes(const irstd_stream *s, int *overflow) {
    size_t bytes = s->lines_bytes + s->acc_bytes + 128;
    *overflow = irstd_add_product(&bytes, s->row_bytes, (size_t)s->ring + 1);
    return bytes;
}

/* What a kernel brings; each is a compile-time constant of the caller, so that calls are inlined. */
typedef struct {
    /* Writes the in-image elements of one input row; plane p goes to lines + p * stride elements, and
     * up to 31 elements beyond the row may be overwritten. */
    void (*pack)(const irstd_image *image, int64_t row, void *lines, int64_t stride);
    /* The element that stands for the columns outside the image, and for the rows if pad_value is not 0. */
    uint32_t (*padding)(const irstd_bconv2d *op, int plane);
    /* Accumulates output channels oc..oc+channels-1 (at most 4, of one group) of `count` pixels from
     * `column` into tile; rows[kh] is NULL where the whole row is exact zero padding. */
    void (*accumulate)(const irstd_bconv2d *op, const irstd_stream *stream, const void *const *rows, int oc,
                       int channels, int64_t column, int64_t count, void *tile);
} irstd_stream_kernel;

IRSTD_INLINE void irstd_fill(void *plane, int element, int64_t first, int64_t last, uint32_t value) {
    if (element == 1) {
        memset((char *)plane + first, (int)value, (size_t)(last - first));
    } else {
        uint32_t *words = plane;
        for (int64_t i = first; i < last; i++) words[i] = value;
    }
}

/* The columns of one phase: every stride-th element of a line; `available` of them exist. */
IRSTD_INLINE void irstd_split(void *to, const void *line, int element, int64_t available, int64_t stride,
                              int64_t columns, uint32_t padding) {
    available = irstd_min(available, columns);
    if (element == 1) {
        const uint8_t *from = line;
        uint8_t *bytes = to;
        int64_t i = 0;
        if (stride == 2) {
            const __m256i low = _mm256_set1_epi16(0xff);
            for (; i + 33 <= available; i += 32) { /* the last vector would end one element past the line */
                __m256i a = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(from + 2 * i)), low);
                __m256i b = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(from + 2 * i + 32)), low);
                __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8);
                _mm256_storeu_si256((__m256i *)(bytes + i), packed);
            }
        }
        for (; i < available; i++) bytes[i] = from[i * stride];
    } else {
        const uint32_t *from = line;
        uint32_t *words = to;
        for (int64_t i = 0; i < available; i++) words[i] = from[i * stride];
    }
    irstd_fill(to, element, available, columns, padding);
}

IRSTD_INLINE void irstd_stream_pack(const irstd_image *image, const irstd_stream *s, irstd_stream_kernel kernel,
                                    int64_t row, char *packed, char *lines) {
    const irstd_bconv2d *op = image->op;
    int64_t left = op->a.pad_left, right = left + image->size.width;
    int split = op->a.stride_w > 1;
    int64_t line = split ? s->line_elements : s->plane_elements;
    char *base = split ? lines : packed;
    kernel.pack(image, row, base + left * s->element, line);
    for (int p = 0; p < s->planes; p++) {
        uint32_t padding = kernel.padding(op, p);
        char *plane = base + p * line * s->element;
        irstd_fill(plane, s->element, 0, left, padding);
        irstd_fill(plane, s->element, right, line, padding);
        for (int phase = 0; split && phase < s->phases; phase++)
            irstd_split(packed + (p * s->plane_elements + phase * s->columns) * s->element,
                        plane + s->phase[phase] * s->element, s->element,
                        (line - s->phase[phase] + op->a.stride_w - 1) / op->a.stride_w, op->a.stride_w, s->columns,
                        padding);
    }
}

IRSTD_INLINE void irstd_finish_kind(const irstd_image *image, const irstd_shared_constants *shared, const void *acc,
                                    irstd_acc kind, int oc, int channels, int64_t row, int64_t column,
                                    int64_t count) {
    if (kind == ACC_INT8)
        irstd_finish_tile(image, shared, acc, ACC_INT8, oc, channels, row, column, count);
    else if (kind == ACC_INT16)
        irstd_finish_tile(image, shared, acc, ACC_INT16, oc, channels, row, column, count);
    else
        irstd_finish_tile(image, shared, acc, ACC_INT32, oc, channels, row, column, count);
}

/* The channels of the next block: at most 4, not beyond the group. */
IRSTD_INLINE int irstd_block(const irstd_bconv2d *op, int oc) {
    return (int)irstd_min(4, op->oc_group - oc % op->oc_group);
}

IRSTD_INLINE void irstd_stream_rows(const irstd_image *image, const irstd_stream *s, irstd_stream_kernel kernel,
                                    irstd_acc kind, int64_t first, int64_t last, void *scratch) {
    const irstd_bconv2d *op = image->op;
    const irstd_bconv2d_attributes *a = &op->a;
    const irstd_shared_constants shared = irstd_shared(image);
    int64_t width = image->size.out_width;
    char *tile = scratch, *lines = tile + s->acc_bytes, *ring = lines + s->lines_bytes;
    char *outside = ring + (size_t)s->ring * s->row_bytes;
    if (a->pad_value)
        for (int p = 0; p < s->planes; p++)
            irstd_fill(outside + p * s->plane_elements * s->element, s->element, 0, s->plane_elements,
                       kernel.padding(op, p));
    int64_t packed = 0; /* input rows below this one are in the ring, or no longer needed */
    for (int64_t row = first; row < last; row += s->strip) {
        int count = (int)irstd_min(s->strip, last - row);
        int64_t top = row * a->stride_h - a->pad_top;
        int64_t bottom = irstd_min((row + count - 1) * a->stride_h - a->pad_top + op->extent_h, image->size.height);
        for (packed = irstd_max(packed, top); packed < bottom; packed++)
            irstd_stream_pack(image, s, kernel, packed, ring + (size_t)(packed % s->ring) * s->row_bytes, lines);

        const void *rows[8][IRSTD_MAX_KERNEL];
        for (int r = 0; r < count; r++)
            for (int kh = 0; kh < a->kernel_h; kh++) {
                int64_t ih = top + (int64_t)r * a->stride_h + (int64_t)kh * a->dilation_h;
                int inside = ih >= 0 && ih < image->size.height;
                rows[r][kh] = inside ? ring + (size_t)(ih % s->ring) * s->row_bytes : a->pad_value ? outside : NULL;
            }
        if (op->layout == IRSTD_NCHW) {
            for (int oc = 0, block; oc < a->out_channels; oc += block) {
                block = irstd_block(op, oc);
                for (int r = 0; r < count; r++)
                    for (int64_t column = 0; column < width; column += IRSTD_TILE) {
                        int64_t pixels = irstd_min(IRSTD_TILE, width - column);
                        kernel.accumulate(op, s, rows[r], oc, block, column, pixels, tile);
                        irstd_finish_kind(image, &shared, tile, kind, oc, block, row + r, column, pixels);
                    }
            }
            continue;
        }
        for (int r = 0; r < count; r++)
            for (int64_t column = 0; column < width; column += IRSTD_TILE) {
                int64_t pixels = irstd_min(IRSTD_TILE, width - column);
                for (int oc = 0, block; oc < a->out_channels; oc += block) {
                    block = irstd_block(op, oc);
                    kernel.accumulate(op, s, rows[r], oc, block, column, pixels,
                                      tile + (int64_t)oc * IRSTD_TILE * (int)kind);
                }
                irstd_finish_kind(image, &shared, tile, kind, 0, a->out_channels, row + r, column, pixels);
            }
    }
}

#endif

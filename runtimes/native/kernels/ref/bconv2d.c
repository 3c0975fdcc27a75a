/* The plain scalar form that defines irstd.BinaryConv2d; see irstd_edge/opspec.py. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static int popcount(uint32_t v) {
    v -= v >> 1 & 0x55555555u;
    v = (v & 0x33333333u) + (v >> 2 & 0x33333333u);
    return (int)(((v + (v >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24);
}

static irstd_status pack(irstd_bconv2d *op, const int32_t *weight, irstd_error *error) {
    size_t bytes = (size_t)op->a.out_channels * (size_t)(op->a.kernel_h * op->a.kernel_w) * (size_t)op->words * 4;
    op->packed = malloc(bytes);
    if (!op->packed) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory");
    memcpy(op->packed, weight, bytes);
    return IRSTD_OK;
}

/* The sign words of the KH input rows under one output row: [KH][width][groups * words]. */
static size_t scratch_bytes(const irstd_bconv2d *op, const irstd_size *size, int *overflow) {
    size_t bytes = 0;
    *overflow = irstd_add_product(&bytes, (size_t)size->width * sizeof(uint32_t),
                                  (size_t)op->a.kernel_h * (size_t)op->a.groups * (size_t)op->words);
    return bytes;
}

static void pack_row(const irstd_image *image, int64_t row, uint32_t *bits) {
    const irstd_bconv2d *op = image->op;
    int64_t width = image->size.width, plane = image->size.height * width;
    int channels = op->a.in_channels;
    memset(bits, 0, (size_t)width * (size_t)op->a.groups * (size_t)op->words * sizeof *bits);
    for (int64_t column = 0; column < width; column++, bits += op->a.groups * op->words)
        for (int c = 0; c < channels; c++) {
            int64_t index = op->layout == IRSTD_NCHW ? c * plane + row * width + column
                                                     : (row * width + column) * channels + c;
            int bit = c % op->ic_group;
            if (image->x[index] >= op->threshold[c])
                bits[c / op->ic_group * op->words + bit / IRSTD_WORD_BITS] |= 1u << bit % IRSTD_WORD_BITS;
        }
}

/* The residual at one output value, its channels repeated or averaged to OC. */
static float matched_residual(const irstd_image *image, int oc, int64_t row, int64_t column) {
    int64_t channels = image->residual_channels, count = channels / image->op->a.out_channels;
    int64_t pixel = row * image->size.out_width + column, plane = image->size.out_height * image->size.out_width;
    int64_t first = oc % channels;
    int64_t start = image->op->layout == IRSTD_NCHW ? first * plane + pixel : pixel * channels + first;
    int64_t step = image->op->layout == IRSTD_NCHW ? image->op->a.out_channels * plane : image->op->a.out_channels;
    float sum = image->residual[start];
    if (count <= 1) return sum;
    for (int64_t i = 1; i < count; i++) sum += image->residual[start + i * step];
    return sum / (float)count;
}

static float combine(const irstd_image *image, float v, int oc, int64_t row, int64_t column) {
    if (image->op->a.residual == IRSTD_RESIDUAL_NONE) return v;
    float r = matched_residual(image, oc, row, column);
    return image->op->a.residual == IRSTD_RESIDUAL_ADD ? v + r : r + r * tanhf(v);
}

static float clamp(float v, float low, float high) {
    v = low > v ? low : v; /* a NaN passes */
    return high < v ? high : v;
}

static float activate(const irstd_bconv2d *op, float v, int oc) {
    const float *parameters = op->activation_parameters + oc;
    int channels = op->a.out_channels;
    if (op->a.activation == IRSTD_ACTIVATION_RPRELU) {
        float t = v - parameters[0];
        t = t >= 0 ? t : t * parameters[channels];
        return t + parameters[2 * channels];
    }
    return op->a.activation == IRSTD_ACTIVATION_CLAMP ? clamp(v, op->a.clamp_min, op->a.clamp_max) : v;
}

static float finish(const irstd_image *image, int acc, int oc, int64_t row, int64_t column) {
    const irstd_bconv2d *op = image->op;
    float v = (float)acc * op->scale[oc];
    v = v + op->bias[oc];
    if (op->a.activation_first)
        v = combine(image, activate(op, v, oc), oc, row, column);
    else
        v = activate(op, combine(image, v, oc, row, column), oc);
    if (op->a.fraction_bits < 0) return v;
    return clamp(rintf(v * op->fraction_step), -32768.0f, 32767.0f) / op->fraction_step;
}

static int dot(const irstd_image *image, const uint32_t *bits, int oc, int64_t row, int64_t column) {
    const irstd_bconv2d *op = image->op;
    const irstd_bconv2d_attributes *a = &op->a;
    const uint32_t *w = (const uint32_t *)op->packed + (size_t)oc * (size_t)(a->kernel_h * a->kernel_w * op->words);
    int words = op->words, all_words = a->groups * words, sum = 0;
    for (int kh = 0; kh < a->kernel_h; kh++)
        for (int kw = 0; kw < a->kernel_w; kw++, w += words) {
            int64_t ih = row * a->stride_h - a->pad_top + (int64_t)kh * a->dilation_h;
            int64_t iw = column * a->stride_w - a->pad_left + (int64_t)kw * a->dilation_w;
            int inside = ih >= 0 && ih < image->size.height && iw >= 0 && iw < image->size.width;
            int count = 0;
            if (inside) {
                const uint32_t *x = bits + (kh * image->size.width + iw) * all_words + oc / op->oc_group * words;
                for (int i = 0; i < words; i++) count += popcount(x[i] ^ w[i]);
                sum += op->ic_group - 2 * count;
            } else if (a->pad_value) {
                for (int i = 0; i < words; i++) count += popcount(w[i]);
                sum += a->pad_value * (2 * count - op->ic_group);
            }
        }
    return sum;
}

static void rows(const irstd_image *image, int64_t first, int64_t last, void *scratch) {
    const irstd_bconv2d *op = image->op;
    const irstd_size *size = &image->size;
    uint32_t *bits = scratch;
    int channels = op->a.out_channels;
    for (int64_t row = first; row < last; row++) {
        for (int kh = 0; kh < op->a.kernel_h; kh++) {
            int64_t ih = row * op->a.stride_h - op->a.pad_top + (int64_t)kh * op->a.dilation_h;
            if (ih >= 0 && ih < size->height)
                pack_row(image, ih, bits + kh * size->width * op->a.groups * op->words);
        }
        for (int oc = 0; oc < channels; oc++)
            for (int64_t column = 0; column < size->out_width; column++) {
                float y = finish(image, dot(image, bits, oc, row, column), oc, row, column);
                image->y[op->layout == IRSTD_NCHW ? (oc * size->out_height + row) * size->out_width + column
                                                  : (row * size->out_width + column) * channels + oc] = y;
            }
    }
}

const irstd_bconv2d_kernel irstd_bconv2d_ref = {"bconv2d_popcount__ref", "ref", pack, scratch_bytes, rows};

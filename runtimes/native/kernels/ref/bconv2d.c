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

/* Half up. */
static float round_half_up(float v) { return floorf(v + 0.5f); }

/* A NaN becomes the lowest value. */
static float saturate(float q) {
    q = q > -32768.0f ? q : -32768.0f;
    return q < 32767.0f ? q : 32767.0f;
}

/* In units of the fixed-point step. */
static float to_integer(const irstd_bconv2d *op, float v) { return saturate(round_half_up(v * op->fraction_step)); }

/* One value of the residual, an integer where the operator is fixed point. */
static float residual_value(const irstd_image *image, int64_t index) {
    float r = image->residual[index];
    return image->op->a.fraction_bits < 0 ? r : to_integer(image->op, r);
}

/* The residual at one output value, its channels repeated or averaged to OC. */
static float matched_residual(const irstd_image *image, int oc, int64_t row, int64_t column) {
    int64_t channels = image->residual_channels, count = channels / image->op->a.out_channels;
    int64_t pixel = row * image->size.out_width + column, plane = image->size.out_height * image->size.out_width;
    int64_t first = oc % channels;
    int64_t start = image->op->layout == IRSTD_NCHW ? first * plane + pixel : pixel * channels + first;
    int64_t step = image->op->layout == IRSTD_NCHW ? image->op->a.out_channels * plane : image->op->a.out_channels;
    float sum = residual_value(image, start);
    if (count <= 1) return sum;
    for (int64_t i = 1; i < count; i++) sum += residual_value(image, start + i * step);
    sum /= (float)count;
    return image->op->a.fraction_bits < 0 ? sum : round_half_up(sum);
}

static float modulate(float v, float r) { return r + r * tanhf(v); }

static float combine(const irstd_image *image, float v, int oc, int64_t row, int64_t column) {
    if (image->op->a.residual == IRSTD_RESIDUAL_NONE) return v;
    float r = matched_residual(image, oc, row, column);
    return image->op->a.residual == IRSTD_RESIDUAL_ADD ? v + r : modulate(v, r);
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
    if (op->a.activation_first) return combine(image, activate(op, v, oc), oc, row, column);
    return activate(op, combine(image, v, oc, row, column), oc);
}

/* The same steps on 16-bit integers, held as float. */
static float combine_integer(const irstd_image *image, float v, int oc, int64_t row, int64_t column) {
    if (image->op->a.residual == IRSTD_RESIDUAL_NONE) return v;
    float r = matched_residual(image, oc, row, column), step = image->op->fraction_step;
    return image->op->a.residual == IRSTD_RESIDUAL_ADD ? saturate(v + r)
                                                       : to_integer(image->op, modulate(v / step, r / step));
}

static float activate_integer(const irstd_bconv2d *op, float v, int oc) {
    const float *parameters = op->activation_parameters + oc;
    int channels = op->a.out_channels;
    if (op->a.activation == IRSTD_ACTIVATION_RPRELU) {
        float t = saturate(v - round_half_up(parameters[0] * op->fraction_step));
        if (t < 0) t = saturate(round_half_up(t * parameters[channels]));
        return saturate(t + round_half_up(parameters[2 * channels] * op->fraction_step));
    }
    if (op->a.activation != IRSTD_ACTIVATION_CLAMP) return v;
    return clamp(v, to_integer(op, op->a.clamp_min), to_integer(op, op->a.clamp_max));
}

static float finish_integer(const irstd_image *image, int acc, int oc, int64_t row, int64_t column) {
    const irstd_bconv2d *op = image->op;
    float v = to_integer(op, (float)acc * op->scale[oc]);
    v = saturate(v + round_half_up(op->bias[oc] * op->fraction_step));
    if (op->a.activation_first)
        v = combine_integer(image, activate_integer(op, v, oc), oc, row, column);
    else
        v = activate_integer(op, combine_integer(image, v, oc, row, column), oc);
    return v / op->fraction_step;
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
                int acc = dot(image, bits, oc, row, column);
                float y = op->a.fraction_bits < 0 ? finish(image, acc, oc, row, column)
                                                  : finish_integer(image, acc, oc, row, column);
                image->y[op->layout == IRSTD_NCHW ? (oc * size->out_height + row) * size->out_width + column
                                                  : (row * size->out_width + column) * channels + oc] = y;
            }
    }
}

const irstd_bconv2d_kernel irstd_bconv2d_ref = {"bconv2d_popcount__ref", "ref", pack, scratch_bytes, rows};

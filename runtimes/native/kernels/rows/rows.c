/* Row kernels of the operators that are neither binary nor convolutions, in plain C and GCC's vector types: compiled
 * once for every instruction set, under the name irstd_rows_<IRSTD_ROWS>. */
#include "int16.h"

/* ---- pools ---- */

static int alike(const irstd_tensor *a, const irstd_tensor *b) {
    return a->type == IRSTD_TENSOR_TYPE_INT16 && b->type == a->type && a->fraction_bits == b->fraction_bits;
}

/* out[j] = in[j * step + first] joined to what is there; a NaN wins against every number. */
static inline void join(const float *in, int64_t step, int64_t n, int average, float *out) {
    if (average)
        for (int64_t j = 0; j < n; j++) out[j] += in[j * step];
    else
        for (int64_t j = 0; j < n; j++) out[j] = in[j * step] > out[j] || in[j * step] != in[j * step] ? in[j * step] : out[j];
}

static void pool_row(const irstd_node *n, int64_t row, char *scratch) {
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    const int kh = n->i[0], kw = n->i[1], sh = n->i[2], sw = n->i[3], average = n->op == IRSTD_OP_AVERAGE_POOL;
    char *result = irstd_tensor_row(y, row);
    float *in = (float *)(void *)scratch, *rows = in + padded(x->width), *copy = rows + padded(x->width);
    const float share = 1.0f / (float)(kh * kw);
    if (kh == 2 && kw == 2 && sh == 2 && sw == 2 && alike(x, y)) {
        const int16_t *top = irstd_tensor_row(x, 2 * row), *bottom = irstd_tensor_row(x, 2 * row + 1);
        int16_t *to = (int16_t *)(void *)result;
        for (int c = 0; c < y->channels; c++, top += x->stride, bottom += x->stride, to += y->stride)
            (average ? average_pool2 : max_pool2)(top, bottom, y->width, to);
        return;
    }
    for (int c = 0; c < y->channels; c++) {
        float *out = result_of(y, row, c, copy);
        for (int r = 0; r < kh; r++) { /* down the columns first, where nothing is shuffled */
            const float *from = floats_of(x, row * sh + r, c, x->width, in);
            if (r)
                join(from, 1, x->width, average, rows);
            else
                memcpy(rows, from, (size_t)x->width * sizeof *rows);
        }
        for (int64_t j = 0; j < y->width; j++) out[j] = rows[j * sw];
        for (int k = 1; k < kw; k++) {
            if (sw == 2)
                join(rows + k, 2, y->width, average, out);
            else
                join(rows + k, sw, y->width, average, out);
        }
        if (average)
            for (int64_t j = 0; j < y->width; j++) out[j] *= share;
        write_back(y, row, c, y->width, out);
    }
}

static void global_pool(const irstd_node *n, char *scratch) {
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    float *in = (float *)(void *)scratch;
    for (int c = 0; c < y->channels; c++) {
        double sum = 0;
        for (int64_t r = 0; r < x->height; r++) {
            read_plane(x, irstd_tensor_row(x, r), c, x->width, in);
            float part = 0;
            for (int64_t j = 0; j < x->width; j++) part += in[j];
            sum += (double)part;
        }
        float mean = (float)(sum / ((double)x->height * (double)x->width));
        write_plane(y, irstd_tensor_row(y, 0), c, 1, &mean);
    }
}

/* ---- resize ---- */

/* Where output index `to` reads: source and weight of the next one. */
static int64_t source_of(int64_t to, int64_t scale, int64_t size, int mode, float *fraction) {
    float at;
    if (mode == IRSTD_RESIZE_MODE_NEAREST) {
        *fraction = 0;
        return to / scale;
    }
    if (mode == IRSTD_RESIZE_MODE_BILINEAR)
        at = ((float)to + 0.5f) / (float)scale - 0.5f;
    else
        at = size * scale > 1 ? (float)to * (float)(size - 1) / (float)(size * scale - 1) : 0;
    if (at < 0) at = 0;
    int64_t first = irstd_min((int64_t)at, size - 1);
    *fraction = at - (float)first;
    return first;
}

/* Twice the columns with aligned corners: column 2j lies between j - 1 and j, column 2j + 1 between j and j + 1 (but
 * where float32 rounds it elsewhere). */
static int is_between(const int32_t *place, int64_t width) {
    int good = place[0] == 0;
    for (int64_t j = 0; j < width; j++) good &= (j == 0 || place[2 * j] == j - 1) & (place[2 * j + 1] == j);
    return good;
}

/* The weights of the columns to the left and to the right, even ones and odd ones: four planes. */
static void split_parts(const float *part, int64_t width, float *split) {
    for (int64_t j = 0; j < width; j++) {
        const float even = j ? part[2 * j] : 1;
        split[j] = 1 - even;
        split[width + j] = even;
        split[2 * width + j] = 1 - part[2 * j + 1];
        split[3 * width + j] = part[2 * j + 1];
    }
}

static void mix_between(const float *restrict mixed, int64_t width, const float *restrict split, float *restrict out) {
    const float *even = split + width, *odd_left = split + 2 * width, *odd = split + 3 * width;
    for (int64_t j = 0; j < width; j++) {
        out[2 * j] = mixed[j - 1] * split[j] + mixed[j] * even[j];
        out[2 * j + 1] = mixed[j] * odd_left[j] + mixed[j + 1] * odd[j];
    }
}

static void add_planes(const irstd_tensor *b, const char *row, int c, const irstd_tensor *y, char *result, int64_t n,
                       float *sum, float *other);

static void resize_row(const irstd_node *n, int64_t row, char *scratch) {
    const irstd_tensor *x = n->inputs[0], *y = n->output, *addend = n->input_count == 2 ? n->inputs[1] : NULL;
    const int64_t scale_h = n->i[0], scale_w = n->i[1];
    const int mode = n->i[2];
    char *result = irstd_tensor_row(y, row);
    if (mode == IRSTD_RESIZE_MODE_BILINEAR && scale_h == 2 && scale_w == 2 && alike(x, y) &&
        (!addend || alike(addend, y))) {
        const int64_t beside = irstd_max(0, irstd_min(x->height - 1, row % 2 ? row / 2 + 1 : row / 2 - 1));
        const int16_t *near = irstd_tensor_row(x, row / 2), *far = irstd_tensor_row(x, beside);
        const int16_t *added = addend ? irstd_tensor_row(addend, row) : NULL;
        int16_t *to = (int16_t *)(void *)result;
        for (int c = 0; c < y->channels; c++, near += x->stride, far += x->stride, to += y->stride)
            resize2(near, far, x->width, (int32_t *)(void *)scratch, added ? added + c * addend->stride : NULL, to);
        return;
    }
    const int64_t columns = padded(x->width), results = padded(y->width);
    float *near = (float *)(void *)scratch, *far = near + columns, *mixed = far + columns, *copy = mixed + columns + ROW_STEP;
    float *other = copy + results, *part = other + results, fraction;
    int32_t *place = (int32_t *)(void *)(part + results);
    float *split = (float *)(void *)(place + results);
    mixed += ROW_STEP; /* a column before the first */
    const int twice = mode == IRSTD_RESIZE_MODE_BILINEAR && scale_w == 2;
    for (int64_t j = 0; j < y->width && !twice; j++) place[j] = (int32_t)source_of(j, scale_w, x->width, mode, part + j);
    const int between = mode == IRSTD_RESIZE_MODE_BILINEAR_ALIGN_CORNERS && scale_w == 2 && is_between(place, x->width);
    if (between) split_parts(part, x->width, split);
    int64_t first = source_of(row, scale_h, x->height, mode, &fraction);
    int64_t second = fraction > 0 ? irstd_min(first + 1, x->height - 1) : first; /* a row that is not there yet may be NaN */
    for (int c = 0; c < y->channels; c++) {
        const float *above = floats_of(x, first, c, x->width, near), *below = floats_of(x, second, c, x->width, far);
        if (mode == IRSTD_RESIZE_MODE_NEAREST)
            memcpy(mixed, above, (size_t)x->width * sizeof *mixed);
        else
            for (int64_t j = 0; j < x->width; j++) mixed[j] = above[j] * (1 - fraction) + below[j] * fraction;
        mixed[-1] = mixed[0];
        mixed[x->width] = mixed[x->width - 1];
        float *out = addend ? copy : result_of(y, row, c, copy);
        if (twice) {
            for (int64_t j = 0; j < x->width; j++) {
                out[2 * j] = mixed[j] * 0.75f + mixed[j - 1] * 0.25f;
                out[2 * j + 1] = mixed[j] * 0.75f + mixed[j + 1] * 0.25f;
            }
        } else if (between) {
            mix_between(mixed, x->width, split, out);
        } else if (mode == IRSTD_RESIZE_MODE_NEAREST) {
            for (int64_t j = 0; j < y->width; j++) out[j] = mixed[place[j]];
        } else {
            for (int64_t j = 0; j < y->width; j++)
                out[j] = mixed[place[j]] * (1 - part[j]) + mixed[place[j] + 1] * part[j];
        }
        if (addend)
            add_planes(addend, irstd_tensor_row(addend, row), c, y, result, y->width, out, other);
        else
            write_back(y, row, c, y->width, out);
    }
}

/* sum, put on the grid of y where it has one, plus a plane of b. */
static void add_planes(const irstd_tensor *b, const char *row, int c, const irstd_tensor *y, char *result, int64_t n,
                       float *sum, float *other) {
    if (y->type == IRSTD_TENSOR_TYPE_INT16) {
        write_plane(y, result, c, n, sum);
        read_plane(y, result, c, n, sum);
    }
    read_plane(b, row, c, n, other);
    for (int64_t j = 0; j < n; j++) sum[j] += other[j];
    write_plane(y, result, c, n, sum);
}

/* ---- elementwise ---- */

static void pair_row(const irstd_node *n, int64_t row, char *scratch) {
    const irstd_tensor *a = n->inputs[0], *b = n->inputs[1], *y = n->output;
    const char *from = irstd_tensor_row(a, row), *other = irstd_tensor_row(b, b->height == 1 ? 0 : row);
    char *result = irstd_tensor_row(y, row);
    const int product = n->op == IRSTD_OP_MULTIPLY, activation = product ? 0 : n->i[0];
    const float *slope = product ? NULL : n->constants[IRSTD_ADD_SLOPE];
    float *s = (float *)(void *)scratch, *t = s + padded(y->width), *copy = t + padded(y->width);
    for (int c = 0; c < y->channels; c++) {
        if (!product && !activation && alike(a, y) && alike(b, y)) {
            int16_t *to = (int16_t *)(void *)result + c * y->stride;
            memcpy(to, (const int16_t *)(const void *)from + c * a->stride, (size_t)y->width * sizeof *to);
            add_saturating(to, (const int16_t *)(const void *)other + c * b->stride, y->width);
            continue;
        }
        const float *first = floats_of(a, row, c, y->width, s), *second = floats_of(b, b->height == 1 ? 0 : row, c, b->width, t);
        float *out = result_of(y, row, c, copy);
        if (b->width == 1)
            for (int64_t j = 0; j < y->width; j++) out[j] = product ? first[j] * second[0] : first[j] + second[0];
        else if (product)
            for (int64_t j = 0; j < y->width; j++) out[j] = first[j] * second[j];
        else
            for (int64_t j = 0; j < y->width; j++) out[j] = first[j] + second[j];
        activate(out, out, y->width, activation, slope ? slope[c] : 0, n->f);
        write_back(y, row, c, y->width, out);
    }
}

static void unary_row(const irstd_node *n, int64_t row, char *scratch) {
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    const char *from = irstd_tensor_row(x, row);
    char *result = irstd_tensor_row(y, row);
    const float *slope = n->constants[IRSTD_ACTIVATION_SLOPE];
    float *s = (float *)(void *)scratch;
    for (int c = 0; c < y->channels; c++) {
        read_plane(x, from, c, y->width, s);
        if (n->op == IRSTD_OP_FIXED_POINT) {
            to_fixed(s, y->width, y->fraction_bits, n->i[IRSTD_FIXED_POINT_BITS],
                     (int16_t *)(void *)result + c * y->stride);
            continue;
        }
        float *out = result_of(y, row, c, s);
        activate(s, out, y->width, n->i[0], slope ? slope[c] : 0, n->f);
        write_back(y, row, c, y->width, out);
    }
}

static void concat_row(const irstd_node *n, int64_t row) {
    const irstd_tensor *y = n->output;
    const size_t size = y->type == IRSTD_TENSOR_TYPE_INT16 ? 2 : 4;
    char *to = irstd_tensor_row(y, row);
    for (int k = 0; k < n->input_count; k++) {
        const irstd_tensor *x = n->inputs[k];
        for (int c = 0; c < x->channels; c++, to += (size_t)y->stride * size)
            memcpy(to, (const char *)irstd_tensor_row(x, row) + (size_t)(c * x->stride) * size, (size_t)y->width * size);
    }
}

static void slice_row(const irstd_node *n, int64_t row) {
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    const size_t size = y->type == IRSTD_TENSOR_TYPE_INT16 ? 2 : 4;
    for (int c = 0; c < y->channels; c++)
        memcpy((char *)irstd_tensor_row(y, row) + (size_t)(c * y->stride) * size,
               (const char *)irstd_tensor_row(x, row) + (size_t)((n->i[IRSTD_SLICE_FIRST] + c) * x->stride) * size,
               (size_t)y->width * size);
}

static void run(const irstd_node *n, int64_t row, char *scratch) {
    switch (n->op) {
    case IRSTD_OP_AVERAGE_POOL:
    case IRSTD_OP_MAX_POOL: pool_row(n, row, scratch); break;
    case IRSTD_OP_RESIZE: resize_row(n, row, scratch); break;
    case IRSTD_OP_ADD:
    case IRSTD_OP_MULTIPLY: pair_row(n, row, scratch); break;
    case IRSTD_OP_FIXED_POINT:
    case IRSTD_OP_ACTIVATION: unary_row(n, row, scratch); break;
    case IRSTD_OP_CONCAT: concat_row(n, row); break;
    case IRSTD_OP_SLICE: slice_row(n, row); break;
    default: global_pool(n, scratch); break;
    }
}

static size_t scratch_bytes(const irstd_node *n) {
    int64_t width = n->output->width;
    for (int k = 0; k < n->input_count; k++) width = irstd_max(width, n->inputs[k]->width);
    return (size_t)(9 * padded(width)) * sizeof(float);
}

void PASTE(irstd_finish_, IRSTD_ROWS)(const irstd_bconv *, const int16_t *, const irstd_tensor *, const char *,
                                      const irstd_tensor *, char *, char *);
void PASTE(irstd_signs_, IRSTD_ROWS)(const irstd_tensor *, const float *, const irstd_map *, int, char *);
const irstd_conv_form *PASTE(irstd_conv_form_, IRSTD_ROWS)(const irstd_node *n);

const irstd_row_kernels PASTE(irstd_rows_, IRSTD_ROWS) = {
    run, scratch_bytes, PASTE(irstd_finish_, IRSTD_ROWS), PASTE(irstd_signs_, IRSTD_ROWS),
    PASTE(irstd_conv_form_, IRSTD_ROWS), IRSTD_CPU_NEEDS};

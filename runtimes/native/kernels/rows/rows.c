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

/* Columns that the windows of a pool see, and those of the image that none sees. */
static int64_t pool_columns(const irstd_node *n) {
    const int64_t seen = (n->output->width - 1) * n->i[IRSTD_MAX_POOL_STRIDE_W] + n->i[IRSTD_MAX_POOL_KERNEL_W];
    return irstd_max(seen, n->i[IRSTD_MAX_POOL_PAD_LEFT] + n->inputs[0]->width);
}

/* How many of the window's rows (or columns) from `first` on count in an average: those of the image, or of its padding. */
static int64_t counted(int64_t first, int64_t kernel, int64_t before, int64_t size, int64_t after, int padding) {
    const int64_t end = irstd_min(first + kernel, padding ? size + after : size);
    return end - irstd_max(first, padding ? -before : 0);
}

static void pool_row(const irstd_node *n, int64_t row, char *scratch) {
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    const int32_t *i = n->i;
    const int kh = i[IRSTD_MAX_POOL_KERNEL_H], kw = i[IRSTD_MAX_POOL_KERNEL_W], sw = i[IRSTD_MAX_POOL_STRIDE_W];
    const int average = n->op == IRSTD_OP_AVERAGE_POOL, padding = average && i[IRSTD_AVERAGE_POOL_COUNT_PADDING];
    const int64_t left = i[IRSTD_MAX_POOL_PAD_LEFT], columns = pool_columns(n);
    const int64_t top = row * i[IRSTD_MAX_POOL_STRIDE_H] - i[IRSTD_MAX_POOL_PAD_TOP];
    const int64_t first = irstd_max(top, 0), last = irstd_min(top + kh, x->height);
    char *result = irstd_tensor_row(y, row);
    const int leaves = irstd_leaves_image(n);
    if (kh == 2 && kw == 2 && sw == 2 && alike(x, y) && !leaves) {
        const int16_t *upper = irstd_tensor_row(x, top), *lower = irstd_tensor_row(x, top + 1);
        int16_t *to = (int16_t *)(void *)result;
        for (int c = 0; c < y->channels; c++, upper += x->stride, lower += x->stride, to += y->stride)
            (average ? average_pool2 : max_pool2)(upper, lower, y->width, to);
        return;
    }
    float *in = (float *)(void *)scratch, *rows = in + padded(x->width), *copy = rows + padded(columns);
    float *share = copy + padded(y->width);
    for (int64_t j = 0; j < columns; j++) rows[j] = average ? 0 : -INFINITY; /* what lies beyond the image */
    for (int64_t j = 0; j < y->width; j++) share[j] = 1.0f / (float)(kh * kw);
    for (int64_t j = 0; j < y->width && average && leaves; j++)
        share[j] = 1.0f / (float)(counted(top, kh, i[IRSTD_MAX_POOL_PAD_TOP], x->height, i[IRSTD_MAX_POOL_PAD_BOTTOM], padding) *
                                  counted(j * sw - left, kw, left, x->width, i[IRSTD_MAX_POOL_PAD_RIGHT], padding));
    for (int c = 0; c < y->channels; c++) {
        float *out = result_of(y, row, c, copy);
        for (int64_t r = first; r < last; r++) { /* down the columns first, where nothing is shuffled */
            const float *from = floats_of(x, r, c, x->width, in);
            if (r > first)
                join(from, 1, x->width, average, rows + left);
            else
                memcpy(rows + left, from, (size_t)x->width * sizeof *rows);
        }
        for (int64_t j = 0; j < y->width; j++) out[j] = rows[j * sw];
        for (int k = 1; k < kw; k++) {
            if (sw == 2)
                join(rows + k, 2, y->width, average, out);
            else
                join(rows + k, sw, y->width, average, out);
        }
        if (average)
            for (int64_t j = 0; j < y->width; j++) out[j] *= share[j];
        write_back(y, row, c, y->width, out);
    }
}

static inline float larger(float v, float than) { return v > than || v != v ? v : than; }

static double row_sum(const float *row, int64_t n) {
    vf lanes = all(0);
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) lanes += load(row + j);
    float part = 0;
    for (int k = 0; k < LANES; k++) part += lanes[k];
    for (; j < n; j++) part += row[j];
    return (double)part;
}

/* The larger of `peak` and a row's values; a NaN wins. */
static float row_peak(const float *row, int64_t n, float peak) {
    vf lanes = all(peak);
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        const vf v = load(row + j);
        lanes = blend((v > lanes) | (v != v), v, lanes);
    }
    for (int k = 0; k < LANES; k++) peak = larger(lanes[k], peak);
    for (; j < n; j++) peak = larger(row[j], peak);
    return peak;
}

static void global_pool(const irstd_node *n, char *scratch) {
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    const int average = n->op == IRSTD_OP_GLOBAL_AVERAGE_POOL;
    float *in = (float *)(void *)scratch;
    for (int c = 0; c < y->channels; c++) {
        double sum = 0;
        float peak = -INFINITY;
        for (int64_t r = 0; r < x->height; r++) {
            const float *from = floats_of(x, r, c, x->width, in);
            if (average)
                sum += row_sum(from, x->width);
            else
                peak = row_peak(from, x->width, peak);
        }
        const float result = average ? (float)(sum / ((double)x->height * (double)x->width)) : peak;
        write_plane(y, irstd_tensor_row(y, 0), c, 1, &result);
    }
}

static void channel_pool_row(const irstd_node *n, int64_t row, char *scratch) {
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    const int average = n->op == IRSTD_OP_CHANNEL_AVERAGE_POOL;
    float *in = (float *)(void *)scratch, *out = result_of(y, row, 0, in + padded(y->width));
    read_plane(x, irstd_tensor_row(x, row), 0, y->width, out);
    for (int c = 1; c < x->channels; c++) join(floats_of(x, row, c, y->width, in), 1, y->width, average, out);
    const float share = 1.0f / (float)x->channels;
    for (int64_t j = 0; j < y->width && average; j++) out[j] *= share;
    write_back(y, row, 0, y->width, out);
}

/* ---- resize ---- */

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
    const int mode = n->i[IRSTD_RESIZE_MODE];
    const int twice = mode == IRSTD_RESIZE_MODE_BILINEAR && irstd_resize_step(n, 1) == 0.5f; /* the columns */
    char *result = irstd_tensor_row(y, row);
    if (twice && irstd_resize_step(n, 0) == 0.5f && alike(x, y) && (!addend || alike(addend, y))) {
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
    float *other = copy + results, *split = other + results;
    const int32_t *place = n->columns->place;
    const float *part = n->columns->part;
    mixed += ROW_STEP; /* a column before the first */
    const int between = mode == IRSTD_RESIZE_MODE_BILINEAR_ALIGN_CORNERS && y->width == 2 * x->width && is_between(place, x->width);
    if (between) split_parts(part, x->width, split);
    const irstd_mix mix = irstd_resize_source(n, 0, row);
    const float fraction = mix.fraction;
    for (int c = 0; c < y->channels; c++) {
        const float *above = floats_of(x, mix.first, c, x->width, near), *below = floats_of(x, mix.second, c, x->width, far);
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
    const int one_channel = b->channels < y->channels;
    const char *from = irstd_tensor_row(a, row), *other = irstd_tensor_row(b, b->height == 1 ? 0 : row);
    char *result = irstd_tensor_row(y, row);
    const int product = n->op == IRSTD_OP_MULTIPLY, activation = product ? 0 : n->i[0];
    const float *slope = product ? NULL : n->constants[IRSTD_ADD_SLOPE];
    float *s = (float *)(void *)scratch, *t = s + padded(y->width), *copy = t + padded(y->width);
    for (int c = 0; c < y->channels; c++) {
        const int cb = one_channel ? 0 : c;
        if (!product && !activation && alike(a, y) && alike(b, y) && b->width == y->width) {
            int16_t *to = (int16_t *)(void *)result + c * y->stride;
            memcpy(to, (const int16_t *)(const void *)from + c * a->stride, (size_t)y->width * sizeof *to);
            add_saturating(to, (const int16_t *)(const void *)other + cb * b->stride, y->width);
            continue;
        }
        const float *first = floats_of(a, row, c, y->width, s), *second = floats_of(b, b->height == 1 ? 0 : row, cb, b->width, t);
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
    case IRSTD_OP_CHANNEL_AVERAGE_POOL:
    case IRSTD_OP_CHANNEL_MAX_POOL: channel_pool_row(n, row, scratch); break;
    default: global_pool(n, scratch); break;
    }
}

static size_t scratch_bytes(const irstd_node *n) {
    if (n->op == IRSTD_OP_AVERAGE_POOL || n->op == IRSTD_OP_MAX_POOL)
        return (size_t)(padded(n->inputs[0]->width) + padded(pool_columns(n)) + 2 * padded(n->output->width)) * sizeof(float);
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

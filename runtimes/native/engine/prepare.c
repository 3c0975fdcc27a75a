/* Which signs are wanted of which tensor, and the constants of convolutions in their kernels' forms. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "quant.h"

static irstd_status out_of_memory(irstd_error *error) { return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory"); }

static float rounded(float x) { return floorf(x + 0.5f); }
static float saturated(float q) { return q > -32768.0f ? (q < 32767.0f ? q : 32767.0f) : -32768.0f; }

/* Every step is a float32 operation, as in irstd_edge/nn/functional.py. */
float irstd_bconv_value(const irstd_bconv *c, int oc, int64_t acc, float r) {
    const irstd_bconv2d_attributes *a = &c->a;
    const int fixed = a->fraction_bits >= 0, rprelu = a->activation == IRSTD_ACTIVATION_RPRELU;
    const float step = fixed ? (float)(1 << a->fraction_bits) : 1;
    float v = (float)acc * c->scale[oc] * step; /* in this order: either product may overflow */
    if (fixed)
        v = saturated(saturated(rounded(v)) + rounded(c->bias[oc] * step));
    else
        v = v + c->bias[oc];
    for (int stage = 0; stage < 2; stage++) {
        if (stage == a->activation_first && a->residual != IRSTD_RESIDUAL_NONE) {
            if (!fixed) {
                v = a->residual == IRSTD_RESIDUAL_ADD ? v + r : r + r * tanhf(v);
            } else if (a->residual == IRSTD_RESIDUAL_ADD) {
                v = saturated(v + r);
            } else {
                float s = r / step;
                v = saturated(rounded((s + s * tanhf(v / step)) * step));
            }
        }
        if (stage != a->activation_first && rprelu) {
            float in = c->shift_in[oc], out = c->shift_out[oc];
            if (fixed) {
                v = saturated(v - rounded(in * step));
                if (v < 0) v = saturated(rounded(v * c->slope[oc]));
                v = saturated(v + rounded(out * step));
            } else {
                v = v - in;
                if (!(v >= 0)) v = v * c->slope[oc];
                v = v + out;
            }
        }
        if (stage != a->activation_first && a->activation == IRSTD_ACTIVATION_CLAMP) {
            float low = fixed ? saturated(rounded(a->clamp_min * step)) : a->clamp_min;
            float high = fixed ? saturated(rounded(a->clamp_max * step)) : a->clamp_max;
            v = low > v ? low : v; /* a NaN stays one */
            v = high < v ? high : v;
        }
    }
    return fixed ? v / step : v;
}

static void *own_aligned(struct irstd_session *s, uint64_t bytes) {
    char *memory = irstd_own(s, bytes + ROW_ALIGNMENT);
    return memory ? memory + (-(uintptr_t)memory & (ROW_ALIGNMENT - 1)) : NULL;
}

static int32_t twice(int16_t x) { return (int32_t)((uint32_t)(uint16_t)x * 0x10001u); }

/* A map of x that suits c: one that is there already, or a new one. */
static irstd_status request_map(struct irstd_session *s, const irstd_node *n, irstd_error *error) {
    irstd_bconv *c = n->bconv;
    irstd_tensor *x = n->inputs[0];
    const irstd_kernels *k = s->kernels;
    int64_t left = irstd_round_up(c->a.pad_left, ROW_STEP);
    int64_t right = irstd_round_up((int64_t)c->a.pad_right + c->a.dilation_w * (c->a.kernel_w - 1), ROW_STEP);
    int64_t stride = left + irstd_round_up(x->width, ROW_STEP) + right + ROW_STEP;
    for (int m = 0; m < x->map_count; m++) {
        irstd_map *map = &x->maps[m];
        if (map->quantizer || map->pad_value != c->a.pad_value || map->groups != c->a.groups ||
            memcmp(map->threshold, c->threshold, (size_t)x->channels * sizeof(float)))
            continue;
        int64_t rest = irstd_max(map->stride - map->left, stride - left); /* larger margins suit the others as well */
        map->left = irstd_max(map->left, left);
        map->stride = map->left + rest;
        c->source = map;
        return IRSTD_OK;
    }
    if (x->map_count == MAX_MAPS)
        return irstd_fail(error, IRSTD_UNSUPPORTED, "%s: its input %s is binarised in more than %d different ways",
                          n->name, x->name, MAX_MAPS);
    irstd_map *map = &x->maps[x->map_count++];
    map->threshold = c->threshold;
    map->pad_value = c->a.pad_value;
    map->groups = c->a.groups;
    map->group_channels = c->ic_group;
    map->group_planes = (c->ic_group + k->bit_channels - 1) / k->bit_channels;
    map->planes = map->groups * map->group_planes;
    map->left = left;
    map->stride = stride;
    c->source = map;
    if (x->type != IRSTD_TENSOR_TYPE_INT16) return IRSTD_OK;
    map->fixed_threshold = irstd_own(s, (size_t)x->channels * sizeof(int32_t));
    if (!map->fixed_threshold) return out_of_memory(error);
    for (int ch = 0; ch < x->channels; ch++) {
        double t = ceil((double)map->threshold[ch] * (double)(1 << x->fraction_bits));
        if (!(t <= INT16_MAX)) { /* never: no int16 says so */
            map->fixed_threshold = NULL;
            return IRSTD_OK;
        }
        map->fixed_threshold[ch] = twice((int16_t)(t < INT16_MIN ? INT16_MIN : t));
    }
    return IRSTD_OK;
}

void irstd_valid_rows(const irstd_node *n, int64_t row, int rows[2]) {
    const irstd_bconv2d_attributes *a = &n->bconv->a;
    int64_t top = row * a->stride_h - a->pad_top, height = n->inputs[0]->height;
    rows[0] = 0;
    rows[1] = a->kernel_h;
    if (a->pad_value) return;
    while (rows[0] < rows[1] && top + (int64_t)rows[0] * a->dilation_h < 0) rows[0]++;
    while (rows[1] > rows[0] && top + (int64_t)(rows[1] - 1) * a->dilation_h >= height) rows[1]--;
}

int irstd_emits_map(const irstd_node *n) {
    const irstd_tensor *y = n->output;
    return n->bconv && y->map_count == 1 && !y->maps[0].quantizer &&
           (n->bconv->sign_sum || (n->bconv->fast && y->maps[0].fixed_threshold));
}

void irstd_pad_columns(const struct irstd_session *s, const irstd_map *map, char *row, int64_t first, int64_t last) {
    const irstd_kernels *k = s->kernels;
    for (int p = 0; map->quantizer && p < map->planes; p++)
        for (int64_t j = first; j < last; j++) ((uint32_t *)(void *)row)[p * map->stride + j] = map->quantizer->zero_word;
    for (int p = 0; !map->quantizer && p < map->planes; p++) {
        int channels = (int)irstd_min(k->bit_channels, map->group_channels - p % map->group_planes * k->bit_channels);
        int element = map->pad_value > 0 ? (1 << channels) - 1 : map->pad_value || k->zero_element < 0 ? 0 : k->zero_element;
        char *plane = row + (int64_t)p * map->stride * k->bit_bytes;
        for (int64_t j = first; j < last; j++)
            if (k->bit_bytes == 1)
                plane[j] = (char)element;
            else
                ((uint16_t *)(void *)plane)[j] = (uint16_t)element;
    }
}

/* The sums of the weights of each kernel column over some kernel rows: [OC][KW]. */
static void sum_columns(const irstd_bconv *c, const int rows[2], int32_t *sums) {
    const int kh_count = c->a.kernel_h, kw_count = c->a.kernel_w;
    for (int oc = 0; oc < c->a.out_channels; oc++)
        for (int kw = 0; kw < kw_count; kw++) {
            int32_t ones = 0;
            for (int kh = rows[0]; kh < rows[1]; kh++) {
                const uint32_t *words = c->words + ((size_t)(oc * kh_count + kh) * (size_t)kw_count + (size_t)kw) *
                                                       (size_t)c->words_per_tap;
                for (int w = 0; w < c->words_per_tap; w++) ones += __builtin_popcount(words[w]);
            }
            const int32_t sum = 2 * ones - (rows[1] - rows[0]) * c->ic_group;
            sums[oc * kw_count + kw] = c->negated && c->negated[oc] ? -sum : sum;
        }
}

/* The sets of kernel rows inside the image. */
static irstd_status find_classes(struct irstd_session *s, const irstd_node *n, irstd_error *error) {
    irstd_bconv *c = n->bconv;
    const irstd_bconv2d_attributes *a = &c->a;
    c->class_rows = irstd_own(s, (size_t)((a->kernel_h + 1) * (a->kernel_h + 2) / 2) * sizeof *c->class_rows);
    if (!c->class_rows) return out_of_memory(error);
    for (int64_t row = 0; row < n->output->height; row++) {
        int rows[2], k = 0;
        irstd_valid_rows(n, row, rows);
        while (k < c->classes && memcmp(c->class_rows[k], rows, sizeof rows)) k++;
        if (k == c->classes) memcpy(c->class_rows[c->classes++], rows, sizeof rows);
    }
    return IRSTD_OK;
}

/* The kernel columns outside the image, as bits, for a block of columns of the output. */
static void find_outside(const irstd_node *n, int64_t first, int block, uint32_t *outside) {
    const irstd_bconv2d_attributes *a = &n->bconv->a;
    for (int j = 0; j < block; j++) {
        int64_t column = (first + j) * a->stride_w - a->pad_left;
        outside[j] = 0;
        for (int kw = 0; kw < a->kernel_w; kw++, column += a->dilation_w)
            outside[j] |= (uint32_t)(column < 0 || column >= n->inputs[0]->width) << kw;
    }
}

/* The starts of a class of rows; `inside`, `whole`: the sums of weights over its rows and over all. */
static irstd_status find_class_starts(struct irstd_session *s, const irstd_node *n, int row_class, const int32_t *inside,
                                      const int32_t *whole, irstd_error *error) {
    irstd_bconv *c = n->bconv;
    const int *rows = c->class_rows[row_class], block = s->kernels->block, kw_count = c->a.kernel_w;
    const int summed = c->merge > 1 ? c->a.kernel_h : rows[1] - rows[0], rows_outside = summed > rows[1] - rows[0];
    const int16_t all = (int16_t)(-summed * kw_count * c->ic_group / c->unit);
    const size_t channels = (size_t)irstd_round_up(c->a.out_channels, 16) + 8; /* the last tile reaches behind them */
    static const uint32_t nothing[ROW_STEP];
    uint32_t outside[ROW_STEP], previous[ROW_STEP];
    int16_t *plain = own_aligned(s, (size_t)block * sizeof *plain);
    if (!plain) return out_of_memory(error);
    for (int j = 0; j < block; j++) plain[j] = all;
    irstd_start *start = c->starts + row_class * c->blocks;
    for (int64_t b = 0; b < c->blocks; b++, start++) {
        *start = (irstd_start){plain, 0};
        if (c->a.pad_value) continue;
        find_outside(n, b * block, block, outside);
        const size_t bytes = (size_t)block * sizeof *outside;
        if (!rows_outside && !memcmp(outside, nothing, bytes)) continue;
        if (b && start[-1].step && !memcmp(outside, previous, bytes)) { /* in the middle, and far outside */
            *start = start[-1];
            continue;
        }
        memcpy(previous, outside, bytes);
        int16_t *values = own_aligned(s, channels * (size_t)block * sizeof *values);
        if (!values) return out_of_memory(error);
        *start = (irstd_start){values, block};
        for (int oc = 0; oc < c->a.out_channels; oc++, values += block, inside += kw_count, whole += kw_count) {
            int32_t beyond = 0; /* of the rows outside */
            for (int kw = 0; rows_outside && kw < kw_count; kw++) beyond += whole[kw] - inside[kw];
            for (int j = 0; j < block; j++) {
                int32_t lack = beyond;
                for (uint32_t left = outside[j]; left; left &= left - 1) lack += inside[__builtin_ctz(left)];
                values[j] = j && outside[j] == outside[j - 1] ? values[j - 1] : (int16_t)(all + lack / c->unit);
            }
        }
        inside -= c->a.out_channels * kw_count;
        whole -= c->a.out_channels * kw_count;
    }
    return IRSTD_OK;
}

/* What a row of sums starts from. Padding of exact zeros is counted as -1, and its weights are given back here: columns
 * outside the image, and rows outside it where words of merged taps reach over them (others are left out). */
static irstd_status find_starts(struct irstd_session *s, const irstd_node *n, irstd_error *error) {
    irstd_bconv *c = n->bconv;
    const int block = s->kernels->block, all[2] = {0, c->a.kernel_h};
    c->blocks = (n->output->width + block - 1) / block;
    c->starts = irstd_own(s, (size_t)(c->classes * c->blocks) * sizeof *c->starts);
    const size_t count = (size_t)c->a.out_channels * (size_t)c->a.kernel_w;
    int32_t *inside = malloc(2 * count * sizeof *inside), *whole = inside + count;
    irstd_status status = c->starts && inside ? IRSTD_OK : out_of_memory(error);
    if (!status) sum_columns(c, all, whole);
    for (int k = 0; k < c->classes && !status; k++) {
        sum_columns(c, c->class_rows[k], inside);
        status = find_class_starts(s, n, k, inside, whole, error);
    }
    free(inside);
    return status;
}

/* Where only the signs of the result are wanted, one threshold on the sum decides: any epilogue without a residual
 * that rises or falls with the sum folds into it. */
static irstd_status fold_signs(struct irstd_session *s, const irstd_node *n, int64_t most, irstd_error *error) {
    irstd_bconv *c = n->bconv;
    const irstd_tensor *y = n->output;
    if (y->stored || y->map_count != 1 || y->maps[0].quantizer || c->a.residual != IRSTD_RESIDUAL_NONE || c->wide) return IRSTD_OK;
    size_t oc_padded = (size_t)irstd_round_up(c->a.out_channels, 16);
    int32_t *thresholds = irstd_own(s, oc_padded * sizeof *thresholds);
    uint8_t *negated = irstd_own(s, oc_padded);
    if (!thresholds || !negated) return out_of_memory(error);
    for (int oc = 0; oc < c->a.out_channels; oc++) {
        int64_t changes = 0, at = 0;
        int first = irstd_bconv_value(c, oc, -most * c->unit, 0) >= y->maps[0].threshold[oc], previous = first;
        for (int64_t sum = 1 - most; sum <= most; sum++) {
            int bit = irstd_bconv_value(c, oc, sum * c->unit, 0) >= y->maps[0].threshold[oc];
            if (bit != previous) {
                changes++;
                at = sum;
            }
            previous = bit;
        }
        if (changes > 1 || most + 1 > INT16_MAX) return IRSTD_OK;
        if (!changes) {
            thresholds[oc] = twice((int16_t)(first ? -most : most + 1));
        } else {
            negated[oc] = (uint8_t)first;
            thresholds[oc] = twice((int16_t)(first ? 1 - at : at)); /* bit where sum < at, so where -sum >= 1 - at */
        }
    }
    c->sign_sum = thresholds;
    c->negated = negated;
    return IRSTD_OK;
}

/* An odd factor, so that x = odd * 2^n. */
static int64_t odd_part(int64_t x) {
    x = x < 0 ? -x : x;
    while (x && x % 2 == 0) x /= 2;
    return x;
}

/* Whether the int16 epilogue equals the float32 steps for every possible sum, and its constants. */
static irstd_status fold_fixed(struct irstd_session *s, const irstd_node *n, int64_t most, irstd_error *error) {
    irstd_bconv *c = n->bconv;
    const irstd_bconv2d_attributes *a = &c->a;
    const int rprelu = a->activation == IRSTD_ACTIVATION_RPRELU;
    if (n->output->type != IRSTD_TENSOR_TYPE_INT16 || c->wide || a->activation == IRSTD_ACTIVATION_CLAMP ||
        a->residual == IRSTD_RESIDUAL_MODULATE || (a->residual && !a->activation_first && rprelu))
        return IRSTD_OK;
    if (a->residual) {
        const irstd_tensor *r = n->inputs[1];
        c->average = (int)irstd_max(1, r->channels / a->out_channels);
        if (r->type != IRSTD_TENSOR_TYPE_INT16 || r->fraction_bits != a->fraction_bits || c->average > 2) return IRSTD_OK;
    }
    irstd_finish *constants = irstd_own(s, (size_t)a->out_channels * sizeof *constants);
    if (!constants) return out_of_memory(error);
    int shift = 15;
    while (shift && most << shift > INT16_MAX) shift--;
    const double step = (double)(1 << a->fraction_bits);
    for (; shift >= 0; shift--) { /* the multiplier must be an integer; a smaller shift makes it a larger one */
        int whole = 1;
        for (int oc = 0; oc < a->out_channels && whole; oc++) {
            double m = ldexp((double)c->scale[oc] * step * c->unit, 15 - shift);
            whole = m == floor(m);
        }
        if (whole) break;
    }
    if (shift < 0) return IRSTD_OK;
    for (int oc = 0; oc < a->out_channels; oc++) {
        double m = ldexp((double)c->scale[oc] * step * c->unit, 15 - shift);
        if (!(fabs(m) <= INT16_MAX) || most * odd_part((int64_t)fabs(m)) >= 1 << 23) return IRSTD_OK;
        double offset = floor((double)c->bias[oc] * step + 0.5), largest = ldexp((double)most * fabs(m), shift - 15) + 1;
        double shifted = offset, slope = 0, out = 0;
        if (rprelu) {
            double in = floor((double)c->shift_in[oc] * step + 0.5);
            shifted -= in;
            out = floor((double)c->shift_out[oc] * step + 0.5);
            slope = (double)c->slope[oc] * 32768;
            if (!(fabs(slope) <= INT16_MAX) || slope != floor(slope) || odd_part((int64_t)fabs(slope)) > 255 ||
                !(fabs(out) <= INT16_MAX) || !(fabs(in) <= INT16_MAX))
                return IRSTD_OK;
        }
        /* No step before the last ones may saturate: they are merged. */
        if (!(largest + fabs(offset) <= INT16_MAX) || !(largest + fabs(shifted) <= INT16_MAX)) return IRSTD_OK;
        constants[oc] = (irstd_finish){twice((int16_t)m), twice((int16_t)shifted), twice((int16_t)slope), twice((int16_t)out)};
    }
    c->fast = 1;
    c->shift = shift;
    c->finish = constants;
    c->rprelu = rprelu;
    return IRSTD_OK;
}

/* What the float32 steps add, and their bounds. */
static irstd_status round_constants(struct irstd_session *s, irstd_bconv *c, irstd_error *error) {
    const int count = c->a.out_channels, fixed = c->a.fraction_bits >= 0;
    const float step = fixed ? (float)(1 << c->a.fraction_bits) : 1;
    float *memory = irstd_own(s, 3 * (size_t)count * sizeof *memory);
    if (!memory) return out_of_memory(error);
    const float *const from[3] = {c->bias, c->shift_in, c->shift_out};
    float **const to[3] = {&c->offset, &c->before, &c->after};
    for (int k = 0; k < 3; k++) {
        *to[k] = memory + k * count;
        for (int oc = 0; from[k] && oc < count; oc++) (*to[k])[oc] = fixed ? rounded(from[k][oc] * step) : from[k][oc];
    }
    const int clamped = c->a.activation == IRSTD_ACTIVATION_CLAMP;
    c->low = clamped ? c->a.clamp_min : -INFINITY;
    c->high = clamped ? c->a.clamp_max : INFINITY;
    if (fixed) {
        c->low = saturated(rounded(c->low * step));
        c->high = saturated(rounded(c->high * step));
    }
    return IRSTD_OK;
}

static irstd_status prepare_bconv(struct irstd_session *s, irstd_node *n, irstd_error *error) {
    irstd_bconv *c = n->bconv;
    const irstd_kernels *k = s->kernels;
    int64_t taps = (int64_t)c->a.kernel_h * c->a.kernel_w, most = taps * c->ic_group;
    c->unit = c->ic_group % 2 ? 1 : 2;
    most /= c->unit;
    c->wide = most > INT16_MAX || !k->sums;
    const int tail = c->ic_group % k->bit_channels;
    c->merge = k->block && tail ? (int)irstd_min(k->bit_channels / tail, taps) : 1;
    irstd_status status = round_constants(s, c, error);
    if (!status) status = fold_signs(s, n, most, error);
    if (!status) status = fold_fixed(s, n, most, error);
    if (!status) status = find_classes(s, n, error);
    if (!status && k->block && !c->wide) status = find_starts(s, n, error);
    if (status || c->wide) {
        snprintf(n->kernel, sizeof n->kernel, "bconv2d_popcount__ref");
        return status;
    }
    c->packed = own_aligned(s, k->packed_bytes(c));
    if (!c->packed) return out_of_memory(error);
    k->pack(c, c->packed);
    const char *form = c->sign_sum ? "signs" : c->fast ? "int16" : "float";
    snprintf(n->kernel, sizeof n->kernel, "%s_%s__%s", k->name, form, k->isa);
    return IRSTD_OK;
}

/* The largest magnitude of an int16 tensor: that of its FixedPoint, or of int16. */
static int64_t largest_value(const struct irstd_session *s, const irstd_tensor *t) {
    for (int k = 0; k < s->node_count; k++)
        if (s->nodes[k].output == t && s->nodes[k].op == IRSTD_OP_FIXED_POINT)
            return (int64_t)1 << (s->nodes[k].i[IRSTD_FIXED_POINT_BITS] - 1);
    return 32768;
}

/* Integers instead of float32 where both give the same bits: weights and bias on a grid, every sum below 2^24. */
static irstd_status fold_fixed_conv(struct irstd_session *s, irstd_node *n, irstd_error *error) {
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    const int32_t *i = n->i;
    if (x->type != IRSTD_TENSOR_TYPE_INT16 || y->type != IRSTD_TENSOR_TYPE_INT16 || i[IRSTD_CONV2D_GROUPS] != 1 ||
        i[IRSTD_CONV2D_STRIDE_W] != 1 || i[IRSTD_CONV2D_ACTIVATION] != IRSTD_FLOAT_ACTIVATION_NONE)
        return IRSTD_OK;
    const float *weight = n->constants[IRSTD_CONV2D_WEIGHT], *bias = n->constants[IRSTD_CONV2D_BIAS];
    const int taps = i[IRSTD_CONV2D_IN_CHANNELS] * i[IRSTD_CONV2D_KERNEL_H] * i[IRSTD_CONV2D_KERNEL_W];
    const int pairs = (taps + 1) / 2, oc_count = y->channels;
    int bits = 0; /* of the weights' grid */
    for (int t = 0; t < oc_count * taps; t++)
        while (bits <= 15 && ldexp((double)weight[t], bits) != floor(ldexp((double)weight[t], bits))) bits++;
    const int shift = x->fraction_bits + bits - y->fraction_bits;
    if (bits > 15 || shift < 1) return IRSTD_OK;
    irstd_fixed_conv *f = irstd_own(s, sizeof *f);
    int32_t *weights = irstd_own(s, (size_t)irstd_round_up(oc_count, 4) * (size_t)pairs * sizeof *weights);
    int32_t *biases = irstd_own(s, (size_t)irstd_round_up(oc_count, 4) * sizeof *biases);
    if (!f || !weights || !biases) return out_of_memory(error);
    const int64_t largest = largest_value(s, x);
    double most = 0, heaviest = 0; /* of all sums and weights */
    for (int oc = 0; oc < oc_count; oc++) {
        double b = bias ? ldexp((double)bias[oc], x->fraction_bits + bits) : 0, sum = fabs(b);
        for (int t = 0; t < taps; t++) {
            double w = fabs(ldexp((double)weight[oc * taps + t], bits));
            sum += w * (double)largest;
            heaviest = fmax(heaviest, w);
        }
        if (b != floor(b)) return IRSTD_OK;
        most = fmax(most, sum);
    }
    if (!(heaviest <= INT16_MAX) || !(most < 1 << 24)) return IRSTD_OK;
    int heavier = 0, raised = 0; /* a shift of 16 takes the upper half, which cannot saturate */
    while (shift + heavier < 16 && ldexp(heaviest, heavier + 1) <= INT16_MAX) heavier++;
    while (shift + heavier + raised < 16 && largest << (raised + 1) <= INT16_MAX) raised++;
    if (shift + heavier + raised != 16 || ldexp(most + ldexp(1, shift), heavier + raised) > INT32_MAX)
        heavier = raised = 0;
    const int up = heavier + raised;
    for (int oc = 0; oc < oc_count; oc++) {
        for (int t = 0; t < taps; t++) {
            int16_t w = (int16_t)ldexp((double)weight[oc * taps + t], bits + heavier);
            weights[(oc / 4 * pairs + t / 2) * 4 + oc % 4] |= (int32_t)((uint32_t)(uint16_t)w << t % 2 * 16);
        }
        const double b = bias ? ldexp((double)bias[oc], x->fraction_bits + bits + up) : 0;
        biases[oc] = (int32_t)b + (1 << (shift + up - 1));
    }
    *f = (irstd_fixed_conv){taps, weights, biases, shift + up, raised};
    n->fixed_conv = f;
    return IRSTD_OK;
}

/* What a float convolution reads beyond the image is there as zeros, where its input can have margins. */
static void reserve_margins(const irstd_node *n) {
    const int32_t *i = n->i;
    const int64_t reach = (int64_t)i[IRSTD_CONV2D_DILATION_W] * (i[IRSTD_CONV2D_KERNEL_W] - 1);
    const int64_t pad = i[IRSTD_CONV2D_PAD_LEFT], step = i[IRSTD_CONV2D_STRIDE_W];
    int64_t width = n->output->width, before = pad, behind = reach - pad; /* of the column below or above */
    if (n->op == IRSTD_OP_CONV_TRANSPOSE2D) {
        width = (width + step - 1) / step;
        before = (irstd_max(0, reach - pad) + step - 1) / step;
        behind = (step - 1 + pad) / step;
    } else if (step > 1) {
        return; /* copied */
    }
    if (!before && width + behind <= n->inputs[0]->width) return;
    for (int k = 0; k < irstd_sources(n); k++) {
        irstd_tensor *x = n->inputs[k];
        if (x->type != IRSTD_TENSOR_TYPE_FLOAT32 || x->external) continue;
        x->left = irstd_max(x->left, irstd_round_up(before, ROW_ALIGNMENT / 4));
        x->extent = irstd_max(x->extent, irstd_round_up(width, ROW_STEP) +
                                             irstd_round_up(irstd_max(reach, behind), ROW_ALIGNMENT / 4));
    }
}

static irstd_status prepare_conv(struct irstd_session *s, irstd_node *n, irstd_error *error) {
    n->form = s->kernels->rows->conv_form(n);
    snprintf(n->kernel, sizeof n->kernel, "%s_%s__%s", irstd_operator_name(n->op), n->form->name, s->kernels->isa);
    if (!n->form->pack) return IRSTD_OK;
    n->packed = irstd_own(s, n->form->packed_bytes(n) + ROW_ALIGNMENT);
    if (!n->packed) return out_of_memory(error);
    n->packed = (float *)(void *)((char *)n->packed + (-(uintptr_t)n->packed & (ROW_ALIGNMENT - 1)));
    n->form->pack(n, n->packed);
    return IRSTD_OK;
}

static irstd_status prepare_resize(struct irstd_session *s, irstd_node *n, irstd_error *error) {
    irstd_columns *c = n->columns = irstd_own(s, sizeof *c);
    const size_t width = (size_t)n->output->width;
    if (!c || !(c->place = irstd_own(s, width * sizeof *c->place)) || !(c->part = irstd_own(s, width * sizeof *c->part)))
        return out_of_memory(error);
    for (int64_t j = 0; j < n->output->width; j++) {
        const irstd_mix mix = irstd_resize_source(n, 1, j);
        c->place[j] = (int32_t)mix.first;
        c->part[j] = mix.fraction;
    }
    return IRSTD_OK;
}

static int is_conv(const irstd_node *n) { return n->op == IRSTD_OP_CONV2D || n->op == IRSTD_OP_CONV_TRANSPOSE2D; }

irstd_status irstd_prepare(struct irstd_session *s, irstd_error *error) {
    for (int k = 0; k < s->output_count; k++) {
        irstd_tensor *t = &s->tensors[s->outputs[k]];
        if (t->external) return irstd_fail(error, IRSTD_INVALID, "output %s is an input, or named twice", t->name);
        t->external = -1 - k;
        t->stored = 1;
    }
    for (int k = 0; k < s->node_count; k++) {
        irstd_node *n = &s->nodes[k];
        if (n->qconv) {
            irstd_status status = irstd_quant_prepare(s, n, error);
            if (status) return status;
        } else if (n->op == IRSTD_OP_BINARY_CONV2D) {
            irstd_status status = request_map(s, n, error);
            if (status) return status;
        } else {
            snprintf(n->kernel, sizeof n->kernel, "%s__%s", irstd_operator_name(n->op), s->kernels->isa);
            irstd_status status = n->op == IRSTD_OP_CONV2D ? fold_fixed_conv(s, n, error) : IRSTD_OK;
            if (status) return status;
        }
    }
    for (int k = s->node_count; k-- > 0;) { /* readers first */
        irstd_node *n = &s->nodes[k];
        irstd_quant_find_pool(s, n);
        for (int j = 0; j < n->input_count; j++)
            if (!irstd_reads_map(n, j)) n->inputs[j]->stored = 1;
    }
    irstd_status folded = irstd_fold(s, error);
    if (folded) return folded;
    for (int k = 0; k < s->node_count; k++) {
        irstd_node *n = &s->nodes[k];
        if (n->folded_into) snprintf(n->kernel, sizeof n->kernel, "folded");
        else if (is_conv(n)) reserve_margins(n);
    }
    for (int k = 0; k < s->node_count; k++) {
        irstd_node *n = &s->nodes[k];
        if (n->folded_into) continue;
        irstd_status status = n->bconv                  ? prepare_bconv(s, n, error)
                            : is_conv(n)                ? prepare_conv(s, n, error)
                            : n->op == IRSTD_OP_RESIZE ? prepare_resize(s, n, error)
                                                        : IRSTD_OK;
        if (status) return status;
        /* What reads its map takes it from its values. */
        if (!irstd_quant_emits(n) && !irstd_emits_map(n)) n->output->stored = 1;
    }
    return IRSTD_OK;
}

/* Which signs are wanted of which tensor, and the constants of binary convolutions in their kernels' forms. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

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
        if (map->pad_value != c->a.pad_value || map->groups != c->a.groups ||
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

int irstd_emits_map(const struct irstd_session *s, const irstd_node *n) {
    const irstd_tensor *y = n->output;
    return n->bconv && y->map_count == 1 && (n->bconv->sign_sum || (n->bconv->fast && s->kernels->finish &&
                                                                    y->maps[0].fixed_threshold));
}

void irstd_pad_columns(const struct irstd_session *s, const irstd_map *map, char *row, int64_t first, int64_t last) {
    const irstd_kernels *k = s->kernels;
    for (int p = 0; p < map->planes; p++) {
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

/* The sets of kernel rows inside the image, and what the columns at the edges lack. */
static irstd_status find_edges(struct irstd_session *s, const irstd_node *n, irstd_error *error) {
    irstd_bconv *c = n->bconv;
    const irstd_bconv2d_attributes *a = &c->a;
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    c->class_rows = irstd_own(s, (size_t)((a->kernel_h + 1) * (a->kernel_h + 2) / 2) * sizeof *c->class_rows);
    if (!c->class_rows) return out_of_memory(error);
    for (int64_t row = 0; row < y->height; row++) {
        int rows[2], k = 0;
        irstd_valid_rows(n, row, rows);
        while (k < c->classes && memcmp(c->class_rows[k], rows, sizeof rows)) k++;
        if (k == c->classes) memcpy(c->class_rows[c->classes++], rows, sizeof rows);
    }
    if (a->pad_value || s->kernels->zero_element >= 0) return IRSTD_OK;
    c->edge_column = irstd_own(s, (size_t)y->width * sizeof *c->edge_column);
    if (!c->edge_column) return out_of_memory(error);
    for (int64_t j = 0; j < y->width; j++) {
        int64_t first = j * a->stride_w - a->pad_left, last = first + (int64_t)a->dilation_w * (a->kernel_w - 1);
        if (first < 0 || last >= x->width) c->edge_column[c->edges++] = j;
    }
    const size_t oc_padded = (size_t)irstd_round_up(a->out_channels, 16), edges = (size_t)c->edges;
    int32_t *column_sums = malloc((size_t)a->out_channels * (size_t)a->kernel_w * sizeof *column_sums);
    /* Kernels read whole tiles, which reach behind the last channel of the last group. */
    c->edge_sum = irstd_own(s, ((size_t)c->classes * edges * oc_padded + 16) * sizeof(int16_t));
    if (!c->edge_sum || !column_sums) {
        free(column_sums);
        return out_of_memory(error);
    }
    for (int k = 0; k < c->classes; k++) {
        sum_columns(c, c->class_rows[k], column_sums);
        uint32_t previous = 0; /* the kernel columns outside: whole runs of columns have the same */
        for (size_t e = 0; e < edges; e++) {
            int16_t *sums = c->edge_sum + ((size_t)k * edges + e) * oc_padded;
            uint32_t outside = 0;
            for (int kw = 0; kw < a->kernel_w; kw++) {
                int64_t column = c->edge_column[e] * a->stride_w - a->pad_left + (int64_t)kw * a->dilation_w;
                if (column < 0 || column >= x->width) outside |= 1u << kw;
            }
            if (e && outside == previous) {
                memcpy(sums, sums - oc_padded, oc_padded * sizeof *sums);
                continue;
            }
            previous = outside;
            for (int oc = 0; oc < a->out_channels; oc++) {
                int32_t lack = 0; /* the padding was summed as -1 */
                for (int kw = 0; kw < a->kernel_w; kw++)
                    if (outside >> kw & 1) lack += column_sums[oc * a->kernel_w + kw];
                sums[oc] = (int16_t)(lack / c->unit);
            }
        }
    }
    free(column_sums);
    return IRSTD_OK;
}

/* Where only the signs of the result are wanted, one threshold on the sum decides: any epilogue without a residual
 * that rises or falls with the sum folds into it. */
static irstd_status fold_signs(struct irstd_session *s, const irstd_node *n, int64_t most, irstd_error *error) {
    irstd_bconv *c = n->bconv;
    const irstd_tensor *y = n->output;
    if (y->stored || y->map_count != 1 || c->a.residual != IRSTD_RESIDUAL_NONE || c->wide) return IRSTD_OK;
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
        if (!(fabs(m) <= INT16_MAX) || most * odd_part((int64_t)m) >= 1 << 23) return IRSTD_OK;
        double offset = floor((double)c->bias[oc] * step + 0.5), largest = ldexp((double)most * fabs(m), shift - 15) + 1;
        double shifted = offset, slope = 0, out = 0;
        if (rprelu) {
            double in = floor((double)c->shift_in[oc] * step + 0.5);
            shifted -= in;
            out = floor((double)c->shift_out[oc] * step + 0.5);
            slope = (double)c->slope[oc] * 32768;
            if (!(slope >= 0 && slope <= INT16_MAX) || slope != floor(slope) || odd_part((int64_t)slope) > 255 ||
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
    irstd_status status = round_constants(s, c, error);
    if (!status) status = fold_signs(s, n, most, error);
    if (!status) status = fold_fixed(s, n, most, error);
    if (!status) status = find_edges(s, n, error);
    if (status || c->wide) {
        snprintf(n->kernel, sizeof n->kernel, "bconv2d_popcount__ref");
        return status;
    }
    c->packed = irstd_own(s, k->packed_bytes(c) + ROW_ALIGNMENT);
    if (!c->packed) return out_of_memory(error);
    c->packed = (char *)c->packed + (-(uintptr_t)c->packed & (ROW_ALIGNMENT - 1));
    k->pack(c, c->packed);
    const char *form = c->sign_sum ? "signs" : c->fast && k->finish ? "int16" : "float";
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
    for (int oc = 0; oc < oc_count; oc++) {
        double b = bias ? ldexp((double)bias[oc], x->fraction_bits + bits) : 0, sum = fabs(b);
        for (int t = 0; t < taps; t++) {
            double w = ldexp((double)weight[oc * taps + t], bits);
            sum += fabs(w) * (double)largest;
            if (!(fabs(w) <= INT16_MAX)) return IRSTD_OK;
            weights[(oc / 4 * pairs + t / 2) * 4 + oc % 4] |= (int32_t)((uint32_t)(uint16_t)(int16_t)w << t % 2 * 16);
        }
        if (b != floor(b) || !(sum < 1 << 24)) return IRSTD_OK;
        biases[oc] = (int32_t)b + (1 << (shift - 1));
    }
    *f = (irstd_fixed_conv){taps, weights, biases, shift};
    n->fixed_conv = f;
    snprintf(n->kernel, sizeof n->kernel, "Conv2d_int16__%s", s->kernels->isa);
    return IRSTD_OK;
}

irstd_status irstd_prepare(struct irstd_session *s, irstd_error *error) {
    for (int k = 0; k < s->output_count; k++) {
        irstd_tensor *t = &s->tensors[s->outputs[k]];
        if (t->external) return irstd_fail(error, IRSTD_INVALID, "output %s is an input, or named twice", t->name);
        t->external = -1 - k;
        t->stored = 1;
    }
    for (int k = 0; k < s->node_count; k++) {
        irstd_node *n = &s->nodes[k];
        for (int j = n->op == IRSTD_OP_BINARY_CONV2D; j < n->input_count; j++) n->inputs[j]->stored = 1;
        if (n->op == IRSTD_OP_BINARY_CONV2D) {
            irstd_status status = request_map(s, n, error);
            if (status) return status;
        } else {
            snprintf(n->kernel, sizeof n->kernel, "%s__%s", irstd_operator_name(n->op), s->kernels->isa);
            irstd_status status = n->op == IRSTD_OP_CONV2D ? fold_fixed_conv(s, n, error) : IRSTD_OK;
            if (status) return status;
        }
    }
    for (int k = 0; k < s->node_count; k++) {
        irstd_node *n = &s->nodes[k];
        irstd_status status = n->bconv ? prepare_bconv(s, n, error) : IRSTD_OK;
        if (status) return status;
        if (!irstd_emits_map(s, n)) n->output->stored = 1; /* its signs are taken from its values */
    }
    return IRSTD_OK;
}

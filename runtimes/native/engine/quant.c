/* Quantised convolutions: the file's node, the maps that it reads, its weights in the kernels' form, its rows. */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant.h"

#define FAIL(...) return irstd_fail(error, IRSTD_INVALID, __VA_ARGS__)

/* ---- the file ---- */

/* The lowest and the highest of `bits` bits; one signed bit is -1 and +1. */
static void integer_range(int bits, int is_signed, int *low, int *high) {
    *low = !is_signed ? 0 : bits == 1 ? -1 : -(1 << (bits - 1));
    *high = !is_signed ? (1 << bits) - 1 : bits == 1 ? 1 : (1 << (bits - 1)) - 1;
}

static int64_t macs_per_output(const irstd_quant_conv2d_attributes *a) {
    return (int64_t)a->kernel_h * a->kernel_w * (a->in_channels / a->groups);
}

irstd_status irstd_quant_load(struct irstd_session *s, irstd_node *n, irstd_error *error) {
    irstd_qconv *c = n->qconv = irstd_own(s, sizeof *c);
    if (!c) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory");
    const int32_t *integers = n->i;
    const float *reals = n->f;
    /* The file's slots are the attributes of the operator in the specification's order, integers and floats apart. */
#define TAKE(type, attribute, mandatory, default_value, minimum, maximum)                                       \
    c->a.attribute = _Generic((type)0, int32_t: *integers, float: *reals);                                       \
    _Generic((type)0, int32_t: integers++, float: reals++);                                                      \
    if (!(c->a.attribute >= (minimum) && c->a.attribute <= (maximum))) FAIL("%s: %s is out of range", n->name, #attribute);
    IRSTD_QUANT_CONV2D_ATTRIBUTES(TAKE)
#undef TAKE
    const irstd_quant_conv2d_attributes *a = &c->a;
    const irstd_tensor *x = n->inputs[0];
    irstd_tensor *y = n->output;
    int channels = 0, low, high, lowest, highest;
    for (int k = 0; k < n->input_count; k++) {
        if (n->inputs[k]->height != x->height || n->inputs[k]->width != x->width) FAIL("%s: its inputs differ in size", n->name);
        channels += n->inputs[k]->channels;
    }
    if (a->in_channels != channels || a->out_channels != y->channels || a->in_channels % a->groups || a->out_channels % a->groups)
        FAIL("%s: %d to %d channels in %d groups do not go with its inputs' %d and output's %d", n->name, a->in_channels,
             a->out_channels, a->groups, channels, y->channels);
    if (a->groups > 1 && n->input_count > 1) FAIL("%s: %d groups do not go with %d inputs", n->name, a->groups, n->input_count);
    if (y->type != IRSTD_TENSOR_TYPE_FLOAT32) FAIL("%s: its output must be float32", n->name);
    if (a->clamp_min > a->clamp_max) FAIL("%s: clamp_min exceeds clamp_max", n->name);
    if (a->activation_signed && a->activation_bits < 2) FAIL("%s: signed activations have 2 bits or more", n->name);
    integer_range(a->activation_bits, a->activation_signed, &low, &high);
    integer_range(a->weight_bits, 1, &lowest, &highest);
    if (a->zero_point < low || a->zero_point > high)
        FAIL("%s: zero_point must be in %d..%d, got %d", n->name, low, high, a->zero_point);
    const int64_t macs = macs_per_output(a);
    if (macs * -lowest * irstd_max(high - a->zero_point, a->zero_point - low) > INT32_MAX)
        FAIL("%s: sums of %lld products can exceed 32 bits", n->name, (long long)macs);
    const size_t row = (size_t)(macs * a->weight_bits + 7) / 8, oc = (size_t)a->out_channels;
    const struct {
        const char *name;
        size_t bytes;
    } constants[] = {{"weight", oc * row}, {"scale", oc * 4}, {"bias", oc * 4}};
    for (int k = 0; k < 3; k++)
        if (n->constant_bytes[k] != constants[k].bytes)
            FAIL("%s: %s must have %zu bytes, got %zu", n->name, constants[k].name, constants[k].bytes, n->constant_bytes[k]);
    const uint8_t *weight = n->constants[IRSTD_QUANT_CONV2D_WEIGHT];
    for (size_t o = 0; macs * a->weight_bits % 8 && o < oc; o++)
        if (weight[(o + 1) * row - 1] >> macs * a->weight_bits % 8)
            FAIL("%s: weight has bits beyond its last channel", n->name);
    y->height = irstd_slide(x->height, a->pad_top, a->pad_bottom, a->kernel_h, a->dilation_h, a->stride_h);
    y->width = irstd_slide(x->width, a->pad_left, a->pad_right, a->kernel_w, a->dilation_w, a->stride_w);
    n->macs = oc * (uint64_t)macs * (uint64_t)y->height * (uint64_t)y->width;
    return IRSTD_OK;
}

/* ---- maps ---- */

const irstd_map *irstd_map_read(const irstd_node *n, int input) {
    return n->qconv ? n->qconv->sources[input] : n->pooled ? n->pooled : n->bconv->source;
}

static int words_of(int channels, int bits) { return (channels * bits + 31) / 32; }

/* Fields as narrow as the values, but no narrower than they must be for so few words. */
static int field_bits(const irstd_node *n, int activation_bits) {
    int bits = activation_bits > 4 || n->qconv->depthwise ? 8 : activation_bits > 2 ? 4 : 2, wider = bits;
    for (int same = 1; same && wider < 8; bits = same ? wider : bits) {
        wider *= 2;
        for (int k = 0; k < n->input_count; k++)
            same &= words_of(n->inputs[k]->channels, wider) == words_of(n->inputs[k]->channels, bits);
    }
    return bits;
}

static irstd_quantizer quantizer_of(const irstd_node *n, const irstd_quant_kernels *k) {
    const irstd_quant_conv2d_attributes *a = &n->qconv->a;
    int low, high;
    integer_range(a->activation_bits, a->activation_signed, &low, &high);
    irstd_quantizer q = {
        .inverse_step = a->inverse_step, .low = (float)(low - a->zero_point), .high = (float)(high - a->zero_point),
        .zero = a->zero_point - low, .bits = field_bits(n, a->activation_bits),
        .flip = k->signed_bytes && a->activation_bits == 8 ? 0x80808080u : 0, .kernels = k,
    };
    for (int shift = 0; shift < 32; shift += q.bits) q.zero_word |= (uint32_t)q.zero << shift;
    q.zero_word ^= q.flip;
    return q;
}

/* Whether two readers of a tensor want the same quantised values. */
static int same_values(const irstd_quantizer *a, const irstd_quantizer *b) {
    return a->inverse_step == b->inverse_step && a->low == b->low && a->high == b->high && a->zero == b->zero &&
           a->bits == b->bits && a->flip == b->flip;
}

/* A map of a tensor with `left` columns of padding and `rest` from column 0 on: one that is there already, or a new one;
 * NULL where it has too many. */
static irstd_map *map_of(irstd_tensor *x, const irstd_quantizer *q, int64_t left, int64_t rest) {
    for (int m = 0; m < x->map_count; m++) {
        irstd_map *map = &x->maps[m];
        if (!map->quantizer || !same_values(map->quantizer, q)) continue;
        const int64_t larger = irstd_max(map->stride - map->left, rest); /* larger margins suit the others as well */
        map->left = irstd_max(map->left, left);
        map->stride = map->left + larger;
        return map;
    }
    if (x->map_count == MAX_MAPS) return NULL;
    irstd_map *map = &x->maps[x->map_count++];
    map->quantizer = q;
    map->planes = words_of(x->channels, q->bits);
    map->left = left;
    map->stride = left + rest;
    return map;
}

static irstd_status request_map(irstd_node *n, int k, irstd_error *error) {
    irstd_qconv *c = n->qconv;
    irstd_tensor *x = n->inputs[k];
    const int64_t reach = (int64_t)c->a.dilation_w * (c->a.kernel_w - 1);
    const int64_t rest = irstd_max(irstd_max(x->width + c->a.pad_right, x->width), QUANT_COLUMNS + reach);
    c->sources[k] = map_of(x, &c->quantizer, c->a.pad_left, rest);
    if (c->sources[k]) return IRSTD_OK;
    return irstd_fail(error, IRSTD_UNSUPPORTED, "%s: its input %s is quantised in more than %d different ways", n->name,
                      x->name, MAX_MAPS);
}

int irstd_quant_emits(const irstd_node *n) {
    if (!n->qconv) return n->pooled != NULL;
    for (int m = 0; m < n->output->map_count; m++)
        if (!n->output->maps[m].quantizer) return 0;
    return 1;
}

/* ---- weights ---- */

/* Weight `index` of an output channel's string of k-bit numbers. */
static int weight_at(const uint8_t *packed, int64_t index, int bits) {
    const int64_t bit = index * bits;
    unsigned value = packed[bit / 8] >> bit % 8;
    if (bit % 8 + bits > 8) value |= (unsigned)packed[bit / 8 + 1] << (8 - bit % 8);
    value &= (1u << bits) - 1;
    return bits == 1 ? 2 * (int)value - 1 : (int)value - (int)(value >> (bits - 1) << bits);
}

/* Where input channels stand: word, byte of it, and field of that byte. */
static void place_of(const irstd_node *n, int channel, int *word, int *byte, int *part) {
    const int per_word = 32 / n->qconv->quantizer.bits;
    int k = 0;
    *word = 0;
    for (; channel >= n->inputs[k]->channels; k++) {
        *word += n->qconv->sources[k]->planes;
        channel -= n->inputs[k]->channels;
    }
    *word += channel / per_word;
    *byte = channel % 4;
    *part = channel % per_word / 4;
}

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Output channels and vectors of columns at a time: little of a tile is empty, loads and spread fields are few. */
static void choose_tile(irstd_qconv *c, int64_t width) {
    const irstd_quant_kernels *k = c->kernels;
    const int spread = c->quantizer.bits < 8 ? 2 : 1;
    double least = INFINITY;
    for (int tile = 4; tile <= MAX_TILE; tile *= 2)
        for (int vectors = 1; (c->depthwise ? 1 : tile) * vectors <= k->accumulators && vectors <= 4; vectors++) {
            const int block = vectors * k->lanes;
            if (block > irstd_max(width, QUANT_COLUMNS) || (c->a.groups > 1 && tile > 4)) continue;
            const double cost = (double)(divide_up(irstd_max(width, QUANT_COLUMNS), block) * block) *
                                (double)(divide_up(c->a.out_channels, tile) * tile) *
                                (1 + 0.5 * ((double)tile / k->shared_weights + vectors * spread) / (tile * vectors));
            if (cost < least) {
                least = cost;
                c->tile = tile;
                c->vectors = vectors;
            }
        }
}

static int fields_of(const irstd_qconv *c) { return 8 / c->quantizer.bits; }

/* Steps that a tile takes for one word of every tap. */
static int weight_taps(const irstd_qconv *c) {
    return c->depthwise ? (int)divide_up(c->a.kernel_h, 4) * c->a.kernel_w : c->taps;
}

static int64_t spread_bytes(const irstd_qconv *c) {
    return (int64_t)weight_taps(c) * (c->depthwise ? 1 : c->words * fields_of(c)) * 4;
}

/* The weights of output channel o in the bytes of steps: [tap][word][field][4], or depthwise [rows / 4][column][row % 4]. */
static void spread(const irstd_node *n, int o, int8_t *bytes) {
    const irstd_qconv *c = n->qconv;
    const irstd_quant_conv2d_attributes *a = &c->a;
    const int ic = a->in_channels / a->groups, first = o / (a->out_channels / a->groups) * ic;
    const size_t row = n->constant_bytes[IRSTD_QUANT_CONV2D_WEIGHT] / (size_t)a->out_channels;
    const uint8_t *from = (const uint8_t *)n->constants[IRSTD_QUANT_CONV2D_WEIGHT] + (size_t)o * row;
    memset(bytes, 0, (size_t)spread_bytes(c));
    for (int ch = 0; ch < ic; ch++) {
        int word, byte, part;
        place_of(n, first + ch, &word, &byte, &part);
        for (int tap = 0; tap < c->taps; tap++) {
            const int kh = tap / a->kernel_w, kw = tap % a->kernel_w;
            const int64_t at = c->depthwise ? (int64_t)(kh / 4 * a->kernel_w + kw) * 4 + kh % 4
                                            : (((int64_t)tap * c->words + word) * fields_of(c) + part) * 4 + byte;
            bytes[at] = (int8_t)weight_at(from, (int64_t)tap * ic + ch, a->weight_bits);
        }
    }
}

/* Steps whose products surely fit an int16 sum, whichever the inputs; 0: not even one's. */
static int find_chunk(const irstd_node *n, int8_t *bytes) {
    const irstd_qconv *c = n->qconv;
    const int64_t most = c->quantizer.flip ? 128 : (1 << c->a.activation_bits) - 1;
    int largest = 1;
    for (int o = 0; o < c->a.out_channels; o++) {
        spread(n, o, bytes);
        for (int64_t i = 0; i < spread_bytes(c); i += c->kernels->products) {
            int above = 0, below = 0; /* largest sums of either sign, where inputs are none or all they can be */
            for (int k = 0; k < c->kernels->products; k++) *(bytes[i + k] > 0 ? &above : &below) += abs(bytes[i + k]);
            largest = (int)irstd_max(largest, irstd_max(above, below));
        }
    }
    return (int)(INT16_MAX / (most * largest));
}

static irstd_status pack(struct irstd_session *s, irstd_node *n, int8_t *bytes, irstd_error *error) {
    irstd_qconv *c = n->qconv;
    const irstd_quant_conv2d_attributes *a = &c->a;
    const int ic = a->in_channels / a->groups, oc_group = a->out_channels / a->groups, k = c->kernels->weight_words;
    const int fields = fields_of(c), tiles = (int)divide_up(a->out_channels, c->tile);
    irstd_quant_tile *t = irstd_own(s, (size_t)tiles * sizeof *t);
    int32_t *start = irstd_own(s, (size_t)(tiles * c->tile) * sizeof *start);
    float *scale = irstd_own(s, (size_t)(2 * tiles * c->tile) * sizeof *scale), *bias = scale + tiles * c->tile;
    if (!t || !start || !scale) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory");
    int64_t total = 0;
    for (int i = 0; i < tiles; i++) {
        int first = i * c->tile / oc_group * ic, last = (int)(irstd_min((i + 1) * c->tile, a->out_channels) - 1) / oc_group * ic + ic - 1;
        int word, byte, part, end;
        place_of(n, first, &word, &byte, &part);
        place_of(n, last, &end, &byte, &part);
        t[i] = (irstd_quant_tile){.first = word, .count = end - word + 1, .weights = total,
                                  .tap_weights = (int64_t)(end - word + 1) * fields * c->tile * k};
        total += t[i].tap_weights * weight_taps(c);
    }
    uint32_t *weights = irstd_own(s, (uint64_t)total * sizeof *weights + ROW_ALIGNMENT);
    if (!weights) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory");
    memcpy(scale, n->constants[IRSTD_QUANT_CONV2D_SCALE], (size_t)a->out_channels * sizeof *scale);
    memcpy(bias, n->constants[IRSTD_QUANT_CONV2D_BIAS], (size_t)a->out_channels * sizeof *bias);
    const int32_t zero = c->quantizer.zero - (c->quantizer.flip ? 128 : 0);
    for (int o = 0; o < a->out_channels; o++) {
        const irstd_quant_tile *tile = &t[o / c->tile];
        const int64_t steps = tile->count * fields, all = c->depthwise ? steps : c->words * fields;
        int64_t sum = 0, absolute = 0;
        spread(n, o, bytes);
        for (int64_t i = 0; i < spread_bytes(c); i++) {
            sum += bytes[i];
            absolute += abs(bytes[i]);
        }
        for (int tap = 0; tap < weight_taps(c); tap++)
            for (int64_t step = 0; step < steps; step++) {
                const int8_t *w = bytes + (tap * all + (c->depthwise ? 0 : tile->first * fields) + step) * 4;
                uint32_t *to = weights + tile->weights + tap * tile->tap_weights + (step * c->tile + o % c->tile) * k;
                for (int byte = 0; byte < 4; byte++)
                    if (k == 1)
                        to[0] |= (uint32_t)(uint8_t)w[byte] << 8 * byte;
                    else /* bytes 0 and 2, 1 and 3, as int16 */
                        to[byte % 2] |= (uint32_t)(uint16_t)w[byte] << 16 * (byte / 2);
            }
        start[o] = (int32_t)-(uint32_t)(sum * zero); /* as the kernels': modulo 2^32 */
        const float bound = (float)absolute * fmaxf(c->quantizer.high, -c->quantizer.low) * fabsf(scale[o]) + fabsf(bias[o]);
        c->largest = bound < INFINITY ? fmaxf(c->largest, bound) : INFINITY; /* a NaN is no bound */
    }
    c->tiles = t;
    c->start = start;
    c->scale = scale;
    c->bias = bias;
    c->weights = weights;
    return IRSTD_OK;
}

/* Picoseconds for 16 pixels of one output channel and one word of input: the table that the choice follows. */
static double cost_of(const irstd_qconv *c) {
    const irstd_quant_kernels *k = c->kernels;
    return ((c->quantizer.bits == 8 ? k->step_cost : k->narrow_cost) + (c->chunk ? (double)k->fold_cost / (double)irstd_min(c->chunk, weight_taps(c) * c->words) : 0)) *
           16.0 / k->lanes;
}

irstd_status irstd_quant_prepare(struct irstd_session *s, irstd_node *n, irstd_error *error) {
    irstd_qconv *c = n->qconv;
    const irstd_quant_kernels *best = NULL;
    const char *wanted = getenv("IRSTD_QUANT"); /* a variant that is taken wherever it is exact */
    int8_t *bytes = NULL;
    int best_chunk = 0;
    double least = INFINITY;
    c->taps = c->a.kernel_h * c->a.kernel_w;
    c->depthwise = c->a.groups > 1 && c->a.groups == c->a.in_channels && c->a.groups == c->a.out_channels && c->a.stride_w == 1;
    for (int v = 0; v < irstd_quant_variant_count; v++) {
        c->kernels = irstd_quant_variants[v];
        if (strcmp(c->kernels->isa, s->kernels->isa) || !irstd_cpu_has(c->kernels->needs)) continue;
        if (!c->words) { /* how maps look is one of an instruction set */
            c->quantizer = quantizer_of(n, c->kernels);
            for (int k = 0; k < n->input_count; k++) {
                irstd_status status = request_map(n, k, error);
                if (status) return status;
                c->words += c->sources[k]->planes;
            }
            bytes = malloc((size_t)spread_bytes(c));
            if (!bytes) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory");
        }
        c->chunk = c->kernels->products ? find_chunk(n, bytes) : 0;
        const double cost = wanted && !strcmp(wanted, c->kernels->name) ? 0 : cost_of(c);
        if ((c->kernels->products && !c->chunk) || cost >= least) continue;
        least = cost;
        best = c->kernels;
        best_chunk = c->chunk;
    }
    c->kernels = best;
    c->chunk = best_chunk;
    choose_tile(c, n->output->width);
    snprintf(n->kernel, sizeof n->kernel, "%s_%s%dx%d__%s", best->name, c->depthwise ? "depthwise_" : "", c->tile,
             c->vectors * best->lanes, best->isa);
    irstd_status status = pack(s, n, bytes, error);
    free(bytes);
    return status;
}

/* ---- rows ---- */

/* Bytes of the parts of a row's scratch: pointers, a line of padding, columns gathered for a stride, sums, narrow
 * results. */
typedef struct {
    uint64_t padding, columns, sums, result, bytes;
    int64_t gathered; /* elements of a line of columns */
} layout;

static uint64_t up(uint64_t bytes) { return (uint64_t)irstd_round_up((int64_t)bytes, ROW_ALIGNMENT); }

static int bounces(const irstd_node *n) { return n->output->external && n->output->width < QUANT_COLUMNS; }

static layout layout_of(const irstd_node *n) {
    const irstd_qconv *c = n->qconv;
    layout l = {.gathered = irstd_max(n->output->width, QUANT_COLUMNS)};
    int64_t longest = 0;
    for (int k = 0; k < irstd_sources(n); k++) longest = irstd_max(longest, c->sources[k]->stride);
    l.padding = up((uint64_t)c->taps * (uint64_t)c->words * sizeof(char *));
    l.columns = l.padding + up((uint64_t)longest * sizeof(uint32_t));
    l.sums = l.columns + (c->a.stride_w > 1 ? up((uint64_t)c->taps * (uint64_t)(c->words * l.gathered) * sizeof(uint32_t)) : 0);
    const int64_t merged = c->depthwise ? irstd_round_up(c->a.kernel_h, 4) * irstd_quant_merged_stride(c, n->output->width) : 0;
    l.result = l.sums + (uint64_t)(c->tile * irstd_quant_sums_stride(n->output->width) + merged) * sizeof(int32_t);
    l.bytes = l.result + (bounces(n) ? (uint64_t)(n->output->channels * QUANT_COLUMNS) * sizeof(float) : 0);
    return l;
}

uint64_t irstd_quant_scratch(const irstd_node *n) { return layout_of(n).bytes; }

/* What kernels wrote behind the last column of a narrow map is padding again. */
static void repair(const irstd_map *map, uint32_t *words, int64_t width) {
    for (int p = 0; p < map->planes; p++)
        for (int64_t j = width; j < QUANT_COLUMNS; j++) words[p * map->stride + j] = map->quantizer->zero_word;
}

void irstd_quant_row(const irstd_node *n, int64_t row, char *scratch) {
    const irstd_qconv *c = n->qconv;
    const irstd_quant_conv2d_attributes *a = &c->a;
    const irstd_tensor *y = n->output;
    const layout l = layout_of(n);
    const char **pixels = (const char **)(void *)scratch;
    uint32_t *padding = (uint32_t *)(void *)(scratch + l.padding), *columns = (uint32_t *)(void *)(scratch + l.columns);
    int first = 0, last = a->kernel_h, padded = 0;
    if (!c->quantizer.zero_word && !c->depthwise) { /* rows outside add nothing */
        const int64_t top = row * a->stride_h - a->pad_top, height = n->inputs[0]->height;
        while (first < last && top + (int64_t)first * a->dilation_h < 0) first++;
        while (last > first && top + (int64_t)(last - 1) * a->dilation_h >= height) last--;
    }
    for (int kh = first; kh < last; kh++) {
        const int64_t source = row * a->stride_h - a->pad_top + (int64_t)kh * a->dilation_h;
        const int inside = source >= 0 && source < n->inputs[0]->height;
        for (int k = 0, word = 0; k < irstd_sources(n); k++) {
            const irstd_map *map = c->sources[k];
            const uint32_t *from = inside ? (const uint32_t *)(void *)irstd_row(&map->ring, source) : padding;
            if (!inside && !padded++)
                for (size_t j = 0; j < (l.columns - l.padding) / sizeof *padding; j++) padding[j] = c->quantizer.zero_word;
            for (int p = 0; p < map->planes; p++, word++)
                for (int kw = 0; kw < a->kernel_w; kw++) {
                    const int at = (kh * a->kernel_w + kw) * c->words + word;
                    const uint32_t *line = from + (inside ? p * map->stride : 0) + map->left - a->pad_left + (int64_t)kw * a->dilation_w;
                    if (a->stride_w > 1) {
                        uint32_t *to = columns + at * l.gathered;
                        for (int64_t j = 0; j < y->width; j++) to[j] = line[j * a->stride_w];
                        line = to;
                    }
                    pixels[at] = (const char *)line;
                }
        }
    }
    irstd_quant_output out = {.y_stride = y->stride, .y = y->stored ? irstd_tensor_row(y, row) : NULL};
    if (bounces(n)) {
        out.y = (float *)(void *)(scratch + l.result);
        out.y_stride = QUANT_COLUMNS;
    }
    if (n->has_addend) {
        out.addend = irstd_tensor_row(irstd_addend(n), row);
        out.addend_stride = irstd_addend(n)->stride;
    }
    if (irstd_quant_emits(n))
        for (; out.maps < y->map_count; out.maps++) {
            const irstd_map *map = &y->maps[out.maps];
            out.map[out.maps].quantizer = map->quantizer;
            out.map[out.maps].words = (uint32_t *)(void *)irstd_row(&map->ring, row) + map->left;
            out.map[out.maps].stride = map->stride;
        }
    c->kernels->row(c, pixels, first * a->kernel_w, last * a->kernel_w, y->width, &out,
                    (int32_t *)(void *)(scratch + l.sums));
    for (int oc = 0; bounces(n) && oc < y->channels; oc++)
        memcpy((float *)irstd_tensor_row(y, row) + oc * y->stride, out.y + oc * QUANT_COLUMNS, (size_t)y->width * sizeof(float));
    for (int m = 0; m < out.maps; m++) repair(&y->maps[m], out.map[m].words, y->width);
}

enum { BLOCK = 256 }; /* columns of int16 that are converted at a time */

void irstd_quant_write(const irstd_tensor *t, const irstd_map *map, int64_t row) {
    const irstd_quantizer *q = map->quantizer;
    const char *from = irstd_tensor_row(t, row);
    const int per_word = 32 / q->bits;
    float block[4][BLOCK];
    uint32_t *words = (uint32_t *)(void *)irstd_row(&map->ring, row) + map->left;
    for (int first = 0; first < t->channels; first += 4) {
        const float *x[4] = {NULL};
        const int channels = (int)irstd_min(4, t->channels - first), part = first % per_word / 4;
        uint32_t *to = words + first / per_word * map->stride;
        if (t->type == IRSTD_TENSOR_TYPE_FLOAT32) {
            for (int k = 0; k < channels; k++) x[k] = (const float *)(const void *)from + (first + k) * t->stride;
            q->kernels->quantize(q, x, part, t->width, to);
            continue;
        }
        const float step = 1.0f / (float)(1 << t->fraction_bits);
        for (int64_t done = 0; done < t->width; done += BLOCK) {
            const int64_t column = irstd_max(0, irstd_min(done, t->width - BLOCK)); /* the last overlaps the one before */
            const int64_t width = irstd_min(BLOCK, t->width - column);
            for (int k = 0; k < channels; k++) {
                const int16_t *values = (const int16_t *)(const void *)from + (first + k) * t->stride + column;
                for (int64_t j = 0; j < width; j++) block[k][j] = (float)values[j] * step;
                x[k] = block[k];
            }
            q->kernels->quantize(q, x, part, width, to + column);
        }
    }
    repair(map, words, t->width);
}

/* ---- pools of maps ---- */

/* Whether no input makes a NaN of it, which the largest of values is but the largest of quantised values is not. */
static int is_never_nan(const irstd_node *n) {
    const float *scale = n->constants[IRSTD_QUANT_CONV2D_SCALE], *bias = n->constants[IRSTD_QUANT_CONV2D_BIAS];
    for (int o = 0; o < n->output->channels; o++)
        if (!isfinite(scale[o]) || !isfinite(bias[o])) return 0;
    return 1;
}

void irstd_quant_find_pool(const struct irstd_session *s, irstd_node *n) {
    irstd_tensor *x = n->inputs[0];
    const irstd_tensor *y = n->output;
    if (n->op != IRSTD_OP_MAX_POOL || y->stored || y->map_count != 1 || !y->maps[0].quantizer || irstd_leaves_image(n)) return;
    for (int k = 0; k < s->node_count; k++)
        if (s->nodes[k].output == x && s->nodes[k].qconv && is_never_nan(&s->nodes[k]))
            n->pooled = map_of(x, y->maps[0].quantizer, 0, irstd_max(x->width, QUANT_COLUMNS));
    if (n->pooled) snprintf(n->kernel, sizeof n->kernel, "MaxPool_quantised__%s", s->kernels->isa);
}

typedef uint8_t bytes __attribute__((vector_size(16)));

/* The larger ones of fields of `bits` bits. */
static bytes larger_fields(bytes a, bytes b, int bits) {
    bytes result = {0};
    for (int part = 0; part < 8; part += bits) {
        const bytes mask = (bytes){0} + (uint8_t)(((1 << bits) - 1) << part), x = a & mask, y = b & mask;
        const bytes greater = (bytes)(x > y);
        result |= (x & greater) | (y & ~greater);
    }
    return result;
}

void irstd_quant_pool_row(const irstd_node *n, int64_t row) {
    const irstd_map *from = n->pooled, *to = &n->output->maps[0];
    const int32_t *i = n->i;
    const int64_t width = n->output->width, top = row * i[IRSTD_AVERAGE_POOL_STRIDE_H], step = i[IRSTD_AVERAGE_POOL_STRIDE_W];
    const bytes flip = (bytes){0} + (uint8_t)to->quantizer->flip; /* to unsigned */
    uint32_t *words = (uint32_t *)(void *)irstd_row(&to->ring, row) + to->left;
    for (int p = 0; p < to->planes; p++)
        for (int64_t column = 0; column < width; column += 4) {
            const size_t count = (size_t)irstd_min(4, width - column);
            bytes most = {0};
            for (int r = 0; r < i[IRSTD_AVERAGE_POOL_KERNEL_H]; r++) {
                const uint32_t *line = (const uint32_t *)(void *)irstd_row(&from->ring, top + r) + from->left +
                                       p * from->stride + column * step;
                for (int c = 0; c < i[IRSTD_AVERAGE_POOL_KERNEL_W]; c++) {
                    uint32_t four[4] = {0};
                    bytes x;
                    for (size_t k = 0; k < count; k++) four[k] = line[c + (int64_t)k * step];
                    memcpy(&x, four, sizeof x);
                    most = larger_fields(most, x ^ flip, to->quantizer->bits);
                }
            }
            most ^= flip;
            memcpy(words + p * to->stride + column, &most, count * sizeof *words);
        }
    repair(to, words, width);
}

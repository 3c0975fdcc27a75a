/* model.irstd: every size, offset and number is checked before it is used. */
#include <math.h>
#include <string.h>

#include "engine.h"
#include "quant.h"

#define FAIL(...) return irstd_fail(error, IRSTD_INVALID, __VA_ARGS__)

enum { MAX_SIDE = IRSTD_MAX_SIDE };

/* CRC-32 as zlib computes it (reflected polynomial 0xedb88320), byte by byte. The table takes 2048 steps, too few to
 * keep it between files. */
static uint32_t crc32_of(const uint8_t *data, size_t bytes) {
    uint32_t table[256], crc = ~0u;
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
        table[n] = c;
    }
    for (size_t i = 0; i < bytes; i++) crc = table[(crc ^ data[i]) & 255] ^ crc >> 8;
    return ~crc;
}

static int inside(const struct irstd_session *s, uint64_t offset, uint64_t bytes) {
    return offset <= s->data_bytes && bytes <= s->data_bytes - offset;
}

typedef struct {
    const struct irstd_session *s;
    const char *strings;
    uint32_t string_bytes;
} names;

static const char *name_of(const names *n, uint32_t offset) {
    return offset < n->string_bytes ? n->strings + offset : NULL;
}

/* Every integer slot of every operator and its range, from the specification. */
static const struct {
    int op, slot;
    const char *name;
    int32_t minimum, maximum;
} integers[] = {
#define ROW(operator, NAME, text, slot, minimum, maximum) {IRSTD_OP_##operator, slot, text, minimum, maximum},
    IRSTD_PROGRAM_INTEGERS(ROW)
#undef ROW
};

typedef struct {
    int op;
    const char *name;
    int fewest_inputs, most_inputs, integers, floats, constants;
} operator_row;

static const operator_row operators[] = {
#define ROW(NAME, number, text, fewest, most, integers, floats, constants) {number, text, fewest, most, integers, floats, constants},
    IRSTD_PROGRAM_OPERATORS(ROW)
#undef ROW
};

/* The row of an operator, or NULL. */
static const operator_row *row_of(int op) {
    for (size_t k = 0; k < sizeof operators / sizeof *operators; k++)
        if (operators[k].op == op) return &operators[k];
    return NULL;
}

const char *irstd_operator_name(int op) {
    const operator_row *row = row_of(op);
    return row ? row->name : NULL;
}

int irstd_operator_integers(int op) { return row_of(op)->integers; }

static irstd_status check_integers(const irstd_node *n, irstd_error *error) {
    for (size_t k = 0; k < sizeof integers / sizeof *integers; k++) {
        if (integers[k].op != n->op) continue;
        int32_t value = n->i[integers[k].slot];
        if (value < integers[k].minimum || value > integers[k].maximum)
            FAIL("%s: %s must be in %d..%d, got %d", n->name, integers[k].name, integers[k].minimum,
                 integers[k].maximum, value);
    }
    return IRSTD_OK;
}

static irstd_status check_constant(const irstd_node *n, int slot, const char *label, uint64_t floats, int optional,
                                   irstd_error *error) {
    if (optional && !n->constant_bytes[slot]) return IRSTD_OK;
    if (n->constant_bytes[slot] != floats * 4)
        FAIL("%s: %s must have %llu bytes, got %zu", n->name, label, (unsigned long long)floats * 4,
             n->constant_bytes[slot]);
    return IRSTD_OK;
}

static irstd_status check_activation(const irstd_node *n, int activation, int slope_slot, int channels,
                                     irstd_error *error) {
    if (activation == IRSTD_FLOAT_ACTIVATION_PRELU)
        return check_constant(n, slope_slot, "slope", (uint64_t)channels, 0, error);
    return IRSTD_OK;
}

/* An IEEE half as a float; by integers, so that subnormal ones survive where floats of that kind count as 0. */
static float widened(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t exponent = half >> 10 & 31, fraction = half & 1023, bits = sign;
    if (exponent == 31) {
        bits |= 0x7f800000 | fraction << 13;
    } else if (exponent || fraction) {
        for (exponent += 112 + !exponent; !(half & 0x7c00) && !(fraction & 1024); exponent--) fraction <<= 1;
        bits |= exponent << 23 | (fraction & 1023) << 13;
    }
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Weights that have two bytes each in the file become floats here; what follows knows these alone. */
static irstd_status widen_weights(struct irstd_session *s, irstd_node *n, uint64_t count, irstd_error *error) {
    if (n->constant_bytes[0] != count * 2) return IRSTD_OK;
    const uint16_t *halves = n->constants[0];
    float *floats = irstd_own(s, count * sizeof *floats);
    if (!floats) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory");
    for (uint64_t k = 0; k < count; k++) floats[k] = widened(halves[k]);
    n->constants[0] = floats;
    n->constant_bytes[0] = count * sizeof *floats;
    return IRSTD_OK;
}

/* The file's slots are the attributes of the operator in the specification's order, integers and floats apart. */
static irstd_bconv2d_attributes take_attributes(const int32_t *integers, const float *reals) {
    irstd_bconv2d_attributes a;
#define TAKE(type, name, mandatory, default_value, minimum, maximum) \
    a.name = _Generic((type)0, int32_t: *integers, float: *reals); \
    _Generic((type)0, int32_t: integers++, float: reals++);
    IRSTD_BINARY_CONV2D_ATTRIBUTES(TAKE)
#undef TAKE
    return a;
}

static irstd_status load_bconv(struct irstd_session *s, irstd_node *n, const irstd_bconv2d_attributes *a,
                               irstd_error *error) {
    irstd_tensor *y = n->output;
    irstd_bconv *c = n->bconv = irstd_own(s, sizeof *c);
    if (!c) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory");
    c->a = *a;
    a = &c->a;
    irstd_error inner;
    if (irstd_bconv2d_check(a, &inner)) FAIL("%s: %.200s", n->name, inner.message);
    irstd_tensor *x = n->inputs[0];
    if (a->in_channels != x->channels) FAIL("%s: in_channels is %d, its input has %d", n->name, a->in_channels, x->channels);
    if (n->input_count != 1 + (a->residual != IRSTD_RESIDUAL_NONE))
        FAIL("%s: residual %d does not go with %d inputs", n->name, a->residual, n->input_count);
    c->ic_group = a->in_channels / a->groups;
    c->oc_group = a->out_channels / a->groups;
    c->words_per_tap = (c->ic_group + IRSTD_WORD_BITS - 1) / IRSTD_WORD_BITS;
    uint64_t taps = (uint64_t)a->kernel_h * (uint64_t)a->kernel_w, oc = (uint64_t)a->out_channels;
    irstd_status status = check_constant(n, 0, "weight", oc * taps * (uint64_t)c->words_per_tap, 0, error);
    if (!status) status = check_constant(n, 1, "threshold", (uint64_t)a->in_channels, 0, error);
    if (!status) status = check_constant(n, 2, "scale", oc, 0, error);
    if (!status) status = check_constant(n, 3, "bias", oc, 0, error);
    int rprelu = a->activation == IRSTD_ACTIVATION_RPRELU;
    if (!status && rprelu != !!n->constant_bytes[4])
        FAIL("%s: activation_parameters must be %s where activation is %d", n->name, rprelu ? "given" : "absent", a->activation);
    if (!status) status = check_constant(n, 4, "activation_parameters", rprelu ? 3 * oc : 0, 0, error);
    if (status) return status;
    c->words = n->constants[0];
    for (uint64_t tap = 0; c->ic_group % IRSTD_WORD_BITS && tap < oc * taps; tap++)
        if (c->words[(tap + 1) * (uint64_t)c->words_per_tap - 1] >> c->ic_group % IRSTD_WORD_BITS)
            FAIL("%s: weight has non-zero tail bits beyond its %d channels", n->name, c->ic_group);
    c->threshold = n->constants[1];
    c->scale = n->constants[2];
    c->bias = n->constants[3];
    if (rprelu) {
        c->shift_in = n->constants[4];
        c->slope = c->shift_in + oc;
        c->shift_out = c->slope + oc;
    }
    y->height = irstd_slide(x->height, a->pad_top, a->pad_bottom, a->kernel_h, a->dilation_h, a->stride_h);
    y->width = irstd_slide(x->width, a->pad_left, a->pad_right, a->kernel_w, a->dilation_w, a->stride_w);
    n->macs = oc * taps * (uint64_t)c->ic_group * (uint64_t)y->height * (uint64_t)y->width;
    if (y->channels != a->out_channels) FAIL("%s: out_channels is %d, its output has %d", n->name, a->out_channels, y->channels);
    if (y->type == IRSTD_TENSOR_TYPE_INT16 && y->fraction_bits != a->fraction_bits)
        FAIL("%s: fraction_bits %d does not go with its output's %d", n->name, a->fraction_bits, y->fraction_bits);
    if (n->input_count == 2) {
        irstd_tensor *r = n->inputs[1];
        if (a->out_channels % r->channels && r->channels % a->out_channels)
            FAIL("%s: residual channels (%d) must divide out_channels (%d) or be a multiple of it", n->name,
                 r->channels, a->out_channels);
        if (r->height != y->height || r->width != y->width) FAIL("%s: residual and result differ in size", n->name);
    }
    return IRSTD_OK;
}

static irstd_status load_conv(struct irstd_session *s, irstd_node *n, irstd_tensor *y, irstd_error *error) {
    const int32_t *i = n->i;
    const irstd_tensor *x = n->inputs[0];
    irstd_status status;
    int ic = i[IRSTD_CONV2D_IN_CHANNELS], oc = i[IRSTD_CONV2D_OUT_CHANNELS], groups = i[IRSTD_CONV2D_GROUPS];
    if (ic != x->channels || oc != y->channels || groups < 1 || ic % groups || oc % groups)
        FAIL("%s: %d to %d channels in %d groups do not go with its input's %d and output's %d", n->name, ic, oc,
             groups, x->channels, y->channels);
    uint64_t taps = (uint64_t)i[IRSTD_CONV2D_KERNEL_H] * (uint64_t)i[IRSTD_CONV2D_KERNEL_W];
    int transposed = n->op == IRSTD_OP_CONV_TRANSPOSE2D;
    uint64_t weights = (uint64_t)oc * (uint64_t)(ic / groups) * taps;
    if ((status = widen_weights(s, n, weights, error))) return status;
    if ((status = check_constant(n, 0, "weight", weights, 0, error))) return status;
    if ((status = check_constant(n, 1, "bias", (uint64_t)oc, 1, error))) return status;
    if ((status = check_activation(n, i[IRSTD_CONV2D_ACTIVATION], 2, oc, error))) return status;
    int64_t sides[2];
    for (int axis = 0; axis < 2; axis++) {
        int64_t size = axis ? x->width : x->height, before = i[IRSTD_CONV2D_PAD_TOP + axis];
        int64_t after = i[IRSTD_CONV2D_PAD_BOTTOM + axis], kernel = i[IRSTD_CONV2D_KERNEL_H + axis];
        int64_t dilation = i[IRSTD_CONV2D_DILATION_H + axis], stride = i[IRSTD_CONV2D_STRIDE_H + axis];
        if (transposed) {
            int64_t extra = i[IRSTD_CONV_TRANSPOSE2D_OUTPUT_PAD_H + axis];
            if (extra >= stride) FAIL("%s: output padding must be in 0..stride - 1", n->name);
            sides[axis] = (size - 1) * stride - before - after + dilation * (kernel - 1) + extra + 1;
        } else {
            sides[axis] = irstd_slide(size, before, after, kernel, dilation, stride);
        }
    }
    y->height = sides[0];
    y->width = sides[1];
    n->macs = weights * (uint64_t)(transposed ? x->height * x->width : irstd_max(0, y->height * y->width));
    return IRSTD_OK;
}

static irstd_status load_pool(irstd_node *n, int64_t *height, int64_t *width, irstd_error *error) {
    const int32_t *i = n->i;
    for (int axis = 0; axis < 2; axis++) {
        const int64_t kernel = i[IRSTD_MAX_POOL_KERNEL_H + axis], stride = i[IRSTD_MAX_POOL_STRIDE_H + axis];
        const int64_t before = i[IRSTD_MAX_POOL_PAD_TOP + axis], after = i[IRSTD_MAX_POOL_PAD_BOTTOM + axis];
        int64_t *size = axis ? width : height;
        if (before >= kernel || after >= kernel) /* else a window may hold no pixel */
            FAIL("%s: padding of %lld and %lld must be below the window's %lld", n->name, (long long)before, (long long)after,
                 (long long)kernel);
        const int64_t padded = *size + before, beyond = i[IRSTD_MAX_POOL_CEIL_MODE] ? stride - 1 : 0;
        *size = irstd_slide(padded, 0, after + beyond, kernel, 1, stride);
        if (beyond && (*size - 1) * stride >= padded) --*size; /* it would begin behind the image */
    }
    return IRSTD_OK;
}

static irstd_status load_resize(irstd_node *n, int64_t *height, int64_t *width, irstd_error *error) {
    const int32_t *i = n->i;
    const int scaled = i[IRSTD_RESIZE_SIZE] == IRSTD_RESIZE_SIZE_SCALED, given = i[IRSTD_RESIZE_SIZE] == IRSTD_RESIZE_SIZE_GIVEN;
    const int like = i[IRSTD_RESIZE_SIZE] == IRSTD_RESIZE_SIZE_LIKE;
    if (like && n->input_count != 2) FAIL("%s: its size is that of a second input, which it has not", n->name);
    for (int axis = 0; axis < 2; axis++) {
        const int32_t scale = i[IRSTD_RESIZE_SCALE_H + axis], divisor = i[IRSTD_RESIZE_DIVISOR_H + axis];
        const int32_t side = i[IRSTD_RESIZE_HEIGHT + axis];
        int64_t *size = axis ? width : height;
        if ((!scaled && (scale != 1 || divisor != 1)) || (side > 0) != given)
            FAIL("%s: scale %d / %d and side %d do not go with size %d", n->name, scale, divisor, side, i[IRSTD_RESIZE_SIZE]);
        if (scaled) *size = *size * scale / divisor;
        if (given) *size = side;
        if (like) *size = axis ? n->inputs[1]->width : n->inputs[1]->height;
    }
    return IRSTD_OK;
}

static irstd_status load_node(struct irstd_session *s, irstd_node *n, irstd_error *error) {
    irstd_tensor *y = n->output, *x = n->inputs[0];
    const int32_t *i = n->i;
    irstd_status status = IRSTD_OK;
    int64_t height = x->height, width = x->width;
    int channels = x->channels, pointwise = 1;
    switch (n->op) {
    case IRSTD_OP_BINARY_CONV2D: {
        const irstd_bconv2d_attributes a = take_attributes(n->i, n->f);
        status = load_bconv(s, n, &a, error);
        pointwise = 0;
        break;
    }
    case IRSTD_OP_QUANT_CONV2D: status = irstd_quant_load(s, n, error); pointwise = 0; break;
    case IRSTD_OP_CONV2D:
    case IRSTD_OP_CONV_TRANSPOSE2D: status = load_conv(s, n, y, error); pointwise = 0; break;
    case IRSTD_OP_FIXED_POINT:
        if (y->type != IRSTD_TENSOR_TYPE_INT16 ||
            y->fraction_bits != i[IRSTD_FIXED_POINT_FRACTION_BITS] || x->type != IRSTD_TENSOR_TYPE_FLOAT32)
            FAIL("%s: FixedPoint takes float32 and gives int16 of its 2..16 bits", n->name);
        break;
    case IRSTD_OP_AVERAGE_POOL:
    case IRSTD_OP_MAX_POOL: status = load_pool(n, &height, &width, error); break;
    case IRSTD_OP_RESIZE: status = load_resize(n, &height, &width, error); break;
    case IRSTD_OP_ADD:
        status = check_activation(n, i[0], 0, channels, error);
        break;
    case IRSTD_OP_ACTIVATION:
        status = check_activation(n, i[0], 0, channels, error);
        break;
    case IRSTD_OP_MULTIPLY: break;
    case IRSTD_OP_CONCAT:
        channels = 0;
        for (int k = 0; k < n->input_count; k++) {
            const irstd_tensor *t = n->inputs[k];
            if (t->height != x->height || t->width != x->width) FAIL("%s: its inputs differ in size", n->name);
            if (t->type != y->type || t->fraction_bits != y->fraction_bits) FAIL("%s: its tensors differ in type", n->name);
            channels += t->channels;
        }
        break;
    case IRSTD_OP_GLOBAL_AVERAGE_POOL:
    case IRSTD_OP_GLOBAL_MAX_POOL: height = width = 1; break;
    case IRSTD_OP_CHANNEL_AVERAGE_POOL:
    case IRSTD_OP_CHANNEL_MAX_POOL: channels = 1; break;
    case IRSTD_OP_SLICE:
        if (y->type != x->type || y->fraction_bits != x->fraction_bits) FAIL("%s: its tensors differ in type", n->name);
        if (i[IRSTD_SLICE_FIRST] + y->channels > x->channels)
            FAIL("%s: takes channels %d to %d of %d", n->name, i[IRSTD_SLICE_FIRST], i[IRSTD_SLICE_FIRST] + y->channels - 1, x->channels);
        channels = y->channels;
        break;
    }
    if (status) return status;
    const int pair = n->op == IRSTD_OP_ADD || n->op == IRSTD_OP_MULTIPLY;
    if (pair || (n->op == IRSTD_OP_RESIZE && n->input_count == 2 && i[IRSTD_RESIZE_SIZE] != IRSTD_RESIZE_SIZE_LIKE)) {
        const irstd_tensor *b = n->inputs[1];
        const int one_channel = pair && b->channels == 1, one_pixel = pair && b->height == 1 && b->width == 1;
        if ((b->channels != channels && !one_channel) || ((b->height != height || b->width != width) && !one_pixel))
            FAIL("%s: [%d, %lld, %lld] and [%d, %lld, %lld] do not go together", n->name, channels, (long long)height,
                 (long long)width, b->channels, (long long)b->height, (long long)b->width);
    }
    if (pointwise) {
        y->height = height;
        y->width = width;
        if (y->channels != channels) FAIL("%s: gives %d channels, its output has %d", n->name, channels, y->channels);
    }
    if (y->height < 1 || y->width < 1 || y->height > MAX_SIDE || y->width > MAX_SIDE)
        FAIL("%s: a %lldx%lld image leaves nothing or too much here (%lld x %lld)", n->name, (long long)s->height,
             (long long)s->width, (long long)y->height, (long long)y->width);
    return IRSTD_OK;
}

static irstd_status check_size(const struct irstd_session *s, irstd_error *error) {
    if (s->height < 1 || s->width < 1 || s->height > MAX_SIDE || s->width > MAX_SIDE)
        FAIL("height and width must be in 1..%d, got %lld and %lld", MAX_SIDE, (long long)s->height, (long long)s->width);
    return IRSTD_OK;
}

/* The caller's map number `external`, or its output where that is 0. */
static irstd_tensor float_map(const char *name, int channels, int external, int64_t height, int64_t width) {
    return (irstd_tensor){.name = name, .type = IRSTD_TENSOR_TYPE_FLOAT32, .fraction_bits = -1, .channels = channels,
                          .external = external, .height = height, .width = width};
}

irstd_status irstd_load_bconv2d(struct irstd_session *s, const irstd_bconv2d *op, int64_t residual_channels,
                                irstd_error *error) {
    static const uint32_t last[] = {1, 2}; /* tensors: x, the residual where there is one, the result */
    const irstd_bconv2d_attributes *a = &op->attributes;
    const int inputs = residual_channels ? 2 : 1;
    irstd_status status = irstd_bconv2d_check(a, error);
    if (!status) status = check_size(s, error);
    if (status) return status;
    if ((a->residual != IRSTD_RESIDUAL_NONE) != (inputs == 2))
        FAIL("residual_input must be %s where residual is %d", a->residual ? "given" : "absent", a->residual);
    if (inputs == 2 && (residual_channels < 1 || residual_channels > INT32_MAX))
        FAIL("residual_input has %lld channels", (long long)residual_channels);
    for (int k = 0; k < IRSTD_BCONV2D_CONSTANTS; k++)
        if (op->constant_bytes[k] && !op->constants[k]) FAIL("constant %d must not be NULL", k);
    s->tensors = irstd_own(s, 3 * sizeof *s->tensors);
    irstd_node *n = s->nodes = irstd_own(s, sizeof *n);
    if (!s->tensors || !n) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory");
    const int64_t height = irstd_slide(s->height, a->pad_top, a->pad_bottom, a->kernel_h, a->dilation_h, a->stride_h);
    const int64_t width = irstd_slide(s->width, a->pad_left, a->pad_right, a->kernel_w, a->dilation_w, a->stride_w);
    if (height < 1 || width < 1)
        FAIL("input of %lld x %lld plus padding is smaller than the dilated kernel of %d x %d", (long long)s->height,
             (long long)s->width, a->dilation_h * (a->kernel_h - 1) + 1, a->dilation_w * (a->kernel_w - 1) + 1);
    s->tensors[0] = float_map("x", a->in_channels, 1, s->height, s->width);
    if (inputs == 2) s->tensors[1] = float_map("residual_input", (int)residual_channels, 2, height, width);
    s->tensors[inputs] = float_map("y", a->out_channels, 0, 0, 0);
    s->outputs = &last[inputs - 1];
    s->tensor_count = inputs + 1;
    s->node_count = s->output_count = 1;
    s->input_count = n->input_count = inputs;
    s->layout = op->layout;
    n->op = IRSTD_OP_BINARY_CONV2D;
    n->name = IRSTD_BINARY_CONV2D;
    n->output = &s->tensors[inputs];
    for (int k = 0; k < inputs; k++) n->inputs[k] = &s->tensors[k];
    memcpy(n->constants, op->constants, sizeof op->constants);
    memcpy(n->constant_bytes, op->constant_bytes, sizeof op->constant_bytes);
    status = load_bconv(s, n, a, error);
    const size_t prefix = sizeof IRSTD_BINARY_CONV2D ": " - 1; /* which layer it is needs no telling */
    if (status && error && !strncmp(error->message, IRSTD_BINARY_CONV2D ": ", prefix))
        memmove(error->message, error->message + prefix, sizeof error->message - prefix);
    return status;
}

/* The record of node k at an offset, which moves to its end. */
static irstd_status load_record(struct irstd_session *s, irstd_node *n, int k, uint64_t *offset, const names *text,
                                irstd_error *error) {
    irstd_node_record r;
    if (!inside(s, *offset, sizeof r)) FAIL("node %d: its record lies outside the file", k);
    memcpy(&r, s->data + *offset, sizeof r);
    n->name = name_of(text, r.name);
    if (!n->name) FAIL("node %d: its name lies outside the file", k);
    const operator_row *row = row_of((int)r.op);
    if (!row) return irstd_fail(error, IRSTD_UNSUPPORTED, "%s: operator %d is not known to this version", n->name, (int)r.op);
    n->op = row->op;
    if (r.input_count < (uint32_t)row->fewest_inputs || r.input_count > (uint32_t)row->most_inputs)
        FAIL("%s: %u inputs, %d to %d are possible", n->name, r.input_count, row->fewest_inputs, row->most_inputs);
    n->input_count = (int)r.input_count;
    const uint64_t begin = *offset + sizeof r, words = r.input_count + (uint64_t)row->integers + (uint64_t)row->floats;
    *offset = begin + 4 * words + (uint64_t)row->constants * sizeof(irstd_constant_record);
    if (!inside(s, begin, *offset - begin)) FAIL("%s: its record lies outside the file", n->name);

    const uint32_t *inputs = (const void *)(s->data + begin);
    n->i = (const int32_t *)inputs + r.input_count;
    n->f = (const float *)(const void *)(n->i + row->integers);
    const irstd_constant_record *constants = (const void *)(n->f + row->floats);
    for (int j = 0; j < n->input_count; j++) {
        if (inputs[j] >= (uint32_t)s->tensor_count || !s->tensors[inputs[j]].height)
            FAIL("%s: input %d is tensor %u, which nothing before it writes", n->name, j, inputs[j]);
        n->inputs[j] = &s->tensors[inputs[j]];
    }
    if (r.output >= (uint32_t)s->tensor_count || s->tensors[r.output].height)
        FAIL("%s: output is tensor %u, which is out of range or written already", n->name, r.output);
    n->output = &s->tensors[r.output];
    for (int j = 0; j < row->constants; j++) {
        const uint32_t place = constants[j].offset, bytes = constants[j].bytes;
        if (!inside(s, place, bytes) || place % 4) FAIL("%s: constant %d lies outside the file", n->name, j);
        if (place && !bytes) FAIL("%s: constant %d has an offset and no bytes", n->name, j);
        n->constants[j] = bytes ? s->data + place : NULL;
        n->constant_bytes[j] = bytes;
    }
    return check_integers(n, error);
}

irstd_status irstd_load(struct irstd_session *s, irstd_error *error) {
    irstd_file_header h;
    if (s->data_bytes < sizeof h) FAIL("this is no model.irstd: %zu bytes are too few", s->data_bytes);
    memcpy(&h, s->data, sizeof h);
    if (memcmp(h.magic, IRSTD_PROGRAM_MAGIC, 8)) FAIL("this is no model.irstd: the first bytes differ");
    if (h.version != IRSTD_PROGRAM_VERSION)
        return irstd_fail(error, IRSTD_UNSUPPORTED, "file version %u, this library reads %d", h.version, IRSTD_PROGRAM_VERSION);
    if (h.opset != IRSTD_OPSET_VERSION)
        return irstd_fail(error, IRSTD_UNSUPPORTED, "operator version %u, this library knows %d", h.opset, IRSTD_OPSET_VERSION);
    if (h.file_bytes != s->data_bytes) FAIL("the file has %zu bytes, its header says %llu", s->data_bytes, (unsigned long long)h.file_bytes);
    if (crc32_of(s->data + sizeof h, s->data_bytes - sizeof h) != h.crc32) FAIL("the checksum does not match: the file is damaged");
    if (!h.tensor_count || h.tensor_count > IRSTD_MAX_TENSORS || !h.node_count || h.node_count > IRSTD_MAX_NODES ||
        !h.input_count || h.input_count > h.tensor_count || !h.output_count || h.output_count > h.tensor_count)
        FAIL("impossible counts: %u tensors, %u nodes, %u inputs, %u outputs", h.tensor_count, h.node_count, h.input_count, h.output_count);
    const struct {
        const char *name;
        uint64_t offset, bytes, alignment;
    } tables[] = {
        {"outputs", h.outputs_offset, 4ull * h.output_count, 4},
        {"tensors", h.tensors_offset, sizeof(irstd_tensor_record) * (uint64_t)h.tensor_count, 4},
        {"nodes", h.nodes_offset, 0, 4}, /* their lengths differ: each is checked where it is read */
        {"strings", h.strings_offset, h.strings_bytes, 1},
    };
    for (size_t k = 0; k < sizeof tables / sizeof *tables; k++)
        if (!inside(s, tables[k].offset, tables[k].bytes) || tables[k].offset % tables[k].alignment)
            FAIL("%s_offset %llu: the table of %llu bytes lies outside the file, or is not aligned", tables[k].name,
                 (unsigned long long)tables[k].offset, (unsigned long long)tables[k].bytes);
    if (!h.strings_bytes || s->data[(size_t)h.strings_offset + h.strings_bytes - 1]) FAIL("strings_bytes: the strings do not end with NUL");
    names text = {s, (const char *)s->data + h.strings_offset, h.strings_bytes};
    s->tensor_count = (int)h.tensor_count;
    s->node_count = (int)h.node_count;
    s->input_count = (int)h.input_count;
    s->output_count = (int)h.output_count;
    s->tensors = irstd_own(s, sizeof *s->tensors * h.tensor_count);
    s->nodes = irstd_own(s, sizeof *s->nodes * h.node_count);
    s->outputs = (const uint32_t *)(const void *)(s->data + h.outputs_offset);
    if (!s->tensors || !s->nodes) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory");
    irstd_status status = check_size(s, error);
    if (status) return status;

    const irstd_tensor_record *records = (const void *)(s->data + h.tensors_offset);
    for (int k = 0; k < s->tensor_count; k++) {
        irstd_tensor *t = &s->tensors[k];
        const irstd_tensor_record *r = &records[k];
        t->name = name_of(&text, r->name);
        if (!t->name) FAIL("tensor %d: its name lies outside the file", k);
        const int fixed = r->fraction_bits >= 0;
        if (!r->channels || r->channels > IRSTD_MAX_CHANNELS) FAIL("tensor %s: %u channels", t->name, r->channels);
        if (r->fraction_bits < -1 || r->fraction_bits > 15) FAIL("tensor %s: fraction_bits %d", t->name, r->fraction_bits);
        t->type = fixed ? IRSTD_TENSOR_TYPE_INT16 : IRSTD_TENSOR_TYPE_FLOAT32;
        t->fraction_bits = r->fraction_bits;
        t->channels = (int)r->channels;
        if (k < s->input_count) {
            if (fixed) FAIL("input %s: must be float32", t->name);
            t->external = 1 + k;
            t->height = s->height;
            t->width = s->width;
        }
    }
    uint64_t at = h.nodes_offset;
    for (int k = 0; k < s->node_count; k++) {
        irstd_node *n = &s->nodes[k];
        status = load_record(s, n, k, &at, &text, error);
        if (!status) status = load_node(s, n, error);
        if (status) return status;
        if (n->op == IRSTD_OP_RESIZE && n->i[IRSTD_RESIZE_SIZE] == IRSTD_RESIZE_SIZE_LIKE) n->input_count = 1; /* no values of it */
    }
    for (int k = 0; k < s->output_count; k++)
        if (s->outputs[k] >= h.tensor_count || !s->tensors[s->outputs[k]].height || s->tensors[s->outputs[k]].type != IRSTD_TENSOR_TYPE_FLOAT32)
            FAIL("output %d: tensor %u is not written, or no float32", k, s->outputs[k]);
    return IRSTD_OK;
}

/* The operator irstd.BinaryConv2d: a network of one layer. */
#include "session.h"

enum { IN_X, IN_WEIGHT, IN_THRESHOLD, IN_SCALE, IN_BIAS, IN_ACTIVATION, IN_RESIDUAL, INPUTS };
static const char *const image_names[] = {"x", "residual_input"};
static const char *const constant_names[] = {"weight", "threshold", "scale", "bias", "activation_parameters"};

static const option options[] = {
#define ROW(type, name, mandatory, default_value, minimum, maximum) OPTION(irstd_bconv2d_attributes, type, name, mandatory),
    IRSTD_BINARY_CONV2D_ATTRIBUTES(ROW)
#undef ROW
};
enum { OPTIONS = sizeof options / sizeof *options };
_Static_assert((int)OPTIONS <= (int)MAX_OPTIONS, "more options than are read");

typedef struct {
    kernel base;
    irstd_bconv2d op;
} bconv2d;

static irstd_status open(kernel *k, int64_t height, int64_t width, int64_t residual_channels, int threads) {
    return irstd_open_bconv2d(&((bconv2d *)k)->op, height, width, residual_channels, threads, &k->session);
}

static int input_of(const tfl_node *node, int index) {
    return node->inputs && index < node->inputs->size ? node->inputs->data[index] : TFL_OPTIONAL_TENSOR;
}

static bool fill(kernel *k, const tfl_context *context, const tfl_node *node) {
    bconv2d *b = (bconv2d *)k;
    irstd_bconv2d_attributes *a = &b->op.attributes;
    const int residual = input_of(node, IN_RESIDUAL);
    char wrong[256];
    k->single = true;
    k->open = open;
    k->names = image_names;
    k->outputs = 1;
    k->inputs = residual == TFL_OPTIONAL_TENSOR ? 1 : 2;
    k->y[0].tensor = node->outputs && node->outputs->size == 1 ? node->outputs->data[0] : -1;
    k->x[0].tensor = input_of(node, IN_X);
    k->x[1].tensor = residual;
    if (!irstd_tflite_known(context, k->x, k->inputs) || !irstd_tflite_known(context, k->y, 1))
        return fail(k, context, "x, residual_input or the output is no tensor of the graph");
    if (node->inputs->size > INPUTS) return fail(k, context, "at most %d inputs, got %d", INPUTS, node->inputs->size);
    irstd_bconv2d_attributes_init(a);
    if (!irstd_tflite_options(node, options, OPTIONS, a, wrong, sizeof wrong)) return fail(k, context, "%s", wrong);
    if ((a->residual != IRSTD_RESIDUAL_NONE) != (k->inputs == 2))
        return fail(k, context, "residual_input must be %s where residual is %d", a->residual ? "given" : "absent", a->residual);
    b->op.layout = IRSTD_NHWC;
    for (int i = 0; i < IRSTD_BCONV2D_CONSTANTS; i++)
        if (!irstd_tflite_constant(k, context, input_of(node, IN_WEIGHT + i), constant_names[i], i ? TFL_FLOAT32 : TFL_INT32,
                                   &b->op.constants[i], &b->op.constant_bytes[i]))
            return false;
    return !irstd_check_bconv2d(&b->op) || fail(k, context, "%s", irstd_last_error());
}

static void *init(tfl_context *context, const char *buffer, size_t length) {
    (void)length;
    return irstd_tflite_init(context, buffer, IRSTD_BINARY_CONV2D, sizeof(bconv2d), fill);
}

const tfl_registration irstd_tflite_bconv2d = SHARED_REGISTRATION(init);

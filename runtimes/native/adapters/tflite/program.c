/* The operator irstd.Program: a network, with threads of its own. */
#include "session.h"

/* Inputs: the bytes of a model.irstd, then the images. */
enum { IN_PROGRAM, IN_X };

typedef struct {
#define FIELD(type, name, mandatory, default_value, minimum, maximum) type name;
    IRSTD_PROGRAM_ATTRIBUTES(FIELD)
#undef FIELD
} program_options;

static const option options[] = {
#define ROW(type, name, mandatory, default_value, minimum, maximum) OPTION(program_options, type, name, mandatory),
    IRSTD_PROGRAM_ATTRIBUTES(ROW)
#undef ROW
};

typedef struct {
    kernel base;
    const void *data;
    size_t bytes;
} program;

static irstd_status open(kernel *k, int64_t height, int64_t width, int64_t residual_channels, int threads) {
    const program *p = (const program *)k;
    (void)residual_channels;
    return irstd_open_memory(p->data, p->bytes, height, width, threads, &k->session);
}

static bool fill(kernel *k, const tfl_context *context, const tfl_node *node) {
    program *p = (program *)k;
    k->open = open;
    k->inputs = node->inputs ? node->inputs->size - IN_X : 0;
    k->outputs = node->outputs ? node->outputs->size : 0;
    k->y[0].tensor = k->outputs > 0 ? node->outputs->data[0] : -1;
    if (k->inputs < 1 || k->outputs < 1 || k->inputs > IRSTD_MAX_IMAGES || k->outputs > IRSTD_MAX_IMAGES)
        return fail(k, context, "%d images and %d outputs, 1 to %d can be", k->inputs, k->outputs, IRSTD_MAX_IMAGES);
    for (int i = 0; i < k->inputs; i++) k->x[i].tensor = node->inputs->data[IN_X + i];
    for (int i = 0; i < k->outputs; i++) k->y[i].tensor = node->outputs->data[i];
    if (!irstd_tflite_known(context, k->x, k->inputs) || !irstd_tflite_known(context, k->y, k->outputs))
        return fail(k, context, "an input or output is no tensor of the graph");
    program_options given = {0};
    char wrong[256];
    if (!irstd_tflite_options(node, options, sizeof options / sizeof *options, &given, wrong, sizeof wrong))
        return fail(k, context, "%s", wrong);
    if (given.version != IRSTD_OPSET_VERSION)
        return fail(k, context, "version must be %d, got %d", IRSTD_OPSET_VERSION, given.version);
    if (!irstd_tflite_constant(k, context, node->inputs->data[IN_PROGRAM], "program", TFL_UINT8, &p->data, &p->bytes)) return false;
    return p->data || fail(k, context, "input program is missing");
}

static void *init(tfl_context *context, const char *buffer, size_t length) {
    (void)length;
    return irstd_tflite_init(context, buffer, IRSTD_PROGRAM, sizeof(program), fill);
}

const tfl_registration irstd_tflite_program = SHARED_REGISTRATION(init);

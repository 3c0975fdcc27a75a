/* The operator irstd.Program: the engine on one node, with threads of its own. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "delegate.h"

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

/* One image of the engine and its tensor: [channels, pixels] there, [N, H, W, C] here. */
typedef struct {
    int tensor;
    int64_t channels, pixels;
    float *planes; /* memory of ours where the two differ: more than one channel and pixel */
} image;

typedef struct {
    delegate *owner;
    const void *data;
    size_t bytes;
    int inputs, outputs;
    image x[IRSTD_MAX_IMAGES], y[IRSTD_MAX_IMAGES];
    irstd_session *session;
    int64_t batch, height, width; /* that everything is sized for */
    int threads;
    bool dynamic; /* some input gets its size only at invoke */
    message wrong; /* why init failed, or empty */
} program;

#define fail(p, context, ...) irstd_tflite_fail(&(p)->wrong, IRSTD_PROGRAM, context, (p)->y[0].tensor, __VA_ARGS__)

static bool init_node(program *p, const tfl_context *context, const tfl_node *node) {
    p->inputs = node->inputs ? node->inputs->size - IN_X : 0;
    p->outputs = node->outputs ? node->outputs->size : 0;
    p->y[0].tensor = p->outputs > 0 ? node->outputs->data[0] : -1;
    if (p->inputs < 1 || p->outputs < 1 || p->inputs > IRSTD_MAX_IMAGES || p->outputs > IRSTD_MAX_IMAGES)
        return fail(p, context, "%d images and %d outputs, 1 to %d can be", p->inputs, p->outputs, IRSTD_MAX_IMAGES);
    for (int i = 0; i < p->inputs; i++) p->x[i].tensor = node->inputs->data[IN_X + i];
    for (int i = 0; i < p->outputs; i++) p->y[i].tensor = node->outputs->data[i];
    int index = node->inputs->data[IN_PROGRAM];
    bool known = index >= 0 && (size_t)index < context->tensors_size;
    for (int i = 0; i < p->inputs; i++) known &= p->x[i].tensor >= 0 && (size_t)p->x[i].tensor < context->tensors_size;
    for (int i = 0; i < p->outputs; i++) known &= p->y[i].tensor >= 0 && (size_t)p->y[i].tensor < context->tensors_size;
    if (!known) return fail(p, context, "an input or output is no tensor of the graph");
    program_options given = {0};
    char wrong[256];
    if (!irstd_tflite_options(node, options, sizeof options / sizeof *options, &given, wrong, sizeof wrong))
        return fail(p, context, "%s", wrong);
    if (given.version != IRSTD_OPSET_VERSION)
        return fail(p, context, "version must be %d, got %d", IRSTD_OPSET_VERSION, given.version);
    const tfl_tensor *t = &context->tensors[index];
    if ((t->allocation_type != TFL_MMAP_RO && t->allocation_type != TFL_PERSISTENT_RO) || !t->data ||
        t->type != TFL_UINT8)
        return fail(p, context, "input program must be a uint8 constant");
    p->data = t->data;
    p->bytes = t->bytes;
    return true;
}

static void free_node(tfl_context *context, void *state) {
    (void)context;
    program *p = state;
    if (!p) return;
    irstd_close(p->session);
    for (int i = 0; i < IRSTD_MAX_IMAGES; i++) {
        free(p->x[i].planes);
        free(p->y[i].planes);
    }
    free(p);
}

/* A failure is kept in the state and reported by prepare, because init can return none. */
static void *init(tfl_context *context, const char *buffer, size_t length) {
    (void)length;
    const tfl_delegate_params *params = (const tfl_delegate_params *)(const void *)buffer;
    program *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->owner = (delegate *)params->delegate;
    tfl_node *node;
    tfl_registration *registration;
    p->y[0].tensor = -1;
    if (params->nodes_to_replace->size != 1 ||
        context->GetNodeAndRegistration(context, params->nodes_to_replace->data[0], &node, &registration))
        fail(p, context, "TFLite does not give its node");
    else
        init_node(p, context, node);
    return p;
}

/* ---- prepare: sizes and memory ---- */

/* The size of all inputs. */
static bool input_size(program *p, const tfl_context *context, int64_t dims[3]) {
    for (int i = 0; i < p->inputs; i++) {
        const tfl_tensor *t = &context->tensors[p->x[i].tensor];
        if (t->type != TFL_FLOAT32) return fail(p, context, "input %d must be float32", IN_X + i);
        if (!t->dims || t->dims->size != 4)
            return fail(p, context, "input %d must be [N, H, W, C], got %d dimensions", IN_X + i,
                        t->dims ? t->dims->size : 0);
        for (int d = 0; d < 3; d++) {
            if (i && t->dims->data[d] != dims[d]) return fail(p, context, "its images must be of one size");
            dims[d] = t->dims->data[d];
        }
    }
    return true;
}

static bool open_session(program *p, const tfl_context *context, int64_t height, int64_t width, int threads) {
    if (p->session && p->height == height && p->width == width && p->threads == threads) return true;
    irstd_close(p->session);
    if (irstd_open_memory(p->data, p->bytes, height, width, threads, &p->session))
        return fail(p, context, "%s", irstd_last_error());
    p->height = height;
    p->width = width;
    p->threads = threads;
    if (irstd_input_count(p->session) == p->inputs && irstd_output_count(p->session) == p->outputs) return true;
    fail(p, context, "it has %d images and %d outputs, its program %d and %d", p->inputs, p->outputs,
         irstd_input_count(p->session), irstd_output_count(p->session));
    irstd_close(p->session);
    p->session = NULL;
    return false;
}

static bool size_image(image *m, const int64_t shape[3]) {
    m->channels = shape[0];
    m->pixels = shape[1] * shape[2];
    free(m->planes);
    m->planes = NULL;
    if (m->channels == 1 || m->pixels == 1) return true;
    m->planes = malloc((size_t)(m->channels * m->pixels) * sizeof *m->planes);
    return m->planes != NULL;
}

static bool plan(program *p, tfl_context *context) {
    int64_t dims[3] = {0}, shape[3];
    if (!input_size(p, context, dims)) return false;
    if (!open_session(p, context, dims[1], dims[2], irstd_tflite_threads(p->owner, context))) return false;
    p->batch = dims[0];
    for (int i = 0; i < p->inputs; i++) {
        int channels = context->tensors[p->x[i].tensor].dims->data[3];
        irstd_input_shape(p->session, i, shape);
        if (channels != shape[0])
            return fail(p, context, "input %d must have %lld channels, got %d", IN_X + i, (long long)shape[0], channels);
        if (!size_image(&p->x[i], shape)) return fail(p, context, "out of memory");
    }
    for (int i = 0; i < p->outputs; i++) {
        tfl_tensor *t = &context->tensors[p->y[i].tensor];
        irstd_output_shape(p->session, i, shape);
        const int64_t sizes[4] = {p->batch, shape[1], shape[2], shape[0]};
        if (t->type != TFL_FLOAT32) return fail(p, context, "its outputs must be float32");
        if (p->batch < 1 || p->batch * shape[1] * shape[2] * shape[0] > INT_MAX)
            return fail(p, context, "its output of %lld x %lld x %lld x %lld is empty or too large", (long long)sizes[0],
                        (long long)sizes[1], (long long)sizes[2], (long long)sizes[3]);
        if (!size_image(&p->y[i], shape)) return fail(p, context, "out of memory");
        if (!irstd_tflite_resize(context, t, sizes, p->dynamic))
            return fail(p, context, "TFLite does not resize the output");
    }
    return true;
}

static tfl_status report(const program *p, tfl_context *context) {
    context->ReportError(context, "%s", p->wrong.text);
    return TFL_ERROR;
}

static tfl_status prepare(tfl_context *context, tfl_node *node) {
    program *p = node->user_data;
    if (!p) {
        context->ReportError(context, CUSTOM_CODE(IRSTD_PROGRAM) ": out of memory");
        return TFL_ERROR;
    }
    if (!p->data) return report(p, context); /* init failed */
    p->dynamic = false;
    for (int i = 0; i < p->inputs; i++) p->dynamic |= context->tensors[p->x[i].tensor].allocation_type == TFL_DYNAMIC;
    if (!p->dynamic) return plan(p, context) ? TFL_OK : report(p, context);
    for (int i = 0; i < p->outputs; i++) irstd_tflite_make_dynamic(&context->tensors[p->y[i].tensor]);
    return TFL_OK;
}

/* ---- invoke ---- */

static float *image_of(const tfl_context *context, const image *m, int64_t index) {
    return (float *)context->tensors[m->tensor].data + index * m->channels * m->pixels;
}

/* [rows, columns] to [columns, rows], in blocks that stay in the cache. */
static void transpose(const float *from, int64_t rows, int64_t columns, float *to) {
    enum { BLOCK = 16 };
    for (int64_t r = 0; r < rows; r += BLOCK)
        for (int64_t c = 0; c < columns; c++)
            for (int64_t k = r; k < rows && k < r + BLOCK; k++) to[c * rows + k] = from[k * columns + c];
}

static tfl_status invoke(tfl_context *context, tfl_node *node) {
    program *p = node->user_data;
    if (p->dynamic && !plan(p, context)) return report(p, context);
    const float *x[IRSTD_MAX_IMAGES];
    float *y[IRSTD_MAX_IMAGES];
    for (int64_t n = 0; n < p->batch; n++) {
        for (int i = 0; i < p->inputs; i++) {
            const image *m = &p->x[i];
            x[i] = image_of(context, m, n);
            if (!m->planes) continue;
            transpose(x[i], m->pixels, m->channels, m->planes);
            x[i] = m->planes;
        }
        for (int i = 0; i < p->outputs; i++) y[i] = p->y[i].planes ? p->y[i].planes : image_of(context, &p->y[i], n);
        if (irstd_run(p->session, x, y)) {
            fail(p, context, "%s", irstd_last_error());
            return report(p, context);
        }
        for (int i = 0; i < p->outputs; i++)
            if (p->y[i].planes) transpose(y[i], p->y[i].channels, p->y[i].pixels, image_of(context, &p->y[i], n));
    }
    return TFL_OK;
}

const tfl_registration irstd_tflite_program = {
    .init = init,
    .free = free_node,
    .prepare = prepare,
    .invoke = invoke,
    .custom_name = "irstd",
    .version = 1,
};

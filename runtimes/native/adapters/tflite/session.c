#include "session.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

bool irstd_tflite_known(const tfl_context *context, const image *images, int count) {
    bool known = true;
    for (int i = 0; i < count; i++) known &= images[i].tensor >= 0 && (size_t)images[i].tensor < context->tensors_size;
    return known;
}

bool irstd_tflite_constant(kernel *k, const tfl_context *context, int tensor, const char *name, unsigned type,
                           const void **data, size_t *bytes) {
    *data = NULL;
    *bytes = 0;
    if (tensor == TFL_OPTIONAL_TENSOR) return true;
    if (tensor < 0 || (size_t)tensor >= context->tensors_size) return fail(k, context, "%s is no tensor of the graph", name);
    const tfl_tensor *t = &context->tensors[tensor];
    if ((t->allocation_type != TFL_MMAP_RO && t->allocation_type != TFL_PERSISTENT_RO) || !t->data)
        return fail(k, context, "input %s must be a constant", name);
    if (t->type != type)
        return fail(k, context, "input %s must be %s", name,
                    type == TFL_FLOAT32 ? "float32" : type == TFL_INT32 ? "int32" : "uint8");
    *data = t->data;
    *bytes = t->bytes;
    return true;
}

void irstd_tflite_free(tfl_context *context, void *state) {
    (void)context;
    kernel *k = state;
    if (!k) return;
    irstd_close(k->session);
    for (int i = 0; i < IRSTD_MAX_IMAGES; i++) {
        free(k->x[i].planes);
        free(k->y[i].planes);
    }
    free(k);
}

void *irstd_tflite_init(tfl_context *context, const char *buffer, const char *operator, size_t bytes,
                        bool (*fill)(kernel *k, const tfl_context *context, const tfl_node *node)) {
    const tfl_delegate_params *params = (const tfl_delegate_params *)(const void *)buffer;
    kernel *k = calloc(1, bytes);
    if (!k) return NULL;
    k->owner = (delegate *)params->delegate;
    k->operator = operator;
    k->y[0].tensor = -1;
    tfl_node *node;
    tfl_registration *registration;
    if (params->nodes_to_replace->size != 1 ||
        context->GetNodeAndRegistration(context, params->nodes_to_replace->data[0], &node, &registration))
        fail(k, context, "TFLite does not give its node");
    else
        k->ready = fill(k, context, node);
    return k;
}

/* ---- prepare: sizes and memory ---- */

static const char *name_of(const kernel *k, int image, char number[16]) {
    if (k->names) return k->names[image];
    snprintf(number, 16, "%d", 1 + image);
    return number;
}

/* The size of all images: [N, H, W, C] of each. */
static bool input_sizes(kernel *k, const tfl_context *context, int64_t (*dims)[4]) {
    char number[16];
    for (int i = 0; i < k->inputs; i++) {
        const tfl_tensor *t = &context->tensors[k->x[i].tensor];
        if (t->type != TFL_FLOAT32) return fail(k, context, "input %s must be float32", name_of(k, i, number));
        if (!t->dims || t->dims->size != 4)
            return fail(k, context, "input %s must be [N, H, W, C], got %d dimensions", name_of(k, i, number),
                        t->dims ? t->dims->size : 0);
        for (int d = 0; d < 4; d++) dims[i][d] = t->dims->data[d];
    }
    return true;
}

static bool open_session(kernel *k, const tfl_context *context, int64_t (*dims)[4]) {
    const int64_t height = dims[0][1], width = dims[0][2], residual_channels = k->single && k->inputs > 1 ? dims[1][3] : 0;
    const int threads = irstd_tflite_threads(k->owner, context);
    if (k->session && k->height == height && k->width == width && k->residual_channels == residual_channels &&
        k->threads == threads)
        return true;
    irstd_close(k->session);
    k->session = NULL;
    if (k->open(k, height, width, residual_channels, threads)) return fail(k, context, "%s", irstd_last_error());
    k->height = height;
    k->width = width;
    k->residual_channels = residual_channels;
    k->threads = threads;
    if (irstd_input_count(k->session) == k->inputs && irstd_output_count(k->session) == k->outputs) return true;
    fail(k, context, "it has %d images and %d outputs, its program %d and %d", k->inputs, k->outputs,
         irstd_input_count(k->session), irstd_output_count(k->session));
    irstd_close(k->session);
    k->session = NULL;
    return false;
}

static bool size_image(image *m, const int64_t shape[3], bool single) {
    m->channels = shape[0];
    m->pixels = shape[1] * shape[2];
    free(m->planes);
    m->planes = NULL;
    if (single || m->channels == 1 || m->pixels == 1) return true;
    m->planes = malloc((size_t)(m->channels * m->pixels) * sizeof *m->planes);
    return m->planes != NULL;
}

static bool plan(kernel *k, tfl_context *context) {
    int64_t dims[IRSTD_MAX_IMAGES][4] = {{0}}, shape[3];
    char number[16];
    if (!input_sizes(k, context, dims) || !open_session(k, context, dims)) return false;
    k->batch = dims[0][0];
    for (int i = 0; i < k->inputs; i++) {
        const int64_t *d = dims[i];
        irstd_input_shape(k->session, i, shape);
        if (d[0] != k->batch || d[1] != shape[1] || d[2] != shape[2] || d[3] != shape[0])
            return fail(k, context, "input %s must be [%lld, %lld, %lld, %lld], got [%lld, %lld, %lld, %lld]",
                        name_of(k, i, number), (long long)k->batch, (long long)shape[1], (long long)shape[2],
                        (long long)shape[0], (long long)d[0], (long long)d[1], (long long)d[2], (long long)d[3]);
        if (!size_image(&k->x[i], shape, k->single)) return fail(k, context, "out of memory");
    }
    for (int i = 0; i < k->outputs; i++) {
        tfl_tensor *t = &context->tensors[k->y[i].tensor];
        irstd_output_shape(k->session, i, shape);
        const int64_t sizes[4] = {k->batch, shape[1], shape[2], shape[0]};
        if (t->type != TFL_FLOAT32) return fail(k, context, "its outputs must be float32");
        if (k->batch < 1 || k->batch * shape[1] * shape[2] * shape[0] > INT_MAX)
            return fail(k, context, "its output of %lld x %lld x %lld x %lld is empty or too large", (long long)sizes[0],
                        (long long)sizes[1], (long long)sizes[2], (long long)sizes[3]);
        if (!size_image(&k->y[i], shape, k->single)) return fail(k, context, "out of memory");
        if (!irstd_tflite_resize(context, t, sizes, k->dynamic))
            return fail(k, context, "TFLite does not resize the output");
    }
    return true;
}

static tfl_status report(const kernel *k, tfl_context *context) {
    context->ReportError(context, "%s", k->wrong.text);
    return TFL_ERROR;
}

tfl_status irstd_tflite_prepare(tfl_context *context, tfl_node *node) {
    kernel *k = node->user_data;
    if (!k) {
        context->ReportError(context, IRSTD_DOMAIN " delegate: out of memory");
        return TFL_ERROR;
    }
    if (!k->ready) return report(k, context);
    if (k->single) irstd_tflite_share_threads(k->owner, context);
    k->dynamic = false;
    for (int i = 0; i < k->inputs; i++) k->dynamic |= context->tensors[k->x[i].tensor].allocation_type == TFL_DYNAMIC;
    if (!k->dynamic) return plan(k, context) ? TFL_OK : report(k, context);
    for (int i = 0; i < k->outputs; i++) irstd_tflite_make_dynamic(&context->tensors[k->y[i].tensor]);
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

static void run_tasks(void *context, int tasks, void (*task)(void *argument, int index), void *argument) {
    irstd_pool_run(context, tasks, task, argument);
}

tfl_status irstd_tflite_invoke(tfl_context *context, tfl_node *node) {
    kernel *k = node->user_data;
    if (k->dynamic && !plan(k, context)) return report(k, context);
    const irstd_parallel parallel = {run_tasks, k->owner->pool};
    const float *x[IRSTD_MAX_IMAGES];
    float *y[IRSTD_MAX_IMAGES];
    for (int64_t n = 0; n < k->batch; n++) {
        for (int i = 0; i < k->inputs; i++) {
            const image *m = &k->x[i];
            x[i] = image_of(context, m, n);
            if (!m->planes) continue;
            transpose(x[i], m->pixels, m->channels, m->planes);
            x[i] = m->planes;
        }
        for (int i = 0; i < k->outputs; i++) y[i] = k->y[i].planes ? k->y[i].planes : image_of(context, &k->y[i], n);
        if (irstd_run_parallel(k->session, x, y, &parallel)) {
            fail(k, context, "%s", irstd_last_error());
            return report(k, context);
        }
        for (int i = 0; i < k->outputs; i++)
            if (k->y[i].planes) transpose(y[i], k->y[i].channels, k->y[i].pixels, image_of(context, &k->y[i], n));
    }
    return TFL_OK;
}

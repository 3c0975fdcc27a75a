#include "sessions.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

OrtStatus *irstd_ort_take(kernel *k, int64_t height, int64_t width, int64_t extra, sized_session *taken) {
    *taken = (sized_session){NULL, height, width, extra};
    pthread_mutex_lock(&k->lock);
    for (int i = 0; i < RESTING && !taken->session; i++) {
        sized_session *s = &k->resting[i];
        if (!s->session || s->height != height || s->width != width || s->extra != extra) continue;
        *taken = *s;
        s->session = NULL;
    }
    pthread_mutex_unlock(&k->lock);
    if (taken->session) return NULL;
    irstd_status status = k->open(k, height, width, extra, &taken->session);
    return status ? irstd_ort_fail_irstd(&k->node, status) : NULL;
}

/* Where all places are taken, the session that has one longest goes. */
void irstd_ort_give(kernel *k, sized_session used) {
    pthread_mutex_lock(&k->lock);
    int place = 0;
    while (place < RESTING && k->resting[place].session) place++;
    if (place == RESTING) {
        place = k->oldest;
        k->oldest = (k->oldest + 1) % RESTING;
    }
    irstd_session *old = k->resting[place].session;
    k->resting[place] = used;
    pthread_mutex_unlock(&k->lock);
    irstd_close(old);
}

void irstd_ort_destroy(void *argument) {
    kernel *k = argument;
    if (!k) return;
    for (int i = 0; i < RESTING; i++) irstd_close(k->resting[i].session);
    pthread_mutex_destroy(&k->lock);
    if (k->destroy) k->destroy(k);
    free(k);
}

OrtStatus *irstd_ort_create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, const char *operator,
                            size_t bytes, OrtStatus *(*fill)(kernel *k, const OrtKernelInfo *info), void **result) {
    node node = irstd_ort_node(api, operator, info);
    *result = NULL;
    kernel *k = calloc(1, bytes);
    if (!k) return irstd_ort_fail(&node, ORT_FAIL, "out of memory");
    k->node = node;
    k->threads = ((const descriptor *)(const void *)op)->threads;
    pthread_mutex_init(&k->lock, NULL);
    OrtStatus *status = fill(k, info);
    if (status)
        irstd_ort_destroy(k);
    else
        *result = k;
    return status;
}

/* ---- a run ---- */

static int index_of(const kernel *k, int image) { return image ? k->next + image - 1 : k->first; }

static const char *name_of(const kernel *k, int image, char number[16]) {
    if (k->names) return k->names[image];
    snprintf(number, 16, "%d", index_of(k, image));
    return number;
}

/* One input or output: the first image of its batch, and the values of each. */
typedef struct {
    float *data;
    int64_t values;
} images;

typedef struct {
    const OrtApi *api;
    const OrtKernelContext *context;
} ort_pool;

typedef struct {
    void (*task)(void *argument, int index);
    void *argument;
} indexed_task;

static void run_indexed(void *argument, size_t index) {
    const indexed_task *t = argument;
    t->task(t->argument, (int)index);
}

/* Tasks on ORT's own intra-op pool, for sessions that have no threads of their own. */
static void run_tasks(void *context, int tasks, void (*task)(void *argument, int index), void *argument) {
    const ort_pool *p = context;
    indexed_task t = {task, argument};
    /* One batch per task. It fails on invalid arguments alone, before any task has run. */
    if (!irstd_ort_succeeded(p->api, ORT(p->api, KernelContext_ParallelFor)(p->context, run_indexed, (size_t)tasks, (size_t)tasks, &t)))
        for (int i = 0; i < tasks; i++) task(argument, i);
}

static OrtStatus *run(const kernel *k, OrtKernelContext *context, irstd_session *session, const float *const *given,
                      int64_t (*dims)[4]) {
    const int inputs = irstd_input_count(session);
    const int64_t batch = dims[0][0];
    images outputs[IRSTD_MAX_IMAGES];
    int64_t shape[3];
    char number[16];
    for (int i = 0; i < inputs; i++) {
        const int64_t *d = dims[i];
        irstd_input_shape(session, i, shape);
        if (d[0] != batch || memcmp(d + 1, shape, sizeof shape))
            return irstd_ort_fail(&k->node, ORT_INVALID_ARGUMENT,
                                  "input %s must be [%lld, %lld, %lld, %lld], got [%lld, %lld, %lld, %lld]",
                                  name_of(k, i, number), (long long)batch, (long long)shape[0], (long long)shape[1],
                                  (long long)shape[2], (long long)d[0], (long long)d[1], (long long)d[2], (long long)d[3]);
    }
    for (int i = 0; i < k->outputs; i++) {
        irstd_output_shape(session, i, shape);
        const int64_t size[4] = {batch, shape[0], shape[1], shape[2]};
        outputs[i].values = shape[0] * shape[1] * shape[2];
        TRY(irstd_ort_result(&k->node, context, i, size, &outputs[i].data));
    }
    ort_pool pool = {k->node.api, context};
    const irstd_parallel parallel = {run_tasks, &pool};
    for (int64_t n = 0; n < batch; n++) {
        const float *x[IRSTD_MAX_IMAGES];
        float *y[IRSTD_MAX_IMAGES];
        for (int i = 0; i < inputs; i++) x[i] = given[i] + n * dims[i][1] * dims[i][2] * dims[i][3];
        for (int i = 0; i < k->outputs; i++) y[i] = outputs[i].data + n * outputs[i].values;
        irstd_status status = irstd_run_parallel(session, x, y, &parallel);
        if (status) return irstd_ort_fail_irstd(&k->node, status);
    }
    return NULL;
}

OrtStatusPtr irstd_ort_compute(void *argument, OrtKernelContext *context) {
    kernel *k = argument;
    size_t given = 0, wanted = 0;
    const float *data[IRSTD_MAX_IMAGES] = {NULL};
    int64_t dims[IRSTD_MAX_IMAGES][4] = {{0}};
    sized_session used;
    TRY(ORT(k->node.api, KernelContext_GetInputCount)(context, &given));
    TRY(ORT(k->node.api, KernelContext_GetOutputCount)(context, &wanted));
    if (!k->optional && (given != (size_t)(k->first + k->images) || wanted != (size_t)k->outputs))
        return irstd_ort_fail(&k->node, ORT_INVALID_ARGUMENT, "it has %zu images and %zu outputs, its program %d and %d",
                              given - (size_t)k->first, wanted, k->images, k->outputs);
    for (int i = 0; i < k->images; i++) {
        char number[16];
        if ((size_t)index_of(k, i) < given)
            TRY(irstd_ort_image(&k->node, context, index_of(k, i), name_of(k, i, number), &data[i], dims[i]));
    }
    TRY(irstd_ort_take(k, dims[0][2], dims[0][3], k->optional ? dims[1][1] : 0, &used));
    OrtStatus *status = run(k, context, used.session, data, dims);
    irstd_ort_give(k, used);
    return status;
}

/* ---- descriptions ---- */

const char *irstd_ort_cpu(const OrtCustomOp *op) {
    (void)op;
    return NULL; /* the CPU */
}
OrtMemType irstd_ort_memory(const OrtCustomOp *op, size_t index) {
    (void)op, (void)index;
    return OrtMemTypeDefault;
}
ONNXTensorElementDataType irstd_ort_float(const OrtCustomOp *op, size_t index) {
    (void)op, (void)index;
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
size_t irstd_ort_one_output(const OrtCustomOp *op) {
    (void)op;
    return 1;
}
int irstd_ort_one(const OrtCustomOp *op) {
    (void)op;
    return 1;
}
int irstd_ort_version(const OrtCustomOp *op) {
    (void)op;
    return IRSTD_OPSET_VERSION;
}

/* The operator irstd.Program: the engine, which brings its own threads. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "node.h"

/* Inputs: the bytes of a model.irstd, then the images. */
enum { IN_PROGRAM, IN_X };
enum { RESTING = 4 };

typedef struct {
#define FIELD(type, name, mandatory, default_value, minimum, maximum) type name;
    IRSTD_PROGRAM_ATTRIBUTES(FIELD)
#undef FIELD
} program_attributes;

static const attribute attributes[] = {
#define ROW(type, name, mandatory, default_value, minimum, maximum) ATTRIBUTE(program_attributes, type, name, mandatory),
    IRSTD_PROGRAM_ATTRIBUTES(ROW)
#undef ROW
};

/* A session is for one image size and one run at a time. */
typedef struct {
    irstd_session *session;
    int64_t height, width;
} sized_session;

typedef struct {
    node node;
    void *data;
    size_t bytes;
    int threads, inputs, outputs;
    pthread_mutex_t lock; /* of what follows: sessions that no run uses, and the next place to give up */
    sized_session resting[RESTING];
    int next;
} kernel;

static OrtStatus *take_session(kernel *k, int64_t height, int64_t width, sized_session *taken) {
    *taken = (sized_session){NULL, height, width};
    pthread_mutex_lock(&k->lock);
    for (int i = 0; i < RESTING && !taken->session; i++)
        if (k->resting[i].session && k->resting[i].height == height && k->resting[i].width == width) {
            *taken = k->resting[i];
            k->resting[i].session = NULL;
        }
    pthread_mutex_unlock(&k->lock);
    if (taken->session) return NULL;
    irstd_status status = irstd_open_memory(k->data, k->bytes, height, width, k->threads, &taken->session);
    return status ? irstd_ort_fail_irstd(&k->node, status, irstd_last_error()) : NULL;
}

/* Where all places are taken, the session that has one longest goes. */
static void give_session(kernel *k, sized_session used) {
    pthread_mutex_lock(&k->lock);
    int place = 0;
    while (place < RESTING && k->resting[place].session) place++;
    if (place == RESTING) {
        place = k->next;
        k->next = (k->next + 1) % RESTING;
    }
    irstd_session *old = k->resting[place].session;
    k->resting[place] = used;
    pthread_mutex_unlock(&k->lock);
    irstd_close(old);
}

static OrtStatus *fill_kernel(kernel *k, const OrtKernelInfo *info) {
    program_attributes a = {0};
    const void *data;
    TRY(irstd_ort_attributes(&k->node, info, attributes, sizeof attributes / sizeof *attributes, &a));
    if (a.version != IRSTD_OPSET_VERSION)
        return irstd_ort_fail(&k->node, ORT_NOT_IMPLEMENTED, "version must be %d, got %d", IRSTD_OPSET_VERSION, a.version);
    TRY(irstd_ort_constant(&k->node, info, IN_PROGRAM, "program", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 0, &data, &k->bytes));
    k->data = malloc(k->bytes ? k->bytes : 1);
    if (!k->data) return irstd_ort_fail(&k->node, ORT_FAIL, "out of memory: %zu bytes", k->bytes);
    if (k->bytes) memcpy(k->data, data, k->bytes);
    sized_session first;
    TRY(take_session(k, a.height, a.width, &first));
    k->inputs = irstd_input_count(first.session);
    k->outputs = irstd_output_count(first.session);
    give_session(k, first);
    if (k->inputs > IRSTD_MAX_IMAGES || k->outputs > IRSTD_MAX_IMAGES)
        return irstd_ort_fail(&k->node, ORT_NOT_IMPLEMENTED, "its program has %d inputs and %d outputs, at most %d can be",
                              k->inputs, k->outputs, IRSTD_MAX_IMAGES);
    return NULL;
}

static void destroy_kernel(void *argument) {
    kernel *k = argument;
    if (!k) return;
    for (int i = 0; i < RESTING; i++) irstd_close(k->resting[i].session);
    pthread_mutex_destroy(&k->lock);
    free(k->data);
    free(k);
}

static OrtStatusPtr create_kernel(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **result) {
    node node = irstd_ort_node(api, IRSTD_PROGRAM, info);
    *result = NULL;
    kernel *k = calloc(1, sizeof *k);
    if (!k) return irstd_ort_fail(&node, ORT_FAIL, "out of memory");
    k->node = node;
    k->threads = ((const descriptor *)(const void *)op)->threads;
    pthread_mutex_init(&k->lock, NULL);
    OrtStatus *status = fill_kernel(k, info);
    if (status)
        destroy_kernel(k);
    else
        *result = k;
    return status;
}

/* One input or output of a run: the first image of its batch, and the values of each. */
typedef struct {
    float *data;
    int64_t channels, values;
} images;

/* first: [N, C, H, W] of the first input. */
static OrtStatus *take_inputs(const kernel *k, const OrtKernelContext *context, images *inputs, int64_t first[4]) {
    for (int i = 0; i < k->inputs; i++) {
        const float *data;
        int64_t dims[4] = {0};
        TRY(irstd_ort_image(&k->node, context, IN_X + i, "x", &data, dims));
        if (!i) memcpy(first, dims, sizeof dims);
        if (dims[0] != first[0] || dims[2] != first[2] || dims[3] != first[3])
            return irstd_ort_fail(&k->node, ORT_INVALID_ARGUMENT,
                                  "its images must be of one size: the first is [%lld, C, %lld, %lld], another "
                                  "[%lld, C, %lld, %lld]",
                                  (long long)first[0], (long long)first[2], (long long)first[3], (long long)dims[0],
                                  (long long)dims[2], (long long)dims[3]);
        inputs[i] = (images){(float *)(uintptr_t)data, dims[1], dims[1] * dims[2] * dims[3]};
    }
    return NULL;
}

static OrtStatus *run(const kernel *k, OrtKernelContext *context, irstd_session *session, const images *inputs,
                      int64_t batch) {
    images outputs[IRSTD_MAX_IMAGES];
    int64_t shape[3];
    for (int i = 0; i < k->inputs; i++) {
        irstd_input_shape(session, i, shape);
        if (inputs[i].channels != shape[0])
            return irstd_ort_fail(&k->node, ORT_INVALID_ARGUMENT, "input %d must have %lld channels, got %lld",
                                  IN_X + i, (long long)shape[0], (long long)inputs[i].channels);
    }
    for (int i = 0; i < k->outputs; i++) {
        irstd_output_shape(session, i, shape);
        const int64_t dims[4] = {batch, shape[0], shape[1], shape[2]};
        outputs[i] = (images){NULL, shape[0], shape[0] * shape[1] * shape[2]};
        TRY(irstd_ort_result(&k->node, context, i, dims, &outputs[i].data));
    }
    for (int64_t n = 0; n < batch; n++) {
        const float *x[IRSTD_MAX_IMAGES];
        float *y[IRSTD_MAX_IMAGES];
        for (int i = 0; i < k->inputs; i++) x[i] = inputs[i].data + n * inputs[i].values;
        for (int i = 0; i < k->outputs; i++) y[i] = outputs[i].data + n * outputs[i].values;
        irstd_status status = irstd_run(session, x, y);
        if (status) return irstd_ort_fail_irstd(&k->node, status, irstd_last_error());
    }
    return NULL;
}

static OrtStatusPtr compute(void *argument, OrtKernelContext *context) {
    kernel *k = argument;
    size_t given = 0, wanted = 0;
    images inputs[IRSTD_MAX_IMAGES];
    int64_t first[4] = {0};
    sized_session used;
    TRY(ORT(k->node.api, KernelContext_GetInputCount)(context, &given));
    TRY(ORT(k->node.api, KernelContext_GetOutputCount)(context, &wanted));
    if (given != (size_t)(IN_X + k->inputs) || wanted != (size_t)k->outputs)
        return irstd_ort_fail(&k->node, ORT_INVALID_ARGUMENT, "it has %zu images and %zu outputs, its program %d and %d",
                              given - IN_X, wanted, k->inputs, k->outputs);
    TRY(take_inputs(k, context, inputs, first));
    TRY(take_session(k, first[2], first[3], &used));
    OrtStatus *status = run(k, context, used.session, inputs, first[0]);
    give_session(k, used);
    return status;
}

/* ---- the operator's description ---- */

static const char *get_name(const OrtCustomOp *op) {
    (void)op;
    return IRSTD_PROGRAM;
}
static const char *get_provider(const OrtCustomOp *op) {
    (void)op;
    return NULL; /* the CPU */
}
static ONNXTensorElementDataType get_input_type(const OrtCustomOp *op, size_t index) {
    (void)op;
    return index == IN_PROGRAM ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static ONNXTensorElementDataType get_output_type(const OrtCustomOp *op, size_t index) {
    (void)op, (void)index;
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static size_t get_input_count(const OrtCustomOp *op) {
    (void)op;
    return IN_X + 1;
}
static OrtCustomOpInputOutputCharacteristic get_input_characteristic(const OrtCustomOp *op, size_t index) {
    (void)op;
    return index == IN_PROGRAM ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_VARIADIC;
}
static OrtCustomOpInputOutputCharacteristic get_output_characteristic(const OrtCustomOp *op, size_t index) {
    (void)op, (void)index;
    return INPUT_OUTPUT_VARIADIC;
}
static OrtMemType get_memory_type(const OrtCustomOp *op, size_t index) {
    (void)op, (void)index;
    return OrtMemTypeDefault;
}
static size_t get_output_count(const OrtCustomOp *op) {
    (void)op;
    return 1;
}
static int one(const OrtCustomOp *op) { /* image at least, and type of all of them */
    (void)op;
    return 1;
}
static int get_version(const OrtCustomOp *op) {
    (void)op;
    return IRSTD_OPSET_VERSION;
}

const irstd_ort_custom_op irstd_ort_program = {
    .version = IRSTD_ORT_API_LEVEL,
    .GetName = get_name,
    .GetExecutionProviderType = get_provider,
    .GetInputType = get_input_type,
    .GetInputTypeCount = get_input_count,
    .GetOutputType = get_output_type,
    .GetOutputTypeCount = get_output_count,
    .KernelDestroy = destroy_kernel,
    .GetInputCharacteristic = get_input_characteristic,
    .GetOutputCharacteristic = get_output_characteristic,
    .GetInputMemoryType = get_memory_type,
    .GetVariadicInputMinArity = one,
    .GetVariadicInputHomogeneity = one,
    .GetVariadicOutputMinArity = one,
    .GetVariadicOutputHomogeneity = one,
    .CreateKernelV2 = create_kernel,
    .KernelComputeV2 = compute,
    .GetStartVersion = get_version,
    .GetEndVersion = get_version,
};

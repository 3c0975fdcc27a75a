/* The operator irstd.BinaryConv2d. Rows of a node are shared out over ORT's own intra-op pool. */
#include <stdatomic.h>
#include <stdlib.h>

#include "node.h"

enum { IN_X, IN_WEIGHT, IN_THRESHOLD, IN_SCALE, IN_BIAS, IN_ACTIVATION, IN_RESIDUAL, INPUTS };
static const char *const input_names[INPUTS] = {
    "x", "weight", "threshold", "scale", "bias", "activation_parameters", "residual_input",
};

enum { CACHED = 4 };

typedef struct {
    size_t bytes;
    _Alignas(64) unsigned char data[];
} workspace;

typedef struct {
    node node;
    irstd_bconv2d *op;
    irstd_bconv2d_attributes attributes;
    int threads;
    /* Workspaces at rest: a run takes one (or none) and puts it back, so concurrent runs never share one. */
    _Atomic(workspace *) cache[CACHED];
} kernel;

static workspace *take_workspace(kernel *k, size_t bytes) {
    workspace *found = NULL;
    for (int i = 0; i < CACHED && !found; i++) found = atomic_exchange(&k->cache[i], NULL);
    if (found && found->bytes >= bytes) return found;
    free(found);
    if (bytes > SIZE_MAX - sizeof(workspace) - 63) return NULL;
    found = aligned_alloc(64, (sizeof(workspace) + bytes + 63) / 64 * 64);
    if (found) found->bytes = bytes;
    return found;
}

static void give_workspace(kernel *k, workspace *used) {
    for (int i = 0; i < CACHED && used; i++) {
        workspace *empty = NULL;
        if (atomic_compare_exchange_strong(&k->cache[i], &empty, used)) return;
    }
    free(used);
}

static const attribute attributes[] = {
#define ROW(type, name, mandatory, default_value, minimum, maximum) \
    ATTRIBUTE(irstd_bconv2d_attributes, type, name, mandatory),
    IRSTD_BINARY_CONV2D_ATTRIBUTES(ROW)
#undef ROW
};

static OrtStatus *check_count(const node *node, int index, size_t found, int64_t expected) {
    /* A size that is no positive number comes from an attribute that irstd_bconv2d_create rejects by name. */
    if (expected < 1 || found == (size_t)expected) return NULL;
    return irstd_ort_fail(node, ORT_INVALID_ARGUMENT, "input %s must have %lld values, got %zu", input_names[index],
                          (long long)expected, found);
}

static void destroy_kernel(void *argument) {
    kernel *k = argument;
    if (!k) return;
    for (int i = 0; i < CACHED; i++) free(atomic_load(&k->cache[i]));
    irstd_bconv2d_destroy(k->op);
    free(k);
}

static OrtStatus *fill_kernel(kernel *k, const OrtKernelInfo *info) {
    const node *node = &k->node;
    irstd_bconv2d_attributes *a = &k->attributes;
    irstd_bconv2d_attributes_init(a);
    TRY(irstd_ort_attributes(node, info, attributes, sizeof attributes / sizeof *attributes, a));
    const void *data[INPUTS] = {NULL};
    size_t count[INPUTS] = {0};
    for (int i = IN_WEIGHT; i <= IN_ACTIVATION; i++)
        TRY(irstd_ort_constant(
            node, info, i, input_names[i],
            i == IN_WEIGHT ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
            i == IN_ACTIVATION, &data[i], &count[i]));
    TRY(check_count(node, IN_THRESHOLD, count[IN_THRESHOLD], a->in_channels));
    TRY(check_count(node, IN_SCALE, count[IN_SCALE], a->out_channels));
    TRY(check_count(node, IN_BIAS, count[IN_BIAS], a->out_channels));
    if (data[IN_ACTIVATION]) TRY(check_count(node, IN_ACTIVATION, count[IN_ACTIVATION], 3 * (int64_t)a->out_channels));
    irstd_error error = {""};
    irstd_status status =
        irstd_bconv2d_create(a, data[IN_WEIGHT], count[IN_WEIGHT], data[IN_THRESHOLD], data[IN_SCALE], data[IN_BIAS],
                             data[IN_ACTIVATION], IRSTD_NCHW, &k->op, &error);
    return status ? irstd_ort_fail_irstd(node, status, error.message) : NULL;
}

static OrtStatusPtr create_kernel(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **result) {
    node node = irstd_ort_node(api, IRSTD_BINARY_CONV2D, info);
    *result = NULL;
    kernel *k = calloc(1, sizeof *k);
    if (!k) return irstd_ort_fail(&node, ORT_FAIL, "out of memory");
    k->node = node;
    k->threads = ((const descriptor *)(const void *)op)->threads;
    for (int i = 0; i < CACHED; i++) atomic_init(&k->cache[i], NULL);
    OrtStatus *status = fill_kernel(k, info);
    if (status)
        destroy_kernel(k);
    else
        *result = k;
    return status;
}

typedef struct {
    const kernel *k;
    const OrtKernelContext *context;
} pool;

typedef struct {
    void (*task)(void *argument, int index);
    void *argument;
} indexed_task;

static void run_indexed(void *argument, size_t index) {
    const indexed_task *t = argument;
    t->task(t->argument, (int)index);
}

static void run_parallel(void *context, int tasks, void (*task)(void *argument, int index), void *argument) {
    const pool *p = context;
    indexed_task t = {task, argument};
    const OrtApi *api = p->k->node.api;
    /* One batch per task. It fails on invalid arguments alone, before any task has run. */
    if (!irstd_ort_succeeded(api, ORT(api, KernelContext_ParallelFor)(p->context, run_indexed, (size_t)tasks, (size_t)tasks, &t)))
        for (int i = 0; i < tasks; i++) task(argument, i);
}

static OrtStatusPtr compute(void *argument, OrtKernelContext *context) {
    kernel *k = argument;
    const OrtApi *api = k->node.api;
    const irstd_bconv2d_attributes *a = &k->attributes;
    const float *x, *residual = NULL;
    int64_t in[4], extra[4] = {0}, out[4];
    irstd_error error = {""};
    size_t inputs = 0, bytes = 0;
    TRY(irstd_ort_image(&k->node, context, IN_X, input_names[IN_X], &x, in));
    if (!x || in[1] != a->in_channels)
        return irstd_ort_fail(&k->node, ORT_INVALID_ARGUMENT, "input x must have %d channels, got %lld", a->in_channels,
                              x ? (long long)in[1] : 0);
    out[0] = in[0];
    out[1] = a->out_channels;
    irstd_status status = irstd_bconv2d_output_size(k->op, in[2], in[3], &out[2], &out[3], &error);
    if (status) return irstd_ort_fail_irstd(&k->node, status, error.message);
    TRY(ORT(api, KernelContext_GetInputCount)(context, &inputs));
    if (inputs > IN_RESIDUAL)
        TRY(irstd_ort_image(&k->node, context, IN_RESIDUAL, input_names[IN_RESIDUAL], &residual, extra));
    if (residual && (extra[0] != out[0] || extra[2] != out[2] || extra[3] != out[3]))
        return irstd_ort_fail(&k->node, ORT_INVALID_ARGUMENT,
                              "input residual_input must be [%lld, RC, %lld, %lld], got [%lld, %lld, %lld, %lld]",
                              (long long)out[0], (long long)out[2], (long long)out[3], (long long)extra[0], (long long)extra[1],
                              (long long)extra[2], (long long)extra[3]);
    float *y;
    TRY(irstd_ort_result(&k->node, context, 0, out, &y));
    status = irstd_bconv2d_workspace_bytes(k->op, in[2], in[3], k->threads, &bytes, &error);
    if (status) return irstd_ort_fail_irstd(&k->node, status, error.message);
    workspace *scratch = NULL;
    if (bytes && !(scratch = take_workspace(k, bytes)))
        return irstd_ort_fail(&k->node, ORT_FAIL, "out of memory: a workspace of %zu bytes", bytes);
    pool p = {k, context};
    irstd_parallel parallel = {run_parallel, &p, k->threads};
    status = irstd_bconv2d_run(k->op, in[0], in[2], in[3], x, residual, extra[1], y, scratch ? scratch->data : NULL,
                               scratch ? scratch->bytes : 0, k->threads > 1 ? &parallel : NULL, &error);
    give_workspace(k, scratch);
    return status ? irstd_ort_fail_irstd(&k->node, status, error.message) : NULL;
}

/* ---- the operator's description ---- */

static const char *get_name(const OrtCustomOp *op) {
    (void)op;
    return IRSTD_BINARY_CONV2D;
}
static const char *get_provider(const OrtCustomOp *op) {
    (void)op;
    return NULL; /* the CPU */
}
static ONNXTensorElementDataType get_input_type(const OrtCustomOp *op, size_t index) {
    (void)op;
    return index == IN_WEIGHT ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static size_t get_input_count(const OrtCustomOp *op) {
    (void)op;
    return INPUTS;
}
static ONNXTensorElementDataType get_output_type(const OrtCustomOp *op, size_t index) {
    (void)op, (void)index;
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static size_t get_output_count(const OrtCustomOp *op) {
    (void)op;
    return 1;
}
static OrtCustomOpInputOutputCharacteristic get_input_characteristic(const OrtCustomOp *op, size_t index) {
    (void)op;
    return index >= IN_ACTIVATION ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}
static OrtCustomOpInputOutputCharacteristic get_output_characteristic(const OrtCustomOp *op, size_t index) {
    (void)op, (void)index;
    return INPUT_OUTPUT_REQUIRED;
}
static OrtMemType get_memory_type(const OrtCustomOp *op, size_t index) {
    (void)op, (void)index;
    return OrtMemTypeDefault;
}
static int get_start_version(const OrtCustomOp *op) {
    (void)op;
    return IRSTD_OPSET_VERSION;
}
static int get_end_version(const OrtCustomOp *op) {
    (void)op;
    return IRSTD_OPSET_VERSION;
}

/* InferOutputShapeFn stays NULL: before it calls one, ORT 1.18 reads the type of every input, and crashes where
 * activation_parameters is absent and residual_input is not. Exporters write the shapes into the graph. */
const irstd_ort_custom_op irstd_ort_bconv2d = {
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
    .CreateKernelV2 = create_kernel,
    .KernelComputeV2 = compute,
    .GetStartVersion = get_start_version,
    .GetEndVersion = get_end_version,
};


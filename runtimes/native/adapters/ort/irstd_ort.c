/* libirstd_ort.so: the operators of domain `irstd` for ONNX Runtime 1.18 and newer.
 *
 * Entry point: RegisterCustomOps, which SessionOptions.register_custom_ops_library() calls. Nothing of ORT is
 * linked. Rows of a node are shared out over ORT's own intra-op pool; the session configuration entry
 * `irstd.threads` tells into how many parts (default: the processors that this process may use). */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "irstd.h"
#include "ort_abi.h"

#define EXPORT __attribute__((visibility("default")))
#define PRINTF(position, first) __attribute__((format(printf, position, first)))

enum { IN_X, IN_WEIGHT, IN_THRESHOLD, IN_SCALE, IN_BIAS, IN_ACTIVATION, IN_RESIDUAL, INPUTS };
static const char *const input_names[INPUTS] = {
    "x", "weight", "threshold", "scale", "bias", "activation_parameters", "residual_input",
};

enum { MAX_THREADS = 64, CACHED = 4, NAME_BYTES = 128 };

/* ---- errors ---- */

typedef struct {
    const OrtApi *api;
    char name[NAME_BYTES]; /* of the node */
} node_name;

PRINTF(3, 4)
static OrtStatus *fail(const node_name *node, OrtErrorCode code, const char *format, ...) {
    char detail[320], message[640];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(detail, sizeof detail, format, arguments);
    va_end(arguments);
    snprintf(message, sizeof message, IRSTD_DOMAIN "." IRSTD_BINARY_CONV2D " node '%s': %s", node->name, detail);
    return ORT(node->api, CreateStatus)(code, message);
}

static OrtStatus *fail_irstd(const node_name *node, irstd_status status, const irstd_error *error) {
    OrtErrorCode code = status == IRSTD_INVALID       ? ORT_INVALID_ARGUMENT
                        : status == IRSTD_UNSUPPORTED ? ORT_NOT_IMPLEMENTED
                                                      : ORT_FAIL;
    return fail(node, code, "%s", error->message);
}

#define TRY(expression)                          \
    do {                                         \
        OrtStatus *try_status_ = (expression);   \
        if (try_status_) return try_status_;     \
    } while (0)

/* True on success; drops the status otherwise. */
static int succeeded(const OrtApi *api, OrtStatus *status) {
    if (!status) return 1;
    ORT(api, ReleaseStatus)(status);
    return 0;
}

/* ---- the kernel of one node ---- */

typedef struct {
    size_t bytes;
    _Alignas(64) unsigned char data[];
} workspace;

typedef struct {
    node_name node;
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

/* Table of the attributes: where each goes and of which type it is. */
typedef struct {
    const char *name;
    size_t offset;
    int is_float, mandatory;
} attribute;

#define IS_FLOAT_int32_t 0
#define IS_FLOAT_float 1
static const attribute attribute_table[] = {
#define ROW(type, name, mandatory, default_value, minimum, maximum) \
    {#name, offsetof(irstd_bconv2d_attributes, name), IS_FLOAT_##type, mandatory},
    IRSTD_BINARY_CONV2D_ATTRIBUTES(ROW)
#undef ROW
};

static OrtStatus *read_attribute(const node_name *node, const OrtKernelInfo *info, const attribute *row,
                                 irstd_bconv2d_attributes *attributes) {
    const OrtApi *api = node->api;
    char *field = (char *)attributes + row->offset;
    int64_t integer;
    float real;
    size_t size = 0;
    int has_integer = succeeded(api, ORT(api, KernelInfoGetAttribute_int64)(info, row->name, &integer));
    int has_float = !has_integer && succeeded(api, ORT(api, KernelInfoGetAttribute_float)(info, row->name, &real));
    if (row->is_float ? has_float : has_integer) {
        if (row->is_float) {
            memcpy(field, &real, sizeof real);
            return NULL;
        }
        if (integer <= INT32_MIN || integer > INT32_MAX)
            return fail(node, ORT_INVALID_ARGUMENT, "attribute %s is out of range: %lld", row->name,
                        (long long)integer);
        int32_t value = (int32_t)integer;
        memcpy(field, &value, sizeof value);
        return NULL;
    }
    if (has_integer || has_float || succeeded(api, ORT(api, KernelInfoGetAttribute_string)(info, row->name, NULL, &size)))
        return fail(node, ORT_INVALID_ARGUMENT, "attribute %s must be %s", row->name,
                    row->is_float ? "a FLOAT" : "an INT");
    if (row->mandatory) return fail(node, ORT_INVALID_ARGUMENT, "attribute %s is missing", row->name);
    return NULL;
}

/* Data and element count of a constant input; *data stays NULL where an optional one is absent. */
static OrtStatus *constant(const node_name *node, const OrtKernelInfo *info, int index, ONNXTensorElementDataType type,
                           int optional, const void **data, size_t *count) {
    const OrtApi *api = node->api;
    const OrtValue *value = NULL;
    OrtTensorTypeAndShapeInfo *shape = NULL;
    ONNXTensorElementDataType found = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    int is_constant = 0;
    void *bytes = NULL;
    *data = NULL;
    *count = 0;
    int known = succeeded(api, ORT(api, KernelInfoGetConstantInput_tensor)(info, (size_t)index, &is_constant, &value));
    if (!known || !is_constant || !value) {
        if (optional) return NULL;
        return fail(node, ORT_INVALID_ARGUMENT, "input %s must be a constant (an initializer of the graph)",
                    input_names[index]);
    }
    TRY(ORT(api, GetTensorTypeAndShape)(value, &shape));
    OrtStatus *status = ORT(api, GetTensorElementType)(shape, &found);
    if (!status) status = ORT(api, GetTensorShapeElementCount)(shape, count);
    ORT(api, ReleaseTensorTypeAndShapeInfo)(shape);
    if (!status) status = ORT(api, GetTensorMutableData)((OrtValue *)(uintptr_t)value, &bytes);
    TRY(status);
    if (found != type)
        return fail(node, ORT_INVALID_ARGUMENT, "input %s must be %s", input_names[index],
                    type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? "float32" : "int32");
    *data = bytes;
    return NULL;
}

static OrtStatus *check_count(const node_name *node, int index, size_t found, int64_t expected) {
    /* A size that is no positive number comes from an attribute that irstd_bconv2d_create rejects by name. */
    if (expected < 1 || found == (size_t)expected) return NULL;
    return fail(node, ORT_INVALID_ARGUMENT, "input %s must have %lld values, got %zu", input_names[index],
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
    const node_name *node = &k->node;
    irstd_bconv2d_attributes *a = &k->attributes;
    irstd_bconv2d_attributes_init(a);
    for (size_t i = 0; i < sizeof attribute_table / sizeof *attribute_table; i++)
        TRY(read_attribute(node, info, &attribute_table[i], a));
    const void *data[INPUTS] = {NULL};
    size_t count[INPUTS] = {0};
    for (int i = IN_WEIGHT; i <= IN_ACTIVATION; i++)
        TRY(constant(node, info, i,
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
    return status ? fail_irstd(node, status, &error) : NULL;
}

/* One static descriptor per thread count, because ORT hands kernels nothing but their descriptor. */
typedef struct {
    irstd_ort_custom_op op;
    int threads;
} descriptor;

static OrtStatusPtr create_kernel(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **result) {
    node_name node = {api, "?"};
    size_t size = sizeof node.name;
    if (!succeeded(api, ORT(api, KernelInfo_GetNodeName)(info, node.name, &size))) {
        /* The only failure is a name longer than our buffer. */
        char *name = size && size < SIZE_MAX / 2 ? malloc(size) : NULL;
        if (name && succeeded(api, ORT(api, KernelInfo_GetNodeName)(info, name, &size)))
            snprintf(node.name, sizeof node.name, "%.100s...", name);
        free(name);
    }
    *result = NULL;
    kernel *k = calloc(1, sizeof *k);
    if (!k) return fail(&node, ORT_FAIL, "out of memory");
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

/* Pointer and [N, C, H, W] of a run-time input; the pointer stays NULL where the input is absent. */
static OrtStatus *tensor(const kernel *k, const OrtKernelContext *context, int index, const float **data,
                         int64_t dims[4]) {
    const OrtApi *api = k->node.api;
    const OrtValue *value = NULL;
    OrtTensorTypeAndShapeInfo *shape = NULL;
    size_t rank = 0;
    void *bytes = NULL;
    *data = NULL;
    TRY(ORT(api, KernelContext_GetInput)(context, (size_t)index, &value));
    if (!value) return NULL;
    TRY(ORT(api, GetTensorTypeAndShape)(value, &shape));
    OrtStatus *status = ORT(api, GetDimensionsCount)(shape, &rank);
    if (!status && rank == 4) status = ORT(api, GetDimensions)(shape, dims, 4);
    ORT(api, ReleaseTensorTypeAndShapeInfo)(shape);
    TRY(status);
    if (rank != 4)
        return fail(&k->node, ORT_INVALID_ARGUMENT, "input %s must be [N, C, H, W], got %zu dimensions",
                    input_names[index], rank);
    TRY(ORT(api, GetTensorMutableData)((OrtValue *)(uintptr_t)value, &bytes));
    *data = bytes;
    return NULL;
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
    if (!succeeded(api, ORT(api, KernelContext_ParallelFor)(p->context, run_indexed, (size_t)tasks, (size_t)tasks, &t)))
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
    TRY(tensor(k, context, IN_X, &x, in));
    if (!x || in[1] != a->in_channels)
        return fail(&k->node, ORT_INVALID_ARGUMENT, "input x must have %d channels, got %lld", a->in_channels,
                    x ? (long long)in[1] : 0);
    out[0] = in[0];
    out[1] = a->out_channels;
    irstd_status status = irstd_bconv2d_output_size(k->op, in[2], in[3], &out[2], &out[3], &error);
    if (status) return fail_irstd(&k->node, status, &error);
    TRY(ORT(api, KernelContext_GetInputCount)(context, &inputs));
    if (inputs > IN_RESIDUAL) TRY(tensor(k, context, IN_RESIDUAL, &residual, extra));
    if (residual && (extra[0] != out[0] || extra[2] != out[2] || extra[3] != out[3]))
        return fail(&k->node, ORT_INVALID_ARGUMENT,
                    "input residual_input must be [%lld, RC, %lld, %lld], got [%lld, %lld, %lld, %lld]",
                    (long long)out[0], (long long)out[2], (long long)out[3], (long long)extra[0], (long long)extra[1],
                    (long long)extra[2], (long long)extra[3]);
    OrtValue *output = NULL;
    void *y = NULL;
    TRY(ORT(api, KernelContext_GetOutput)(context, 0, out, 4, &output));
    TRY(ORT(api, GetTensorMutableData)(output, &y));
    status = irstd_bconv2d_workspace_bytes(k->op, in[2], in[3], k->threads, &bytes, &error);
    if (status) return fail_irstd(&k->node, status, &error);
    workspace *scratch = NULL;
    if (bytes && !(scratch = take_workspace(k, bytes)))
        return fail(&k->node, ORT_FAIL, "out of memory: a workspace of %zu bytes", bytes);
    pool p = {k, context};
    irstd_parallel parallel = {run_parallel, &p, k->threads};
    status = irstd_bconv2d_run(k->op, in[0], in[2], in[3], x, residual, extra[1], y, scratch ? scratch->data : NULL,
                               scratch ? scratch->bytes : 0, k->threads > 1 ? &parallel : NULL, &error);
    give_workspace(k, scratch);
    return status ? fail_irstd(&k->node, status, &error) : NULL;
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
static const irstd_ort_custom_op description = {
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

/* ---- registration ---- */

/* Domains live as long as the process: session options hold a pointer to theirs, and may outlive any session. */
typedef struct domain_entry {
    struct domain_entry *next;
    const OrtApi *api;
    OrtCustomOpDomain *domain;
    descriptor description;
} domain_entry;

static pthread_mutex_t domains_lock = PTHREAD_MUTEX_INITIALIZER;
static domain_entry *domains;

static int usable_processors(void) {
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    return count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
}

static OrtStatus *configured_threads(const OrtApi *api, const OrtSessionOptions *options, int *threads) {
    char text[16];
    size_t size = sizeof text;
    int given = 0;
    *threads = usable_processors();
    TRY(ORT(api, HasSessionConfigEntry)(options, "irstd.threads", &given));
    if (!given) return NULL;
    if (succeeded(api, ORT(api, GetSessionConfigEntry)(options, "irstd.threads", text, &size))) {
        char *end;
        long value = strtol(text, &end, 10);
        if (end != text && !*end && value >= 1 && value <= MAX_THREADS) {
            *threads = (int)value;
            return NULL;
        }
    }
    return ORT(api, CreateStatus)(ORT_INVALID_ARGUMENT, "irstd.threads must be a number in 1..64");
}

static OrtStatus *find_domain(const OrtApi *api, int threads, OrtCustomOpDomain **result) {
    for (domain_entry *entry = domains; entry; entry = entry->next)
        if (entry->api == api && entry->description.threads == threads) {
            *result = entry->domain;
            return NULL;
        }
    domain_entry *entry = calloc(1, sizeof *entry);
    if (!entry) return ORT(api, CreateStatus)(ORT_FAIL, "out of memory");
    entry->api = api;
    entry->description.op = description;
    entry->description.threads = threads;
    OrtStatus *status = ORT(api, CreateCustomOpDomain)(IRSTD_DOMAIN, &entry->domain);
    if (!status)
        status = ORT(api, CustomOpDomain_Add)(entry->domain, (const OrtCustomOp *)(const void *)&entry->description.op);
    if (status) { /* the domain, if made, stays with ORT: 1.17 cannot tell whether it took the operator */
        free(entry);
        return status;
    }
    entry->next = domains;
    domains = entry;
    *result = entry->domain;
    return NULL;
}

EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    const OrtApi *api = base->GetApi(IRSTD_ORT_API_LEVEL);
    if (!api) {
        char message[160];
        snprintf(message, sizeof message, "irstd needs ONNX Runtime 1.18 or newer, this one is %s",
                 base->GetVersionString());
        const OrtApi *oldest = base->GetApi(1);
        return oldest ? ORT(oldest, CreateStatus)(ORT_NOT_IMPLEMENTED, message) : NULL;
    }
    int threads;
    OrtCustomOpDomain *domain = NULL;
    TRY(configured_threads(api, options, &threads));
    pthread_mutex_lock(&domains_lock);
    OrtStatus *status = find_domain(api, threads, &domain);
    pthread_mutex_unlock(&domains_lock);
    TRY(status);
    return ORT(api, AddCustomOpDomain)(options, domain);
}

/* ---- what this build and CPU can run, for reports ---- */

EXPORT const char *irstd_library_isa(irstd_error *error) { return irstd_isa(error); }
EXPORT int irstd_library_isa_count(void) { return irstd_isa_count(); }
EXPORT const char *irstd_library_isa_name(int index) { return irstd_isa_name(index); }
EXPORT int irstd_library_isa_available(int index) { return irstd_isa_available(index); }

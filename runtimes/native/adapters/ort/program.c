/* The operator irstd.Program: a network, with threads of its own. */
#include <stdlib.h>

#include "sessions.h"

/* Inputs: the bytes of a model.irstd, then the images. */
enum { IN_PROGRAM, IN_X };

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

typedef struct {
    kernel base;
    void *data;
    size_t bytes;
} program;

static irstd_status open(const kernel *k, int64_t height, int64_t width, int64_t extra, irstd_session **session) {
    const program *p = (const program *)k;
    (void)extra;
    return irstd_open_memory(p->data, p->bytes, height, width, k->threads, session);
}

static void destroy(kernel *k) { free(((program *)k)->data); }

static OrtStatus *fill(kernel *k, const OrtKernelInfo *info) {
    program *p = (program *)k;
    program_attributes a = {0};
    sized_session first;
    k->open = open;
    k->destroy = destroy;
    k->first = IN_X;
    k->next = IN_X + 1;
    TRY(irstd_ort_attributes(&k->node, info, attributes, sizeof attributes / sizeof *attributes, &a));
    if (a.version != IRSTD_OPSET_VERSION)
        return irstd_ort_fail(&k->node, ORT_NOT_IMPLEMENTED, "version must be %d, got %d", IRSTD_OPSET_VERSION, a.version);
    TRY(irstd_ort_constant(&k->node, info, IN_PROGRAM, "program", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 0, &p->data, &p->bytes));
    TRY(irstd_ort_take(k, a.height, a.width, 0, &first));
    k->images = irstd_input_count(first.session);
    k->outputs = irstd_output_count(first.session);
    irstd_ort_give(k, first);
    if (k->images > IRSTD_MAX_IMAGES || k->outputs > IRSTD_MAX_IMAGES)
        return irstd_ort_fail(&k->node, ORT_NOT_IMPLEMENTED, "its program has %d inputs and %d outputs, at most %d can be",
                              k->images, k->outputs, IRSTD_MAX_IMAGES);
    return NULL;
}

static OrtStatusPtr create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **result) {
    return irstd_ort_create(op, api, info, IRSTD_PROGRAM, sizeof(program), fill, result);
}

static const char *get_name(const OrtCustomOp *op) {
    (void)op;
    return IRSTD_PROGRAM;
}
static ONNXTensorElementDataType get_input_type(const OrtCustomOp *op, size_t index) {
    (void)op;
    return index == IN_PROGRAM ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
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

const irstd_ort_custom_op irstd_ort_program = {
    SHARED_DESCRIPTION,
    .GetName = get_name,
    .GetInputType = get_input_type,
    .GetInputTypeCount = get_input_count,
    .GetInputCharacteristic = get_input_characteristic,
    .GetOutputCharacteristic = get_output_characteristic,
    .GetVariadicInputMinArity = irstd_ort_one,
    .GetVariadicInputHomogeneity = irstd_ort_one,
    .GetVariadicOutputMinArity = irstd_ort_one,
    .GetVariadicOutputHomogeneity = irstd_ort_one,
    .CreateKernelV2 = create,
};

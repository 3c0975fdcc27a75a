/* The operator irstd.BinaryConv2d: a network of one layer. */
#include <stdlib.h>
#include <string.h>

#include "sessions.h"

enum { IN_X, IN_WEIGHT, IN_THRESHOLD, IN_SCALE, IN_BIAS, IN_ACTIVATION, IN_RESIDUAL, INPUTS };
static const char *const image_names[] = {"x", "residual_input"};
static const char *const constant_names[] = {"weight", "threshold", "scale", "bias", "activation_parameters"};

typedef struct {
    kernel base;
    irstd_bconv2d op;
    void *copies[IRSTD_BCONV2D_CONSTANTS];
} bconv2d;

static const attribute attributes[] = {
#define ROW(type, name, mandatory, default_value, minimum, maximum) \
    ATTRIBUTE(irstd_bconv2d_attributes, type, name, mandatory),
    IRSTD_BINARY_CONV2D_ATTRIBUTES(ROW)
#undef ROW
};

static irstd_status open(const kernel *k, int64_t height, int64_t width, int64_t residual_channels, irstd_session **session) {
    return irstd_open_bconv2d(&((const bconv2d *)k)->op, height, width, residual_channels, k->threads, session);
}

static void destroy(kernel *k) {
    for (int i = 0; i < IRSTD_BCONV2D_CONSTANTS; i++) free(((bconv2d *)k)->copies[i]);
}

static OrtStatus *fill(kernel *k, const OrtKernelInfo *info) {
    bconv2d *b = (bconv2d *)k;
    k->open = open;
    k->destroy = destroy;
    k->first = IN_X;
    k->next = IN_RESIDUAL;
    k->images = 2;
    k->names = image_names;
    k->optional = k->outputs = 1;
    irstd_bconv2d_attributes_init(&b->op.attributes);
    TRY(irstd_ort_attributes(&k->node, info, attributes, sizeof attributes / sizeof *attributes, &b->op.attributes));
    for (int i = 0; i < IRSTD_BCONV2D_CONSTANTS; i++)
        TRY(irstd_ort_constant(&k->node, info, IN_WEIGHT + i, constant_names[i],
                               i ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
                               IN_WEIGHT + i == IN_ACTIVATION, &b->copies[i], &b->op.constant_bytes[i]));
    memcpy(b->op.constants, b->copies, sizeof b->copies);
    irstd_status status = irstd_check_bconv2d(&b->op);
    return status ? irstd_ort_fail_irstd(&k->node, status) : NULL;
}

static OrtStatusPtr create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **result) {
    return irstd_ort_create(op, api, info, IRSTD_BINARY_CONV2D, sizeof(bconv2d), fill, result);
}

static const char *get_name(const OrtCustomOp *op) {
    (void)op;
    return IRSTD_BINARY_CONV2D;
}
static ONNXTensorElementDataType get_input_type(const OrtCustomOp *op, size_t index) {
    (void)op;
    return index == IN_WEIGHT ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static size_t get_input_count(const OrtCustomOp *op) {
    (void)op;
    return INPUTS;
}
static OrtCustomOpInputOutputCharacteristic get_input_characteristic(const OrtCustomOp *op, size_t index) {
    (void)op;
    return index >= IN_ACTIVATION ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}
static OrtCustomOpInputOutputCharacteristic get_output_characteristic(const OrtCustomOp *op, size_t index) {
    (void)op, (void)index;
    return INPUT_OUTPUT_REQUIRED;
}

/* InferOutputShapeFn stays NULL: before it calls one, ORT 1.18 reads the type of every input, and crashes where
 * activation_parameters is absent and residual_input is not. Exporters write the shapes into the graph. */
const irstd_ort_custom_op irstd_ort_bconv2d = {
    SHARED_DESCRIPTION,
    .GetName = get_name,
    .GetInputType = get_input_type,
    .GetInputTypeCount = get_input_count,
    .GetInputCharacteristic = get_input_characteristic,
    .GetOutputCharacteristic = get_output_characteristic,
    .CreateKernelV2 = create,
};

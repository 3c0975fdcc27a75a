#include "node.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

OrtStatus *irstd_ort_fail(const node *n, OrtErrorCode code, const char *format, ...) {
    char detail[320], message[640];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(detail, sizeof detail, format, arguments);
    va_end(arguments);
    snprintf(message, sizeof message, IRSTD_DOMAIN ".%s node '%s': %s", n->operator, n->name, detail);
    return ORT(n->api, CreateStatus)(code, message);
}

OrtStatus *irstd_ort_fail_irstd(const node *n, irstd_status status) {
    OrtErrorCode code = status == IRSTD_INVALID       ? ORT_INVALID_ARGUMENT
                        : status == IRSTD_UNSUPPORTED ? ORT_NOT_IMPLEMENTED
                                                      : ORT_FAIL;
    return irstd_ort_fail(n, code, "%s", irstd_last_error());
}

int irstd_ort_succeeded(const OrtApi *api, OrtStatus *status) {
    if (!status) return 1;
    ORT(api, ReleaseStatus)(status);
    return 0;
}

node irstd_ort_node(const OrtApi *api, const char *operator, const OrtKernelInfo *info) {
    node n = {api, operator, "?"};
    size_t size = sizeof n.name;
    if (irstd_ort_succeeded(api, ORT(api, KernelInfo_GetNodeName)(info, n.name, &size))) return n;
    /* The only failure is a name longer than our buffer. */
    char *name = size && size < SIZE_MAX / 2 ? malloc(size) : NULL;
    if (name && irstd_ort_succeeded(api, ORT(api, KernelInfo_GetNodeName)(info, name, &size)))
        snprintf(n.name, sizeof n.name, "%.100s...", name);
    free(name);
    return n;
}

static OrtStatus *read_attribute(const node *n, const OrtKernelInfo *info, const attribute *row, void *target) {
    const OrtApi *api = n->api;
    char *field = (char *)target + row->offset;
    int64_t integer;
    float real;
    size_t size = 0;
    int has_integer = irstd_ort_succeeded(api, ORT(api, KernelInfoGetAttribute_int64)(info, row->name, &integer));
    int has_float =
        !has_integer && irstd_ort_succeeded(api, ORT(api, KernelInfoGetAttribute_float)(info, row->name, &real));
    if (row->is_float ? has_float : has_integer) {
        if (row->is_float) {
            memcpy(field, &real, sizeof real);
            return NULL;
        }
        if (integer <= INT32_MIN || integer > INT32_MAX)
            return irstd_ort_fail(n, ORT_INVALID_ARGUMENT, "attribute %s is out of range: %lld", row->name,
                                  (long long)integer);
        int32_t value = (int32_t)integer;
        memcpy(field, &value, sizeof value);
        return NULL;
    }
    if (has_integer || has_float ||
        irstd_ort_succeeded(api, ORT(api, KernelInfoGetAttribute_string)(info, row->name, NULL, &size)))
        return irstd_ort_fail(n, ORT_INVALID_ARGUMENT, "attribute %s must be %s", row->name,
                              row->is_float ? "a FLOAT" : "an INT");
    if (row->mandatory) return irstd_ort_fail(n, ORT_INVALID_ARGUMENT, "attribute %s is missing", row->name);
    return NULL;
}

OrtStatus *irstd_ort_attributes(const node *n, const OrtKernelInfo *info, const attribute *table, size_t rows,
                                void *target) {
    for (size_t i = 0; i < rows; i++) TRY(read_attribute(n, info, &table[i], target));
    return NULL;
}

static const char *type_name(ONNXTensorElementDataType type) {
    return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT   ? "float32"
           : type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 ? "int32"
                                                         : "uint8";
}

OrtStatus *irstd_ort_constant(const node *n, const OrtKernelInfo *info, int index, const char *name,
                              ONNXTensorElementDataType type, int optional, void **data, size_t *bytes) {
    const OrtApi *api = n->api;
    const OrtValue *value = NULL;
    OrtTensorTypeAndShapeInfo *shape = NULL;
    ONNXTensorElementDataType found = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    int is_constant = 0;
    void *from = NULL;
    size_t count = 0;
    *data = NULL;
    *bytes = 0;
    int known =
        irstd_ort_succeeded(api, ORT(api, KernelInfoGetConstantInput_tensor)(info, (size_t)index, &is_constant, &value));
    if (!known || !is_constant || !value) {
        if (optional) return NULL;
        return irstd_ort_fail(n, ORT_INVALID_ARGUMENT, "input %s must be a constant (an initializer of the graph)", name);
    }
    TRY(ORT(api, GetTensorTypeAndShape)(value, &shape));
    OrtStatus *status = ORT(api, GetTensorElementType)(shape, &found);
    if (!status) status = ORT(api, GetTensorShapeElementCount)(shape, &count);
    ORT(api, ReleaseTensorTypeAndShapeInfo)(shape);
    if (!status) status = ORT(api, GetTensorMutableData)((OrtValue *)(uintptr_t)value, &from);
    TRY(status);
    if (found != type) return irstd_ort_fail(n, ORT_INVALID_ARGUMENT, "input %s must be %s", name, type_name(type));
    *bytes = count * (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 ? 1 : 4);
    *data = malloc(*bytes ? *bytes : 1);
    if (!*data) return irstd_ort_fail(n, ORT_FAIL, "out of memory: %zu bytes", *bytes);
    if (*bytes) memcpy(*data, from, *bytes);
    return NULL;
}

OrtStatus *irstd_ort_image(const node *n, const OrtKernelContext *context, int index, const char *name,
                           const float **data, int64_t dims[4]) {
    const OrtApi *api = n->api;
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
        return irstd_ort_fail(n, ORT_INVALID_ARGUMENT, "input %s must be [N, C, H, W], got %zu dimensions", name, rank);
    TRY(ORT(api, GetTensorMutableData)((OrtValue *)(uintptr_t)value, &bytes));
    *data = bytes;
    return NULL;
}

OrtStatus *irstd_ort_result(const node *n, OrtKernelContext *context, int index, const int64_t dims[4], float **data) {
    OrtValue *output = NULL;
    void *bytes = NULL;
    TRY(ORT(n->api, KernelContext_GetOutput)(context, (size_t)index, dims, 4, &output));
    TRY(ORT(n->api, GetTensorMutableData)(output, &bytes));
    *data = bytes;
    return NULL;
}

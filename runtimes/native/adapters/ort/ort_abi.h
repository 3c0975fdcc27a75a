/* The part of ONNX Runtime's C ABI that this adapter uses, declared here so that building needs no ORT headers.
 *
 * OrtApi is a table of function pointers that ORT only ever appends to, so a slot number is stable for ever;
 * OrtCustomOp grows at its end alike, and ORT reads only the fields that its `version` promises.
 * tests/runtimes/test_ort_abi.py compiles this file against the real header and compares every slot, function
 * type, field and constant. With the real header included first, only the tables below are declared. */
#ifndef IRSTD_ORT_ABI_H
#define IRSTD_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

/* ONNX Runtime 1.17 is the first with every function below; newer releases keep serving version 17. */
#define IRSTD_ORT_API_LEVEL 17

#ifndef ORT_API_VERSION
typedef struct OrtApi OrtApi;
typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtShapeInferContext OrtShapeInferContext;
typedef struct OrtCustomOp OrtCustomOp;
typedef OrtStatus *OrtStatusPtr;

typedef struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

typedef enum OrtErrorCode {
    ORT_OK = 0,
    ORT_FAIL = 1,
    ORT_INVALID_ARGUMENT = 2,
    ORT_NOT_IMPLEMENTED = 9,
} OrtErrorCode;

typedef enum ONNXTensorElementDataType {
    ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 = 6,
} ONNXTensorElementDataType;

typedef enum OrtCustomOpInputOutputCharacteristic {
    INPUT_OUTPUT_REQUIRED = 0,
    INPUT_OUTPUT_OPTIONAL = 1,
    INPUT_OUTPUT_VARIADIC = 2,
} OrtCustomOpInputOutputCharacteristic;

typedef enum OrtMemType {
    OrtMemTypeCPUInput = -2,
    OrtMemTypeDefault = 0,
} OrtMemType;
#endif

/* X(slot, return type, name, arguments): the functions of OrtApi that this adapter calls. */
#define IRSTD_ORT_FUNCTIONS(X) \
    X(0, OrtStatus *, CreateStatus, (OrtErrorCode code, const char *message)) \
    X(26, OrtStatusPtr, CreateCustomOpDomain, (const char *domain, OrtCustomOpDomain **out)) \
    X(27, OrtStatusPtr, CustomOpDomain_Add, (OrtCustomOpDomain * domain, const OrtCustomOp *op)) \
    X(28, OrtStatusPtr, AddCustomOpDomain, (OrtSessionOptions * options, OrtCustomOpDomain *domain)) \
    X(51, OrtStatusPtr, GetTensorMutableData, (OrtValue * value, void **out)) \
    X(60, OrtStatusPtr, GetTensorElementType, \
      (const OrtTensorTypeAndShapeInfo *info, enum ONNXTensorElementDataType *out)) \
    X(61, OrtStatusPtr, GetDimensionsCount, (const OrtTensorTypeAndShapeInfo *info, size_t *out)) \
    X(62, OrtStatusPtr, GetDimensions, (const OrtTensorTypeAndShapeInfo *info, int64_t *dims, size_t count)) \
    X(64, OrtStatusPtr, GetTensorShapeElementCount, (const OrtTensorTypeAndShapeInfo *info, size_t *out)) \
    X(65, OrtStatusPtr, GetTensorTypeAndShape, (const OrtValue *value, OrtTensorTypeAndShapeInfo **out)) \
    X(85, OrtStatusPtr, KernelInfoGetAttribute_float, (const OrtKernelInfo *info, const char *name, float *out)) \
    X(86, OrtStatusPtr, KernelInfoGetAttribute_int64, (const OrtKernelInfo *info, const char *name, int64_t *out)) \
    X(87, OrtStatusPtr, KernelInfoGetAttribute_string, \
      (const OrtKernelInfo *info, const char *name, char *out, size_t *size)) \
    X(88, OrtStatusPtr, KernelContext_GetInputCount, (const OrtKernelContext *context, size_t *out)) \
    X(89, OrtStatusPtr, KernelContext_GetOutputCount, (const OrtKernelContext *context, size_t *out)) \
    X(90, OrtStatusPtr, KernelContext_GetInput, (const OrtKernelContext *context, size_t index, const OrtValue **out)) \
    X(91, OrtStatusPtr, KernelContext_GetOutput, \
      (OrtKernelContext * context, size_t index, const int64_t *dims, size_t count, OrtValue **out)) \
    X(93, void, ReleaseStatus, (OrtStatus * status)) \
    X(99, void, ReleaseTensorTypeAndShapeInfo, (OrtTensorTypeAndShapeInfo * info)) \
    X(237, OrtStatusPtr, HasSessionConfigEntry, (const OrtSessionOptions *options, const char *key, int *out)) \
    X(238, OrtStatusPtr, GetSessionConfigEntry, \
      (const OrtSessionOptions *options, const char *key, char *value, size_t *size)) \
    X(244, OrtStatusPtr, KernelInfo_GetNodeName, (const OrtKernelInfo *info, char *out, size_t *size)) \
    X(249, OrtStatusPtr, KernelInfoGetConstantInput_tensor, \
      (const OrtKernelInfo *info, size_t index, int *is_constant, const OrtValue **out)) \
    X(274, OrtStatusPtr, KernelContext_ParallelFor, \
      (const OrtKernelContext *context, void (*task)(void *, size_t), size_t total, size_t batches, void *argument))

#define IRSTD_ORT_FUNCTION_TYPE(slot, result, name, arguments) typedef result(*irstd_ort_##name) arguments;
IRSTD_ORT_FUNCTIONS(IRSTD_ORT_FUNCTION_TYPE)
#undef IRSTD_ORT_FUNCTION_TYPE

enum {
#define IRSTD_ORT_SLOT(slot, result, name, arguments) IRSTD_ORT_SLOT_##name = slot,
    IRSTD_ORT_FUNCTIONS(IRSTD_ORT_SLOT)
#undef IRSTD_ORT_SLOT
};

/* ORT(api, Name)(arguments) calls one function of the table. */
#define ORT(api, name) ((irstd_ort_##name)((void (*const *)(void))(const void *)(api))[IRSTD_ORT_SLOT_##name])

/* X(return type, name, arguments): the fields of OrtCustomOp after `uint32_t version`, up to version 17. */
#define IRSTD_ORT_CUSTOM_OP_FIELDS(X) \
    X(void *, CreateKernel, (const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info)) \
    X(const char *, GetName, (const OrtCustomOp *op)) \
    X(const char *, GetExecutionProviderType, (const OrtCustomOp *op)) \
    X(ONNXTensorElementDataType, GetInputType, (const OrtCustomOp *op, size_t index)) \
    X(size_t, GetInputTypeCount, (const OrtCustomOp *op)) \
    X(ONNXTensorElementDataType, GetOutputType, (const OrtCustomOp *op, size_t index)) \
    X(size_t, GetOutputTypeCount, (const OrtCustomOp *op)) \
    X(void, KernelCompute, (void *kernel, OrtKernelContext *context)) \
    X(void, KernelDestroy, (void *kernel)) \
    X(OrtCustomOpInputOutputCharacteristic, GetInputCharacteristic, (const OrtCustomOp *op, size_t index)) \
    X(OrtCustomOpInputOutputCharacteristic, GetOutputCharacteristic, (const OrtCustomOp *op, size_t index)) \
    X(OrtMemType, GetInputMemoryType, (const OrtCustomOp *op, size_t index)) \
    X(int, GetVariadicInputMinArity, (const OrtCustomOp *op)) \
    X(int, GetVariadicInputHomogeneity, (const OrtCustomOp *op)) \
    X(int, GetVariadicOutputMinArity, (const OrtCustomOp *op)) \
    X(int, GetVariadicOutputHomogeneity, (const OrtCustomOp *op)) \
    X(OrtStatusPtr, CreateKernelV2, \
      (const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel)) \
    X(OrtStatusPtr, KernelComputeV2, (void *kernel, OrtKernelContext *context)) \
    X(OrtStatusPtr, InferOutputShapeFn, (const OrtCustomOp *op, OrtShapeInferContext *context)) \
    X(int, GetStartVersion, (const OrtCustomOp *op)) \
    X(int, GetEndVersion, (const OrtCustomOp *op))

typedef struct {
    uint32_t version;
#define IRSTD_ORT_FIELD(result, name, arguments) result(*name) arguments;
    IRSTD_ORT_CUSTOM_OP_FIELDS(IRSTD_ORT_FIELD)
#undef IRSTD_ORT_FIELD
    /* Fields of later versions; ORT does not read them at IRSTD_ORT_API_LEVEL. They stay NULL. */
    void *reserved[8];
} irstd_ort_custom_op;

#endif

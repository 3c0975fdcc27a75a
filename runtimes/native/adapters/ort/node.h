/* What the operators of this adapter share: a node's name in errors, its attributes, its tensors. */
#ifndef IRSTD_ORT_NODE_H
#define IRSTD_ORT_NODE_H

#include "irstd.h"
#include "ort_abi.h"

#define PRINTF(position, first) __attribute__((format(printf, position, first)))

#define TRY(expression)                        \
    do {                                       \
        OrtStatus *try_status_ = (expression); \
        if (try_status_) return try_status_;   \
    } while (0)

/* One descriptor per operator and thread count, because ORT hands kernels nothing but their descriptor. */
typedef struct {
    irstd_ort_custom_op op;
    int threads;
} descriptor;

/* The operators; `threads` is filled in at registration. */
extern const irstd_ort_custom_op irstd_ort_bconv2d, irstd_ort_program;

typedef struct {
    const OrtApi *api;
    const char *operator;
    char name[128];
} node;

/* Takes the name of the node that is being created. */
node irstd_ort_node(const OrtApi *api, const char *operator, const OrtKernelInfo *info);

/* A status whose message names operator and node. */
PRINTF(3, 4) OrtStatus *irstd_ort_fail(const node *n, OrtErrorCode code, const char *format, ...);
/* The same of the engine's last error. */
OrtStatus *irstd_ort_fail_irstd(const node *n, irstd_status status);

/* True on success; drops the status otherwise. */
int irstd_ort_succeeded(const OrtApi *api, OrtStatus *status);

/* One attribute: the field of a struct that takes it. */
typedef struct {
    const char *name;
    size_t offset;
    int is_float, mandatory;
} attribute;

/* Rows of a table of attributes, from an X macro of irstd_opspec.h, for the fields of `owner`. */
#define IS_FLOAT_int32_t 0
#define IS_FLOAT_float 1
#define ATTRIBUTE(owner, type, name, mandatory) {#name, offsetof(owner, name), IS_FLOAT_##type, mandatory}

OrtStatus *irstd_ort_attributes(const node *n, const OrtKernelInfo *info, const attribute *table, size_t rows,
                                void *target);

/* A copy of a constant input, of 4 bytes an element or of 1, for free(), and its bytes; *data stays NULL where an
 * optional one is absent. */
OrtStatus *irstd_ort_constant(const node *n, const OrtKernelInfo *info, int index, const char *name,
                              ONNXTensorElementDataType type, int optional, void **data, size_t *bytes);

/* Pointer and [N, C, H, W] of a run-time input; the pointer stays NULL where the input is absent. */
OrtStatus *irstd_ort_image(const node *n, const OrtKernelContext *context, int index, const char *name,
                           const float **data, int64_t dims[4]);

/* The same for an output of these dimensions. */
OrtStatus *irstd_ort_result(const node *n, OrtKernelContext *context, int index, const int64_t dims[4], float **data);

#endif

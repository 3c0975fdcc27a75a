/* irstd: compressed operators for infrared small-target networks. C11, no dependency but libc.
 *
 * The arithmetic of every operator is defined by irstd_edge/opspec.py and is bit-exact: all variants
 * of a kernel give the same output. Nothing aborts: every function that can fail returns a status and
 * writes a message that names the offending attribute. */
#ifndef IRSTD_H
#define IRSTD_H

#include <stddef.h>
#include <stdint.h>

#include "irstd_opspec.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The core is linked statically into adapters that export their own entry points alone. */
#if defined(IRSTD_SHARED) && defined(__GNUC__)
#define IRSTD_API __attribute__((visibility("default")))
#else
#define IRSTD_API
#endif

typedef enum { IRSTD_OK = 0, IRSTD_INVALID = 1, IRSTD_UNSUPPORTED = 2, IRSTD_OUT_OF_MEMORY = 3 } irstd_status;
typedef enum { IRSTD_NCHW = 0, IRSTD_NHWC = 1 } irstd_layout;

/* Filled on failure; may be NULL everywhere. */
typedef struct {
    char message[256];
} irstd_error;

/* The attributes of irstd.BinaryConv2d: the fields of IRSTD_BINARY_CONV2D_ATTRIBUTES in its order. */
typedef struct {
#define IRSTD_FIELD(type, name, mandatory, default_value, minimum, maximum) type name;
    IRSTD_BINARY_CONV2D_ATTRIBUTES(IRSTD_FIELD)
#undef IRSTD_FIELD
} irstd_bconv2d_attributes;

/* Sets every default; mandatory attributes become INT32_MIN, which create rejects. */
IRSTD_API void irstd_bconv2d_attributes_init(irstd_bconv2d_attributes *attributes);

/* How the caller runs tasks in parallel: run() calls task(argument, index) once for each index in
 * 0..tasks-1, in any order, on any thread, and returns when all are done. NULL means serial. */
typedef struct {
    void (*run)(void *context, int tasks, void (*task)(void *argument, int index), void *argument);
    void *context;
    int threads;
} irstd_parallel;

typedef struct irstd_bconv2d irstd_bconv2d;

/* Validates and copies (prepacks) all constants. weight is [OC, KH, KW, weight_words / (OC*KH*KW)],
 * threshold [IC], scale and bias [OC], activation_parameters [3, OC] or NULL.
 * IRSTD_UNSUPPORTED means that IRSTD_ISA names an instruction set that this build or CPU lacks. */
IRSTD_API irstd_status irstd_bconv2d_create(
    const irstd_bconv2d_attributes *attributes, const int32_t *weight, size_t weight_words, const float *threshold,
    const float *scale, const float *bias, const float *activation_parameters, irstd_layout layout,
    irstd_bconv2d **op, irstd_error *error);
IRSTD_API void irstd_bconv2d_destroy(irstd_bconv2d *op);

IRSTD_API irstd_status irstd_bconv2d_output_size(
    const irstd_bconv2d *op, int64_t height, int64_t width, int64_t *out_height, int64_t *out_width,
    irstd_error *error);

/* Bytes of workspace that run needs for one image size and up to this many threads; any alignment will do. */
IRSTD_API irstd_status irstd_bconv2d_workspace_bytes(
    const irstd_bconv2d *op, int64_t height, int64_t width, int threads, size_t *bytes, irstd_error *error);

/* x, residual and y follow the layout given to create; y must not overlap the inputs. residual is NULL
 * exactly where the operator has none. Concurrent runs of one operator need distinct workspaces. */
IRSTD_API irstd_status irstd_bconv2d_run(
    const irstd_bconv2d *op, int64_t batch, int64_t height, int64_t width, const float *x, const float *residual,
    int64_t residual_channels, float *y, void *workspace, size_t workspace_bytes, const irstd_parallel *parallel,
    irstd_error *error);

/* The kernel that was chosen, e.g. "bconv2d_lut__avx2". */
IRSTD_API const char *irstd_bconv2d_variant(const irstd_bconv2d *op);

/* The instruction set that dispatch chooses now: the environment variable IRSTD_ISA, or the best one
 * that this CPU has. NULL with a message if IRSTD_ISA is unusable. */
IRSTD_API const char *irstd_isa(irstd_error *error);

/* The instruction sets of this build, best last. */
IRSTD_API int irstd_isa_count(void);
IRSTD_API const char *irstd_isa_name(int index);
IRSTD_API int irstd_isa_available(int index);

#ifdef __cplusplus
}
#endif

#endif

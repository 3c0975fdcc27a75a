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

/* ---- whole networks: docs/native.md describes model.irstd ---- */

/* A network opened for one image size. Sessions are independent; one session belongs to one thread at a time. */
typedef struct irstd_session irstd_session;

/* Opens a file, which stays mapped while the session lives, for float32 inputs [channels, height, width] each.
 * threads (1..1024) counts the calling one. On failure *session is NULL and irstd_last_error() tells why:
 * IRSTD_INVALID (file or arguments), IRSTD_UNSUPPORTED (version, operator, IRSTD_ISA), IRSTD_OUT_OF_MEMORY. */
IRSTD_API irstd_status irstd_open(const char *path, int64_t height, int64_t width, int threads,
                                  irstd_session **session);

/* The same from memory, which is copied. */
IRSTD_API irstd_status irstd_open_memory(const void *data, size_t bytes, int64_t height, int64_t width, int threads,
                                         irstd_session **session);

/* One image: inputs[i] and outputs[i] are dense [channels, height, width], in the order that irstd_describe tells.
 * Denormal floats are taken as zero while it runs. */
IRSTD_API irstd_status irstd_run(irstd_session *session, const float *const *inputs, float *const *outputs);

/* The same, and adds the nanoseconds that each of irstd_describe's layers took on the calling thread. */
IRSTD_API irstd_status irstd_run_profiled(irstd_session *session, const float *const *inputs, float *const *outputs,
                                          uint64_t *layer_nanoseconds);

/* Computes all rows of one layer again, on one thread, from whatever its inputs hold after a run: to time it alone. */
IRSTD_API irstd_status irstd_run_layer(irstd_session *session, const char *name);

/* JSON text, owned by the session: isa, threads, height, width, strip_rows, file_bytes, arena_bytes,
 * arena_lower_bound_bytes, inputs[] and outputs[] (name, channels, height, width), layers[] (name, op, kernel,
 * channels, height, width, output_bytes, macs). */
IRSTD_API const char *irstd_describe(irstd_session *session);

/* How many inputs and outputs a session has, and the shape [channels, height, width] of one of them. */
IRSTD_API int irstd_input_count(const irstd_session *session);
IRSTD_API int irstd_output_count(const irstd_session *session);
IRSTD_API void irstd_input_shape(const irstd_session *session, int index, int64_t shape[3]);
IRSTD_API void irstd_output_shape(const irstd_session *session, int index, int64_t shape[3]);

/* What the last failure on this thread was; "" if there was none. */
IRSTD_API const char *irstd_last_error(void);

IRSTD_API void irstd_close(irstd_session *session);

#ifdef __cplusplus
}
#endif

#endif

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

/* Sets every default; mandatory attributes become INT32_MIN, which irstd_check_bconv2d rejects. */
IRSTD_API void irstd_bconv2d_attributes_init(irstd_bconv2d_attributes *attributes);

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

/* Computes all rows of one layer again, on one thread, from whatever its inputs hold after a run: to time it alone.
 * IRSTD_INVALID: there is no such layer, another one computes it, it reads or writes the caller's buffers, or no output
 * depends on it. */
IRSTD_API irstd_status irstd_run_layer(irstd_session *session, const char *name);

/* JSON text, owned by the session: isa, threads, height, width, strip_rows, file_bytes, arena_bytes,
 * arena_lower_bound_bytes, inputs[] and outputs[] (name, channels, height, width), layers[] (name, op, kernel,
 * channels, height, width, output_bytes, macs). */
IRSTD_API const char *irstd_describe(irstd_session *session);

/* JSON text, owned by the session and made when first asked for; NULL when out of memory. The plan of a run: steps[] as
 * [layer, first row, last row + 1], in order; buffers[] of the arena (name of the tensor, holds: values, signs or
 * integers, rows, offset, bytes); arena_bytes, scratch_offset, scratch_bytes. A buffer is in use in steps first_step to
 * last_step, where these compute one of the layers first_layer to last_layer. */
IRSTD_API const char *irstd_describe_plan(irstd_session *session);

/* How many inputs and outputs a session has, and the shape [channels, height, width] of one of them. */
IRSTD_API int irstd_input_count(const irstd_session *session);
IRSTD_API int irstd_output_count(const irstd_session *session);
IRSTD_API void irstd_input_shape(const irstd_session *session, int index, int64_t shape[3]);
IRSTD_API void irstd_output_shape(const irstd_session *session, int index, int64_t shape[3]);

/* ---- one operator alone ---- */

/* The constants of irstd.BinaryConv2d, in the order of its inputs. */
enum { IRSTD_BCONV2D_CONSTANTS = 5 };

/* One irstd.BinaryConv2d between float32 maps: a network of one layer. */
typedef struct {
    irstd_bconv2d_attributes attributes;
    /* weight [OC, KH, KW, ceil((IC / groups) / 32)], threshold [IC], scale [OC], bias [OC], activation_parameters
     * [3, OC] or none: their bytes. They stay the caller's, and are read as long as a session lives. */
    const void *constants[IRSTD_BCONV2D_CONSTANTS];
    size_t constant_bytes[IRSTD_BCONV2D_CONSTANTS];
    irstd_layout layout; /* of x, residual and result */
} irstd_bconv2d;

/* Whether attributes and constants are as the specification says; irstd_last_error() tells what is not. */
IRSTD_API irstd_status irstd_check_bconv2d(const irstd_bconv2d *op);

/* Opens it for inputs x and, where residual_channels is not 0, a residual of the result's size. The session has no
 * threads of its own: `threads` is the most that irstd_run_parallel may use. */
IRSTD_API irstd_status irstd_open_bconv2d(const irstd_bconv2d *op, int64_t height, int64_t width,
                                          int64_t residual_channels, int threads, irstd_session **session);

/* How the caller runs tasks in parallel: run() calls task(argument, index) once for each index in 0..tasks-1, in any
 * order, on any thread, and returns when all are done. */
typedef struct {
    void (*run)(void *context, int tasks, void (*task)(void *argument, int index), void *argument);
    void *context;
} irstd_parallel;

/* irstd_run in the caller's threads. parallel may be NULL: on this thread alone. */
IRSTD_API irstd_status irstd_run_parallel(irstd_session *session, const float *const *inputs, float *const *outputs,
                                          const irstd_parallel *parallel);

/* What the last failure on this thread was; "" if there was none. */
IRSTD_API const char *irstd_last_error(void);

IRSTD_API void irstd_close(irstd_session *session);

#ifdef __cplusplus
}
#endif

#endif

/* What the kernels of this delegate share: the delegate itself, errors, options, sizes. */
#ifndef IRSTD_TFLITE_DELEGATE_H
#define IRSTD_TFLITE_DELEGATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "irstd.h"
#include "pool.h"
#include "tflite_abi.h"

#define PRINTF(position, first) __attribute__((format(printf, position, first)))

typedef struct {
    tfl_delegate base; /* first: TFLite holds a pointer to it */
    int threads;       /* option num_threads, or 0 */
    irstd_pool *pool;
} delegate;

/* Kernels, each of one node. */
extern const tfl_registration irstd_tflite_bconv2d, irstd_tflite_program;

#define CUSTOM_CODE(operator) IRSTD_DOMAIN "." operator

/* The threads to use: the delegate's option, else the interpreter's. */
int irstd_tflite_threads(const delegate *d, const tfl_context *context);

/* Makes the delegate's pool one of as many, for operators that bring none. */
void irstd_tflite_share_threads(delegate *d, const tfl_context *context);

/* A message that names operator and node, whose name is that of its output; always false. */
typedef struct {
    char text[640];
} message;
PRINTF(5, 6)
bool irstd_tflite_fail(message *m, const char *operator, const tfl_context *context, int output, const char *format, ...);

/* One option: the field of a struct that takes it. */
typedef struct {
    const char *name;
    size_t offset;
    bool is_float, mandatory;
} option;

/* Rows of a table of options, from an X macro of irstd_opspec.h, for the fields of `owner`. */
#define IS_FLOAT_int32_t false
#define IS_FLOAT_float true
#define OPTION(owner, type, name, mandatory) {#name, offsetof(owner, name), IS_FLOAT_##type, mandatory}
enum { MAX_OPTIONS = 32 };

/* Reads a node's options into target. `wrong` (of size bytes) tells what is wrong where the result is false. */
bool irstd_tflite_options(const tfl_node *node, const option *table, int rows, void *target, char *wrong, size_t size);

/* Resizes an output; `dynamic`: its memory comes with invoke. False where TFLite refuses. */
bool irstd_tflite_resize(tfl_context *context, tfl_tensor *tensor, const int64_t dims[4], bool dynamic);

/* An output whose size comes with invoke. */
void irstd_tflite_make_dynamic(tfl_tensor *tensor);

#endif

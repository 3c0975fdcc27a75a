/* The part of TensorFlow Lite's C ABI (tensorflow/lite/core/c/common.h) that a delegate needs, declared here so
 * that building needs no TFLite headers. The layout is that of TFLite 2.14; LiteRT 2 keeps it.
 * tests/runtimes/test_tflite_abi.py compiles this file against the real header and compares every field, size
 * and constant. */
#ifndef IRSTD_TFLITE_ABI_H
#define IRSTD_TFLITE_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The names carry a prefix so that a test can include the real header beside this one. */
enum {
    TFL_OK = 0,
    TFL_ERROR = 1,
    TFL_DELEGATE_ERROR = 2,
};
typedef unsigned tfl_status;

enum { TFL_FLOAT32 = 1, TFL_INT32 = 2, TFL_UINT8 = 3 };           /* TfLiteType */
enum { TFL_MEM_NONE = 0, TFL_MMAP_RO = 1, TFL_DYNAMIC = 4, TFL_PERSISTENT_RO = 5 }; /* TfLiteAllocationType */
enum { TFL_OPTIONAL_TENSOR = -1, TFL_NULL_BUFFER_HANDLE = -1 };
enum { TFL_DELEGATE_ALLOW_DYNAMIC_TENSORS = 1 };                  /* TfLiteDelegateFlags */

typedef struct {
    int size;
    int data[];
} tfl_int_array;

struct tfl_context;
struct tfl_delegate;
struct tfl_registration;

typedef struct {
    float scale;
    int32_t zero_point;
} tfl_quantization_params;

typedef struct {
    unsigned type;
    void *params;
} tfl_quantization;

typedef struct {
    unsigned type;
    void *data;
    tfl_int_array *dims;
    tfl_quantization_params params;
    unsigned allocation_type;
    size_t bytes;
    const void *allocation;
    const char *name;
    struct tfl_delegate *delegate;
    int buffer_handle;
    bool data_is_stale;
    bool is_variable;
    tfl_quantization quantization;
    void *sparsity;
    const tfl_int_array *dims_signature;
} tfl_tensor;

typedef struct {
    tfl_int_array *inputs;
    tfl_int_array *outputs;
    tfl_int_array *intermediates;
    tfl_int_array *temporaries;
    void *user_data;
    void *builtin_data;
    const void *custom_initial_data;
    int custom_initial_data_size;
    struct tfl_delegate *delegate;
    bool might_have_side_effect;
} tfl_node;

typedef struct tfl_registration {
    void *(*init)(struct tfl_context *context, const char *buffer, size_t length);
    void (*free)(struct tfl_context *context, void *state);
    tfl_status (*prepare)(struct tfl_context *context, tfl_node *node);
    tfl_status (*invoke)(struct tfl_context *context, tfl_node *node);
    const char *(*profiling_string)(const struct tfl_context *context, const tfl_node *node);
    int32_t builtin_code;
    const char *custom_name;
    int version;
    void *registration_external;
    void *async_kernel;
    uint64_t inplace_operator;
} tfl_registration;

typedef struct tfl_delegate {
    void *data_;
    tfl_status (*Prepare)(struct tfl_context *context, struct tfl_delegate *delegate);
    tfl_status (*CopyFromBufferHandle)(struct tfl_context *, struct tfl_delegate *, int handle, tfl_tensor *);
    tfl_status (*CopyToBufferHandle)(struct tfl_context *, struct tfl_delegate *, int handle, tfl_tensor *);
    void (*FreeBufferHandle)(struct tfl_context *, struct tfl_delegate *, int *handle);
    int64_t flags;
    void *opaque_delegate_builder;
} tfl_delegate;

/* What init of a delegate's kernel receives as its buffer. */
typedef struct {
    tfl_delegate *delegate;
    tfl_int_array *nodes_to_replace;
    tfl_int_array *input_tensors;
    tfl_int_array *output_tensors;
} tfl_delegate_params;

typedef struct tfl_context {
    size_t tensors_size;
    tfl_status (*GetExecutionPlan)(struct tfl_context *context, tfl_int_array **plan);
    tfl_tensor *tensors;
    void *impl_;
    tfl_status (*ResizeTensor)(struct tfl_context *, tfl_tensor *tensor, tfl_int_array *new_size);
    void (*ReportError)(struct tfl_context *, const char *format, ...);
    tfl_status (*AddTensors)(struct tfl_context *, int count, int *first);
    tfl_status (*GetNodeAndRegistration)(struct tfl_context *, int index, tfl_node **node,
                                         tfl_registration **registration);
    tfl_status (*ReplaceNodeSubsetsWithDelegateKernels)(struct tfl_context *, tfl_registration registration,
                                                        const tfl_int_array *nodes, tfl_delegate *delegate);
    int recommended_num_threads;
    /* More fields follow; none is used. */
} tfl_context;

#endif

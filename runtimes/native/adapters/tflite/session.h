/* An operator that the engine runs: one node of the graph, its images and its session. */
#ifndef IRSTD_TFLITE_SESSION_H
#define IRSTD_TFLITE_SESSION_H

#include "delegate.h"

/* One image of the engine and its tensor. */
typedef struct {
    int tensor;
    int64_t channels, pixels;
    float *planes; /* memory of ours where the engine wants [channels, pixels] and that is not the tensor's order */
} image;

typedef struct kernel kernel;
struct kernel {
    const char *operator;
    delegate *owner;
    bool ready; /* init went well */
    bool single; /* one operator: the engine takes the tensors as they are, and the delegate's threads */
    irstd_status (*open)(kernel *k, int64_t height, int64_t width, int64_t residual_channels, int threads);
    const char *const *names; /* of the images; NULL: their numbers among the node's inputs */
    int inputs, outputs;
    image x[IRSTD_MAX_IMAGES], y[IRSTD_MAX_IMAGES];
    irstd_session *session;
    int64_t batch, height, width, residual_channels; /* that everything is sized for */
    int threads;
    bool dynamic; /* some input gets its size only at invoke */
    message wrong; /* what failed, or empty */
};

#define fail(k, context, ...) irstd_tflite_fail(&(k)->wrong, (k)->operator, context, (k)->y[0].tensor, __VA_ARGS__)

/* A kernel of `bytes` bytes, whose first member is a `kernel`, for the one node of the buffer that TFLite gives to init;
 * fill reads the node. A failure is kept and reported by prepare, because init can return none. */
void *irstd_tflite_init(tfl_context *context, const char *buffer, const char *operator, size_t bytes,
                        bool (*fill)(kernel *k, const tfl_context *context, const tfl_node *node));
void irstd_tflite_free(tfl_context *context, void *kernel);
tfl_status irstd_tflite_prepare(tfl_context *context, tfl_node *node);
tfl_status irstd_tflite_invoke(tfl_context *context, tfl_node *node);

/* Data of a constant input of the node; NULL where it is absent (TFL_OPTIONAL_TENSOR). */
bool irstd_tflite_constant(kernel *k, const tfl_context *context, int tensor, const char *name, unsigned type,
                           const void **data, size_t *bytes);

/* Whether all these tensors exist. */
bool irstd_tflite_known(const tfl_context *context, const image *images, int count);

#define SHARED_REGISTRATION(start)                                                                        \
    {.init = start, .free = irstd_tflite_free, .prepare = irstd_tflite_prepare, .invoke = irstd_tflite_invoke, \
     .custom_name = "irstd", .version = 1}

#endif

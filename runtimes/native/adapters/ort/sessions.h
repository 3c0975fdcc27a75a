/* An operator that the engine runs: its open sessions, and a run of one. */
#ifndef IRSTD_ORT_SESSIONS_H
#define IRSTD_ORT_SESSIONS_H

#include <pthread.h>

#include "node.h"

enum { RESTING = 4 };

/* A session is for one image size and one run at a time. */
typedef struct {
    irstd_session *session;
    int64_t height, width, extra; /* channels of the second image, where they are the session's to know */
} sized_session;

typedef struct kernel kernel;
struct kernel {
    node node;
    int threads;
    irstd_status (*open)(const kernel *k, int64_t height, int64_t width, int64_t extra, irstd_session **session);
    void (*destroy)(kernel *k);
    int images, first, next; /* inputs that are images: at most, where the first is, where the second is */
    int optional;            /* the second may be absent, and its channels are `extra` */
    const char *const *names; /* of the images; NULL: their numbers */
    int outputs;
    pthread_mutex_t lock; /* of what follows: sessions that no run uses, and the next place to give up */
    sized_session resting[RESTING];
    int oldest;
};

/* Makes a kernel of `bytes` bytes, whose first member is a `kernel`; fill sets what is its own. */
OrtStatus *irstd_ort_create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, const char *operator,
                            size_t bytes, OrtStatus *(*fill)(kernel *k, const OrtKernelInfo *info), void **result);
void irstd_ort_destroy(void *kernel);
OrtStatusPtr irstd_ort_compute(void *kernel, OrtKernelContext *context);

/* A session for an image size: one at rest, or a new one. */
OrtStatus *irstd_ort_take(kernel *k, int64_t height, int64_t width, int64_t extra, sized_session *taken);
void irstd_ort_give(kernel *k, sized_session used);

/* What their descriptions share. */
const char *irstd_ort_cpu(const OrtCustomOp *op);
OrtMemType irstd_ort_memory(const OrtCustomOp *op, size_t index);
ONNXTensorElementDataType irstd_ort_float(const OrtCustomOp *op, size_t index);
size_t irstd_ort_one_output(const OrtCustomOp *op);
int irstd_ort_one(const OrtCustomOp *op);
int irstd_ort_version(const OrtCustomOp *op);
#define SHARED_DESCRIPTION                                                                                        \
    .version = IRSTD_ORT_API_LEVEL, .GetExecutionProviderType = irstd_ort_cpu, .GetInputMemoryType = irstd_ort_memory, \
    .GetOutputType = irstd_ort_float, .GetOutputTypeCount = irstd_ort_one_output, .KernelDestroy = irstd_ort_destroy,  \
    .KernelComputeV2 = irstd_ort_compute, .GetStartVersion = irstd_ort_version, .GetEndVersion = irstd_ort_version

#endif

/* irstd.BinaryConv2d: validation, ownership of the constants, and the division of a run into tasks. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* Far beyond any image, and small enough that sums of coordinates cannot overflow. */
enum { MAX_SIDE = 1 << 24, MAX_BATCH = 1 << 24, MAX_THREADS = 1 << 12, ALIGNMENT = 64 };

irstd_status irstd_fail(irstd_error *error, irstd_status status, const char *format, ...) {
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
    }
    return status;
}

void irstd_bconv2d_attributes_init(irstd_bconv2d_attributes *attributes) {
    if (!attributes) return;
#define IRSTD_SET(type, name, mandatory, default_value, minimum, maximum) attributes->name = default_value;
    IRSTD_BINARY_CONV2D_ATTRIBUTES(IRSTD_SET)
#undef IRSTD_SET
}

irstd_status irstd_bconv2d_check(const irstd_bconv2d_attributes *a, irstd_error *error) {
    /* Written so that a NaN fails; %g shows both int32 and float exactly enough. */
#define IRSTD_CHECK(type, name, mandatory, default_value, minimum, maximum)                                  \
    if (mandatory && (double)a->name == INT32_MIN)                                                           \
        return irstd_fail(error, IRSTD_INVALID, "%s is mandatory and was not set", #name);                   \
    if (!(a->name >= minimum && a->name <= maximum))                                                         \
        return irstd_fail(error, IRSTD_INVALID, "%s must be in %.9g..%.9g, got %.10g", #name, (double)minimum, \
                          (double)maximum, (double)a->name);
    IRSTD_BINARY_CONV2D_ATTRIBUTES(IRSTD_CHECK)
#undef IRSTD_CHECK
    if (a->in_channels % a->groups || a->out_channels % a->groups)
        return irstd_fail(error, IRSTD_INVALID,
                          "groups must divide in_channels and out_channels: groups=%d, in_channels=%d, out_channels=%d",
                          a->groups, a->in_channels, a->out_channels);
    if (!(a->clamp_min <= a->clamp_max))
        return irstd_fail(error, IRSTD_INVALID, "clamp_min must not exceed clamp_max: %.9g > %.9g",
                          (double)a->clamp_min, (double)a->clamp_max);
    return IRSTD_OK;
}

static irstd_status check_weight(const irstd_bconv2d *op, const int32_t *weight, size_t weight_words,
                                 irstd_error *error) {
    size_t taps = 0, expected = 0;
    if (irstd_add_product(&taps, (size_t)op->a.out_channels, (size_t)op->a.kernel_h * (size_t)op->a.kernel_w) ||
        irstd_add_product(&expected, taps, (size_t)op->words))
        return irstd_fail(error, IRSTD_INVALID, "weight would need more words than memory can address");
    if (weight_words != expected)
        return irstd_fail(error, IRSTD_INVALID, "weight must have %zu words ([%d, %d, %d, %d]), got %zu", expected,
                          op->a.out_channels, op->a.kernel_h, op->a.kernel_w, op->words, weight_words);
    int tail = op->ic_group % IRSTD_WORD_BITS;
    if (tail)
        for (size_t i = 0; i < taps; i++)
            if ((uint32_t)weight[(i + 1) * (size_t)op->words - 1] >> tail)
                return irstd_fail(error, IRSTD_INVALID, "weight has non-zero tail bits beyond its %d channels",
                                  op->ic_group);
    return IRSTD_OK;
}

static const irstd_bconv2d_kernel *find_kernel(const char *isa) {
    for (int i = 0; i < irstd_bconv2d_kernel_count; i++)
        if (!strcmp(irstd_bconv2d_kernels[i]->isa, isa)) return irstd_bconv2d_kernels[i];
    return &irstd_bconv2d_ref;
}

irstd_status irstd_bconv2d_create(const irstd_bconv2d_attributes *attributes, const int32_t *weight,
                                  size_t weight_words, const float *threshold, const float *scale, const float *bias,
                                  const float *activation_parameters, irstd_layout layout, irstd_bconv2d **result,
                                  irstd_error *error) {
    if (!result) return irstd_fail(error, IRSTD_INVALID, "op must not be NULL");
    *result = NULL;
    if (!attributes) return irstd_fail(error, IRSTD_INVALID, "attributes must not be NULL");
    irstd_status status = irstd_bconv2d_check(attributes, error);
    if (status) return status;
    const irstd_bconv2d_attributes *a = attributes;
    const struct {
        const char *name;
        const void *data;
    } constants[] = {{"weight", weight}, {"threshold", threshold}, {"scale", scale}, {"bias", bias}};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (!constants[i].data) return irstd_fail(error, IRSTD_INVALID, "%s must not be NULL", constants[i].name);
    if ((a->activation == IRSTD_ACTIVATION_RPRELU) != (activation_parameters != NULL))
        return irstd_fail(error, IRSTD_INVALID, "activation_parameters must be %s where activation is %d",
                          activation_parameters ? "absent" : "given", a->activation);
    if (layout != IRSTD_NCHW && layout != IRSTD_NHWC)
        return irstd_fail(error, IRSTD_INVALID, "layout must be IRSTD_NCHW or IRSTD_NHWC, got %d", (int)layout);
    const char *isa = irstd_isa(error);
    if (!isa) return IRSTD_UNSUPPORTED;

    irstd_bconv2d *op = calloc(1, sizeof *op);
    if (!op) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory");
    op->a = *a;
    op->layout = layout;
    op->kernel = find_kernel(isa);
    op->ic_group = a->in_channels / a->groups;
    op->oc_group = a->out_channels / a->groups;
    op->words = (op->ic_group + IRSTD_WORD_BITS - 1) / IRSTD_WORD_BITS;
    op->extent_h = a->dilation_h * (a->kernel_h - 1) + 1;
    op->extent_w = a->dilation_w * (a->kernel_w - 1) + 1;
    op->fraction_step = a->fraction_bits < 0 ? 1.0f : (float)(1 << a->fraction_bits);
    status = check_weight(op, weight, weight_words, error);
    if (!status) {
        size_t ic = (size_t)a->in_channels, oc = (size_t)a->out_channels;
        op->threshold = malloc((ic + 5 * oc) * sizeof(float));
        if (!op->threshold) {
            status = irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory");
        } else {
            op->scale = op->threshold + ic;
            op->bias = op->scale + oc;
            op->activation_parameters = op->bias + oc;
            memcpy(op->threshold, threshold, ic * sizeof(float));
            memcpy(op->scale, scale, oc * sizeof(float));
            memcpy(op->bias, bias, oc * sizeof(float));
            if (activation_parameters)
                memcpy(op->activation_parameters, activation_parameters, 3 * oc * sizeof(float));
            else
                memset(op->activation_parameters, 0, 3 * oc * sizeof(float));
            status = op->kernel->pack(op, weight, error);
        }
    }
    if (status) {
        irstd_bconv2d_destroy(op);
        return status;
    }
    *result = op;
    return IRSTD_OK;
}

void irstd_bconv2d_destroy(irstd_bconv2d *op) {
    if (!op) return;
    free(op->threshold);
    free(op->packed);
    free(op);
}

const char *irstd_bconv2d_variant(const irstd_bconv2d *op) { return op ? op->kernel->name : NULL; }

static irstd_status measure(const irstd_bconv2d *op, int64_t height, int64_t width, irstd_size *size,
                            irstd_error *error) {
    if (!op) return irstd_fail(error, IRSTD_INVALID, "op must not be NULL");
    const irstd_bconv2d_attributes *a = &op->a;
    const struct {
        const char *axis;
        int64_t input, padding, extent, stride;
        int64_t *output;
    } axes[] = {
        {"height", height, (int64_t)a->pad_top + a->pad_bottom, op->extent_h, a->stride_h, &size->out_height},
        {"width", width, (int64_t)a->pad_left + a->pad_right, op->extent_w, a->stride_w, &size->out_width},
    };
    size->height = height;
    size->width = width;
    for (int i = 0; i < 2; i++) {
        if (axes[i].input < 1 || axes[i].input > MAX_SIDE)
            return irstd_fail(error, IRSTD_INVALID, "input %s must be in 1..%d, got %lld", axes[i].axis, MAX_SIDE,
                              (long long)axes[i].input);
        if (axes[i].input + axes[i].padding < axes[i].extent)
            return irstd_fail(error, IRSTD_INVALID,
                              "input %s %lld plus padding is smaller than the dilated kernel (%lld)", axes[i].axis,
                              (long long)axes[i].input, (long long)axes[i].extent);
        *axes[i].output = (axes[i].input + axes[i].padding - axes[i].extent) / axes[i].stride + 1;
    }
    return IRSTD_OK;
}

irstd_status irstd_bconv2d_output_size(const irstd_bconv2d *op, int64_t height, int64_t width, int64_t *out_height,
                                       int64_t *out_width, irstd_error *error) {
    irstd_size size;
    irstd_status status = measure(op, height, width, &size, error);
    if (status) return status;
    if (!out_height || !out_width)
        return irstd_fail(error, IRSTD_INVALID, "out_height and out_width must not be NULL");
    *out_height = size.out_height;
    *out_width = size.out_width;
    return IRSTD_OK;
}

/* Bytes of one task's scratch, a multiple of the alignment, and of a workspace for `tasks` tasks. */
static irstd_status scratch_size(const irstd_bconv2d *op, const irstd_size *size, int64_t tasks, size_t *scratch,
                                 size_t *total, irstd_error *error) {
    int overflow = 0;
    size_t bytes = op->kernel->scratch_bytes(op, size, &overflow);
    *total = bytes ? ALIGNMENT - 1 : 0;
    if (overflow || bytes > SIZE_MAX - ALIGNMENT ||
        irstd_add_product(total, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, (size_t)tasks))
        return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "workspace of a %lld x %lld input exceeds the address space",
                          (long long)size->height, (long long)size->width);
    *scratch = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return IRSTD_OK;
}

irstd_status irstd_bconv2d_workspace_bytes(const irstd_bconv2d *op, int64_t height, int64_t width, int threads,
                                           size_t *bytes, irstd_error *error) {
    irstd_size size;
    size_t scratch;
    irstd_status status = measure(op, height, width, &size, error);
    if (status) return status;
    if (threads < 1 || threads > MAX_THREADS)
        return irstd_fail(error, IRSTD_INVALID, "threads must be in 1..%d, got %d", MAX_THREADS, threads);
    if (!bytes) return irstd_fail(error, IRSTD_INVALID, "bytes must not be NULL");
    return scratch_size(op, &size, threads, &scratch, bytes, error);
}

/* A run: the output rows of all images, cut into one contiguous share per task. */
typedef struct {
    irstd_image image; /* of the first image */
    size_t x_step, residual_step, y_step;
    int64_t batch, tasks;
    char *scratch;
    size_t scratch_bytes;
} job;

static void run_task(void *argument, int index) {
    const job *j = argument;
    int64_t rows = j->image.size.out_height, total = j->batch * rows;
    int64_t row = total * index / j->tasks, end = total * (index + 1) / j->tasks;
    void *scratch = j->scratch ? j->scratch + (size_t)index * j->scratch_bytes : NULL;
    while (row < end) {
        int64_t n = row / rows, first = row % rows, last = irstd_min(rows, first + end - row);
        irstd_image image = j->image;
        image.x += (size_t)n * j->x_step;
        if (image.residual) image.residual += (size_t)n * j->residual_step;
        image.y += (size_t)n * j->y_step;
        image.op->kernel->rows(&image, first, last, scratch);
        row += last - first;
    }
}

/* Elements of one image, refusing batches that the address space cannot hold. */
static irstd_status image_elements(const char *name, int64_t batch, int64_t channels, int64_t height, int64_t width,
                                   size_t *elements, irstd_error *error) {
    size_t plane = 0, image = 0, bytes = 0;
    if (irstd_add_product(&plane, (size_t)height, (size_t)width) ||
        irstd_add_product(&image, plane, (size_t)channels) ||
        irstd_add_product(&bytes, image, (size_t)batch * sizeof(float)) || bytes > PTRDIFF_MAX)
        return irstd_fail(error, IRSTD_INVALID, "%s of %lld x %lld x %lld x %lld exceeds the address space", name,
                          (long long)batch, (long long)channels, (long long)height, (long long)width);
    *elements = image;
    return IRSTD_OK;
}

irstd_status irstd_bconv2d_run(const irstd_bconv2d *op, int64_t batch, int64_t height, int64_t width, const float *x,
                               const float *residual, int64_t residual_channels, float *y, void *workspace,
                               size_t workspace_bytes, const irstd_parallel *parallel, irstd_error *error) {
    job j = {.batch = batch};
    irstd_status status = measure(op, height, width, &j.image.size, error);
    if (status) return status;
    const irstd_bconv2d_attributes *a = &op->a;
    const irstd_size *size = &j.image.size;
    if (batch < 1 || batch > MAX_BATCH)
        return irstd_fail(error, IRSTD_INVALID, "batch must be in 1..%d, got %lld", MAX_BATCH, (long long)batch);
    if (!x || !y) return irstd_fail(error, IRSTD_INVALID, "%s must not be NULL", x ? "y" : "x");
    if ((a->residual != IRSTD_RESIDUAL_NONE) != (residual != NULL))
        return irstd_fail(error, IRSTD_INVALID, "residual_input must be %s where residual is %d",
                          residual ? "absent" : "given", a->residual);
    if (residual) {
        if (residual_channels < 1 || residual_channels > INT32_MAX ||
            (a->out_channels % residual_channels && residual_channels % a->out_channels))
            return irstd_fail(error, IRSTD_INVALID,
                              "residual channels (%lld) must divide out_channels (%d) or be a multiple of it",
                              (long long)residual_channels, a->out_channels);
        status = image_elements("residual_input", batch, residual_channels, size->out_height, size->out_width,
                                &j.residual_step, error);
    }
    if (!status) status = image_elements("x", batch, a->in_channels, height, width, &j.x_step, error);
    if (!status)
        status = image_elements("y", batch, a->out_channels, size->out_height, size->out_width, &j.y_step, error);
    if (status) return status;
    if (parallel && (!parallel->run || parallel->threads < 1 || parallel->threads > MAX_THREADS))
        return irstd_fail(error, IRSTD_INVALID, "parallel needs a run function and 1..%d threads, got %d", MAX_THREADS,
                          parallel->threads);
    j.tasks = irstd_min(parallel ? parallel->threads : 1, batch * size->out_height);
    size_t needed;
    status = scratch_size(op, size, j.tasks, &j.scratch_bytes, &needed, error);
    if (status) return status;
    if (workspace_bytes < needed || (needed && !workspace))
        return irstd_fail(error, IRSTD_INVALID, "workspace must have %zu bytes, got %zu", needed,
                          workspace ? workspace_bytes : 0);
    if (needed) j.scratch = (char *)workspace + (-(uintptr_t)workspace & (ALIGNMENT - 1));
    j.image.op = op;
    j.image.x = x;
    j.image.residual = residual;
    j.image.residual_channels = residual_channels;
    j.image.y = y;
    if (j.tasks > 1)
        parallel->run(parallel->context, (int)j.tasks, run_task, &j);
    else
        run_task(&j, 0);
    return IRSTD_OK;
}

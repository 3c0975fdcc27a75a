/* The operator irstd.BinaryConv2d: a maximal run of neighbouring nodes is one partition. Tensors inside it live in
 * memory of ours, laid out by lifetime. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "delegate.h"

enum { IN_X, IN_WEIGHT, IN_THRESHOLD, IN_SCALE, IN_BIAS, IN_ACTIVATION, IN_RESIDUAL, INPUTS };
static const char *const input_names[INPUTS] = {
    "x", "weight", "threshold", "scale", "bias", "activation_parameters", "residual_input",
};

enum { ALIGNMENT = 64 };

typedef struct {
    irstd_bconv2d *op;
    irstd_bconv2d_attributes attributes;
    int tensors[INPUTS]; /* indices of tensors; TFL_OPTIONAL_TENSOR where absent */
    int output;
    int x_from, residual_from; /* node of this partition that makes the input, or -1 */
    bool inner;                /* nobody outside this partition reads the output */
    int last_use;              /* last node of this partition that reads the output */
    int64_t dims[4];           /* of the output, NHWC */
    size_t offset, bytes;      /* in the arena, of an inner output */
} step;

typedef struct {
    delegate *owner;
    int count;
    step *steps;
    int threads;  /* that the workspace is for */
    bool dynamic; /* some input gets its size only at invoke */
    unsigned char *arena, *workspace;
    size_t arena_bytes, workspace_bytes;
    message wrong; /* why init failed, or empty */
} partition;

#define fail(p, context, output, ...) irstd_tflite_fail(&(p)->wrong, IRSTD_BINARY_CONV2D, context, output, __VA_ARGS__)

/* ---- init: attributes and constants ---- */

static const option options[] = {
#define ROW(type, name, mandatory, default_value, minimum, maximum) OPTION(irstd_bconv2d_attributes, type, name, mandatory),
    IRSTD_BINARY_CONV2D_ATTRIBUTES(ROW)
#undef ROW
};
enum { OPTIONS = sizeof options / sizeof *options };
_Static_assert((int)OPTIONS <= (int)MAX_OPTIONS, "more options than are read");

static bool constant(partition *p, const tfl_context *context, const step *s, int input, int64_t expected,
                     const void **data, size_t *count) {
    *data = NULL;
    *count = 0;
    int index = s->tensors[input];
    if (index == TFL_OPTIONAL_TENSOR) {
        if (input == IN_ACTIVATION) return true;
        return fail(p, context, s->output, "input %s is missing", input_names[input]);
    }
    const tfl_tensor *t = &context->tensors[index];
    if ((t->allocation_type != TFL_MMAP_RO && t->allocation_type != TFL_PERSISTENT_RO) || !t->data)
        return fail(p, context, s->output, "input %s must be a constant", input_names[input]);
    if (t->type != (input == IN_WEIGHT ? TFL_INT32 : TFL_FLOAT32))
        return fail(p, context, s->output, "input %s must be %s", input_names[input],
                    input == IN_WEIGHT ? "int32" : "float32");
    *data = t->data;
    *count = t->bytes / 4;
    /* A size that is no positive number comes from an attribute that irstd_bconv2d_create rejects by name. */
    if (expected > 0 && *count != (size_t)expected)
        return fail(p, context, s->output, "input %s must have %lld values, got %zu", input_names[input],
                    (long long)expected, *count);
    return true;
}

static bool init_step(partition *p, const tfl_context *context, const tfl_node *node, step *s) {
    s->output = node->outputs && node->outputs->size == 1 ? node->outputs->data[0] : -1;
    for (int i = 0; i < INPUTS; i++)
        s->tensors[i] = node->inputs && i < node->inputs->size ? node->inputs->data[i] : TFL_OPTIONAL_TENSOR;
    for (int i = -1; i < INPUTS; i++) {
        int index = i < 0 ? s->output : s->tensors[i];
        bool absent = i >= 0 && index == TFL_OPTIONAL_TENSOR;
        if (!absent && (index < 0 || (size_t)index >= context->tensors_size))
            return fail(p, context, s->output, "%s is no tensor of the graph", i < 0 ? "the output" : input_names[i]);
    }
    if (node->inputs && node->inputs->size > INPUTS)
        return fail(p, context, s->output, "at most %d inputs, got %d", INPUTS, node->inputs->size);
    const irstd_bconv2d_attributes *a = &s->attributes;
    char wrong[256];
    irstd_bconv2d_attributes_init(&s->attributes);
    if (!irstd_tflite_options(node, options, OPTIONS, &s->attributes, wrong, sizeof wrong))
        return fail(p, context, s->output, "%s", wrong);
    if (s->tensors[IN_X] == TFL_OPTIONAL_TENSOR) return fail(p, context, s->output, "input x is missing");
    if ((a->residual != IRSTD_RESIDUAL_NONE) != (s->tensors[IN_RESIDUAL] != TFL_OPTIONAL_TENSOR))
        return fail(p, context, s->output, "residual_input must be %s where residual is %d",
                    a->residual ? "given" : "absent", a->residual);
    const int64_t expected[INPUTS] = {
        [IN_THRESHOLD] = a->in_channels,
        [IN_SCALE] = a->out_channels,
        [IN_BIAS] = a->out_channels,
        [IN_ACTIVATION] = 3 * (int64_t)a->out_channels,
    };
    const void *data[INPUTS];
    size_t count[INPUTS];
    for (int i = IN_WEIGHT; i <= IN_ACTIVATION; i++)
        if (!constant(p, context, s, i, expected[i], &data[i], &count[i])) return false;
    irstd_error error = {""};
    if (irstd_bconv2d_create(a, data[IN_WEIGHT], count[IN_WEIGHT], data[IN_THRESHOLD], data[IN_SCALE], data[IN_BIAS],
                             data[IN_ACTIVATION], IRSTD_NHWC, &s->op, &error))
        return fail(p, context, s->output, "%s", error.message);
    return true;
}

static bool contains(const tfl_int_array *array, int value) {
    for (int i = 0; array && i < array->size; i++)
        if (array->data[i] == value) return true;
    return false;
}

/* Who makes and who reads each tensor of the partition. */
static void connect(partition *p, const tfl_int_array *outputs) {
    for (int i = 0; i < p->count; i++) {
        step *s = &p->steps[i];
        s->x_from = s->residual_from = -1;
        s->last_use = i;
        s->inner = !contains(outputs, s->output);
        for (int j = 0; j < i; j++) {
            if (p->steps[j].output == s->tensors[IN_X]) s->x_from = j;
            if (p->steps[j].output == s->tensors[IN_RESIDUAL]) s->residual_from = j;
        }
        if (s->x_from >= 0) p->steps[s->x_from].last_use = i;
        if (s->residual_from >= 0) p->steps[s->residual_from].last_use = i;
    }
}

static void free_partition(tfl_context *context, void *state) {
    (void)context;
    partition *p = state;
    if (!p) return;
    for (int i = 0; i < p->count; i++) irstd_bconv2d_destroy(p->steps[i].op);
    free(p->steps);
    free(p->arena);
    free(p->workspace);
    free(p);
}

/* A failure is kept in the state and reported by prepare, because init can return none. */
static void *init_partition(tfl_context *context, const char *buffer, size_t length) {
    (void)length;
    const tfl_delegate_params *params = (const tfl_delegate_params *)(const void *)buffer;
    partition *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->owner = (delegate *)params->delegate;
    p->count = params->nodes_to_replace->size;
    p->steps = calloc(p->count > 0 ? (size_t)p->count : 1, sizeof *p->steps);
    if (!p->steps) {
        free(p);
        return NULL;
    }
    for (int i = 0; i < p->count; i++) {
        tfl_node *node;
        tfl_registration *registration;
        if (context->GetNodeAndRegistration(context, params->nodes_to_replace->data[i], &node, &registration)) {
            fail(p, context, -1, "TFLite does not give node %d", params->nodes_to_replace->data[i]);
            return p;
        }
        if (!init_step(p, context, node, &p->steps[i])) return p;
    }
    connect(p, params->output_tensors);
    return p;
}

/* ---- prepare: sizes and memory ---- */

static bool tensor_dims(partition *p, const tfl_context *context, const step *s, int input, int from,
                        int64_t dims[4]) {
    if (from >= 0) {
        memcpy(dims, p->steps[from].dims, sizeof p->steps[from].dims);
        return true;
    }
    const tfl_tensor *t = &context->tensors[s->tensors[input]];
    if (t->type != TFL_FLOAT32) return fail(p, context, s->output, "input %s must be float32", input_names[input]);
    if (!t->dims || t->dims->size != 4)
        return fail(p, context, s->output, "input %s must be [N, H, W, C], got %d dimensions", input_names[input],
                    t->dims ? t->dims->size : 0);
    for (int i = 0; i < 4; i++) dims[i] = t->dims->data[i];
    return true;
}

static bool measure_step(partition *p, const tfl_context *context, step *s, size_t *workspace) {
    const irstd_bconv2d_attributes *a = &s->attributes;
    int64_t in[4], extra[4];
    irstd_error error = {""};
    if (!tensor_dims(p, context, s, IN_X, s->x_from, in)) return false;
    if (in[3] != a->in_channels)
        return fail(p, context, s->output, "input x must have %d channels, got %lld", a->in_channels, (long long)in[3]);
    int64_t *out = s->dims;
    out[0] = in[0];
    out[3] = a->out_channels;
    if (irstd_bconv2d_output_size(s->op, in[1], in[2], &out[1], &out[2], &error) ||
        irstd_bconv2d_workspace_bytes(s->op, in[1], in[2], p->threads, workspace, &error))
        return fail(p, context, s->output, "%s", error.message);
    if (a->residual) {
        if (!tensor_dims(p, context, s, IN_RESIDUAL, s->residual_from, extra)) return false;
        if (extra[0] != out[0] || extra[1] != out[1] || extra[2] != out[2])
            return fail(p, context, s->output,
                        "input residual_input must be [%lld, %lld, %lld, RC], got [%lld, %lld, %lld, %lld]",
                        (long long)out[0], (long long)out[1], (long long)out[2], (long long)extra[0],
                        (long long)extra[1], (long long)extra[2], (long long)extra[3]);
    }
    size_t bytes = sizeof(float);
    for (int i = 0; i < 4; i++)
        if (out[i] < 1 || out[i] > INT_MAX || __builtin_mul_overflow(bytes, (size_t)out[i], &bytes))
            return fail(p, context, s->output, "its output of %lld x %lld x %lld x %lld is empty or too large",
                        (long long)out[0], (long long)out[1], (long long)out[2], (long long)out[3]);
    if (bytes > PTRDIFF_MAX - ALIGNMENT) return fail(p, context, s->output, "its output is too large");
    s->bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return true;
}

/* First fit: the lowest offset that no tensor alive at the same time occupies. */
static bool place(partition *p, int index, size_t *arena) {
    step *s = &p->steps[index];
    s->offset = 0;
    for (int j = 0; j < index; j++) {
        const step *other = &p->steps[j];
        bool alive = other->inner && other->last_use >= index;
        if (alive && s->offset < other->offset + other->bytes && other->offset < s->offset + s->bytes) {
            s->offset = other->offset + other->bytes;
            j = -1; /* moved up: look at all of them again */
        }
    }
    size_t end;
    if (__builtin_add_overflow(s->offset, s->bytes, &end)) return false;
    if (end > *arena) *arena = end;
    return true;
}

static bool reserve(unsigned char **memory, size_t *have, size_t bytes) {
    if (bytes <= *have) return true;
    free(*memory);
    *have = 0;
    *memory = bytes > SIZE_MAX - ALIGNMENT ? NULL : aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    if (*memory) *have = bytes;
    return *memory != NULL;
}

/* Sizes everything for the present input sizes. */
static bool plan(partition *p, tfl_context *context) {
    size_t workspace = 0, arena = 0;
    p->threads = irstd_pool_threads(p->owner->pool);
    for (int i = 0; i < p->count; i++) {
        step *s = &p->steps[i];
        size_t bytes = 0;
        if (!measure_step(p, context, s, &bytes)) return false;
        if (bytes > workspace) workspace = bytes;
        if (s->inner) {
            if (!place(p, i, &arena)) return fail(p, context, s->output, "the partition is too large");
            continue;
        }
        tfl_tensor *t = &context->tensors[s->output];
        if (t->type != TFL_FLOAT32) return fail(p, context, s->output, "its output must be float32");
        if (!irstd_tflite_resize(context, t, s->dims, p->dynamic))
            return fail(p, context, s->output, "TFLite does not resize the output");
    }
    if (!reserve(&p->arena, &p->arena_bytes, arena) || !reserve(&p->workspace, &p->workspace_bytes, workspace))
        return fail(p, context, -1, "out of memory: %zu bytes", arena + workspace);
    return true;
}

static tfl_status report(partition *p, tfl_context *context) {
    context->ReportError(context, "%s", p->wrong.text);
    return TFL_ERROR;
}

static tfl_status prepare_partition(tfl_context *context, tfl_node *node) {
    partition *p = node->user_data;
    if (!p) {
        context->ReportError(context, CUSTOM_CODE(IRSTD_BINARY_CONV2D) ": out of memory");
        return TFL_ERROR;
    }
    for (int i = 0; i < p->count; i++)
        if (!p->steps[i].op) return report(p, context); /* init failed */
    delegate *owner = p->owner;
    int threads = irstd_tflite_threads(owner, context);
    if (threads != irstd_pool_threads(owner->pool)) {
        irstd_pool_destroy(owner->pool);
        owner->pool = threads > 1 ? irstd_pool_create(threads) : NULL;
    }
    p->dynamic = false;
    for (int i = 0; i < p->count; i++) {
        const step *s = &p->steps[i];
        for (int input = IN_X; input <= IN_RESIDUAL; input += IN_RESIDUAL) {
            bool outside = (input == IN_X ? s->x_from : s->residual_from) < 0 && s->tensors[input] >= 0;
            if (outside && context->tensors[s->tensors[input]].allocation_type == TFL_DYNAMIC) p->dynamic = true;
        }
    }
    if (!p->dynamic) return plan(p, context) ? TFL_OK : report(p, context);
    for (int i = 0; i < p->count; i++) { /* sizes come with invoke */
        tfl_tensor *t = &context->tensors[p->steps[i].output];
        if (!p->steps[i].inner) irstd_tflite_make_dynamic(t);
    }
    return TFL_OK;
}

/* ---- invoke ---- */

static void run_parallel(void *context, int tasks, void (*task)(void *argument, int index), void *argument) {
    irstd_pool_run(context, tasks, task, argument);
}

static float *data_of(const partition *p, const tfl_context *context, int tensor, int from) {
    if (from >= 0 && p->steps[from].inner) return (float *)(void *)(p->arena + p->steps[from].offset);
    return context->tensors[tensor].data;
}

static tfl_status invoke_partition(tfl_context *context, tfl_node *node) {
    partition *p = node->user_data;
    irstd_pool *pool = p->owner->pool;
    if (p->dynamic && !plan(p, context)) return report(p, context);
    irstd_parallel parallel = {run_parallel, pool, p->threads};
    for (int i = 0; i < p->count; i++) {
        const step *s = &p->steps[i];
        int64_t in[4], extra[4] = {0};
        const float *residual = NULL;
        irstd_error error = {""};
        bool known = tensor_dims(p, context, s, IN_X, s->x_from, in);
        if (known && s->attributes.residual) {
            known = tensor_dims(p, context, s, IN_RESIDUAL, s->residual_from, extra);
            residual = data_of(p, context, s->tensors[IN_RESIDUAL], s->residual_from);
        }
        if (!known) return report(p, context);
        const float *x = data_of(p, context, s->tensors[IN_X], s->x_from);
        if (irstd_bconv2d_run(s->op, in[0], in[1], in[2], x, residual, extra[3], data_of(p, context, s->output, i),
                              p->workspace, p->workspace_bytes, p->threads > 1 ? &parallel : NULL, &error)) {
            fail(p, context, s->output, "%s", error.message);
            return report(p, context);
        }
    }
    return TFL_OK;
}

const tfl_registration irstd_tflite_bconv2d = {
    .init = init_partition,
    .free = free_partition,
    .prepare = prepare_partition,
    .invoke = invoke_partition,
    .custom_name = "irstd",
    .version = 1,
};

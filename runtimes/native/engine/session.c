/* The public calls. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine.h"
#include "pool.h"

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

enum { MAX_THREADS = 1024 };

static _Thread_local irstd_error last_error;

const char *irstd_last_error(void) { return last_error.message; }

void *irstd_own(struct irstd_session *s, uint64_t bytes) {
    if (bytes > IRSTD_MOST_BYTES) return NULL;
    if (s->owned_count == s->owned_capacity) {
        size_t capacity = s->owned_capacity ? 2 * s->owned_capacity : 64;
        void **owned = realloc(s->owned, capacity * sizeof *owned);
        if (!owned) return NULL;
        s->owned = owned;
        s->owned_capacity = capacity;
    }
    void *memory = calloc(1, bytes ? (size_t)bytes : 1);
    if (memory) s->owned[s->owned_count++] = memory;
    return memory;
}

/* Denormals slow some CPUs a hundredfold. */
uint64_t irstd_flush_denormals(void) {
    uint64_t mode = 0;
#if defined(__x86_64__) || defined(__i386__)
    mode = _mm_getcsr();
    irstd_set_float_mode(mode | 0x8040);
#elif defined(__aarch64__)
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    irstd_set_float_mode(mode | 1u << 24);
#endif
    return mode;
}

void irstd_set_float_mode(uint64_t mode) {
#if defined(__x86_64__) || defined(__i386__)
    _mm_setcsr((unsigned)mode);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" ::"r"(mode));
#else
    (void)mode;
#endif
}

static const irstd_kernels *find_kernels(const char *isa) {
    for (int i = 0; i < irstd_kernel_set_count; i++)
        if (!strcmp(irstd_kernel_sets[i]->isa, isa)) return irstd_kernel_sets[i];
    return NULL;
}

/* What is to be opened: an operator, or (NULL) the session's data. */
typedef struct {
    const irstd_bconv2d *op;
    int64_t residual_channels;
} source;

/* Kernels and layers; nothing is prepared yet. */
static irstd_status load(struct irstd_session *s, source from, int64_t height, int64_t width, irstd_error *error) {
    const char *isa = irstd_isa(error);
    if (!isa) return IRSTD_UNSUPPORTED;
    s->kernels = find_kernels(isa);
    if (!s->kernels) return irstd_fail(error, IRSTD_UNSUPPORTED, "the engine has no kernels for %s", isa);
    s->height = height;
    s->width = width;
    return from.op ? irstd_load_bconv2d(s, from.op, from.residual_channels, error) : irstd_load(s, error);
}

static irstd_status start(struct irstd_session *s, source from, int64_t height, int64_t width, int threads,
                          irstd_error *error) {
    if (threads < 1 || threads > MAX_THREADS)
        return irstd_fail(error, IRSTD_INVALID, "threads must be in 1..%d, got %d", MAX_THREADS, threads);
    irstd_status status = load(s, from, height, width, error);
    const uint64_t mode = irstd_flush_denormals(); /* what is folded equals what is run */
    if (!status) status = irstd_prepare(s, error);
    irstd_set_float_mode(mode);
    if (status) return status;
    s->threads = from.op ? threads : 1;
    if (threads > 1 && !from.op) {
        s->barrier = irstd_own(s, 64);
        s->pool = irstd_pool_create(threads);
        if (!s->pool || !s->barrier) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory: %d threads", threads);
        s->threads = irstd_pool_threads(s->pool);
    }
    status = irstd_plan(s, error);
    return status ? status : irstd_write_description(s, error);
}

static irstd_status finish_open(struct irstd_session *s, irstd_status status, irstd_session **session) {
    if (status)
        irstd_close(s);
    else
        *session = s;
    return status;
}

irstd_status irstd_open_memory(const void *data, size_t bytes, int64_t height, int64_t width, int threads,
                               irstd_session **session) {
    if (!session || !data) return irstd_fail(&last_error, IRSTD_INVALID, "data and session must not be NULL");
    *session = NULL;
    struct irstd_session *s = calloc(1, sizeof *s);
    void *copy = s ? irstd_own(s, bytes) : NULL; /* calloc's alignment suits every record */
    if (!copy) {
        irstd_close(s);
        return irstd_fail(&last_error, IRSTD_OUT_OF_MEMORY, "out of memory: a copy of %zu bytes", bytes);
    }
    memcpy(copy, data, bytes);
    s->data = copy;
    s->data_bytes = bytes;
    return finish_open(s, start(s, (source){0}, height, width, threads, &last_error), session);
}

static irstd_status check_operator(const irstd_bconv2d *op) {
    if (!op) return irstd_fail(&last_error, IRSTD_INVALID, "op must not be NULL");
    if (op->layout == IRSTD_NCHW || op->layout == IRSTD_NHWC) return irstd_bconv2d_check(&op->attributes, &last_error);
    return irstd_fail(&last_error, IRSTD_INVALID, "layout must be IRSTD_NCHW or IRSTD_NHWC, got %d", (int)op->layout);
}

/* The least that a kernel needs of one side of an image. */
static int64_t least(int64_t kernel, int64_t dilation, int64_t before, int64_t after) {
    return irstd_max(1, dilation * (kernel - 1) + 1 - before - after);
}

irstd_status irstd_check_bconv2d(const irstd_bconv2d *op) {
    irstd_status status = check_operator(op);
    if (status) return status;
    const irstd_bconv2d_attributes *a = &op->attributes;
    struct irstd_session *s = calloc(1, sizeof *s);
    if (!s) return irstd_fail(&last_error, IRSTD_OUT_OF_MEMORY, "out of memory");
    status = load(s, (source){op, a->residual ? a->out_channels : 0},
                  least(a->kernel_h, a->dilation_h, a->pad_top, a->pad_bottom),
                  least(a->kernel_w, a->dilation_w, a->pad_left, a->pad_right), &last_error);
    irstd_close(s);
    return status;
}

irstd_status irstd_open_bconv2d(const irstd_bconv2d *op, int64_t height, int64_t width, int64_t residual_channels,
                                int threads, irstd_session **session) {
    if (!session) return irstd_fail(&last_error, IRSTD_INVALID, "session must not be NULL");
    *session = NULL;
    irstd_status status = check_operator(op);
    if (status) return status;
    struct irstd_session *s = calloc(1, sizeof *s);
    if (!s) return irstd_fail(&last_error, IRSTD_OUT_OF_MEMORY, "out of memory");
    return finish_open(s, start(s, (source){op, residual_channels}, height, width, threads, &last_error), session);
}

irstd_status irstd_open(const char *path, int64_t height, int64_t width, int threads, irstd_session **session) {
    if (!session || !path) return irstd_fail(&last_error, IRSTD_INVALID, "path and session must not be NULL");
    *session = NULL;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat about;
    if (file < 0 || fstat(file, &about) || !S_ISREG(about.st_mode)) {
        irstd_fail(&last_error, IRSTD_INVALID, "%.160s: %s", path, file < 0 ? strerror(errno) : "no regular file");
        if (file >= 0) close(file);
        return IRSTD_INVALID;
    }
    struct irstd_session *s = calloc(1, sizeof *s);
    void *mapping = s && about.st_size ? mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
    close(file);
    if (mapping == MAP_FAILED) {
        free(s);
        return irstd_fail(&last_error, IRSTD_INVALID, "%.160s: cannot be mapped (%lld bytes)", path, (long long)about.st_size);
    }
    s->mapping = mapping;
    s->data = mapping;
    s->data_bytes = s->mapping_bytes = (size_t)about.st_size;
    irstd_error error;
    irstd_status status = start(s, (source){0}, height, width, threads, &error);
    if (status) irstd_fail(&last_error, status, "%.100s: %.150s", path, error.message);
    return finish_open(s, status, session);
}

irstd_status irstd_run(irstd_session *s, const float *const *inputs, float *const *outputs) {
    return irstd_run_parallel(s, inputs, outputs, NULL);
}

irstd_status irstd_run_parallel(irstd_session *s, const float *const *inputs, float *const *outputs,
                                const irstd_parallel *parallel) {
    if (!s || !inputs || !outputs) return irstd_fail(&last_error, IRSTD_INVALID, "session, inputs and outputs must not be NULL");
    for (int k = 0; k < s->input_count; k++) {
        if (!inputs[k]) return irstd_fail(&last_error, IRSTD_INVALID, "input %s must not be NULL", s->tensors[k].name);
        s->tensors[k].ring.base = (char *)(uintptr_t)inputs[k];
    }
    for (int k = 0; k < s->output_count; k++) {
        irstd_tensor *t = &s->tensors[s->outputs[k]];
        if (!outputs[k]) return irstd_fail(&last_error, IRSTD_INVALID, "output %s must not be NULL", t->name);
        t->ring.base = (char *)outputs[k];
    }
    const uint64_t mode = irstd_flush_denormals();
    irstd_run_strips(s, parallel);
    irstd_set_float_mode(mode);
    return IRSTD_OK;
}

irstd_status irstd_run_profiled(irstd_session *s, const float *const *inputs, float *const *outputs,
                                uint64_t *layer_nanoseconds) {
    if (!s) return irstd_run(s, inputs, outputs);
    s->profile = layer_nanoseconds;
    irstd_status status = irstd_run(s, inputs, outputs);
    s->profile = NULL;
    return status;
}

static int touches_buffers(const irstd_node *n) {
    int external = n->output->external;
    for (int j = 0; j < n->input_count; j++) external |= n->inputs[j]->external;
    return external;
}

static int is_run(const struct irstd_session *s, int node) {
    for (int k = 0; k < s->step_count; k++)
        if (s->steps[k].node == node) return 1;
    return 0;
}

irstd_status irstd_run_layer(irstd_session *s, const char *name) {
    if (!s || !name) return irstd_fail(&last_error, IRSTD_INVALID, "session and name must not be NULL");
    for (int k = 0; k < s->node_count; k++)
        if (!strcmp(s->nodes[k].name, name)) {
            if (s->nodes[k].folded_into)
                return irstd_fail(&last_error, IRSTD_INVALID, "%.100s is computed by %.100s", name, s->nodes[k].folded_into->name);
            if (touches_buffers(&s->nodes[k]))
                return irstd_fail(&last_error, IRSTD_INVALID, "%.100s reads or writes the caller's buffers", name);
            if (!is_run(s, k))
                return irstd_fail(&last_error, IRSTD_INVALID, "%.100s has no memory: no output depends on it", name);
            const uint64_t mode = irstd_flush_denormals();
            irstd_run_node(s, k);
            irstd_set_float_mode(mode);
            return IRSTD_OK;
        }
    return irstd_fail(&last_error, IRSTD_INVALID, "there is no layer %.100s", name);
}

const char *irstd_describe(irstd_session *session) { return session ? session->description : NULL; }

static void write_shape(const irstd_tensor *t, int64_t shape[3]) {
    shape[0] = t->channels;
    shape[1] = t->height;
    shape[2] = t->width;
}

int irstd_input_count(const irstd_session *s) { return s->input_count; }
int irstd_output_count(const irstd_session *s) { return s->output_count; }
void irstd_input_shape(const irstd_session *s, int index, int64_t shape[3]) { write_shape(&s->tensors[index], shape); }
void irstd_output_shape(const irstd_session *s, int index, int64_t shape[3]) {
    write_shape(&s->tensors[s->outputs[index]], shape);
}

void irstd_close(irstd_session *s) {
    if (!s) return;
    irstd_pool_destroy(s->pool);
    for (size_t k = 0; k < s->owned_count; k++) free(s->owned[k]);
    free(s->owned);
    free(s->steps);
    free(s->arena_memory);
    free(s->description);
    free(s->plan_description);
    if (s->mapping) munmap(s->mapping, s->mapping_bytes);
    free(s);
}

/* ---- description ---- */

typedef struct {
    char *text;
    size_t length, capacity;
    int failed;
} writer;

IRSTD_PRINTF(2, 3) static void put(writer *w, const char *format, ...) {
    va_list arguments;
    for (;;) {
        va_start(arguments, format);
        int count = vsnprintf(w->text + w->length, w->capacity - w->length, format, arguments);
        va_end(arguments);
        if (count >= 0 && (size_t)count < w->capacity - w->length) {
            w->length += (size_t)count;
            return;
        }
        size_t capacity = 2 * w->capacity + (size_t)(count > 0 ? count : 0);
        char *text = realloc(w->text, capacity);
        if (!text) {
            w->failed = 1;
            return;
        }
        w->text = text;
        w->capacity = capacity;
    }
}

/* A JSON string; names come from a file and may hold anything. */
static void put_string(writer *w, const char *text) {
    put(w, "\"");
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            put(w, "\\%c", c);
        else if (c < 32)
            put(w, "\\u%04x", c);
        else
            put(w, "%c", c);
    }
    put(w, "\"");
}

static void put_tensor(writer *w, const irstd_tensor *t, int first) {
    put(w, "%s{\"name\": ", first ? "" : ", ");
    put_string(w, t->name);
    put(w, ", \"channels\": %d, \"height\": %lld, \"width\": %lld}", t->channels, (long long)t->height, (long long)t->width);
}

irstd_status irstd_write_description(struct irstd_session *s, irstd_error *error) {
    writer w = {.text = malloc(4096), .capacity = 4096};
    if (!w.text) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory");
    put(&w, "{\"isa\": \"%s\", \"threads\": %d, \"height\": %lld, \"width\": %lld, \"strip_rows\": %lld, \"file_bytes\": %zu, "
            "\"arena_bytes\": %zu, \"arena_lower_bound_bytes\": %zu, \"inputs\": [",
        s->kernels->isa, s->threads, (long long)s->height, (long long)s->width, (long long)s->strip, s->data_bytes,
        s->arena_bytes, s->arena_lower_bound);
    for (int k = 0; k < s->input_count; k++) put_tensor(&w, &s->tensors[k], !k);
    put(&w, "], \"outputs\": [");
    for (int k = 0; k < s->output_count; k++) put_tensor(&w, &s->tensors[s->outputs[k]], !k);
    put(&w, "], \"layers\": [");
    for (int k = 0; k < s->node_count; k++) {
        const irstd_node *n = &s->nodes[k];
        const irstd_tensor *y = n->output;
        put(&w, "%s{\"name\": ", k ? ", " : "");
        put_string(&w, n->name);
        put(&w, ", \"op\": \"%s\", \"kernel\": \"%s\", \"channels\": %d, \"height\": %lld, \"width\": %lld, \"output_bytes\": %zu, \"macs\": %llu}",
            irstd_operator_name(n->op), n->kernel, y->channels, (long long)y->height, (long long)y->width,
            (size_t)y->ring.ring * y->ring.row_bytes * !y->external, (unsigned long long)n->macs);
    }
    put(&w, "]}");
    if (w.failed) {
        free(w.text);
        return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory");
    }
    s->description = w.text;
    return IRSTD_OK;
}

/* One row of the arena map; what lives for the whole run ends with its last step. */
static void put_buffer(writer *w, const struct irstd_session *s, const irstd_ring *ring, const char *name,
                       const char *holds, int first) {
    if (!ring->ring) return;
    put(w, "%s{\"name\": ", first ? "" : ", ");
    put_string(w, name);
    put(w, ", \"holds\": \"%s\", \"rows\": %lld, \"offset\": %zu, \"bytes\": %zu, \"first_step\": %d, \"last_step\": %d, "
           "\"first_layer\": %d, \"last_layer\": %d}",
        holds, (long long)ring->ring, ring->offset, (size_t)ring->ring * ring->row_bytes, ring->first_step,
        (int)irstd_min(ring->last_step, s->step_count - 1), ring->first_node,
        (int)irstd_min(ring->last_node, s->node_count - 1));
}

const char *irstd_describe_plan(irstd_session *s) {
    if (!s || s->plan_description) return s ? s->plan_description : NULL;
    writer w = {.text = malloc(4096), .capacity = 4096};
    if (!w.text) return NULL;
    put(&w, "{\"arena_bytes\": %zu, \"scratch_offset\": %zu, \"scratch_bytes\": %zu, \"steps\": [", s->arena_bytes,
        s->scratch_offset, s->arena_bytes - s->scratch_offset);
    for (int k = 0; k < s->step_count; k++)
        put(&w, "%s[%d, %d, %d]", k ? ", " : "", s->steps[k].node, s->steps[k].first, s->steps[k].last);
    put(&w, "], \"buffers\": [");
    const size_t none = w.length;
    for (int k = 0; k < s->tensor_count; k++) {
        const irstd_tensor *t = &s->tensors[k];
        if (!t->external && t->stored) put_buffer(&w, s, &t->ring, t->name, "values", w.length == none);
        for (int m = 0; m < t->map_count; m++)
            put_buffer(&w, s, &t->maps[m].ring, t->name, t->maps[m].quantizer ? "integers" : "signs", w.length == none);
    }
    put(&w, "]}");
    if (w.failed) {
        free(w.text);
        return NULL;
    }
    return s->plan_description = w.text;
}

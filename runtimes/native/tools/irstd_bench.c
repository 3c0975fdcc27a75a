/* Runs a model.irstd and prints one JSON object: latency, memory, kernels. Needs the engine and libc alone.
 *
 * Exit codes are those of the command line: 2 wrong usage or input, 3 not supported here, 5 missing or unreadable. */
#define _POSIX_C_SOURCE 200809L
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "irstd.h"
#include "markers.h"

enum { USAGE = 2, UNSUPPORTED = 3, MISSING = 5, MAX_FILES = 64 };

static const char usage[] =
    "usage: irstd_bench MODEL --height H --width W [options]\n"
    "  --input FILE       float32 [C, H, W] of one input; repeat for more (default: noise)\n"
    "  --output FILE      write the outputs of the last run, float32\n"
    "  --threads N        1\n"
    "  --warmup N         untimed runs, 10\n"
    "  --runs N           timed runs, at least; 100\n"
    "  --min-seconds S    timed runs, at least so long; 0\n"
    "  --layer NAME       time this layer alone, on what a run left in its inputs; one thread\n"
    "  --profile          tell the shortest time of each layer too, of ten runs\n"
    "  --markers          mark every timed run for the instruction counter\n"
    "  --json FILE        write the result there too\n";

static void fail(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("irstd_bench: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(code);
}

static void *allocate(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes ? bytes : 64)) fail(MISSING, "out of memory (%zu bytes)", bytes);
    return memory;
}

/* Denormal numbers count as zero, in this thread and those it starts, as in every runtime of this project. */
static void flush_to_zero(void) {
#if defined(__SSE__)
    _mm_setcsr(_mm_getcsr() | 0x8040);
#elif defined(__aarch64__)
    unsigned long control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    __asm__ volatile("msr fpcr, %0" : : "r"(control | 1ul << 24));
#elif defined(__arm__) && defined(__ARM_FP)
    unsigned control;
    __asm__ volatile("vmrs %0, fpscr" : "=r"(control));
    __asm__ volatile("vmsr fpscr, %0" : : "r"(control | 1u << 24));
#endif
}

/* ---- options ---- */

typedef struct {
    const char *model, *output, *json, *layer, *inputs[MAX_FILES];
    int input_count, markers, profile;
    long height, width, threads, warmup, runs;
    double seconds;
} options;

static long whole(const char *name, const char *text, long minimum) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < minimum || value > 1000000000)
        fail(USAGE, "%s takes a whole number from %ld, got '%s'", name, minimum, text);
    return value;
}

static options parse(int count, char **arguments) {
    options o = {.threads = 1, .warmup = 10, .runs = 100};
    for (int k = 1; k < count; k++) {
        const char *name = arguments[k];
        if (!strcmp(name, "--help") || !strcmp(name, "-h")) {
            fputs(usage, stdout);
            exit(0);
        }
        if (!strcmp(name, "--profile")) {
            o.profile = 1;
            continue;
        }
        if (!strcmp(name, "--markers")) {
            o.markers = 1;
            continue;
        }
        if (name[0] != '-') {
            if (o.model) fail(USAGE, "one MODEL is enough, got '%s' too", name);
            o.model = name;
            continue;
        }
        const char *value = k + 1 < count ? arguments[++k] : NULL;
        if (!value) fail(USAGE, "'%s' is no option, or its value is missing; see --help", name);
        if (!strcmp(name, "--height")) o.height = whole(name, value, 1);
        else if (!strcmp(name, "--width")) o.width = whole(name, value, 1);
        else if (!strcmp(name, "--threads")) o.threads = whole(name, value, 1);
        else if (!strcmp(name, "--warmup")) o.warmup = whole(name, value, 0);
        else if (!strcmp(name, "--runs")) o.runs = whole(name, value, 1);
        else if (!strcmp(name, "--output")) o.output = value;
        else if (!strcmp(name, "--json")) o.json = value;
        else if (!strcmp(name, "--layer")) o.layer = value;
        else if (!strcmp(name, "--input")) {
            if (o.input_count == MAX_FILES) fail(USAGE, "at most %d inputs", MAX_FILES);
            o.inputs[o.input_count++] = value;
        } else if (!strcmp(name, "--min-seconds")) {
            char *end;
            o.seconds = strtod(value, &end);
            if (end == value || *end || !(o.seconds >= 0 && o.seconds < 1e6)) fail(USAGE, "%s takes seconds, got '%s'", name, value);
        } else {
            fail(USAGE, "'%s' is no option; see --help", name);
        }
    }
    if (!o.model) fail(USAGE, "name a MODEL; see --help");
    if (!o.height || !o.width) fail(USAGE, "name --height and --width");
    return o;
}

/* ---- what irstd_describe tells ---- */

typedef struct {
    long channels, height, width;
} shape;

static size_t values_of(shape s) { return (size_t)s.channels * (size_t)s.height * (size_t)s.width; }

/* What follows `"key":` at or after `text`, or NULL. Quotes within JSON strings are escaped, so only keys match. */
static const char *value_of(const char *text, const char *key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    for (const char *at = text ? strstr(text, quoted) : NULL; at; at = strstr(at + 1, quoted)) {
        const char *next = at + strlen(quoted);
        while (isspace((unsigned char)*next)) next++;
        if (*next != ':') continue;
        for (next++; isspace((unsigned char)*next);) next++;
        return next;
    }
    return NULL;
}

static double number_of(const char *text, const char *key) {
    const char *at = value_of(text, key);
    if (!at) fail(MISSING, "the engine does not tell '%s'", key);
    return strtod(at, NULL);
}

/* The shapes in the list of tensors `key`; returns how many. */
static int shapes_of(const char *description, const char *key, shape *shapes) {
    const char *at = value_of(description, key);
    int count = 0, depth = 0, quoted = 0;
    if (!at || *at != '[') fail(MISSING, "the engine does not tell '%s'", key);
    for (; *at; at++) {
        if (quoted) {
            if (*at == '\\') at++;
            else if (*at == '"') quoted = 0;
        } else if (*at == '"') {
            quoted = 1;
        } else if (*at == '{') {
            if (count == MAX_FILES) fail(UNSUPPORTED, "at most %d %s", MAX_FILES, key);
            shapes[count++] = (shape){(long)number_of(at, "channels"), (long)number_of(at, "height"), (long)number_of(at, "width")};
        } else if (*at == '[') {
            depth++;
        } else if (*at == ']' && --depth == 0) {
            break;
        }
    }
    return count;
}

/* ---- files ---- */

static void read_input(const char *path, float *values, size_t count) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(MISSING, "%s: cannot be read (%s)", path, strerror(errno));
    size_t got = fread(values, sizeof *values, count, file);
    if (got != count || fgetc(file) != EOF) fail(USAGE, "%s: must hold %zu float32 values", path, count);
    fclose(file);
}

/* Values of a normalised image: between -2 and 2, the same every time. */
static void fill_with_noise(float *values, size_t count, uint32_t state) {
    for (size_t k = 0; k < count; k++) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        values[k] = (float)(state >> 8) * (4.0f / 16777216.0f) - 2.0f;
    }
}

static void write_outputs(const char *path, float *const *outputs, const shape *shapes, int count) {
    FILE *file = fopen(path, "wb");
    int bad = !file;
    for (int k = 0; !bad && k < count; k++) bad = fwrite(outputs[k], sizeof(float), values_of(shapes[k]), file) != values_of(shapes[k]);
    if (bad | (file && fclose(file))) fail(USAGE, "%s: cannot be written (%s)", path, strerror(errno));
}

/* ---- result ---- */

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of sorted values, interpolated between neighbours. */
static double percentile(const double *sorted, size_t count, double percent) {
    double place = percent / 100 * (double)(count - 1);
    size_t below = (size_t)place;
    return below + 1 == count ? sorted[below] : sorted[below] + (place - (double)below) * (sorted[below + 1] - sorted[below]);
}

static void print_text(FILE *file, const char *text) {
    fputc('"', file);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') fprintf(file, "\\%c", c);
        else if (c < 0x20) fprintf(file, "\\u%04x", c);
        else fputc(c, file);
    }
    fputc('"', file);
}

/* The shortest time of each layer in microseconds, in the order of the description; returns how many. */
static size_t profile(irstd_session *session, float **inputs, float **outputs, double **shortest) {
    size_t layers = 0;
    for (const char *at = irstd_describe(session); (at = value_of(at, "kernel")); at++) layers++;
    uint64_t *taken = allocate(layers * sizeof *taken);
    *shortest = allocate(layers * sizeof **shortest);
    for (int run = 0; run < 10; run++) {
        memset(taken, 0, layers * sizeof *taken);
        if (irstd_run_profiled(session, (const float *const *)inputs, outputs, taken)) fail(UNSUPPORTED, "%s", irstd_last_error());
        for (size_t k = 0; k < layers; k++)
            if (!run || (double)taken[k] * 1e-3 < (*shortest)[k]) (*shortest)[k] = (double)taken[k] * 1e-3;
    }
    free(taken);
    return layers;
}

static void print_result(FILE *file, const options *o, const char *description, const double *samples, size_t count,
                         const double *layers, size_t layer_count) {
    double *sorted = allocate(count * sizeof *sorted), sum = 0;
    memcpy(sorted, samples, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, ascending);
    for (size_t k = 0; k < count; k++) sum += samples[k];
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    fputs("{\"model\": ", file);
    print_text(file, o->model);
    const char *isa = value_of(description, "isa");
    int length = isa && *isa == '"' ? (int)strcspn(isa + 1, "\"") : 0;
    fprintf(file, ", \"isa\": \"%.*s\", \"threads\": %ld, \"height\": %ld, \"width\": %ld,\n", length, isa ? isa + 1 : "",
            o->threads, o->height, o->width);
    fprintf(file, " \"latency_ms\": {\"n\": %zu, \"min\": %.6f, \"mean\": %.6f, \"p50\": %.6f, \"p90\": %.6f, \"p95\": %.6f, "
                  "\"p99\": %.6f, \"max\": %.6f},\n", count, sorted[0], sum / (double)count, percentile(sorted, count, 50),
            percentile(sorted, count, 90), percentile(sorted, count, 95), percentile(sorted, count, 99), sorted[count - 1]);
    fprintf(file, " \"arena_bytes\": %.0f, \"peak_rss_bytes\": %llu,\n \"samples_ms\": [", number_of(description, "arena_bytes"),
            (unsigned long long)used.ru_maxrss * 1024);
    for (size_t k = 0; k < count; k++) fprintf(file, "%s%.6f", k ? ", " : "", samples[k]);
    fputs("],\n", file);
    for (size_t k = 0; k < layer_count; k++) fprintf(file, "%s%.1f%s", k ? ", " : " \"layer_us\": [", layers[k], k + 1 < layer_count ? "" : "],\n");
    fprintf(file, " \"engine\": %s}\n", description);
    free(sorted);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void run(irstd_session *session, float **inputs, float **outputs) {
    if (irstd_run(session, (const float *const *)inputs, outputs)) fail(UNSUPPORTED, "%s", irstd_last_error());
}

/* One timed run: of the network, or of one layer. */
static void run_timed(irstd_session *session, float **inputs, float **outputs, const char *layer) {
    if (!layer) run(session, inputs, outputs);
    else if (irstd_run_layer(session, layer)) fail(USAGE, "%s", irstd_last_error());
}

int main(int count, char **arguments) {
    options o = parse(count, arguments);
    flush_to_zero();
    FILE *file = fopen(o.model, "rb");
    if (!file) fail(MISSING, "%s: cannot be read (%s)", o.model, strerror(errno));
    fclose(file);
    irstd_session *session = NULL;
    irstd_status status = irstd_open(o.model, o.height, o.width, (int)o.threads, &session);
    if (status) fail(status == IRSTD_UNSUPPORTED ? UNSUPPORTED : MISSING, "%s", irstd_last_error());
    const char *description = irstd_describe(session);

    shape in[MAX_FILES], out[MAX_FILES];
    float *inputs[MAX_FILES], *outputs[MAX_FILES];
    int input_count = shapes_of(description, "inputs", in), output_count = shapes_of(description, "outputs", out);
    if (o.input_count && o.input_count != input_count) fail(USAGE, "the network has %d inputs, %d are given", input_count, o.input_count);
    for (int k = 0; k < input_count; k++) {
        inputs[k] = allocate(values_of(in[k]) * sizeof(float));
        if (o.input_count) read_input(o.inputs[k], inputs[k], values_of(in[k]));
        else fill_with_noise(inputs[k], values_of(in[k]), 2463534242u + (uint32_t)k);
    }
    for (int k = 0; k < output_count; k++) outputs[k] = allocate(values_of(out[k]) * sizeof(float));

    if (o.layer) run(session, inputs, outputs); /* fills what the layer reads */
    for (long k = 0; k < o.warmup; k++) run_timed(session, inputs, outputs, o.layer);
    size_t done = 0, room = 1024;
    double *samples = malloc(room * sizeof *samples), start = now(), before = start;
    while (samples && (done < (size_t)o.runs || before - start < o.seconds)) {
        if (done == room) samples = realloc(samples, (room *= 2) * sizeof *samples);
        if (!samples) break;
        before = now();
        if (o.markers) IRSTD_MARK_START();
        run_timed(session, inputs, outputs, o.layer);
        if (o.markers) IRSTD_MARK_STOP();
        double after = now();
        samples[done++] = 1e3 * (after - before);
        before = after;
    }
    if (!samples) fail(MISSING, "out of memory");
    if (o.output) write_outputs(o.output, outputs, out, output_count);
    double *layers = NULL;
    size_t layer_count = o.profile ? profile(session, inputs, outputs, &layers) : 0;
    print_result(stdout, &o, description, samples, done, layers, layer_count);
    if (o.json) {
        file = fopen(o.json, "w");
        if (!file) fail(USAGE, "%s: cannot be written (%s)", o.json, strerror(errno));
        print_result(file, &o, description, samples, done, layers, layer_count);
        if (fclose(file)) fail(USAGE, "%s: cannot be written (%s)", o.json, strerror(errno));
    }
    for (int k = 0; k < input_count; k++) free(inputs[k]);
    for (int k = 0; k < output_count; k++) free(outputs[k]);
    free(samples);
    free(layers);
    irstd_close(session);
    return 0;
}

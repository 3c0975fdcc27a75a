/* Opens and runs the programs of a stream in exactly sized buffers, for the sanitizers and for emulated cores. Standard
 * input: records of u32 height, width, threads, bytes and then the file. Output: a line for each, its status and message.
 * An argument names a file to write the results to, float32 behind each other; lines then tell the kernels too. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "irstd.h"

enum { MAX_BUFFERS = 4096, MAX_ELEMENTS = 1 << 22, MAX_MACS = 1 << 28 };

static float *inputs[MAX_BUFFERS], *outputs[MAX_BUFFERS];

static void *allocate(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (!p) exit(2);
    return p;
}

/* Whether the test has time for it. */
static int is_small(const char *text) {
    double elements = 0, macs = 0, value[3];
    for (const char *at = text; (at = strstr(at, "\"channels\": ")); at++)
        if (sscanf(at, "\"channels\": %lf, \"height\": %lf, \"width\": %lf", value, value + 1, value + 2) == 3)
            elements += value[0] * value[1] * value[2];
    for (const char *at = text; (at = strstr(at, "\"macs\": ")); at++)
        if (sscanf(at, "\"macs\": %lf", value) == 1) macs += value[0];
    return elements < MAX_ELEMENTS && macs < MAX_MACS;
}

static size_t sizes[MAX_BUFFERS]; /* elements of the outputs */

/* Buffers for the shapes behind "inputs" or "outputs"; a run refuses those that a strange name hides. */
static void make_buffers(const char *text, const char *key, float **to) {
    const char *at = strstr(text, key), *end = strchr(at, ']');
    for (int k = 0; (at = strstr(at, "\"channels\": ")) && at < end; at++, k++) {
        long long channels, height, width;
        if (sscanf(at, "\"channels\": %lld, \"height\": %lld, \"width\": %lld", &channels, &height, &width) != 3) exit(3);
        size_t elements = sizes[k] = (size_t)(channels * height * width);
        to[k] = allocate(elements * sizeof(float));
        /* multiples of 1/16, of which many sums are exact; program_files.py has the same */
        for (size_t i = 0; i < elements; i++) to[k][i] = (float)(int)((uint32_t)i * 2654435761u >> 26) / 16 - 2;
    }
}

static void free_buffers(float **buffers) {
    for (int k = 0; k < MAX_BUFFERS; k++) {
        free(buffers[k]);
        buffers[k] = NULL;
    }
}

int main(int count, char **arguments) {
    uint32_t head[4];
    FILE *results = count > 1 ? fopen(arguments[1], "wb") : NULL;
    if (count > 1 && !results) return 5;
    while (fread(head, sizeof head, 1, stdin) == 1) {
        char *data = allocate(head[3]);
        if (head[3] && fread(data, head[3], 1, stdin) != 1) return 4;
        irstd_session *session;
        irstd_status status = irstd_open_memory(data, head[3], head[0], head[1], (int)head[2], &session);
        free(data);
        const char *text = status ? NULL : irstd_describe(session);
        if (text && is_small(text)) {
            make_buffers(text, "\"inputs\"", inputs);
            make_buffers(text, "\"outputs\"", outputs);
            for (int k = 0; k < 2 && !status; k++) status = irstd_run(session, (const float *const *)inputs, outputs);
            for (int k = 0; k < MAX_BUFFERS && outputs[k] && results; k++)
                if (fwrite(outputs[k], sizeof(float), sizes[k], results) != sizes[k]) return 5;
            free_buffers(inputs);
            free_buffers(outputs);
        }
        printf("%d ", (int)status);
        for (const char *at = status || !results ? NULL : text, *key = "\"kernel\": \""; at && (at = strstr(at, key));) {
            at += strlen(key);
            printf("%.*s ", (int)strcspn(at, "\""), at);
        }
        irstd_close(session);
        for (const char *c = status ? irstd_last_error() : ""; *c; c++) putchar(*c < ' ' ? '?' : *c); /* names hold anything */
        putchar('\n');
        fflush(stdout);
    }
    return results && fclose(results) ? 5 : 0;
}

/* Opens and runs the programs of a stream in exactly sized buffers, for the sanitizers. Standard input: records of
 * u32 height, width, threads, bytes and then the file. Output: a line for each, its status and message. */
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

/* Buffers for the shapes behind "inputs" or "outputs"; a run refuses those that a strange name hides. */
static void make_buffers(const char *text, const char *key, float **to) {
    const char *at = strstr(text, key), *end = strchr(at, ']');
    for (int k = 0; (at = strstr(at, "\"channels\": ")) && at < end; at++, k++) {
        long long channels, height, width;
        if (sscanf(at, "\"channels\": %lld, \"height\": %lld, \"width\": %lld", &channels, &height, &width) != 3) exit(3);
        size_t elements = (size_t)(channels * height * width);
        to[k] = allocate(elements * sizeof(float));
        for (size_t i = 0; i < elements; i++) to[k][i] = (float)(int)((uint32_t)i * 2654435761u >> 22) / 256 - 2;
    }
}

static void free_buffers(float **buffers) {
    for (int k = 0; k < MAX_BUFFERS; k++) {
        free(buffers[k]);
        buffers[k] = NULL;
    }
}

int main(void) {
    uint32_t head[4];
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
            free_buffers(inputs);
            free_buffers(outputs);
        }
        irstd_close(session);
        printf("%d ", (int)status);
        for (const char *c = status ? irstd_last_error() : ""; *c; c++) putchar(*c < ' ' ? '?' : *c); /* names hold anything */
        putchar('\n');
        fflush(stdout);
    }
    return 0;
}

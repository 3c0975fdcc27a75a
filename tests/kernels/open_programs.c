/* Opens and runs the programs of a stream in exactly sized buffers, for the sanitizers. Standard input: records of
 * u32 height, width, threads, bytes and then the file. Output: a line for each, "0" or its status and message. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "irstd.h"

enum { MAX_BUFFERS = 64 };

static void *allocate(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (!p) exit(2);
    return p;
}

/* The shapes behind "inputs" or "outputs" in the description. Names may hold anything, so channels are searched from
 * a name's end on only where no name can mislead: the tests give names without quotes. */
static int buffers(const char *text, const char *key, float **to) {
    int count = 0;
    const char *at = strstr(text, key), *end = strchr(at, ']');
    while ((at = strstr(at, "\"channels\": ")) && at < end && count < MAX_BUFFERS) {
        long long channels, height, width;
        if (sscanf(at, "\"channels\": %lld, \"height\": %lld, \"width\": %lld", &channels, &height, &width) != 3) exit(3);
        size_t elements = (size_t)(channels * height * width);
        to[count] = allocate(elements * sizeof(float));
        for (size_t i = 0; i < elements; i++) to[count][i] = (float)(int)(i * 2654435761u >> 22) / 256 - 2;
        count++;
        at++;
    }
    return count;
}

int main(void) {
    uint32_t head[4];
    while (fread(head, sizeof head, 1, stdin) == 1) {
        char *data = allocate(head[3]);
        if (head[3] && fread(data, head[3], 1, stdin) != 1) return 4;
        irstd_session *session;
        irstd_status status = irstd_open_memory(data, head[3], head[0], head[1], (int)head[2], &session);
        free(data);
        if (status) {
            printf("%d %s\n", (int)status, irstd_last_error());
        } else {
            float *inputs[MAX_BUFFERS], *outputs[MAX_BUFFERS];
            const char *text = irstd_describe(session);
            int in = buffers(text, "\"inputs\"", inputs), out = buffers(text, "\"outputs\"", outputs);
            for (int k = 0; k < 2; k++)
                if (irstd_run(session, (const float *const *)inputs, outputs)) return 5;
            while (in) free(inputs[--in]);
            while (out) free(outputs[--out]);
            printf("0\n");
        }
        irstd_close(session);
        fflush(stdout);
    }
    return 0;
}

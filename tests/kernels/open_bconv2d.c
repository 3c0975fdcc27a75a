/* Random operators in exactly sized heap buffers, for the sanitizers: every instruction set must give
 * the bits of ref. Then, per instruction set, a digest of all outputs, so that two machines can be compared.
 * Usage: open_bconv2d [cases] [seed] */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "irstd.h"

static uint64_t state, digests[16];

static uint32_t next(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static int between(int low, int high) { return low + (int)(next() % (uint32_t)(high - low + 1)); }

static float number(void) { return (float)(int32_t)(next() % 2000001) / 1e6f - 1; }

static void *allocate(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (!p) exit(2);
    return p;
}

static float *numbers(size_t count) {
    float *p = allocate(count * sizeof *p);
    for (size_t i = 0; i < count; i++) p[i] = number();
    return p;
}

/* Tasks in reverse: they must not depend on each other. */
static void run_reversed(void *context, int tasks, void (*task)(void *, int), void *argument) {
    (void)context;
    while (tasks--) task(argument, tasks);
}

#define CHECK(call)                                                       \
    do {                                                                  \
        if (call) {                                                       \
            fprintf(stderr, "case %d: %s\n", number_of_case, irstd_last_error()); \
            exit(1);                                                      \
        }                                                                 \
    } while (0)

static void one_case(int number_of_case) {
    irstd_bconv2d_attributes a;
    irstd_bconv2d_attributes_init(&a);
    a.version = a.bit_order = 1;
    a.groups = between(0, 3) ? 1 : between(2, 6);
    int ic_group = between(0, 1) ? between(1, 20) : between(21, 140);
    a.in_channels = a.groups * ic_group;
    a.out_channels = a.groups * between(1, 12);
    a.kernel_h = between(1, 5), a.kernel_w = between(1, 5);
    a.stride_h = between(1, 3), a.stride_w = between(1, 3);
    a.dilation_h = between(1, 3), a.dilation_w = between(1, 3);
    a.pad_top = between(0, 6), a.pad_bottom = between(0, 6), a.pad_left = between(0, 6), a.pad_right = between(0, 6);
    a.pad_value = between(-1, 1);
    a.residual = between(0, 2), a.activation = between(0, 2), a.activation_first = between(0, 1);
    a.clamp_min = -1.5f, a.clamp_max = 2.5f;
    a.fraction_bits = between(-1, 15);
    int threads = between(1, 3);
    int height = between(1, 20), width = between(1, 100);
    int extent_h = a.dilation_h * (a.kernel_h - 1) + 1, extent_w = a.dilation_w * (a.kernel_w - 1) + 1;
    if (height < extent_h) height = extent_h;
    if (width < extent_w) width = extent_w;
    const irstd_layout layout = (irstd_layout)between(0, 1);

    int words = (ic_group + 31) / 32;
    size_t weight_words = (size_t)(a.out_channels * a.kernel_h * a.kernel_w * words);
    int32_t *weight = allocate(weight_words * sizeof *weight);
    for (size_t i = 0; i < weight_words; i++) {
        uint32_t word = next() << 16 ^ next();
        int tail = ic_group % 32;
        if (tail && (int)(i % (size_t)words) == words - 1) word &= (1u << tail) - 1;
        memcpy(&weight[i], &word, sizeof word);
    }
    float *threshold = numbers((size_t)a.in_channels), *scale = numbers((size_t)a.out_channels);
    float *bias = numbers((size_t)a.out_channels);
    float *parameters = a.activation == 1 ? numbers(3 * (size_t)a.out_channels) : NULL;
    float *x = numbers((size_t)(a.in_channels * height * width)), *residual = NULL, *expected = NULL;
    int residual_channels = 0;
    const irstd_bconv2d op = {
        a, {weight, threshold, scale, bias, parameters},
        {weight_words * 4, (size_t)a.in_channels * 4, (size_t)a.out_channels * 4, (size_t)a.out_channels * 4,
         parameters ? (size_t)a.out_channels * 12 : 0}, layout};
    if (a.residual) {
        residual_channels = a.out_channels;
        int kind = between(0, 2); /* the same, more, fewer */
        if (kind == 1) residual_channels *= between(2, 3);
        if (kind == 2) residual_channels = between(1, a.out_channels);
        while (kind == 2 && a.out_channels % residual_channels) residual_channels--;
    }
    for (int i = 0; i < irstd_isa_count(); i++) {
        if (!irstd_isa_available(i)) continue;
        setenv("IRSTD_ISA", irstd_isa_name(i), 1);
        irstd_session *session;
        CHECK(irstd_check_bconv2d(&op));
        CHECK(irstd_open_bconv2d(&op, height, width, residual_channels, threads, &session));
        int64_t shape[3];
        irstd_output_shape(session, 0, shape);
        const size_t pixels = (size_t)(shape[1] * shape[2]), values = pixels * (size_t)a.out_channels;
        if (a.residual && !residual) residual = numbers(pixels * (size_t)residual_channels);
        float *y = allocate(values * sizeof *y);
        memset(y, 0xff, values * sizeof *y);
        const float *inputs[] = {x, residual};
        const irstd_parallel parallel = {run_reversed, NULL};
        for (int k = 0; k < 2; k++) CHECK(irstd_run_parallel(session, inputs, &y, threads > 1 ? &parallel : NULL));
        for (size_t k = 0; k < values; k++) {
            uint32_t bits;
            memcpy(&bits, y + k, sizeof bits);
            digests[i] = (digests[i] ^ bits) * 1099511628211u; /* FNV-1a, by words */
        }
        if (!expected) {
            expected = y;
        } else {
            if (memcmp(expected, y, values * sizeof *y)) {
                fprintf(stderr, "case %d: %s differs from ref\n", number_of_case, irstd_isa_name(i));
                exit(1);
            }
            free(y);
        }
        irstd_close(session);
    }
    free(weight), free(threshold), free(scale), free(bias), free(parameters), free(x), free(residual), free(expected);
}

int main(int argc, char **argv) {
    int cases = argc > 1 ? atoi(argv[1]) : 1000;
    state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    for (int i = 0; i < cases; i++) one_case(i);
    printf("%d cases\n", cases);
    for (int i = 0; i < irstd_isa_count(); i++)
        if (irstd_isa_available(i)) printf("%s %016llx\n", irstd_isa_name(i), (unsigned long long)digests[i]);
    return 0;
}

/* Micro-benchmark of irstd.BinaryConv2d: every available variant, interleaved, on the layers of the
 * networks, with RPReLU, residual and fixed-point rounding fused.
 *
 *   bench_bconv2d [--seconds S] [--layout nchw|nhwc]
 *
 * Prints the median in ms, GOP/s (2 operations per binary multiply-accumulate, packing and epilogue
 * included), and the share of what the ALUs alone could do, measured in the same run from registers (peaks.h):
 * "table" is vpshufb + vpaddb, "classic" xor and the popcount emulated by vpshufb, "vpopcntw" AVX-512. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "irstd.h"
#include "peaks.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#define X86 1
#endif

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, compare);
    return count % 2 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

#ifdef X86
/* acc += popcount(x ^ w), the two nibble counts summed first: 8 instructions for 256 bits. */
#define CLASSIC(acc, x, w, a, b)                                                                                \
    "vpxor %%ymm" #x ", %%ymm" #w ", %%ymm" #a "\n\tvpand %%ymm" #a ", %%ymm14, %%ymm" #b                       \
    "\n\tvpsrlw $4, %%ymm" #a ", %%ymm" #a "\n\tvpand %%ymm" #a ", %%ymm14, %%ymm" #a                          \
    "\n\tvpshufb %%ymm" #b ", %%ymm15, %%ymm" #b "\n\tvpshufb %%ymm" #a ", %%ymm15, %%ymm" #a                  \
    "\n\tvpaddb %%ymm" #a ", %%ymm" #b ", %%ymm" #a "\n\tvpaddb %%ymm" #a ", %%ymm" #acc ", %%ymm" #acc "\n\t"

__attribute__((target("avx2"))) static double peak_classic(long rounds) {
    double start = now();
    for (long r = 0; r < rounds; r++)
        __asm__ volatile(CLASSIC(0, 4, 6, 8, 9) CLASSIC(1, 5, 6, 10, 11) CLASSIC(2, 4, 7, 12, 13)
                         CLASSIC(3, 5, 7, 8, 9) ::: "ymm0", "ymm1", "ymm2", "ymm3", "ymm8", "ymm9", "ymm10", "ymm11", "ymm12",
                         "ymm13");
    return 2.0 * 4 * 256 * (double)rounds / (now() - start) * 1e-9;
}
#endif

/* The best of several measurements of a peak. */
static double best(double (*peak)(long), long rounds) {
    double result = 0;
    for (int i = 0; i < 7; i++) {
        double gops = peak(rounds);
        if (gops > result) result = gops;
    }
    return result;
}

typedef struct {
    int in, out, side;
} shape;

static const shape shapes[] = {{16, 16, 256}, {32, 32, 128}, {64, 64, 64}, {8, 8, 256},
                               {16, 32, 128}, {64, 32, 64},  {32, 16, 128}};

static float uniform(void) { return (float)rand() / (float)RAND_MAX * 2 - 1; }

static float *random_floats(size_t count) {
    float *values = malloc(count * sizeof *values);
    if (!values) exit(1);
    for (size_t i = 0; i < count; i++) values[i] = uniform();
    return values;
}

enum { MAX_ISAS = 8, MAX_SAMPLES = 100000 };

static void bench(shape s, irstd_layout layout, double seconds, const double *peaks) {
    irstd_bconv2d_attributes a;
    irstd_bconv2d_attributes_init(&a);
    a.version = IRSTD_OPSET_VERSION;
    a.bit_order = IRSTD_BIT_ORDER_LSB_PLUS_ONE;
    a.in_channels = s.in;
    a.out_channels = s.out;
    a.kernel_h = a.kernel_w = 3;
    a.pad_top = a.pad_left = a.pad_bottom = a.pad_right = 1;
    a.pad_value = 0;
    a.residual = IRSTD_RESIDUAL_ADD;
    a.activation = IRSTD_ACTIVATION_RPRELU;
    a.fraction_bits = 8;
    size_t words = (size_t)s.out * 9 * (size_t)((s.in + 31) / 32), pixels = (size_t)s.side * (size_t)s.side;
    int32_t *weight = malloc(words * sizeof *weight);
    if (!weight) exit(1);
    for (size_t i = 0; i < words; i++)
        weight[i] = (int32_t)(((uint32_t)rand() << 16 ^ (uint32_t)rand()) >> (s.in % 32 ? 32 - s.in % 32 : 0));
    float *threshold = random_floats((size_t)s.in), *scale = random_floats((size_t)s.out);
    float *bias = random_floats((size_t)s.out), *parameters = random_floats(3 * (size_t)s.out);
    float *x = random_floats((size_t)s.in * pixels), *y = random_floats((size_t)s.out * pixels);

    irstd_bconv2d *op[MAX_ISAS] = {0};
    void *workspace[MAX_ISAS] = {0};
    size_t bytes[MAX_ISAS];
    double *samples[MAX_ISAS];
    int count[MAX_ISAS] = {0}, isas = irstd_isa_count();
    irstd_error error;
    for (int i = 0; i < isas; i++) {
        if (!irstd_isa_available(i)) continue;
        setenv("IRSTD_ISA", irstd_isa_name(i), 1);
        if (irstd_bconv2d_create(&a, weight, words, threshold, scale, bias, parameters, layout, &op[i], &error) ||
            irstd_bconv2d_workspace_bytes(op[i], s.side, s.side, 1, &bytes[i], &error)) {
            fprintf(stderr, "%s\n", error.message);
            exit(1);
        }
        workspace[i] = malloc(bytes[i] + 1);
        samples[i] = malloc(MAX_SAMPLES * sizeof(double));
    }
    unsetenv("IRSTD_ISA");
    /* Interleaved, so that a change of the machine's state meets all variants alike. The slow
     * reference runs only in every 16th round. */
    double end = now() + seconds;
    for (int round = 0; round < 24 || (now() < end && round < MAX_SAMPLES); round++)
        for (int i = 0; i < isas; i++) {
            if (!op[i] || (i == 0 && round % 16 != 0)) continue;
            double start = now();
            irstd_status status = irstd_bconv2d_run(op[i], 1, s.side, s.side, x, x, s.in, y, workspace[i], bytes[i],
                                                    NULL, &error);
            if (status) {
                fprintf(stderr, "%s\n", error.message);
                exit(1);
            }
            if (round >= 8 || i == 0) samples[i][count[i]++] = now() - start;
        }
    double gop = 2e-9 * 9 * s.in * s.out * (double)pixels;
    /* Every input, residual and output value once, in bytes. */
    double traffic = 4e-9 * (double)pixels * (2 * s.in + s.out);
    for (int i = 0; i < isas; i++) {
        if (!op[i]) continue;
        double ms = median(samples[i], count[i]) * 1e3;
        printf("%3d-%-3d @%-4d %s  %-24s %8.3f ms %8.1f GOP/s", s.in, s.out, s.side,
               layout == IRSTD_NCHW ? "nchw" : "nhwc", irstd_bconv2d_variant(op[i]), ms, gop / ms * 1e3);
        if (peaks[i] > 0) printf("  %5.1f %% of peak  %5.1f GB/s", gop / ms * 1e5 / peaks[i], traffic / ms * 1e3);
        printf("\n");
        irstd_bconv2d_destroy(op[i]);
        free(workspace[i]);
        free(samples[i]);
    }
    free(weight), free(threshold), free(scale), free(bias), free(parameters), free(x), free(y);
}

int main(int argc, char **argv) {
    double seconds = 1;
    int only = -1;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--seconds") && i + 1 < argc) {
            seconds = atof(argv[++i]);
        } else if (!strcmp(argv[i], "--layout") && i + 1 < argc) {
            only = strcmp(argv[++i], "nhwc") ? IRSTD_NCHW : IRSTD_NHWC;
        } else {
            fprintf(stderr, "usage: %s [--seconds S] [--layout nchw|nhwc]\n", argv[0]);
            return 2;
        }
    }
    double peaks[MAX_ISAS] = {0};
#ifdef X86
    _mm_setcsr(_mm_getcsr() | 0x8040); /* flush denormals to zero, as the runtimes do */
    for (int i = 0; i < irstd_isa_count(); i++) {
        const char *isa = irstd_isa_name(i);
        if (!irstd_isa_available(i)) continue;
        if (!strcmp(isa, "avx2")) {
            peaks[i] = best(peak_avx2, 5000000);
            printf("peak: table %.0f GOP/s, classic popcount %.0f GOP/s\n", peaks[i], best(peak_classic, 5000000));
        } else if (!strcmp(isa, "avx512") && __builtin_cpu_supports("avx512bitalg")) {
            peaks[i] = best(peak_avx512, 5000000);
            printf("peak: vpopcntw %.0f GOP/s\n", peaks[i]);
        }
    }
#endif
    for (int layout = 0; layout < 2; layout++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            if (only < 0 || only == layout) bench(shapes[i], (irstd_layout)layout, seconds, peaks);
    return 0;
}

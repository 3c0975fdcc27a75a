/* Shared by the core and the kernels; not installed. */
#ifndef IRSTD_INTERNAL_H
#define IRSTD_INTERNAL_H

#include "irstd.h"

typedef struct irstd_bconv2d_kernel irstd_bconv2d_kernel;

struct irstd_bconv2d {
    irstd_bconv2d_attributes a;
    irstd_layout layout;
    const irstd_bconv2d_kernel *kernel;
    int ic_group, oc_group; /* channels of one group */
    int words;              /* int32 words per tap */
    int extent_h, extent_w; /* dilated kernel size */
    float fraction_step;    /* 2^fraction_bits */
    /* Owned copies. A kernel's pack may rescale `scale` to suit its accumulators; rows of
     * activation_parameters are shift_in, slope, shift_out and exist only for RPReLU. */
    float *threshold, *scale, *bias, *activation_parameters;
    void *packed; /* the kernel's form of the weights; released with free() */
};

/* One image size. */
typedef struct {
    int64_t height, width, out_height, out_width;
} irstd_size;

/* One image of one run. */
typedef struct {
    const irstd_bconv2d *op;
    irstd_size size;
    const float *x, *residual;
    int64_t residual_channels;
    float *y;
} irstd_image;

/* One variant: a name, the instruction set it needs, and three functions. */
struct irstd_bconv2d_kernel {
    const char *name;
    const char *isa;
    irstd_status (*pack)(irstd_bconv2d *op, const int32_t *weight, irstd_error *error);
    /* Bytes of scratch per task; 0 with *overflow set when they cannot be expressed. */
    size_t (*scratch_bytes)(const irstd_bconv2d *op, const irstd_size *size, int *overflow);
    /* Computes output rows first..last-1; scratch is 64-byte aligned. */
    void (*rows)(const irstd_image *image, int64_t first, int64_t last, void *scratch);
};

extern const irstd_bconv2d_kernel *const irstd_bconv2d_kernels[];
extern const int irstd_bconv2d_kernel_count;

extern const irstd_bconv2d_kernel irstd_bconv2d_ref;
extern const irstd_bconv2d_kernel irstd_bconv2d_avx2;
extern const irstd_bconv2d_kernel irstd_bconv2d_avx512;

#if defined(__GNUC__)
#define IRSTD_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define IRSTD_PRINTF(text, first)
#endif

/* Writes the message, returns the status. */
irstd_status irstd_fail(irstd_error *error, irstd_status status, const char *format, ...) IRSTD_PRINTF(3, 4);

/* Whether every attribute is in its range and they fit together. */
irstd_status irstd_bconv2d_check(const irstd_bconv2d_attributes *attributes, irstd_error *error);

/* *total += a * b; nonzero on overflow. */
static inline int irstd_add_product(size_t *total, size_t a, size_t b) {
    size_t product;
    return __builtin_mul_overflow(a, b, &product) || __builtin_add_overflow(*total, product, total);
}

static inline int64_t irstd_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t irstd_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t irstd_round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

#endif

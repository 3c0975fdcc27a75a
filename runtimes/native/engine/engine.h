/* The engine's inner structures, shared by its parts and by the row kernels; not installed.
 *
 * A network is executed in strips of rows: every step computes some rows of one tensor, and a tensor keeps only the
 * rows that somebody still needs, in a ring. Lanes of all kernels are the pixels of one row. */
#ifndef IRSTD_ENGINE_H
#define IRSTD_ENGINE_H

#include "cpu.h"
#include "internal.h"
#include "irstd_program.h"

enum {
    ROW_ALIGNMENT = 64,  /* bytes; rows, planes and rings start at it */
    ROW_STEP = 64,       /* elements; kernels may read and write whole steps of a plane */
    MAX_MAPS = 4,        /* packed maps of one tensor */
    MAX_INPUTS = IRSTD_NODE_INPUTS,
};

typedef struct irstd_kernels irstd_kernels;

/* A ring of rows; row r is at base + r % ring * row_bytes and holds `planes` planes of `stride` elements. */
typedef struct {
    char *base;
    size_t row_bytes, offset; /* offset within the arena */
    int64_t ring;             /* 0: no memory, nobody reads it */
    int first_step, last_step; /* of the run: the life of its memory */
    int first_node, last_node; /* and of every strip, where no row outlives one */
} irstd_ring;

typedef struct irstd_quantizer irstd_quantizer;
typedef struct irstd_qconv irstd_qconv;

/* The signs of a tensor as one consumer (or several alike) wants them: bit = (x >= threshold). Elements of
 * kernels->bit_channels channels, 2 or 1 bytes wide; `left` elements of padding stand before column 0. Or its quantised
 * values, in elements of 4 bytes (quant.h). */
typedef struct {
    irstd_ring ring;
    const irstd_quantizer *quantizer; /* NULL: signs */
    const float *threshold;
    int32_t *fixed_threshold; /* for int16 tensors: q >= it, every int16 twice; NULL where int16 cannot say it */
    int pad_value, groups, group_channels, group_planes, planes;
    int64_t left, stride;
} irstd_map;

typedef struct {
    int type, fraction_bits;
    int channels;
    int64_t height, width;
    int64_t stride, step; /* elements from a channel to the next, from a pixel to the next (1 but in the caller's NHWC) */
    /* For convolutions that read beyond the image in place: zeros before column 0, and columns from it on that exist. */
    int64_t left, extent;
    int margins_each_row; /* they are written with every row, as others use the memory before and after */
    irstd_ring ring;
    irstd_map maps[MAX_MAPS];
    int map_count;
    const char *name;
    int stored; /* somebody reads its values, not its signs alone */
    int external; /* 1 + number: the caller's buffer; < 0: an output */
} irstd_tensor;

typedef struct irstd_node irstd_node;

/* What each column of a resize mixes: source columns place and place + 1, the latter with weight part. */
typedef struct {
    int32_t *place;
    float *part;
} irstd_columns;

/* The int16 epilogue of one channel; every int16 twice, for broadcasting loads. */
typedef struct {
    int32_t multiplier, offset, slope, shift_out;
} irstd_finish;

/* Scratch of one row of a binary convolution: sums, pointers of the taps, then whichever of the others it needs. */
typedef struct {
    int64_t stride; /* elements of a plane of sums */
    uint64_t sums, taps, padding, columns, merged, rest, values, turned, bytes; /* offsets */
} irstd_row_layout;

/* What the sums of a block of columns start from: [OC] rows of int16, `step` apart (0: one row suits all channels). */
typedef struct {
    const int16_t *values;
    int64_t step;
} irstd_start;

/* A binary convolution, prepared. Sums are in units of `unit`: acc = unit * sum. */
typedef struct {
    irstd_bconv2d_attributes a;
    int ic_group, oc_group, unit, wide; /* wide: sums need int32 */
    const irstd_map *source;            /* the signs of x */
    irstd_row_layout layout;
    const uint32_t *words; /* of the file: [OC, KH, KW, words] */
    int words_per_tap;
    const float *threshold, *scale, *bias, *shift_in, *slope, *shift_out;
    /* What the float32 steps add and bound, rounded where the operator is fixed point: [OC] each. */
    float *offset, *before, *after, low, high;
    void *packed; /* the kernel's form of the weights */
    int merge; /* taps that share an element of the last plane of a group, whose channels are few; 1: none do */
    int classes; /* sets of kernel rows inside the image; classes differ in their first and last row */
    int (*class_rows)[2]; /* first and last + 1 */
    /* Minus half of all that is counted, plus what padding of exact zeros was counted as: [class][block of columns].
     * Where sums are in units of one, to be added to their double: minus all. */
    irstd_start *starts;
    int64_t blocks;
    /* The int16 epilogue, per output channel; fast: it is exact here. */
    int fast, shift, average;
    irstd_finish *finish; /* per output channel */
    int rprelu;
    /* Signs alone: bit = (sum >= sign_sum[oc]), the weights of falling channels negated; NULL if not so. */
    int32_t *sign_sum; /* likewise */
    uint8_t *negated;
} irstd_bconv;

/* A convolution of int16 to int16 whose float32 sums are exact integers on a grid: y = sat((sum + bias) >> shift),
 * half a unit being part of the bias. Where the factors have room, they are raised to a shift of 16: the weights as they
 * are stored, the values by `raised` bits when they are read. */
typedef struct {
    int taps;         /* IC * KH * KW */
    int32_t *weights; /* [OC / 4][pairs of taps][4]: two int16, 0 behind the last tap and the last channel */
    int32_t *bias;    /* [OC], in fours too */
    int shift, raised;
} irstd_fixed_conv;

/* One way to compute a convolution of floats; its constants are repacked when the file is opened. */
typedef struct {
    const char *name; /* in layer tables */
    int rows;         /* of the output that a call computes; they start at a multiple of it */
    int (*fits)(const irstd_node *n);
    uint64_t (*packed_bytes)(const irstd_node *n);
    void (*pack)(const irstd_node *n, float *packed);
    uint64_t (*scratch_bytes)(const irstd_node *n);
    void (*run)(const irstd_node *n, int64_t row, char *scratch);
} irstd_conv_form;

struct irstd_node {
    int op;
    const char *name;
    irstd_tensor *inputs[MAX_INPUTS];
    int input_count;
    irstd_tensor *output;
    const int32_t *i;
    const float *f;
    const void *constants[IRSTD_NODE_CONSTANTS];
    size_t constant_bytes[IRSTD_NODE_CONSTANTS];
    irstd_bconv *bconv;
    irstd_qconv *qconv;
    const irstd_map *pooled; /* of a maximum pool: the quantised map that it reads, and makes one of */
    irstd_fixed_conv *fixed_conv;
    irstd_columns *columns; /* of a resize */
    /* A float or quantised convolution: the inputs but the addend are its image, one tensor's channels behind the
     * other's; the addend, the last input, is added before the activation. */
    int has_addend;
    const irstd_conv_form *form;
    float *packed;
    uint64_t macs;
    const irstd_node *folded_into; /* which computes this one too, so that it never runs */
    char kernel[64];
};

/* One output row of a binary convolution. taps[kh * KW + kw] is what output column 0 sees through that tap, plane 0;
 * NULL is a row of exact zeros. Planes are plane_bytes apart. Behind the taps is room for KH * KW * planes of a group
 * pointers more. sums: int16 [OC rounded up to 16, and to 8 behind a group][stride]; merged: rows of that many elements
 * for the words of merged taps, and one of zeros. */
typedef struct {
    const char **taps;
    size_t plane_bytes;
    int row_class;
    int64_t width, stride;
    int16_t *sums;
    char *merged;
} irstd_bconv_row;

static inline int irstd_sources(const irstd_node *n) { return n->input_count - n->has_addend; }
static inline const irstd_tensor *irstd_addend(const irstd_node *n) {
    return n->has_addend ? n->inputs[n->input_count - 1] : NULL;
}

/* Rows first..last-1 of a node's output. */
typedef struct {
    int node;
    int32_t first, last;
} irstd_step;

struct irstd_session {
    const irstd_kernels *kernels;
    int64_t height, width;
    int threads;
    void *mapping; /* of a file, or an owned copy */
    const uint8_t *data;
    size_t data_bytes, mapping_bytes;
    irstd_tensor *tensors;
    int tensor_count, input_count, output_count;
    const uint32_t *outputs;
    irstd_node *nodes;
    int node_count;
    irstd_step *steps;
    int step_count;
    int64_t strip;
    char *arena, *arena_memory;
    size_t arena_bytes, arena_lower_bound, scratch_offset, scratch_bytes; /* scratch of one thread */
    irstd_layout layout; /* of the caller's buffers */
    const float *const *run_inputs;
    float *const *run_outputs;
    uint64_t *profile; /* nanoseconds by node, or NULL */
    struct irstd_pool *pool;
    struct irstd_barrier *barrier;
    char *description, *plan_description;
    void **owned; /* allocations that live as long as the session */
    size_t owned_count, owned_capacity;
};

static inline char *irstd_row(const irstd_ring *ring, int64_t row) {
    return ring->base + (size_t)(row % ring->ring) * ring->row_bytes;
}
/* Column 0 of plane 0. */
static inline void *irstd_tensor_row(const irstd_tensor *t, int64_t row) {
    return irstd_row(&t->ring, row) + t->left * (int64_t)sizeof(float);
}
/* Rows of the output that are computed at once, from a multiple of them on. */
static inline int64_t irstd_rows_at_once(const irstd_node *n) { return n->form ? n->form->rows : 1; }

/* Whether a node reads a map of that input, and not its values; which one. */
static inline int irstd_reads_map(const irstd_node *n, int input) {
    return (n->qconv && input < irstd_sources(n)) || n->pooled || (n->bconv && !input);
}
const irstd_map *irstd_map_read(const irstd_node *n, int input);

/* The operators that are neither binary nor convolutions: one output row, and the scratch bytes that it needs. */
typedef struct {
    void (*run)(const irstd_node *node, int64_t row, char *scratch);
    size_t (*scratch_bytes)(const irstd_node *node);
    /* The epilogue of one row of a binary convolution in the specification's float32 steps; r and residual may be NULL. */
    void (*finish)(const irstd_bconv *c, const int16_t *sums, const irstd_tensor *r, const char *residual,
                   const irstd_tensor *y, char *to, char *scratch);
    /* The signs of one row of a float32 tensor in elements of bit_channels; bits: column 0 of plane 0. */
    void (*signs)(const irstd_tensor *x, const float *row, const irstd_map *map, int bit_channels, char *bits);
    const irstd_conv_form *(*conv_form)(const irstd_node *node); /* for a convolution: there is always one */
    uint64_t needs; /* of the CPU */
} irstd_row_kernels;

/* One instruction set: how packed maps look, and its row kernels. Those that are NULL, and operators that a kernel
 * cannot do, are done by the reference (kernels/ref/engine.c). */
struct irstd_kernels {
    const char *isa;
    uint64_t needs; /* of the CPU; those of `rows` are needed too */
    int bit_channels, bit_bytes; /* channels of an element of a packed map, bytes of it */
    int zero_element;            /* an element that adds nothing to any sum (exact zero padding), or -1 */
    int block;                   /* columns whose sums are started together; 0: sums start from nothing */
    size_t (*packed_bytes)(const irstd_bconv *c);
    void (*pack)(const irstd_bconv *c, void *packed);
    /* One row of sums, for the epilogue in float. */
    void (*sums)(const irstd_bconv *c, const irstd_bconv_row *row);
    /* One row of int16 results (c->fast) or of signs alone (c->sign_sum); y, and bits with its map, may be NULL. bits:
     * column 0 of plane 0. r is the residual tensor, `residual` the row of it. */
    void (*row)(const irstd_bconv *c, const irstd_bconv_row *row, const irstd_tensor *r, const int16_t *residual,
                int16_t *y, const irstd_map *map, char *bits);
    /* The signs of one row of an int16 tensor (map->fixed_threshold). */
    void (*signs)(const irstd_map *map, const int16_t *x, int64_t stride, int64_t width, char *bits);
    const irstd_row_kernels *rows;
    const char *name; /* of the binary convolution, in layer tables */
};

extern const irstd_kernels *const irstd_kernel_sets[];
extern const int irstd_kernel_set_count;

/* The result of a binary convolution by the specification, for the integer sum `acc` and the residual r, which is
 * matched to the channel and on the grid of a fixed-point operator. */
float irstd_bconv_value(const irstd_bconv *c, int oc, int64_t acc, float r);

/* Kernel rows first..last - 1 that output row `row` reads; padding of +1 or -1 counts as read. */
void irstd_valid_rows(const irstd_node *n, int64_t row, int rows[2]);

/* Words of the last plane of a group, where taps share them. */
static inline size_t irstd_merged_words(const irstd_bconv *c) {
    return (size_t)((c->a.kernel_h * c->a.kernel_w + c->merge - 1) / c->merge);
}

/* Whether a binary convolution writes its output's packed map itself. */
int irstd_emits_map(const irstd_node *n);

/* Fills columns first..last - 1 of all planes (of a row's first element on) with the padding of a map. */
void irstd_pad_columns(const struct irstd_session *s, const irstd_map *map, char *row, int64_t first, int64_t last);

/* The largest memory that is asked for; sizes are summed in 64 bits, whatever size_t has. */
#define IRSTD_MOST_BYTES ((uint64_t)(SIZE_MAX / 2))

/* Memory that lives as long as the session; NULL when there is none left. */
void *irstd_own(struct irstd_session *s, uint64_t bytes);

/* Output side of a window; 0 where it does not fit. */
static inline int64_t irstd_slide(int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t dilation,
                                  int64_t stride) {
    int64_t extent = dilation * (kernel - 1) + 1;
    return size + before + after < extent ? 0 : (size + before + after - extent) / stride + 1;
}

/* window.c. Whether windows of a pool reach beyond its image. */
int irstd_leaves_image(const irstd_node *n);

/* What row (or column) `to` of a resize mixes: first * (1 - fraction) + second * fraction. */
typedef struct {
    int64_t first, second;
    float fraction;
} irstd_mix;
irstd_mix irstd_resize_source(const irstd_node *n, int across, int64_t to);
/* Rows (or columns) of its source from one to the next of the result. */
float irstd_resize_step(const irstd_node *n, int across);

/* The name of an operator of the file, or NULL. */
const char *irstd_operator_name(int op);
int irstd_operator_integers(int op); /* of a known one: its slots of i[] */

/* load.c: the file, checked, as tensors and nodes; or one operator. */
irstd_status irstd_load(struct irstd_session *s, irstd_error *error);
irstd_status irstd_load_bconv2d(struct irstd_session *s, const irstd_bconv2d *op, int64_t residual_channels, irstd_error *error);
/* fold.c: sums and concatenations that convolutions compute along the way. */
irstd_status irstd_fold(struct irstd_session *s, irstd_error *error);
/* prepare.c: constants in the kernels' forms, packed maps. */
irstd_status irstd_prepare(struct irstd_session *s, irstd_error *error);
/* plan.c: steps, rings, arena. */
irstd_status irstd_plan(struct irstd_session *s, irstd_error *error);
/* run.c */
uint64_t irstd_bconv_scratch(const struct irstd_session *s, const irstd_node *n);
void irstd_run_strips(struct irstd_session *s, const irstd_parallel *parallel);
void irstd_run_node(struct irstd_session *s, int node);
/* session.c. Denormal floats are zero on this thread, until the mode is set back to what flush returned. */
uint64_t irstd_flush_denormals(void);
void irstd_set_float_mode(uint64_t mode);
irstd_status irstd_write_description(struct irstd_session *s, irstd_error *error);

#endif

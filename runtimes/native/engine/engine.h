/* The engine's inner structures, shared by its parts and by the row kernels; not installed.
 *
 * A network is executed in strips of rows: every step computes some rows of one tensor, and a tensor keeps only the
 * rows that somebody still needs, in a ring. Lanes of all kernels are the pixels of one row. */
#ifndef IRSTD_ENGINE_H
#define IRSTD_ENGINE_H

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
    int first_step, last_step;
} irstd_ring;

/* The signs of a tensor as one consumer (or several alike) wants them: bit = (x >= threshold). Elements of
 * kernels->bit_channels channels, 2 or 1 bytes wide; `left` elements of padding stand before column 0. */
typedef struct {
    irstd_ring ring;
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
    irstd_ring ring;
    irstd_map maps[MAX_MAPS];
    int map_count;
    const char *name;
    int stored; /* somebody reads its values, not its signs alone */
    int external; /* 1 + number: the caller's buffer; < 0: an output */
} irstd_tensor;

typedef struct irstd_node irstd_node;

/* The int16 epilogue of one channel; every int16 twice, for broadcasting loads. */
typedef struct {
    int32_t multiplier, offset, slope, shift_out;
} irstd_finish;

/* Scratch of one row of a binary convolution: sums, pointers of the taps, then whichever of the others it needs. */
typedef struct {
    int64_t stride;                                     /* elements of a plane of sums */
    size_t sums, taps, padding, columns, rest, values, turned, bytes; /* offsets */
} irstd_row_layout;

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
    /* Columns that have a tap outside the image (pad_value 0): what their sums lack, [class][edge][oc]. */
    int64_t edges, *edge_column;
    int classes; /* sets of kernel rows inside the image; classes differ in their first and last row */
    int (*class_rows)[2]; /* first and last + 1 */
    int16_t *edge_sum;
    /* The int16 epilogue, per output channel; fast: it is exact here. */
    int fast, shift, average;
    irstd_finish *finish; /* per output channel */
    int rprelu;
    /* Signs alone: bit = (sum >= sign_sum[oc]), the weights of falling channels negated; NULL if not so. */
    int32_t *sign_sum; /* likewise */
    uint8_t *negated;
} irstd_bconv;

/* A convolution of int16 to int16 whose float32 sums are exact integers on a grid: y = sat((sum + bias) >> shift),
 * half a unit being part of the bias. */
typedef struct {
    int taps;         /* IC * KH * KW */
    int32_t *weights; /* [OC / 4][pairs of taps][4]: two int16, 0 behind the last tap and the last channel */
    int32_t *bias;    /* [OC], in fours too */
    int shift;
} irstd_fixed_conv;

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
    irstd_fixed_conv *fixed_conv;
    size_t scratch_bytes; /* per thread */
    uint64_t macs;
    char kernel[64];
};

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
    char *description;
    void **owned; /* allocations that live as long as the session */
    size_t owned_count, owned_capacity;
};

static inline char *irstd_row(const irstd_ring *ring, int64_t row) {
    return ring->base + (size_t)(row % ring->ring) * ring->row_bytes;
}
static inline void *irstd_tensor_row(const irstd_tensor *t, int64_t row) { return irstd_row(&t->ring, row); }

/* The operators that are not binary: one output row, and the scratch bytes that it needs. */
typedef struct {
    void (*run)(const irstd_node *node, int64_t row, char *scratch);
    size_t (*scratch_bytes)(const irstd_node *node);
    /* The epilogue of one row of a binary convolution in the specification's float32 steps; r and residual may be NULL. */
    void (*finish)(const irstd_bconv *c, const int16_t *sums, const irstd_tensor *r, const char *residual,
                   const irstd_tensor *y, char *to, char *scratch);
    /* The signs of one row of a float32 tensor in elements of bit_channels; bits: column 0 of plane 0. */
    void (*signs)(const irstd_tensor *x, const float *row, const irstd_map *map, int bit_channels, char *bits);
} irstd_row_kernels;

/* One instruction set: how packed maps look, and its row kernels. Those that are NULL, and operators that a kernel
 * cannot do, are done by the reference (kernels/ref/engine.c). */
struct irstd_kernels {
    const char *isa;
    int bit_channels, bit_bytes; /* channels of an element of a packed map, bytes of it */
    int zero_element;            /* an element that adds nothing to any sum (exact zero padding), or -1 */
    size_t (*packed_bytes)(const irstd_bconv *c);
    void (*pack)(const irstd_bconv *c, void *packed);
    /* One row of sums, int16 [OC rounded up to 16, and to 8 behind a group][stride]. taps[kh * KW + kw] is what output column 0 sees through
     * that tap, plane 0; planes are plane_bytes apart. Rows outside class_rows[row_class] are left out. Behind the
     * taps is room for KH * KW * planes of a group pointers more. */
    void (*sums)(const irstd_bconv *c, const char **taps, size_t plane_bytes, int row_class, int64_t width,
                 int64_t stride, int16_t *sums);
    /* The int16 epilogue of one row (c->fast); y, and bits with its map, may be NULL. bits: column 0 of plane 0. */
    void (*finish)(const irstd_bconv *c, const int16_t *sums, int64_t stride, int64_t width, const irstd_tensor *r,
                   const int16_t *residual, int16_t *y, const irstd_map *map, char *bits);
    /* Signs straight from the sums (c->sign_sum). */
    void (*sum_signs)(const irstd_bconv *c, const int16_t *sums, int64_t stride, int64_t width, const irstd_map *map,
                      char *bits);
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

/* Whether a binary convolution writes its output's packed map itself. */
int irstd_emits_map(const struct irstd_session *s, const irstd_node *n);

/* Fills columns first..last - 1 of all planes (of a row's first element on) with the padding of a map. */
void irstd_pad_columns(const struct irstd_session *s, const irstd_map *map, char *row, int64_t first, int64_t last);

/* Memory that lives as long as the session; NULL when there is none left. */
void *irstd_own(struct irstd_session *s, size_t bytes);

/* The name of an operator of the file, or NULL. */
const char *irstd_operator_name(int op);

/* load.c: the file, checked, as tensors and nodes; or one operator. */
irstd_status irstd_load(struct irstd_session *s, irstd_error *error);
irstd_status irstd_load_bconv2d(struct irstd_session *s, const irstd_bconv2d *op, int64_t residual_channels, irstd_error *error);
/* prepare.c: constants in the kernels' forms, packed maps. */
irstd_status irstd_prepare(struct irstd_session *s, irstd_error *error);
/* plan.c: steps, rings, arena. */
irstd_status irstd_plan(struct irstd_session *s, irstd_error *error);
/* run.c */
size_t irstd_bconv_scratch(const struct irstd_session *s, const irstd_node *n);
void irstd_run_strips(struct irstd_session *s, const irstd_parallel *parallel);
void irstd_run_node(struct irstd_session *s, int node);
/* session.c. Denormal floats are zero on this thread, until the mode is set back to what flush returned. */
uint64_t irstd_flush_denormals(void);
void irstd_set_float_mode(uint64_t mode);
irstd_status irstd_write_description(struct irstd_session *s, irstd_error *error);

#endif

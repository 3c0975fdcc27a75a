/* Quantised convolutions (irstd.QuantConv2d): quantised maps, and the kernels that compute with them.
 *
 * A quantised map holds, for each pixel, the quantised values of a tensor as a consumer (or several alike) reads them, in
 * words of 4 bytes: 32 / bits channels each, bits = 8, 4 or 2, the fewest that hold the value (fields of one bit take
 * longer to spread than they save). Channel c of a word is field c / 4 of byte c % 4, so that one shift and one mask
 * give four channels in four bytes, as dot products of bytes take them. Lanes are pixels: planes of words, like the
 * planes of a packed map. */
#ifndef IRSTD_QUANT_H
#define IRSTD_QUANT_H

#include "engine.h"

enum {
    QUANT_COLUMNS = 16, /* kernels may write so many columns of a plane, however narrow it is */
    MAX_TILE = 16,      /* output channels; constants are padded to it */
};

typedef struct irstd_quant_kernels irstd_quant_kernels;

/* Stored is rne(x * inverse_step), not below low and not above high (a NaN is low), plus zero; bit 7 inverted where
 * flip says so (kernels that multiply signed bytes). */
struct irstd_quantizer {
    float inverse_step, low, high;
    int32_t zero;       /* what 0 is stored as, before the flip */
    int bits;           /* of a field */
    uint32_t flip;      /* 0, or 0x80808080 */
    uint32_t zero_word; /* padding */
    const irstd_quant_kernels *kernels; /* that quantise values */
};

typedef struct {
#define IRSTD_FIELD(type, name, mandatory, default_value, minimum, maximum) type name;
    IRSTD_QUANT_CONV2D_ATTRIBUTES(IRSTD_FIELD)
#undef IRSTD_FIELD
} irstd_quant_conv2d_attributes;

/* A tile of output channels reads words first .. first + count - 1 of a pixel, for every tap. */
typedef struct {
    int32_t first, count;
    int64_t weights, tap_weights; /* where its weights start; of one tap */
} irstd_quant_tile;

struct irstd_qconv {
    irstd_quant_conv2d_attributes a;
    const irstd_map *sources[MAX_INPUTS]; /* of the inputs, read as if concatenated */
    irstd_quantizer quantizer;
    const irstd_quant_kernels *kernels;
    int depthwise;             /* every channel reads one; kernels merge four rows of it into words */
    int words, taps;           /* words of a pixel, over all inputs */
    int tile, vectors, chunk;  /* output channels and vectors of columns at a time; additions that int16 sums hold */
    const irstd_quant_tile *tiles;
    /* [tile][tap][word][field of bytes][channel of the tile][kernels->weight_words]; depthwise, a tap is a column of four
     * rows of the kernel. */
    const uint32_t *weights;
    const int32_t *start;      /* of the sums: what zeros stored as something else add */
    const float *scale, *bias; /* padded with zeros, as start is */
    float largest;             /* bound of the values before an addend; infinite where they may be no numbers */
};

/* What a row is written to: the values, and maps of them. */
typedef struct {
    float *y; /* NULL: nobody reads the values */
    const float *addend; /* what is added before the clamp; NULL: nothing */
    int64_t y_stride, addend_stride;
    int maps;
    struct {
        const irstd_quantizer *quantizer;
        uint32_t *words; /* column 0 of plane 0 */
        int64_t stride;
    } map[MAX_MAPS];
} irstd_quant_output;

/* Elements from a channel's sums to the next one's. */
static inline int64_t irstd_quant_sums_stride(int64_t width) { return irstd_round_up(irstd_max(width, QUANT_COLUMNS), 16); }

/* And of merged rows of words. */
static inline int64_t irstd_quant_merged_stride(const irstd_qconv *c, int64_t width) {
    return irstd_round_up(irstd_max(width, QUANT_COLUMNS) + (int64_t)c->a.dilation_w * (c->a.kernel_w - 1), 16);
}

/* One variant: one row of output for pixels[tap * words + word], column 0; first_tap .. last_tap - 1 are inside. Sums are
 * room for those of a tile's row, and for the merged rows behind them. */
struct irstd_quant_kernels {
    const char *isa, *name;
    int lanes, accumulators; /* pixels of a vector, vectors of sums in registers */
    int weight_words;        /* of 4 bytes, for four weights */
    int shared_weights;      /* channels whose weights one load brings */
    int products;            /* that one step adds to an int16 sum; 0: sums are int32 throughout */
    /* Picoseconds for a vector of sums: of a step on 8-bit fields and on narrower ones, and of a fold of int16 sums. */
    int step_cost, narrow_cost, fold_cost;
    int signed_bytes;        /* quantised values of 8 bits are stored less 128 */
    uint64_t needs;          /* of the CPU */
    void (*row)(const irstd_qconv *c, const char *const *pixels, int first_tap, int last_tap, int64_t width,
                const irstd_quant_output *out, int32_t *sums);
    /* Quantises columns of up to 4 channels of a row; x[i] NULL: there is no such channel. */
    void (*quantize)(const irstd_quantizer *q, const float *const x[4], int part, int64_t width, uint32_t *words);
};

extern const irstd_quant_kernels *const irstd_quant_variants[];
extern const int irstd_quant_variant_count;

irstd_status irstd_quant_load(struct irstd_session *s, irstd_node *n, irstd_error *error);
irstd_status irstd_quant_prepare(struct irstd_session *s, irstd_node *n, irstd_error *error);
/* A maximum pool behind a quantised convolution that one quantiser alone reads is done on its map. */
void irstd_quant_find_pool(const struct irstd_session *s, irstd_node *n);
void irstd_quant_pool_row(const irstd_node *n, int64_t row);
/* Whether a quantised convolution, or such a pool, writes the maps of its output itself. */
int irstd_quant_emits(const irstd_node *n);
uint64_t irstd_quant_scratch(const irstd_node *n);
void irstd_quant_row(const irstd_node *n, int64_t row, char *scratch);
/* A row of a map, from the tensor's values. */
void irstd_quant_write(const irstd_tensor *t, const irstd_map *map, int64_t row);

#endif

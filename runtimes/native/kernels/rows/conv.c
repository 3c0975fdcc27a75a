/* Convolutions of float tensors, a row or a few at a time: a table of forms, of which a node takes the first that fits.
 * Compiled once for every instruction set, with fused multiply-adds. Lanes are the pixels of a row, so that planes need
 * no other layout, and no channel count wastes lanes; a tile of sums stays in registers for all its taps. The order of
 * a sum depends on the node alone: neither strips nor threads change a bit. */
#include "int16.h"

#define STATIC_INLINE static inline __attribute__((always_inline))
/* Arrays of vectors become registers only where GCC unrolls the loops over them before it splits arrays. */
#define EACH(i, count) _Pragma("GCC unroll 9") for (int i = 0; i < count; i++)

enum { BLOCK = 4 }; /* output channels of a tile */
#if defined(__AVX512F__) || defined(__aarch64__)
enum { TILE = 4, DEPTHWISE_TILE = 4 }; /* vectors */
#elif defined(__AVX2__)
enum { TILE = 3, DEPTHWISE_TILE = 2 };
#else
enum { TILE = 2, DEPTHWISE_TILE = 2 };
#endif

/* ---- what the forms share ---- */

/* Attributes of a convolution; those of the transposed one have the same slots. */
typedef struct {
    const irstd_node *n;
    const irstd_tensor *x, *y, *addend;
    int groups, ic, oc; /* channels of a group */
    int kh, kw, activation;
    int64_t sh, sw, dh, dw, top, left;
    const float *weight, *bias, *slope, *clamp;
} geometry;

static geometry geometry_of(const irstd_node *n) {
    const int32_t *i = n->i;
    const irstd_tensor *x = n->inputs[0], *y = n->output;
    const int groups = i[IRSTD_CONV2D_GROUPS];
    return (geometry){n, x, y, irstd_addend(n), groups, i[IRSTD_CONV2D_IN_CHANNELS] / groups, y->channels / groups,
                      i[IRSTD_CONV2D_KERNEL_H], i[IRSTD_CONV2D_KERNEL_W], i[IRSTD_CONV2D_ACTIVATION],
                      i[IRSTD_CONV2D_STRIDE_H], i[IRSTD_CONV2D_STRIDE_W], i[IRSTD_CONV2D_DILATION_H],
                      i[IRSTD_CONV2D_DILATION_W], i[IRSTD_CONV2D_PAD_TOP], i[IRSTD_CONV2D_PAD_LEFT],
                      n->constants[IRSTD_CONV2D_WEIGHT], n->constants[IRSTD_CONV2D_BIAS],
                      n->constants[IRSTD_CONV2D_SLOPE], n->f};
}

static uint64_t taken(int64_t bytes) { return (uint64_t)irstd_round_up(bytes, ROW_ALIGNMENT); }

/* Memory from `at` on, by and by. */
static void *take(char **at, int64_t bytes) {
    char *here = *at;
    *at += taken(bytes);
    return here;
}

/* Panels: for every four output channels (one, where one is left) [bias][slope][taps] of them; bias and slope first. */
static int panel_channels(int left) { return left == 1 ? 1 : BLOCK; }
static int64_t panels_floats(int channels, int64_t taps) {
    int64_t floats = 0;
    for (int o = 0; o < channels; o += BLOCK) floats += panel_channels(channels - o) * (2 + taps);
    return floats;
}

/* weight(context, channel, tap) */
static float *pack_panels(const float *bias, const float *slope, int channels, int64_t taps,
                          float (*weight)(const void *, int, int64_t), const void *context, float *to) {
    for (int o = 0; o < channels; o += BLOCK) {
        const int width = panel_channels(channels - o);
        for (int64_t t = -2; t < taps; t++)
            for (int c = o; c < o + width; c++)
                *to++ = c >= channels ? 0 : t == -2 ? (bias ? bias[c] : 0) : t == -1 ? (slope ? slope[c] : 0)
                                                                                     : weight(context, c, t);
    }
    return to;
}

/* Activations that the tiles apply; the others come after. */
static int is_simple(int activation) { return activation <= IRSTD_FLOAT_ACTIVATION_CLAMP; }

/* Sums of `channels` output channels: what every tap sees from column 0 on, their panels, what is added to them. */
typedef struct {
    const float *const *taps;
    int64_t count;
    const float *panels;
    int channels, activation;
    const float *clamp, *addend; /* planes of addend_stride, or NULL */
    int64_t addend_stride;
} job;

/* `channels` by `vectors` sums from `column` on; `exist` channels from the first of them are there. */
STATIC_INLINE void tile(const job *j, const float *panel, const float *addend, const int channels, const int vectors,
                        int exist, int64_t column, float *y, int64_t stride) {
    vf sum[BLOCK][TILE];
    const float *w = panel + 2 * channels;
    EACH(c, channels) EACH(v, vectors) sum[c][v] = all(panel[c]);
    if (addend) EACH(c, channels) {
        const float *plane = addend + (c < exist ? c : 0) * j->addend_stride + column;
        EACH(v, vectors) sum[c][v] += load(plane + v * LANES);
    }
    const float *const *tap = j->taps, *const *const end = tap + j->count;
    for (; tap < end; tap++, w += channels) {
        const float *at = *tap + column;
        vf x[TILE];
        EACH(v, vectors) x[v] = load(at + v * LANES);
        EACH(c, channels) EACH(v, vectors) sum[c][v] += x[v] * w[c];
    }
    if (j->activation == IRSTD_FLOAT_ACTIVATION_RELU) {
        EACH(c, channels) EACH(v, vectors) sum[c][v] = relu(sum[c][v]);
    } else if (j->activation == IRSTD_FLOAT_ACTIVATION_PRELU) {
        EACH(c, channels) EACH(v, vectors) sum[c][v] = prelu(sum[c][v], panel[channels + c]);
    } else if (j->activation == IRSTD_FLOAT_ACTIVATION_CLAMP) {
        EACH(c, channels) EACH(v, vectors) sum[c][v] = clamped(sum[c][v], j->clamp);
    }
    EACH(c, channels)
        if (c < exist) EACH(v, vectors) store(y + c * stride + column + v * LANES, sum[c][v]);
}

#define TILE_OF(channels, vectors)                                                                                       \
    static __attribute__((noinline)) void tile_##channels##_##vectors(                                                   \
        const job *j, const float *panel, const float *addend, int exist, int64_t column, float *y, int64_t stride) {    \
        tile(j, panel, addend, channels, vectors, exist, column, y, stride);                                             \
    }
#define TILES_OF(vectors) TILE_OF(1, vectors) TILE_OF(4, vectors)
TILES_OF(1) TILES_OF(2)
#if defined(__AVX2__) || defined(__aarch64__)
TILES_OF(3)
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
TILES_OF(4)
#endif

typedef void tile_function(const job *, const float *, const float *, int, int64_t, float *, int64_t);
static tile_function *const tiles[][2] = { /* [vectors - 1][four channels] */
    {tile_1_1, tile_4_1}, {tile_1_2, tile_4_2},
#if defined(__AVX2__) || defined(__aarch64__)
    {tile_1_3, tile_4_3},
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
    {tile_1_4, tile_4_4},
#endif
};

/* Vectors of the next tile, of those that are left: as even as can be, since a short tile waits for its sums. */
static int64_t tile_vectors(int64_t left) { return left >= 2 * TILE || left <= TILE ? irstd_min(left, TILE) : (left + 1) / 2; }

/* `width` columns in whole vectors; column 0 of the taps is `first`. */
static void run_job(const job *j, int64_t first, int64_t width, float *y, int64_t stride) {
    const int64_t vectors = (width + LANES - 1) / LANES;
    for (int64_t at = 0, some; at < vectors; at += some) { /* few columns at a time: their taps stay in the cache */
        some = tile_vectors(vectors - at);
        const float *panel = j->panels;
        for (int o = 0; o < j->channels; o += BLOCK) {
            const int wide = panel_channels(j->channels - o);
            tiles[some - 1][wide == BLOCK](j, panel, j->addend ? j->addend + o * j->addend_stride : NULL, j->channels - o,
                                           first + at * LANES, y + o * stride - first, stride);
            panel += wide * (2 + j->count);
        }
    }
}

/* Where a row's sums go: into the row itself, or by way of scratch. */
typedef struct {
    float *to;
    int64_t stride;
} target;

static int64_t target_bytes(const irstd_tensor *y, int channels) {
    return is_planar(y) ? 0 : channels * padded(y->width) * (int64_t)sizeof(float);
}

static target target_of(const irstd_tensor *y, int64_t row, int channel, float *scratch) {
    return is_planar(y) ? (target){plane_of(y, row, channel), y->stride} : (target){scratch, padded(y->width)};
}

/* What is left to do for the channels from `first` on. */
static void finish_target(const geometry *g, target t, int64_t row, int first, int channels) {
    for (int c = 0; c < channels; c++) {
        float *plane = t.to + c * t.stride;
        if (!is_simple(g->activation)) activate(plane, plane, g->y->width, g->activation, 0, g->clamp);
        if (!is_planar(g->y)) write_plane(g->y, irstd_tensor_row(g->y, row), first + c, g->y->width, plane);
    }
}

/* ---- input rows: read in place where they have margins, else copied ---- */

/* Whether taps may point into the rows of x. */
static int in_place(const geometry *g) { return is_planar(g->x) && g->sw == 1; }

/* The plane of an input channel; the image may be several tensors, one behind the other. */
static const float *input_plane(const geometry *g, int64_t row, int channel) {
    irstd_tensor *const *x = g->n->inputs;
    while (channel >= (*x)->channels) channel -= (*x++)->channels;
    return plane_of(*x, row, channel);
}

/* A line of zeros, for rows outside the image: elements of it, and its column 0. */
static int64_t zeros_before(const geometry *g) {
    int64_t left = 0;
    for (int k = 0; k < irstd_sources(g->n); k++) left = irstd_max(left, g->n->inputs[k]->left);
    return left;
}
static int64_t zeros_columns(const geometry *g) { return zeros_before(g) + padded(g->y->width) + irstd_round_up((g->kw - 1) * g->dw, ROW_STEP); }

/* Columns of a copied line, for each of the sw phases that a stride picks from. */
static int64_t line_columns(const geometry *g) {
    return padded(g->y->width) + irstd_round_up((g->kw - 1) * g->dw / g->sw, LANES);
}

static int64_t lines_bytes(const geometry *g, int lines) { /* and one that is converted from int16 */
    return (in_place(g) ? zeros_columns(g) : lines * g->sw * line_columns(g) + padded(g->x->width)) * (int64_t)sizeof(float);
}

/* to[j] = from[j * step + first] where that lies within 0..width - 1, else 0; n elements. */
STATIC_INLINE void pick(const float *from, int64_t width, int64_t first, const int64_t step, int64_t n, float *to) {
    const int64_t begin = irstd_min(n, irstd_max(0, (-first + step - 1) / step));
    const int64_t end = irstd_max(begin, irstd_min(n, (width - first + step - 1) / step));
    for (int64_t j = 0; j < begin; j++) to[j] = 0;
    for (int64_t j = begin; j < end; j++) to[j] = from[j * step + first];
    for (int64_t j = end; j < n; j++) to[j] = 0;
}

/* The columns that each phase of the stride picks, with padding. */
static void copy_line(const geometry *g, int64_t source, int channel, float *to, float *copy) {
    const int64_t columns = line_columns(g);
    if (source < 0 || source >= g->x->height) {
        memset(to, 0, (size_t)(g->sw * columns) * sizeof *to);
        return;
    }
    const float *from = floats_of(g->x, source, channel, g->x->width, copy);
    for (int64_t phase = 0; phase < g->sw; phase++, to += columns) {
        if (g->sw == 1) pick(from, g->x->width, -g->left, 1, columns, to);
        else if (g->sw == 2) pick(from, g->x->width, phase - g->left, 2, columns, to);
        else pick(from, g->x->width, phase - g->left, g->sw, columns, to);
    }
}

/* What output column 0 of `row` sees through every tap, [channel][kh][kw], of the channels first..first + channels - 1.
 * `lines`: scratch of lines_bytes. */
static void find_taps(const geometry *g, int64_t row, int first, int channels, float *lines, const float **taps) {
    const int64_t columns = line_columns(g);
    float *const copy = lines + channels * g->kh * g->sw * columns;
    const int direct = in_place(g);
    if (direct && (row * g->sh < g->top || row * g->sh - g->top + (g->kh - 1) * g->dh >= g->x->height))
        memset(lines, 0, (size_t)lines_bytes(g, 0));
    for (int r = 0; r < g->kh; r++) {
        const int64_t source = row * g->sh - g->top + r * g->dh;
        const int outside = source < 0 || source >= g->x->height;
        for (int c = 0; c < channels; c++) {
            const float **tap = taps + (c * g->kh + r) * g->kw;
            if (direct) {
                const float *from = outside ? lines + zeros_before(g) : input_plane(g, source, first + c);
                for (int k = 0; k < g->kw; k++) tap[k] = from + k * g->dw - g->left;
                continue;
            }
            float *line = lines + (c * g->kh + r) * g->sw * columns;
            copy_line(g, source, first + c, line, copy);
            for (int k = 0; k < g->kw; k++) tap[k] = line + k * g->dw % g->sw * columns + k * g->dw / g->sw;
        }
    }
}

static const float *addend_plane(const geometry *g, int64_t row, int channel) {
    return g->addend ? plane_of(g->addend, row, channel) : NULL;
}
static int64_t addend_stride(const geometry *g) { return g->addend ? g->addend->stride : 0; }

static int always(const irstd_node *n) {
    (void)n;
    return 1;
}

/* ---- direct: any convolution ---- */

static float direct_weight(const void *context, int channel, int64_t tap) {
    const geometry *g = context;
    return g->weight[(int64_t)channel * g->ic * g->kh * g->kw + tap];
}

static uint64_t direct_packed(const irstd_node *n) {
    const geometry g = geometry_of(n);
    return (uint64_t)(g.groups * panels_floats(g.oc, (int64_t)g.ic * g.kh * g.kw)) * sizeof(float);
}

static void direct_pack(const irstd_node *n, float *to) {
    geometry g = geometry_of(n);
    const int64_t taps = (int64_t)g.ic * g.kh * g.kw;
    for (int k = 0; k < g.groups; k++, g.weight += g.oc * taps)
        to = pack_panels(g.bias ? g.bias + k * g.oc : NULL, g.slope ? g.slope + k * g.oc : NULL, g.oc, taps, direct_weight, &g, to);
}

static uint64_t direct_scratch(const irstd_node *n) {
    const geometry g = geometry_of(n);
    return taken((int64_t)g.ic * g.kh * g.kw * (int64_t)sizeof(float *)) +
           taken(target_bytes(g.y, g.oc)) + taken(lines_bytes(&g, g.ic * g.kh));
}

static void direct_run(const irstd_node *n, int64_t row, char *scratch) {
    const geometry g = geometry_of(n);
    const int64_t count = (int64_t)g.ic * g.kh * g.kw, floats = panels_floats(g.oc, count);
    const float **taps = take(&scratch, count * (int64_t)sizeof *taps);
    float *sums = take(&scratch, target_bytes(g.y, g.oc)), *lines = (float *)(void *)scratch;
    for (int k = 0; k < g.groups; k++) {
        find_taps(&g, row, k * g.ic, g.ic, lines, taps);
        const target t = target_of(g.y, row, k * g.oc, sums);
        const job j = {taps, count, n->packed + k * floats, g.oc, g.activation, g.clamp, addend_plane(&g, row, k * g.oc),
                       addend_stride(&g)};
        run_job(&j, 0, g.y->width, t.to, t.stride);
        finish_target(&g, t, row, k * g.oc, g.oc);
    }
}

/* ---- depthwise: one input channel for each output channel ---- */

static int depthwise_fits(const irstd_node *n) {
    const geometry g = geometry_of(n);
    return n->op == IRSTD_OP_CONV2D && g.ic == 1 && g.oc == 1;
}

/* `vectors` sums of one channel; sums of different taps are added in an order that lets them overlap. */
STATIC_INLINE void depthwise_tile(const float *const *taps, const int count, const float *w, float bias, const int vectors,
                                  int activation, float slope, const float *clamp, const float *addend, float *y,
                                  int64_t column) {
    vf sum[DEPTHWISE_TILE];
    EACH(v, vectors) sum[v] = all(bias);
    if (addend) EACH(v, vectors) sum[v] += load(addend + column + v * LANES);
    for (int t = 0; t < count; t++) EACH(v, vectors) sum[v] += load(taps[t] + column + v * LANES) * w[t];
    EACH(v, vectors) {
        if (activation == IRSTD_FLOAT_ACTIVATION_RELU) sum[v] = relu(sum[v]);
        if (activation == IRSTD_FLOAT_ACTIVATION_PRELU) sum[v] = prelu(sum[v], slope);
        if (activation == IRSTD_FLOAT_ACTIVATION_CLAMP) sum[v] = clamped(sum[v], clamp);
        store(y + column + v * LANES, sum[v]);
    }
}

STATIC_INLINE void depthwise_line(const float *const *taps, const int count, const float *w, float bias, int activation,
                                  float slope, const float *clamp, const float *addend, int64_t width, float *y) {
    int64_t column = 0;
    for (; column + DEPTHWISE_TILE * LANES <= width; column += DEPTHWISE_TILE * LANES)
        depthwise_tile(taps, count, w, bias, DEPTHWISE_TILE, activation, slope, clamp, addend, y, column);
    for (; column < width; column += LANES)
        depthwise_tile(taps, count, w, bias, 1, activation, slope, clamp, addend, y, column);
}

static __attribute__((noinline)) void depthwise_9(const float *const *from, const float *weight, float bias, int activation,
                                                  float slope, const float *clamp, const float *addend, int64_t width,
                                                  float *y) {
    const float *taps[9];
    float w[9];
    EACH(t, 9) taps[t] = from[t];
    EACH(t, 9) w[t] = weight[t];
    depthwise_line(taps, 9, w, bias, activation, slope, clamp, addend, width, y);
}

static uint64_t depthwise_scratch(const irstd_node *n) {
    const geometry g = geometry_of(n);
    return taken((int64_t)g.kh * g.kw * (int64_t)sizeof(float *)) +
           taken(target_bytes(g.y, 1)) + taken(lines_bytes(&g, g.kh));
}

static void depthwise_run(const irstd_node *n, int64_t row, char *scratch) {
    const geometry g = geometry_of(n);
    const int count = g.kh * g.kw, direct = in_place(&g);
    const float **taps = take(&scratch, count * (int64_t)sizeof *taps), *w = g.weight;
    float *sums = take(&scratch, target_bytes(g.y, 1)), *lines = (float *)(void *)scratch;
    const target first = target_of(g.y, row, 0, sums);
    const float *addend = addend_plane(&g, row, 0);
    int64_t step[IRSTD_MAX_KERNEL];
    find_taps(&g, row, 0, 1, lines, taps);
    for (int r = 0; r < g.kh; r++) {
        const int64_t source = row * g.sh - g.top + r * g.dh;
        step[r] = source < 0 || source >= g.x->height ? 0 : g.x->stride; /* from plane to plane */
    }
    for (int c = 0; c < g.groups; c++, w += count) {
        if (c && !direct) find_taps(&g, row, c, 1, lines, taps);
        const float bias = g.bias ? g.bias[c] : 0, slope = g.slope ? g.slope[c] : 0;
        float *to = first.to + (is_planar(g.y) ? c * first.stride : 0);
        if (count == 9)
            depthwise_9(taps, w, bias, g.activation, slope, g.clamp, addend, g.y->width, to);
        else
            depthwise_line(taps, count, w, bias, g.activation, slope, g.clamp, addend, g.y->width, to);
        finish_target(&g, (target){to, first.stride}, row, c, 1);
        if (addend) addend += g.addend->stride;
        for (int r = 0; r < g.kh && direct; r++)
            for (int k = 0; k < g.kw; k++) taps[r * g.kw + k] += step[r];
    }
}

/* ---- Winograd's F(4, 3) down the columns: 3x3 (3xK) in half the multiplications ---- */

enum { WINOGRAD_ROWS = 4, WINOGRAD_POINTS = 6, WINOGRAD_COLUMNS = 64, WINOGRAD_CHANNELS = 8 };

/* Four rows of the result from six of the input, at the points 0, 1, -1, 2, -2 and infinity. Along the row the
 * convolution stays direct: no shuffles, and a rounding error near that of the direct sum. Where signs are taken from
 * the result, or it goes to a grid, sums stay direct: they may be exact there. */
static int winograd_fits(const irstd_node *n) {
    const geometry g = geometry_of(n);
    return n->op == IRSTD_OP_CONV2D && g.kh == 3 && g.sh == 1 && g.dh == 1 && in_place(&g) && g.ic >= WINOGRAD_CHANNELS &&
           g.oc >= WINOGRAD_CHANNELS && is_planar(g.y) && !g.y->map_count;
}

typedef struct {
    geometry g;
    int point;
} winograd_weights;

static float winograd_weight(const void *context, int channel, int64_t tap) {
    static const double points[WINOGRAD_POINTS][3] = {
        {1.0 / 4, 0, 0}, {-1.0 / 6, -1.0 / 6, -1.0 / 6}, {-1.0 / 6, 1.0 / 6, -1.0 / 6},
        {1.0 / 24, 1.0 / 12, 1.0 / 6}, {1.0 / 24, -1.0 / 12, 1.0 / 6}, {0, 0, 1}};
    const winograd_weights *c = context;
    const float *w = c->g.weight + ((int64_t)channel * c->g.ic + tap / c->g.kw) * 3 * c->g.kw + tap % c->g.kw;
    double sum = 0;
    for (int r = 0; r < 3; r++) sum += points[c->point][r] * (double)w[r * c->g.kw];
    return (float)sum;
}

static uint64_t winograd_packed(const irstd_node *n) {
    const geometry g = geometry_of(n);
    return (uint64_t)(g.groups * WINOGRAD_POINTS * panels_floats(g.oc, (int64_t)g.ic * g.kw)) * sizeof(float);
}

static void winograd_pack(const irstd_node *n, float *to) {
    winograd_weights c = {geometry_of(n), 0};
    for (int k = 0; k < c.g.groups; k++, c.g.weight += (int64_t)c.g.oc * c.g.ic * 3 * c.g.kw)
        for (c.point = 0; c.point < WINOGRAD_POINTS; c.point++)
            to = pack_panels(NULL, NULL, c.g.oc, (int64_t)c.g.ic * c.g.kw, winograd_weight, &c, to);
}

/* Columns of a transformed line. */
static int64_t winograd_line(const geometry *g) { return WINOGRAD_COLUMNS + irstd_round_up((g->kw - 1) * g->dw, 16); }

/* Zeros, read for rows outside the image; behind them goes what lies below the result. */
static int64_t winograd_spare(const geometry *g) { return (zeros_columns(g) + padded(g->y->width)) * (int64_t)sizeof(float); }

static uint64_t winograd_scratch(const irstd_node *n) {
    const geometry g = geometry_of(n);
    return taken((int64_t)g.ic * g.kw * (int64_t)sizeof(float *)) + taken(winograd_spare(&g)) +
           taken(WINOGRAD_POINTS * g.ic * winograd_line(&g) * (int64_t)sizeof(float)) +
           taken((int64_t)WINOGRAD_POINTS * g.oc * WINOGRAD_COLUMNS * (int64_t)sizeof(float));
}

/* `vectors` vectors of the six rows to the six points, each point_step apart. */
static void winograd_input(const float *const rows[WINOGRAD_POINTS], int64_t vectors, float *to, int64_t point_step) {
    for (int64_t j = 0; j < vectors * LANES; j += LANES) {
        const vf a = load(rows[0] + j), b = load(rows[1] + j), c = load(rows[2] + j), d = load(rows[3] + j);
        const vf e = load(rows[4] + j), f = load(rows[5] + j);
        const vf even = e - 4.0f * c, odd = d - 4.0f * b, outer = e - c, inner = 2.0f * (d - b);
        store(to + j, 4.0f * a - 5.0f * c + e);
        store(to + point_step + j, even + odd);
        store(to + 2 * point_step + j, even - odd);
        store(to + 3 * point_step + j, outer + inner);
        store(to + 4 * point_step + j, outer - inner);
        store(to + 5 * point_step + j, 4.0f * b - 5.0f * d + f);
    }
}

/* The six points, each point_step apart, to four rows. */
static void winograd_output(const float *from, int64_t vectors, int64_t point_step, float bias, int activation, float slope,
                            const float *clamp, const float *const addends[WINOGRAD_ROWS],
                            float *const rows[WINOGRAD_ROWS]) {
    for (int64_t j = 0; j < vectors * LANES; j += LANES) {
        const vf a = load(from + j), b = load(from + point_step + j), c = load(from + 2 * point_step + j);
        const vf d = load(from + 3 * point_step + j), e = load(from + 4 * point_step + j), f = load(from + 5 * point_step + j);
        const vf near = b + c, apart = b - c, far = d + e, wide = d - e;
        vf y[WINOGRAD_ROWS] = {a + near + far + bias, apart + 2.0f * wide + bias, near + 4.0f * far + bias,
                               apart + 8.0f * wide + f + bias};
        EACH(r, WINOGRAD_ROWS) {
            if (addends[0]) y[r] += load(addends[r] + j);
            if (activation == IRSTD_FLOAT_ACTIVATION_RELU) y[r] = relu(y[r]);
            if (activation == IRSTD_FLOAT_ACTIVATION_PRELU) y[r] = prelu(y[r], slope);
            if (activation == IRSTD_FLOAT_ACTIVATION_CLAMP) y[r] = clamped(y[r], clamp);
            store(rows[r] + j, y[r]);
        }
    }
}

static void winograd_run(const irstd_node *n, int64_t row, char *scratch) {
    const geometry g = geometry_of(n);
    const int64_t count = (int64_t)g.ic * g.kw, line = winograd_line(&g), point_step = g.ic * line;
    const int64_t sums_step = g.oc * WINOGRAD_COLUMNS, halo = (g.kw - 1) * g.dw;
    const float **taps = take(&scratch, count * (int64_t)sizeof *taps);
    float *zeros = take(&scratch, winograd_spare(&g)), *below = zeros + zeros_columns(&g);
    float *points = take(&scratch, WINOGRAD_POINTS * point_step * (int64_t)sizeof(float)), *sums = (float *)(void *)scratch;
    memset(zeros, 0, (size_t)zeros_columns(&g) * sizeof *zeros);
    for (int64_t t = 0; t < count; t++) taps[t] = points + t / g.kw * line + t % g.kw * g.dw;
    const float *panels = n->packed;
    for (int k = 0; k < g.groups; k++) {
        for (int64_t first = 0; first < g.y->width; first += WINOGRAD_COLUMNS) {
            const int64_t width = irstd_min(WINOGRAD_COLUMNS, g.y->width - first), vectors = (width + LANES - 1) / LANES;
            for (int c = 0; c < g.ic; c++) {
                const float *rows[WINOGRAD_POINTS];
                for (int r = 0; r < WINOGRAD_POINTS; r++) {
                    const int64_t source = row - g.top + r;
                    const int outside = source < 0 || source >= g.x->height;
                    rows[r] = (outside ? zeros + zeros_before(&g) : input_plane(&g, source, k * g.ic + c)) + first - g.left;
                }
                winograd_input(rows, vectors + (halo + LANES - 1) / LANES, points + c * line, point_step);
            }
            const float *panel = panels;
            for (int p = 0; p < WINOGRAD_POINTS; p++) {
                const job j = {taps, count, panel, g.oc, IRSTD_FLOAT_ACTIVATION_NONE, NULL, NULL, 0};
                run_job(&j, p * point_step, width, sums + p * sums_step, WINOGRAD_COLUMNS);
                panel += panels_floats(g.oc, count);
            }
            for (int o = 0; o < g.oc; o++) {
                const int channel = k * g.oc + o;
                float *rows[WINOGRAD_ROWS];
                const float *addends[WINOGRAD_ROWS] = {NULL};
                for (int r = 0; r < WINOGRAD_ROWS; r++) {
                    const int outside = row + r >= g.y->height;
                    rows[r] = (outside ? below : plane_of(g.y, row + r, channel)) + first;
                    if (g.addend) addends[r] = outside ? below : plane_of(g.addend, row + r, channel) + first;
                }
                winograd_output(sums + o * WINOGRAD_COLUMNS, vectors, sums_step, g.bias ? g.bias[channel] : 0, g.activation,
                                g.slope ? g.slope[channel] : 0, g.clamp, addends, rows);
            }
        }
        panels += WINOGRAD_POINTS * panels_floats(g.oc, count);
    }
    for (int r = 0; r < WINOGRAD_ROWS && row + r < g.y->height; r++)
        finish_target(&g, target_of(g.y, row + r, 0, NULL), row + r, 0, g.y->channels);
}

/* ---- transposed: for each place of an output pixel between input pixels, a direct convolution with the taps that
 * reach it ---- */

/* Taps of the kernel, in one direction, that reach outputs at `phase` of `stride`: their count, and for each its place in
 * the kernel and the distance of the input pixel that it reads. */
static int reaching(int64_t kernel, int64_t dilation, int64_t stride, int64_t pad, int64_t phase, int *place, int64_t *distance) {
    int count = 0;
    for (int64_t k = 0; k < kernel; k++) {
        const int64_t from = phase + pad - k * dilation;
        if (from % stride) continue;
        if (place) place[count] = (int)k;
        if (distance) distance[count] = from / stride;
        count++;
    }
    return count;
}

typedef struct {
    const geometry *g;
    int rows, columns, group;
    int row[IRSTD_MAX_KERNEL], column[IRSTD_MAX_KERNEL];
} transposed_taps;

static float transposed_weight(const void *context, int channel, int64_t tap) {
    const transposed_taps *t = context;
    const geometry *g = t->g;
    const int64_t c = tap / (t->rows * t->columns), r = tap / t->columns % t->rows, k = tap % t->columns;
    return g->weight[((((t->group * g->ic + c) * g->oc) + channel) * g->kh + t->row[r]) * g->kw + t->column[k]];
}

/* The panels of every phase, in the order of rows, columns, groups; fills `to` where there is one. */
static int64_t transposed_panels(const geometry *g, float *to) {
    int64_t floats = 0;
    transposed_taps t = {.g = g};
    for (int64_t p = 0; p < g->sh; p++) {
        t.rows = reaching(g->kh, g->dh, g->sh, g->top, p, t.row, NULL);
        for (int64_t q = 0; q < g->sw; q++) {
            t.columns = reaching(g->kw, g->dw, g->sw, g->left, q, t.column, NULL);
            for (t.group = 0; t.group < g->groups; t.group++) {
                const int64_t taps = (int64_t)g->ic * t.rows * t.columns;
                floats += panels_floats(g->oc, taps);
                if (to) to = pack_panels(g->bias ? g->bias + t.group * g->oc : NULL,
                                         g->slope ? g->slope + t.group * g->oc : NULL, g->oc, taps, transposed_weight, &t, to);
            }
        }
    }
    return floats;
}

static int transposed_fits(const irstd_node *n) { return n->op == IRSTD_OP_CONV_TRANSPOSE2D; }

static uint64_t transposed_packed(const irstd_node *n) {
    const geometry g = geometry_of(n);
    return (uint64_t)transposed_panels(&g, NULL) * sizeof(float);
}

static void transposed_pack(const irstd_node *n, float *to) {
    const geometry g = geometry_of(n);
    transposed_panels(&g, to);
}

/* Columns of a phase of the result, and of a copied input line: what it may read before column 0, and all of it. */
static int64_t phase_columns(const geometry *g) { return padded((g->y->width + g->sw - 1) / g->sw); }
static int64_t line_before(const geometry *g) { return irstd_round_up((g->kw - 1) * g->dw / g->sw + 1, ROW_ALIGNMENT / 4); }
static int64_t transposed_line(const geometry *g) {
    return line_before(g) + irstd_max(phase_columns(g), padded(g->x->width)) + irstd_round_up(g->left / g->sw + 1, ROW_STEP);
}

static uint64_t transposed_scratch(const irstd_node *n) {
    const geometry g = geometry_of(n);
    return taken((int64_t)g.ic * g.kh * g.kw * (int64_t)sizeof(float *)) +
           taken(target_bytes(g.y, 1)) +
           taken(g.sw * g.oc * phase_columns(&g) * (int64_t)sizeof(float)) +
           taken(((is_planar(g.x) ? 0 : (int64_t)g.ic * g.kh) + 1) * irstd_max(g.x->stride, transposed_line(&g)) * (int64_t)sizeof(float));
}

static void transposed_run(const irstd_node *n, int64_t row, char *scratch) {
    const geometry g = geometry_of(n);
    int place[IRSTD_MAX_KERNEL];
    int64_t down[IRSTD_MAX_KERNEL], across[IRSTD_MAX_KERNEL];
    const int64_t columns = phase_columns(&g), line = transposed_line(&g), before = line_before(&g);
    const float **taps = take(&scratch, (int64_t)g.ic * g.kh * g.kw * (int64_t)sizeof *taps);
    float *plane = take(&scratch, target_bytes(g.y, 1)), *phases = take(&scratch, g.sw * g.oc * columns * (int64_t)sizeof(float));
    float *zeros = (float *)(void *)scratch, *lines = zeros + irstd_max(g.x->stride, line);
    memset(zeros, 0, (size_t)irstd_max(g.x->stride, line) * sizeof *zeros);
    const float *panels = n->packed;
    for (int64_t p = 0; p < row % g.sh; p++) /* those of the phases before */
        for (int64_t q = 0; q < g.sw; q++)
            panels += g.groups * panels_floats(g.oc, (int64_t)g.ic * reaching(g.kh, g.dh, g.sh, g.top, p, NULL, NULL) *
                                                          reaching(g.kw, g.dw, g.sw, g.left, q, NULL, NULL));
    const int rows = reaching(g.kh, g.dh, g.sh, g.top, row % g.sh, place, down);
    for (int k = 0; k < g.groups; k++) {
        const float *panel = panels;
        for (int c = 0; c < g.ic && !is_planar(g.x); c++)
            for (int r = 0; r < rows; r++) {
                const int64_t source = row / g.sh + down[r];
                float *to = lines + (c * rows + r) * line;
                memset(to, 0, (size_t)line * sizeof *to);
                if (source >= 0 && source < g.x->height)
                    read_plane(g.x, irstd_tensor_row(g.x, source), k * g.ic + c, g.x->width, to + before);
            }
        for (int64_t q = 0; q < g.sw; q++) {
            const int across_count = reaching(g.kw, g.dw, g.sw, g.left, q, place, across);
            const int64_t count = (int64_t)g.ic * rows * across_count, floats = panels_floats(g.oc, count);
            for (int c = 0; c < g.ic; c++)
                for (int r = 0; r < rows; r++) {
                    const int64_t source = row / g.sh + down[r];
                    const float *from = source < 0 || source >= g.x->height ? zeros + irstd_max(g.x->left, before)
                                        : is_planar(g.x) ? plane_of(g.x, source, k * g.ic + c)
                                                         : lines + (c * rows + r) * line + before;
                    for (int t = 0; t < across_count; t++) taps[(c * rows + r) * across_count + t] = from + across[t];
                }
            const target t = g.sw == 1 ? target_of(g.y, row, k * g.oc, phases) : (target){phases + q * g.oc * columns, columns};
            const job j = {taps, count, panel + k * floats, g.oc, g.activation, g.clamp, NULL, 0};
            run_job(&j, 0, (g.y->width - q + g.sw - 1) / g.sw, t.to, t.stride);
            panel += g.groups * floats;
            if (g.sw == 1) finish_target(&g, t, row, k * g.oc, g.oc);
        }
        for (int o = 0; o < g.oc && g.sw > 1; o++) {
            const target t = target_of(g.y, row, k * g.oc + o, plane);
            const float *from = phases + o * columns;
            if (g.sw == 2)
                for (int64_t j = 0; j < (g.y->width + 1) / 2; j++) {
                    t.to[2 * j] = from[j];
                    t.to[2 * j + 1] = from[g.oc * columns + j];
                }
            else
                for (int64_t j = 0; j < g.y->width; j++) t.to[j] = from[j % g.sw * g.oc * columns + j / g.sw];
            finish_target(&g, t, row, k * g.oc + o, 1);
        }
    }
}

/* ---- int16 in integers ---- */

static int fixed_fits(const irstd_node *n) { return n->fixed_conv != NULL; }

static uint64_t fixed_scratch(const irstd_node *n) {
    const int64_t line = padded(n->i[IRSTD_CONV2D_PAD_LEFT] + n->inputs[0]->width + n->i[IRSTD_CONV2D_PAD_RIGHT]);
    return (uint64_t)(irstd_round_up((n->fixed_conv->taps + 1) * (int64_t)sizeof(int16_t *), 64) +
                    n->inputs[0]->channels * n->i[IRSTD_CONV2D_KERNEL_H] * line * (int64_t)sizeof(int16_t));
}

/* ---- projection: pointwise, of an int16 tensor to few channels; converted in registers ---- */

static int projection_fits(const irstd_node *n) {
    const geometry g = geometry_of(n);
    return n->op == IRSTD_OP_CONV2D && g.x->type == IRSTD_TENSOR_TYPE_INT16 && g.oc <= BLOCK && g.groups == 1 &&
           g.kh == 1 && g.kw == 1 && g.sh == 1 && g.sw == 1 && g.x->width == g.y->width && g.x->height == g.y->height;
}

static uint64_t projection_scratch(const irstd_node *n) { return (uint64_t)padded(n->output->width) * sizeof(float); }

static void projection_run(const irstd_node *n, int64_t row, char *scratch) {
    const geometry g = geometry_of(n);
    const float step = step_of(g.x);
    const int16_t *from = irstd_tensor_row(g.x, row);
    float *sums = (float *)(void *)scratch;
    for (int o = 0; o < g.oc; o++) {
        project(from, g.x->stride, g.ic, g.weight + o * g.ic, step, g.bias ? g.bias[o] : 0, g.y->width, sums);
        const float *addend = addend_plane(&g, row, o);
        for (int64_t j = 0; addend && j < g.y->width; j++) sums[j] += addend[j];
        activate(sums, sums, g.y->width, g.activation, g.slope ? g.slope[o] : 0, g.clamp);
        write_plane(g.y, irstd_tensor_row(g.y, row), o, g.y->width, sums);
    }
}

/* ---- the forms, those that take the fewest steps first ---- */

static int pointwise_fits(const irstd_node *n) {
    const geometry g = geometry_of(n);
    return n->op == IRSTD_OP_CONV2D && g.kh == 1 && g.kw == 1;
}

static const irstd_conv_form forms[] = {
    {"int16", 1, fixed_fits, NULL, NULL, fixed_scratch, fixed_conv_row},
    {"projection", 1, projection_fits, NULL, NULL, projection_scratch, projection_run},
    {"transposed", 1, transposed_fits, transposed_packed, transposed_pack, transposed_scratch, transposed_run},
    {"depthwise", 1, depthwise_fits, NULL, NULL, depthwise_scratch, depthwise_run},
    {"winograd", WINOGRAD_ROWS, winograd_fits, winograd_packed, winograd_pack, winograd_scratch, winograd_run},
    {"pointwise", 1, pointwise_fits, direct_packed, direct_pack, direct_scratch, direct_run},
    {"direct", 1, always, direct_packed, direct_pack, direct_scratch, direct_run},
};

const irstd_conv_form *PASTE(irstd_conv_form_, IRSTD_ROWS)(const irstd_node *n) {
    const irstd_conv_form *form = forms;
    while (!form->fits(n)) form++;
    return form;
}

/* The order of execution and the memory. A strip is some rows of the output; going back from it, every node must have
 * computed the rows that the strip needs, and does so in the file's order. Simulating that tells how many rows of each
 * tensor are alive at once, which is all that its ring must hold. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine.h"
#include "quant.h"

enum { MAX_STRIP = 64, DEFAULT_L2 = 1 << 19, MOST_WORK = 1 << 24 };

static int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

static int is_addend(const irstd_node *n, int input) { return n->has_addend && input == n->input_count - 1; }

/* Rows 0..result-1 of an input are needed for rows 0..rows-1 of the output. Negative counts are strips before the
 * first one: they let the early layers start without the late ones, so that no ring must hold the start of a run. */
static int64_t rows_needed(const irstd_node *n, int input, int64_t rows) {
    const irstd_tensor *x = n->inputs[input];
    const int32_t *i = n->i;
    int64_t last = rows - 1, need = rows;
    switch (is_addend(n, input) ? 0 : n->op) {
    case IRSTD_OP_BINARY_CONV2D: {
        const irstd_bconv2d_attributes *a = &n->bconv->a;
        if (!input) need = last * a->stride_h - a->pad_top + (int64_t)a->dilation_h * (a->kernel_h - 1) + 1;
        break;
    }
    case IRSTD_OP_QUANT_CONV2D:
        need = last * i[IRSTD_QUANT_CONV2D_STRIDE_H] - i[IRSTD_QUANT_CONV2D_PAD_TOP] +
               (int64_t)i[IRSTD_QUANT_CONV2D_DILATION_H] * (i[IRSTD_QUANT_CONV2D_KERNEL_H] - 1) + 1;
        break;
    case IRSTD_OP_CONV2D:
        need = last * i[IRSTD_CONV2D_STRIDE_H] - i[IRSTD_CONV2D_PAD_TOP] +
               (int64_t)i[IRSTD_CONV2D_DILATION_H] * (i[IRSTD_CONV2D_KERNEL_H] - 1) + 1;
        break;
    case IRSTD_OP_CONV_TRANSPOSE2D: need = floor_divide(last + i[IRSTD_CONV2D_PAD_TOP], i[IRSTD_CONV2D_STRIDE_H]) + 1; break;
    case IRSTD_OP_AVERAGE_POOL:
    case IRSTD_OP_MAX_POOL:
        need = last * i[IRSTD_MAX_POOL_STRIDE_H] - i[IRSTD_MAX_POOL_PAD_TOP] + i[IRSTD_MAX_POOL_KERNEL_H];
        break;
    case IRSTD_OP_RESIZE:
        if (!input) need = rows > 0 ? irstd_resize_source(n, 0, last).second + 1
                                    : floor_divide((2 * last + 1) * x->height + n->output->height, 2 * n->output->height) + 1;
        break;
    case IRSTD_OP_GLOBAL_AVERAGE_POOL:
    case IRSTD_OP_GLOBAL_MAX_POOL:
        if (rows > 0) need = x->height;
        break;
    case IRSTD_OP_ADD:
    case IRSTD_OP_MULTIPLY: /* the factor of one pixel */
        if (x->height == 1) need = rows > 0;
        break;
    default: break;
    }
    return irstd_min(need, x->height);
}

/* The first row of an input that output row `row` and all below it read. */
static int64_t first_row_read(const irstd_node *n, int input, int64_t row) {
    const irstd_tensor *x = n->inputs[input];
    const int32_t *i = n->i;
    int64_t first = row;
    if (row >= n->output->height) return x->height;
    switch (is_addend(n, input) ? 0 : n->op) {
    case IRSTD_OP_BINARY_CONV2D:
        if (!input) first = row * n->bconv->a.stride_h - n->bconv->a.pad_top;
        break;
    case IRSTD_OP_QUANT_CONV2D: first = row * i[IRSTD_QUANT_CONV2D_STRIDE_H] - i[IRSTD_QUANT_CONV2D_PAD_TOP]; break;
    case IRSTD_OP_CONV2D: first = row * i[IRSTD_CONV2D_STRIDE_H] - i[IRSTD_CONV2D_PAD_TOP]; break;
    case IRSTD_OP_CONV_TRANSPOSE2D:
        first = (row + i[IRSTD_CONV2D_PAD_TOP] - (int64_t)i[IRSTD_CONV2D_DILATION_H] * (i[IRSTD_CONV2D_KERNEL_H] - 1)) /
                    i[IRSTD_CONV2D_STRIDE_H] - 1;
        break;
    case IRSTD_OP_AVERAGE_POOL:
    case IRSTD_OP_MAX_POOL: first = row * i[IRSTD_MAX_POOL_STRIDE_H] - i[IRSTD_MAX_POOL_PAD_TOP]; break;
    case IRSTD_OP_RESIZE:
        if (!input) first = irstd_resize_source(n, 0, row).first;
        break;
    case IRSTD_OP_GLOBAL_AVERAGE_POOL:
    case IRSTD_OP_GLOBAL_MAX_POOL: first = 0; break;
    case IRSTD_OP_ADD:
    case IRSTD_OP_MULTIPLY:
        if (x->height == 1) first = 0;
        break;
    default: break;
    }
    return irstd_max(0, irstd_min(first, x->height));
}

/* Who reads each tensor: lists of (node, input) by tensor. */
typedef struct {
    const struct irstd_session *s;
    int *first, *next; /* per tensor; per node * MAX_INPUTS + input; -1 ends */
} readers;

static int find_readers(const struct irstd_session *s, readers *r) {
    r->s = s;
    r->first = malloc((size_t)s->tensor_count * sizeof *r->first);
    r->next = malloc((size_t)s->node_count * MAX_INPUTS * sizeof *r->next);
    if (!r->first || !r->next) return 0;
    for (int k = 0; k < s->tensor_count; k++) r->first[k] = -1;
    for (int k = 0; k < s->node_count; k++)
        for (int j = 0; j < s->nodes[k].input_count; j++) {
            int *first = &r->first[s->nodes[k].inputs[j] - s->tensors];
            r->next[k * MAX_INPUTS + j] = *first;
            *first = k * MAX_INPUTS + j;
        }
    return 1;
}

/* What a simulated run keeps for each tensor. */
typedef struct {
    int64_t produced, needed;
    int64_t most; /* rows that its ring must hold; map_most: those of its maps' */
    int64_t map_most[MAX_MAPS];
    int first_step, last_step;
    size_t bytes;             /* of rows that are still read */
    int writer, last_reader;  /* nodes; of values, not of maps */
    int kept;                 /* rows of values are alive between strips */
} state;

typedef struct {
    irstd_step *steps;
    int count, capacity;
    uint64_t arena;
    size_t lower_bound;
} schedule;

static uint64_t value_row_bytes(const irstd_tensor *t) {
    return (uint64_t)(t->channels * t->stride) * (t->type == IRSTD_TENSOR_TYPE_INT16 ? 2u : 4u);
}

static uint64_t map_row_bytes(const struct irstd_session *s, const irstd_map *m) {
    return (uint64_t)m->planes * (uint64_t)m->stride * (m->quantizer ? sizeof(uint32_t) : (size_t)s->kernels->bit_bytes);
}

/* Whether the rows of a tensor and of its maps can be addressed. */
static int rows_fit(const struct irstd_session *s, const irstd_tensor *t) {
    int fit = t->external || value_row_bytes(t) <= IRSTD_MOST_BYTES;
    for (int m = 0; m < t->map_count; m++) fit = fit && map_row_bytes(s, &t->maps[m]) <= IRSTD_MOST_BYTES;
    return fit;
}

/* Rows of t from which on its values (map = NULL) or that map of it are still read. */
static int64_t first_alive(const readers *r, const state *states, int tensor, const irstd_map *map) {
    const struct irstd_session *s = r->s;
    int64_t first = states[tensor].produced;
    for (int reader = r->first[tensor]; reader >= 0; reader = r->next[reader]) {
        const irstd_node *n = &s->nodes[reader / MAX_INPUTS];
        int input = reader % MAX_INPUTS;
        if (map == (irstd_reads_map(n, input) ? irstd_map_read(n, input) : NULL))
            first = irstd_min(first, first_row_read(n, input, states[n->output - s->tensors].produced));
    }
    return first;
}

static int64_t alive_rows(const readers *r, const state *states, int tensor, const irstd_map *map, int64_t up_to) {
    return up_to - first_alive(r, states, tensor, map);
}

/* Bytes of a tensor's rows before up_to that are still read. */
static size_t alive_bytes(const readers *r, const state *states, int tensor, int64_t up_to) {
    const irstd_tensor *t = &r->s->tensors[tensor];
    size_t bytes = 0;
    if (t->stored && !t->external) bytes += (size_t)alive_rows(r, states, tensor, NULL, up_to) * value_row_bytes(t);
    for (int m = 0; m < t->map_count; m++)
        bytes += (size_t)alive_rows(r, states, tensor, &t->maps[m], up_to) * map_row_bytes(r->s, &t->maps[m]);
    return bytes;
}

/* Counts a tensor anew in the sum of all. */
static void recount(const readers *r, state *states, int tensor, size_t *total) {
    *total -= states[tensor].bytes;
    states[tensor].bytes = alive_bytes(r, states, tensor, states[tensor].produced);
    *total += states[tensor].bytes;
}

static int add_step(schedule *p, int node, int64_t first, int64_t last) {
    if (p->count == p->capacity) {
        int capacity = p->capacity ? 2 * p->capacity : 256;
        irstd_step *steps = realloc(p->steps, (size_t)capacity * sizeof *steps);
        if (!steps) return 0;
        p->steps = steps;
        p->capacity = capacity;
    }
    p->steps[p->count++] = (irstd_step){node, (int32_t)first, (int32_t)last};
    return 1;
}

/* Raises the needs of inputs to what the needs of outputs ask for, and both to what is computed at once. */
static void propagate(const struct irstd_session *s, int32_t *needed) {
    for (int k = s->node_count - 1; k >= 0; k--) {
        const irstd_node *n = &s->nodes[k];
        int32_t *out = &needed[n->output - s->tensors];
        if (*out == INT32_MIN) continue; /* nobody reads it */
        const int64_t unit = irstd_rows_at_once(n);
        *out = (int32_t)irstd_min(n->output->height, -floor_divide(-(int64_t)*out, unit) * unit);
        for (int j = 0; j < n->input_count; j++) {
            int32_t *in = &needed[n->inputs[j] - s->tensors];
            *in = (int32_t)irstd_max(*in, rows_needed(n, j, *out));
        }
    }
}

/* For every strip, how many rows each tensor must have: [strip][tensor]. What is needed by leaps, as one row behind two
 * pools needs four rows before them, is spread evenly over the strips up to the leap: rings then hold less. */
static int32_t *find_needs(const struct irstd_session *s, int64_t strip, int64_t height, int strips) {
    const int tensors = s->tensor_count;
    int32_t *needs = calloc((size_t)strips, (size_t)tensors * sizeof *needs); /* which checks the product */
    if (!needs) return NULL;
    int64_t row = -height / strip * strip + strip;
    for (int k = 0; k < strips; k++, row += strip) {
        int32_t *needed = needs + (size_t)k * (size_t)tensors;
        for (int t = 0; t < tensors; t++) needed[t] = INT32_MIN;
        for (int o = 0; o < s->output_count; o++) {
            int64_t own = s->tensors[s->outputs[o]].height; /* outputs of several heights advance together */
            needed[s->outputs[o]] = (int32_t)irstd_min(own, -floor_divide(-row * own, height));
        }
        propagate(s, needed);
    }
    for (int t = 0; t < tensors; t++)
        for (int from = 0, to; from < strips; from = to) {
            const int32_t low = needs[(size_t)from * (size_t)tensors + (size_t)t];
            for (to = from + 1; to < strips && needs[(size_t)to * (size_t)tensors + (size_t)t] == low;) to++;
            if (to == strips || low == INT32_MIN) continue;
            const int64_t leap = needs[(size_t)to * (size_t)tensors + (size_t)t] - low;
            for (int k = from + 1; k < to; k++)
                needs[(size_t)k * (size_t)tensors + (size_t)t] = (int32_t)(low + leap * (k - from) / (to - from));
        }
    for (int k = 0; k < strips; k++) propagate(s, needs + (size_t)k * (size_t)tensors);
    return needs;
}

static int64_t largest_output(const struct irstd_session *s) {
    int64_t height = 1;
    for (int k = 0; k < s->output_count; k++) height = irstd_max(height, s->tensors[s->outputs[k]].height);
    return height;
}

static int64_t count_strips(int64_t height, int64_t strip) { return height / strip + (height + strip - 1) / strip; }

/* The smallest strip that can be simulated in a second or so, whatever the network. */
static int64_t smallest_strip(const readers *r) {
    const struct irstd_session *s = r->s;
    const int64_t height = largest_output(s);
    int64_t work = s->node_count; /* of one strip: each step looks at all who read what it reads */
    for (int k = 0; k < s->tensor_count; k++) {
        int64_t count = 0;
        for (int reader = r->first[k]; reader >= 0; reader = r->next[reader]) count++;
        work += count * count;
    }
    int64_t strip = 1;
    while (strip < height && count_strips(height, strip) * work > MOST_WORK) strip *= 2;
    return strip;
}

/* Simulates a run in strips of `strip` rows of the largest output. */
static int simulate(const readers *r, int64_t strip, state *states, schedule *p) {
    const struct irstd_session *s = r->s;
    memset(states, 0, (size_t)s->tensor_count * sizeof *states);
    p->count = 0;
    p->lower_bound = 0;
    const int64_t height = largest_output(s);
    for (int k = 0; k < s->tensor_count; k++) {
        states[k].first_step = -1;
        for (int reader = r->first[k]; reader >= 0; reader = r->next[reader])
            if (!irstd_reads_map(&s->nodes[reader / MAX_INPUTS], reader % MAX_INPUTS))
                states[k].last_reader = (int)irstd_max(states[k].last_reader, reader / MAX_INPUTS);
        if (k >= s->input_count) continue;
        states[k].produced = s->tensors[k].height;
        for (int m = 0; m < MAX_MAPS; m++) states[k].map_most[m] = s->tensors[k].height;
    }
    size_t total = 0; /* of all tensors */
    for (int k = 0; k < s->tensor_count; k++) recount(r, states, k, &total);
    const int strips = (int)count_strips(height, strip);
    int32_t *needs = find_needs(s, strip, height, strips);
    if (!needs) return 0;
    int ok = 1;
    for (int number = 0; number < strips && ok; number++) {
        for (int k = 0; k < s->tensor_count; k++) states[k].needed = needs[(size_t)number * (size_t)s->tensor_count + (size_t)k];
        for (int k = 0; k < s->node_count; k++) {
            const irstd_node *n = &s->nodes[k];
            irstd_tensor *t = n->output;
            state *out = &states[t - s->tensors];
            if (out->needed <= out->produced) continue;
            ok = ok && add_step(p, k, out->produced, out->needed);
            if (out->first_step < 0) out->first_step = p->count - 1;
            out->writer = k;
            out->last_reader = (int)irstd_max(out->last_reader, k);
            for (int j = 0; j < n->input_count; j++) states[n->inputs[j] - s->tensors].last_step = p->count - 1;
            out->last_step = p->count - 1;
            /* While a step runs, what it reads and what it writes are alive. */
            const int made = (int)(t - s->tensors);
            out->most = irstd_max(out->most, alive_rows(r, states, made, NULL, out->needed));
            for (int m = 0; m < t->map_count; m++)
                out->map_most[m] = irstd_max(out->map_most[m], alive_rows(r, states, made, &t->maps[m], out->needed));
            size_t bytes = total - out->bytes + alive_bytes(r, states, made, out->needed);
            p->lower_bound = bytes > p->lower_bound ? bytes : p->lower_bound;
            out->produced = out->needed;
            recount(r, states, made, &total);
            for (int j = 0; j < n->input_count; j++) recount(r, states, (int)(n->inputs[j] - s->tensors), &total);
        }
        for (int k = s->input_count; k < s->tensor_count; k++)
            if (s->tensors[k].stored && alive_rows(r, states, k, NULL, states[k].produced)) states[k].kept = 1;
    }
    free(needs);
    return ok;
}

static uint64_t aligned(uint64_t bytes) { return (bytes + ROW_ALIGNMENT - 1) / ROW_ALIGNMENT * ROW_ALIGNMENT; }
static uint64_t ring_bytes(const irstd_ring *ring) { return aligned((uint64_t)ring->ring * ring->row_bytes); }

/* Sizes of all rings for the simulated run, and their places: large ones first, each at the lowest place that is free
 * for its life, which is a part of every strip where all rows are read in the strip that wrote them. What has margins
 * lives for the whole run, since they are written once, but for what lives less than half of it: its margins are
 * written with every row. Too large an arena is cut short above IRSTD_MOST_BYTES. */
static int place(struct irstd_session *s, const state *states, schedule *p) {
    irstd_ring **rings = malloc((size_t)s->tensor_count * (1 + MAX_MAPS) * sizeof *rings);
    if (!rings) return 0;
    int count = 0;
    for (int k = 0; k < s->tensor_count; k++) {
        irstd_tensor *t = &s->tensors[k];
        t->ring = (irstd_ring){0};
        if (t->external) {
            t->ring.ring = t->height;
            t->ring.row_bytes = (size_t)(t->width * t->step) * sizeof(float);
        } else if (t->stored) {
            t->margins_each_row = t->extent && 2 * (states[k].last_step - states[k].first_step) < p->count;
            const int stays = t->extent && !t->margins_each_row;
            t->ring = (irstd_ring){.ring = states[k].most, .row_bytes = (size_t)value_row_bytes(t),
                                   .first_step = stays ? 0 : states[k].first_step,
                                   .last_step = stays ? p->count : states[k].last_step,
                                   .first_node = stays || states[k].kept ? 0 : states[k].writer,
                                   .last_node = stays || states[k].kept ? s->node_count : states[k].last_reader};
            if (t->ring.ring) rings[count++] = &t->ring;
        }
        for (int m = 0; m < t->map_count; m++) {
            t->maps[m].ring = (irstd_ring){.ring = irstd_max(1, states[k].map_most[m]), .row_bytes = (size_t)map_row_bytes(s, &t->maps[m]),
                                           .first_step = 0, .last_step = p->count, .last_node = s->node_count};
            rings[count++] = &t->maps[m].ring;
        }
    }
    for (int k = 1; k < count; k++) /* by falling size */
        for (int j = k; j && ring_bytes(rings[j]) > ring_bytes(rings[j - 1]); j--) {
            irstd_ring *other = rings[j];
            rings[j] = rings[j - 1];
            rings[j - 1] = other;
        }
    uint64_t end = 0;
    for (int k = 0; k < count && end <= IRSTD_MOST_BYTES; k++) {
        uint64_t bytes = ring_bytes(rings[k]), at = 0;
        for (int again = 1; again;) {
            again = 0;
            for (int j = 0; j < k; j++) {
                const irstd_ring *other = rings[j];
                uint64_t other_end = other->offset + ring_bytes(other);
                if (other->last_step < rings[k]->first_step || rings[k]->last_step < other->first_step ||
                    other->last_node < rings[k]->first_node || rings[k]->last_node < other->first_node ||
                    other_end <= at || at + bytes <= other->offset)
                    continue;
                at = other_end;
                again = 1;
            }
        }
        rings[k]->offset = (size_t)at;
        if (at + bytes > end) end = at + bytes;
    }
    free(rings);
    p->arena = end;
    return 1;
}

static size_t l2_bytes(void) {
#ifdef _SC_LEVEL2_CACHE_SIZE
    long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes > 0) return (size_t)bytes;
#endif
    return DEFAULT_L2;
}

/* With the scratch of all threads. */
static uint64_t arena_bytes(const struct irstd_session *s, const schedule *p) {
    return p->arena + (uint64_t)s->threads * s->scratch_bytes;
}

/* The cost of a strip in nanoseconds: every step costs a little, the more so with threads that wait for each other,
 * what does not fit the second-level cache is written and read once more, and memory that is saved is worth a little
 * time: half a nanosecond a byte, and less to who asks for threads. */
static double cost(const struct irstd_session *s, const schedule *p, size_t l2, uint64_t bytes_moved) {
    if (arena_bytes(s, p) > IRSTD_MOST_BYTES) return INFINITY;
    double per_step = s->threads > 1 ? 800 : 10;
    double working_set = (double)arena_bytes(s, p), cache = 0.8 * (double)l2 * s->threads;
    double missing = working_set > cache ? (working_set - cache) / working_set : 0;
    return per_step * p->count + missing * (double)bytes_moved / 60.0 + (s->threads > 1 ? 0.1 : 0.5) * (double)p->arena;
}

irstd_status irstd_plan(struct irstd_session *s, irstd_error *error) {
    uint64_t moved = 0, scratch = 0;
    for (int k = 0; k < s->tensor_count; k++) {
        irstd_tensor *t = &s->tensors[k];
        const int pixels = t->external && s->layout == IRSTD_NHWC; /* channels side by side */
        t->step = pixels ? t->channels : 1;
        t->stride = pixels        ? 1
                    : t->external ? t->height * t->width
                                  : irstd_round_up(t->left + irstd_max(t->extent, irstd_round_up(t->width, ROW_STEP)),
                                                   t->extent ? ROW_ALIGNMENT / 4 : ROW_STEP);
        if (!t->external) moved += 2 * value_row_bytes(t) * (uint64_t)t->height;
        if (!rows_fit(s, t))
            return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory: a row of %s, of %lld columns", t->name, (long long)t->width);
    }
    for (int k = 0; k < s->node_count; k++) {
        irstd_node *n = &s->nodes[k];
        uint64_t bytes = n->bconv ? irstd_bconv_scratch(s, n)
                       : n->qconv ? irstd_quant_scratch(n)
                       : n->form  ? n->form->scratch_bytes(n)
                                  : s->kernels->rows->scratch_bytes(n);
        scratch = aligned(bytes) > scratch ? aligned(bytes) : scratch;
        if (scratch > IRSTD_MOST_BYTES)
            return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory: %llu bytes for a row of %s",
                              (unsigned long long)scratch, n->name);
    }
    s->scratch_bytes = (size_t)scratch;
    state *states = calloc((size_t)s->tensor_count, sizeof *states);
    schedule best = {0};
    double best_cost = INFINITY;
    int64_t best_strip = 0;
    readers r = {0};
    int ok = states && find_readers(s, &r);
    if (s->node_count == 1) best_strip = s->nodes[0].output->height; /* no ring would hold less */
    const int64_t smallest = ok ? smallest_strip(&r) : 0;
    for (int64_t strip = smallest; ok && s->node_count > 1 && strip <= irstd_max(smallest, MAX_STRIP); strip *= 2) {
        ok = simulate(&r, strip, states, &best) && place(s, states, &best);
        double c = ok ? cost(s, &best, l2_bytes(), moved) : 0;
        if (ok && (c < best_cost || !best_strip)) {
            best_cost = c;
            best_strip = strip;
        }
    }
    const char *forced = getenv("IRSTD_STRIP");
    if (forced && atoi(forced) > 0) best_strip = atoi(forced);
    ok = ok && simulate(&r, best_strip, states, &best) && place(s, states, &best);
    free(states);
    free(r.first);
    free(r.next);
    s->steps = best.steps;
    if (!ok) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory while planning");
    s->step_count = best.count;
    s->strip = best_strip;
    if (arena_bytes(s, &best) > IRSTD_MOST_BYTES)
        return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory: an arena of %llu bytes or more",
                          (unsigned long long)arena_bytes(s, &best));
    s->scratch_offset = (size_t)best.arena;
    s->arena_bytes = (size_t)arena_bytes(s, &best);
    s->arena_lower_bound = best.lower_bound + (size_t)s->threads * s->scratch_bytes;
    s->arena_memory = calloc(1, s->arena_bytes + ROW_ALIGNMENT); /* pages that nobody touches cost nothing */
    if (!s->arena_memory) return irstd_fail(error, IRSTD_OUT_OF_MEMORY, "out of memory: an arena of %zu bytes", s->arena_bytes);
    s->arena = s->arena_memory + (-(uintptr_t)s->arena_memory & (ROW_ALIGNMENT - 1));
    for (int k = 0; k < s->tensor_count; k++) {
        irstd_tensor *t = &s->tensors[k];
        t->ring.base = s->arena + t->ring.offset;
        for (int m = 0; m < t->map_count; m++) {
            irstd_map *map = &t->maps[m];
            map->ring.base = s->arena + map->ring.offset;
            for (int64_t row = 0; row < map->ring.ring; row++) irstd_pad_columns(s, map, irstd_row(&map->ring, row), 0, map->stride);
        }
    }
    return IRSTD_OK;
}

/* Execution: the planned steps, their rows shared among the threads. */
#define _GNU_SOURCE
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "engine.h"
#include "pool.h"
#include "quant.h"

/* ---- one row of a binary convolution ---- */

static uint64_t up(uint64_t bytes) { return (bytes + ROW_ALIGNMENT - 1) / ROW_ALIGNMENT * ROW_ALIGNMENT; }

static irstd_row_layout layout_of(const struct irstd_session *s, const irstd_node *n) {
    const irstd_bconv *c = n->bconv;
    const irstd_bconv2d_attributes *a = &c->a;
    const uint64_t element = (uint64_t)s->kernels->bit_bytes, taps = (size_t)a->kernel_h * (size_t)a->kernel_w;
    irstd_row_layout l = {.stride = irstd_round_up(n->output->width, ROW_STEP)};
    uint64_t stride = (uint64_t)l.stride, map_row = (size_t)c->source->planes * (size_t)c->source->stride * element;
    l.taps = up((size_t)irstd_round_up(a->out_channels + (a->groups > 1 ? 7 : 0), 16) * stride * sizeof(int16_t));
    l.padding = l.taps + up(taps * (size_t)(1 + c->source->group_planes) * sizeof(char *));
    l.columns = l.padding + (a->pad_value ? up(map_row) : 0);
    l.merged = l.columns + (a->stride_w > 1 ? up(taps * (size_t)c->source->planes * stride * element) : 0);
    l.rest = l.merged + (c->merge > 1 ? up((irstd_merged_words(c) + 1) * (stride + ROW_STEP) * element) : 0);
    const uint64_t lanes = (uint64_t)irstd_max(l.stride, irstd_round_up(a->out_channels, ROW_STEP));
    l.values = l.rest + lanes * sizeof(float); /* the residual's, then results or sums */
    l.turned = l.values + lanes * sizeof(float);
    l.bytes = l.turned + (s->layout == IRSTD_NHWC ? up((size_t)irstd_round_up(a->out_channels, 16) * stride * sizeof(int16_t)) : 0);
    return l;
}

uint64_t irstd_bconv_scratch(const struct irstd_session *s, const irstd_node *n) {
    n->bconv->layout = layout_of(s, n);
    return n->bconv->layout.bytes;
}

/* What every tap sees, from output column 0 on; the distance of the planes. NULL: a row of exact zeros. */
static size_t find_taps(const struct irstd_session *s, const irstd_node *n, int64_t row, const irstd_row_layout *l, char *scratch,
                        const char **taps) {
    const irstd_bconv *c = n->bconv;
    const irstd_bconv2d_attributes *a = &c->a;
    const irstd_map *map = c->source;
    const int64_t element = s->kernels->bit_bytes;
    const int64_t plane = map->stride * element, columns = l->stride * element;
    int padded = 0;
    for (int kh = 0; kh < a->kernel_h; kh++) {
        int64_t source = row * a->stride_h - a->pad_top + (int64_t)kh * a->dilation_h;
        const char *from = NULL;
        if (source >= 0 && source < n->inputs[0]->height) {
            from = irstd_row(&map->ring, source);
        } else if (a->pad_value) {
            if (!padded++) irstd_pad_columns(s, map, scratch + l->padding, 0, map->stride);
            from = scratch + l->padding;
        }
        const char **tap = taps + kh * a->kernel_w;
        const char *at = from ? from + (map->left - a->pad_left) * element : NULL;
        const int64_t step = from ? a->dilation_w * element : 0;
        for (int kw = 0; kw < a->kernel_w; kw++, at += step) tap[kw] = at;
        for (int kw = 0; kw < a->kernel_w && a->stride_w > 1 && from; kw++) {
            char *to = scratch + l->columns + (kh * a->kernel_w + kw) * map->planes * columns;
            for (int p = 0; p < map->planes; p++)
                for (int64_t j = 0; j < n->output->width; j++)
                    memcpy(to + p * columns + j * element, tap[kw] + p * plane + j * a->stride_w * element, (size_t)element);
            tap[kw] = to;
        }
    }
    return (size_t)(a->stride_w == 1 ? plane : columns);
}

/* The sums of one channel, decoded bit by bit: the definition, and what no kernel can do. */
static void reference_sums(const struct irstd_session *s, const irstd_node *n, const char *const *taps,
                           size_t plane_bytes, int64_t row, int oc, int32_t *acc) {
    const irstd_bconv *c = n->bconv;
    const irstd_bconv2d_attributes *a = &c->a;
    const irstd_kernels *k = s->kernels;
    const int first_plane = oc / c->oc_group * c->source->group_planes, width = (int)n->inputs[0]->width;
    int rows[2];
    irstd_valid_rows(n, row, rows);
    for (int64_t j = 0; j < n->output->width; j++) {
        int32_t sum = 0;
        for (int kh = rows[0]; kh < rows[1]; kh++)
            for (int kw = 0; kw < a->kernel_w; kw++) {
                int64_t column = j * a->stride_w - a->pad_left + (int64_t)kw * a->dilation_w;
                if (!a->pad_value && (column < 0 || column >= width)) continue;
                int tap = kh * a->kernel_w + kw;
                const uint32_t *w = c->words + ((size_t)oc * (size_t)(a->kernel_h * a->kernel_w) + (size_t)tap) *
                                                   (size_t)c->words_per_tap;
                for (int ch = 0; ch < c->ic_group; ch++) {
                    const char *plane = taps[tap] + (size_t)(first_plane + ch / k->bit_channels) * plane_bytes;
                    int bits = k->bit_bytes == 1 ? ((const uint8_t *)plane)[j] : ((const uint16_t *)(const void *)plane)[j];
                    sum += (bits >> ch % k->bit_channels & 1) == (int)(w[ch / 32] >> ch % 32 & 1) ? 1 : -1;
                }
            }
        acc[j] = sum;
    }
}

/* A value of a row. */
static float value_of(const irstd_tensor *t, const char *row, int channel, int64_t column) {
    const int64_t at = channel * t->stride + column * t->step;
    if (t->type == IRSTD_TENSOR_TYPE_FLOAT32) return ((const float *)(const void *)row)[at];
    return (float)((const int16_t *)(const void *)row)[at] / (float)(1 << t->fraction_bits);
}

/* The residual of output channel oc, on the output's grid where it has one: its channels repeated or averaged. */
static float residual_of(const irstd_node *n, const char *row, int oc, int64_t column) {
    const irstd_tensor *r = n->inputs[1];
    const irstd_bconv2d_attributes *a = &n->bconv->a;
    const int count = r->channels > a->out_channels ? r->channels / a->out_channels : 1;
    const float step = a->fraction_bits < 0 ? 1 : (float)(1 << a->fraction_bits);
    float sum = 0;
    for (int k = 0; k < count; k++) {
        float v = value_of(r, row, oc % r->channels + k * a->out_channels, column);
        if (a->fraction_bits >= 0) {
            v = floorf(v * step + 0.5f);
            v = v > -32768.0f ? (v < 32767.0f ? v : 32767.0f) : -32768.0f;
        }
        sum = k ? sum + v : v;
    }
    if (count == 1) return sum;
    sum /= (float)count;
    return a->fraction_bits >= 0 ? floorf(sum + 0.5f) : sum;
}

static void store_value(const irstd_tensor *y, char *row, int channel, int64_t column, float value) {
    const int64_t at = channel * y->stride + column * y->step;
    if (y->type == IRSTD_TENSOR_TYPE_FLOAT32)
        ((float *)(void *)row)[at] = value;
    else
        ((int16_t *)(void *)row)[at] = (int16_t)(int32_t)(value * (float)(1 << y->fraction_bits));
}

/* The signs of a row, bit by bit. */
static void reference_signs(const struct irstd_session *s, const irstd_tensor *x, const irstd_map *map, int64_t row,
                            char *bits) {
    const irstd_kernels *k = s->kernels;
    const char *from = irstd_tensor_row(x, row);
    const int64_t plane_bytes = map->stride * k->bit_bytes;
    for (int p = 0; p < map->planes; p++)
        memset(bits + p * plane_bytes, 0, (size_t)(x->width * k->bit_bytes));
    for (int ch = 0; ch < x->channels; ch++) {
        int within = ch % map->group_channels;
        char *plane = bits + (ch / map->group_channels * map->group_planes + within / k->bit_channels) * plane_bytes;
        int bit = within % k->bit_channels;
        float threshold = map->threshold[ch];
        for (int64_t j = 0; j < x->width; j++) {
            int one = value_of(x, from, ch, j) >= threshold;
            if (k->bit_bytes == 1)
                ((uint8_t *)plane)[j] |= (uint8_t)(one << bit);
            else
                ((uint16_t *)(void *)plane)[j] |= (uint16_t)(one << bit);
        }
    }
}

static char *map_column0(const struct irstd_session *s, const irstd_map *map, int64_t row) {
    return irstd_row(&map->ring, row) + map->left * s->kernels->bit_bytes;
}

/* Kernels write whole steps of columns; what lies behind the last one is padding again. */
static void repair_padding(const struct irstd_session *s, const irstd_map *map, int64_t row, int64_t width) {
    if (width % ROW_STEP)
        irstd_pad_columns(s, map, irstd_row(&map->ring, row), map->left + width, map->left + irstd_round_up(width, ROW_STEP));
}

static void write_signs(const struct irstd_session *s, const irstd_tensor *t, int64_t row) {
    for (int m = 0; m < t->map_count; m++) {
        const irstd_map *map = &t->maps[m];
        if (map->quantizer) {
            irstd_quant_write(t, map, row);
            continue;
        }
        char *bits = map_column0(s, map, row);
        if (t->type == IRSTD_TENSOR_TYPE_INT16 && map->fixed_threshold && s->kernels->signs) {
            s->kernels->signs(map, irstd_tensor_row(t, row), t->stride, t->width, bits);
            repair_padding(s, map, row, t->width);
        } else if (t->type == IRSTD_TENSOR_TYPE_FLOAT32 && s->kernels->sums) {
            s->kernels->rows->signs(t, irstd_tensor_row(t, row), map, s->kernels->bit_channels, bits);
        } else {
            reference_signs(s, t, map, row, bits);
        }
    }
}

static void bconv_row(const struct irstd_session *s, const irstd_node *n, int64_t row, char *scratch) {
    const irstd_bconv *c = n->bconv;
    const irstd_tensor *y = n->output;
    const irstd_kernels *k = s->kernels;
    const irstd_row_layout l = c->layout;
    const char **taps = (const char **)(void *)(scratch + l.taps);
    int16_t *sums = (int16_t *)(void *)(scratch + l.sums);
    size_t plane_bytes = find_taps(s, n, row, &l, scratch, taps);
    if (!c->wide) {
        int rows[2];
        irstd_bconv_row r = {taps, plane_bytes, 0, y->width, l.stride, sums, scratch + l.merged};
        irstd_valid_rows(n, row, rows);
        while (memcmp(c->class_rows[r.row_class], rows, sizeof rows)) r.row_class++;
        if (c->sign_sum || c->fast) {
            const irstd_map *map = irstd_emits_map(n) ? &y->maps[0] : NULL;
            k->row(c, &r, c->a.residual ? n->inputs[1] : NULL, c->a.residual ? irstd_tensor_row(n->inputs[1], row) : NULL,
                   y->stored ? irstd_tensor_row(y, row) : NULL, map, map ? map_column0(s, map, row) : NULL);
            if (map)
                repair_padding(s, map, row, y->width);
            else
                write_signs(s, y, row);
            return;
        }
        k->sums(c, &r);
    }
    const irstd_tensor *r = c->a.residual ? n->inputs[1] : NULL;
    const char *residual = r ? irstd_tensor_row(r, row) : NULL;
    char *to = irstd_tensor_row(y, row);
    int32_t *acc = (int32_t *)(void *)(scratch + l.values);
    if (!c->wide) k->rows->finish(c, sums, r, residual, y, to, scratch);
    for (int oc = 0; c->wide && oc < y->channels; oc++) {
        reference_sums(s, n, taps, plane_bytes, row, oc, acc);
        for (int64_t j = 0; j < y->width; j++)
            store_value(y, to, oc, j, irstd_bconv_value(c, oc, acc[j], r ? residual_of(n, residual, oc, j) : 0));
    }
    write_signs(s, y, row);
}

/* ---- steps ---- */

struct irstd_barrier {
    atomic_int arrived, generation;
};

static void wait_for_all(struct irstd_session *s) {
    struct irstd_barrier *b = s->barrier;
    int generation = atomic_load_explicit(&b->generation, memory_order_relaxed);
    if (atomic_fetch_add(&b->arrived, 1) == s->threads - 1) {
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        atomic_store(&b->generation, generation + 1);
        return;
    }
    for (int spins = 0; atomic_load(&b->generation) == generation; spins++) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
        __asm__ volatile("yield");
#endif
        if (spins > 64) sched_yield(); /* somebody may need the core */
    }
}

/* Kernels write whole steps of columns; what lies behind the last one is zero again, where somebody reads it. */
static void clear_margin(const irstd_tensor *t, int64_t row) {
    const int64_t left = t->margins_each_row ? t->left : 0;
    const int64_t end = t->margins_each_row ? t->stride - t->left : irstd_round_up(t->width, ROW_STEP);
    if (!t->extent || (!left && t->width == end)) return;
    float *plane = (float *)irstd_tensor_row(t, row);
    for (int c = 0; c < t->channels; c++, plane += t->stride) {
        memset(plane - left, 0, (size_t)left * sizeof *plane);
        memset(plane + t->width, 0, (size_t)(end - t->width) * sizeof *plane);
    }
}

/* Rows first..last-1 of a node's output. */
static void run_rows(struct irstd_session *s, const irstd_node *n, int64_t first, int64_t last, char *scratch) {
    const int64_t unit = irstd_rows_at_once(n);
    for (int64_t row = first; row < last; row += unit) {
        if (n->bconv) {
            bconv_row(s, n, row, scratch);
            continue;
        }
        if (n->qconv)
            irstd_quant_row(n, row, scratch);
        else if (n->pooled)
            irstd_quant_pool_row(n, row);
        else if (n->form)
            n->form->run(n, row, scratch);
        else
            s->kernels->rows->run(n, row, scratch);
        for (int64_t made = row; made < irstd_min(row + unit, last); made++) {
            if (n->output->stored) clear_margin(n->output, made);
            if (!irstd_quant_emits(n)) write_signs(s, n->output, made);
        }
    }
}

static char *scratch_of(const struct irstd_session *s, int index) {
    return s->arena + s->scratch_offset + (size_t)index * s->scratch_bytes;
}

/* Share `index` of the rows of a step. */
static void run_share(struct irstd_session *s, const irstd_step *step, int index) {
    const irstd_node *n = &s->nodes[step->node];
    const int64_t unit = irstd_rows_at_once(n), units = (step->last - step->first + unit - 1) / unit;
    const int64_t first = step->first + units * index / s->threads * unit;
    const int64_t last = step->first + units * (index + 1) / s->threads * unit;
    run_rows(s, n, first, irstd_min(last, step->last), scratch_of(s, index));
}

/* The signs of the inputs themselves, where they are binarised; whether there were any. */
static int sign_share(struct irstd_session *s, int index) {
    int any = 0;
    for (int k = 0; k < s->input_count; k++) {
        const irstd_tensor *t = &s->tensors[k];
        if (!t->map_count) continue;
        any = 1;
        for (int64_t row = t->height * index / s->threads; row < t->height * (index + 1) / s->threads; row++)
            write_signs(s, t, row);
    }
    return any;
}

static uint64_t nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A whole run in the session's own threads. */
static void run_thread(void *argument, int index) {
    struct irstd_session *s = argument;
    const uint64_t mode = irstd_flush_denormals();
    if (sign_share(s, index) && s->threads > 1) wait_for_all(s);
    for (int k = 0; k < s->step_count; k++) {
        uint64_t begin = s->profile && !index ? nanoseconds() : 0;
        run_share(s, &s->steps[k], index);
        if (s->threads > 1) wait_for_all(s);
        if (begin) s->profile[s->steps[k].node] += nanoseconds() - begin;
    }
    irstd_set_float_mode(mode);
}

/* One of its stages in the caller's threads. */
typedef struct {
    struct irstd_session *s;
    const irstd_step *step; /* NULL: the signs of the inputs */
} stage;

static void run_stage(void *argument, int index) {
    const stage *at = argument;
    const uint64_t mode = irstd_flush_denormals();
    if (at->step)
        run_share(at->s, at->step, index);
    else
        sign_share(at->s, index);
    irstd_set_float_mode(mode);
}

void irstd_run_node(struct irstd_session *s, int node) {
    run_rows(s, &s->nodes[node], 0, s->nodes[node].output->height, scratch_of(s, 0));
}

void irstd_run_strips(struct irstd_session *s, const irstd_parallel *parallel) {
    if (s->pool || s->threads == 1) {
        irstd_pool_run(s->pool, s->threads, run_thread, s);
        return;
    }
    stage now = {s, NULL};
    for (int k = -1; k < s->step_count; k++, now.step = &s->steps[k]) {
        if (parallel)
            parallel->run(parallel->context, s->threads, run_stage, &now);
        else
            for (int index = 0; index < s->threads; index++) run_stage(&now, index);
    }
}

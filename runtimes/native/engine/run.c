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

static size_t up(size_t bytes) { return (bytes + ROW_ALIGNMENT - 1) / ROW_ALIGNMENT * ROW_ALIGNMENT; }

static irstd_row_layout layout_of(const struct irstd_session *s, const irstd_node *n) {
    const irstd_bconv *c = n->bconv;
    const irstd_bconv2d_attributes *a = &c->a;
    const size_t element = (size_t)s->kernels->bit_bytes, taps = (size_t)a->kernel_h * (size_t)a->kernel_w;
    irstd_row_layout l = {.stride = irstd_round_up(n->output->width, ROW_STEP)};
    size_t stride = (size_t)l.stride, map_row = (size_t)c->source->planes * (size_t)c->source->stride * element;
    l.taps = up((size_t)irstd_round_up(a->out_channels + (a->groups > 1 ? 7 : 0), 16) * stride * sizeof(int16_t));
    l.padding = l.taps + up(taps * (size_t)(1 + c->source->group_planes) * sizeof(char *));
    l.columns = l.padding + (a->pad_value ? up(map_row) : 0);
    l.merged = l.columns + (a->stride_w > 1 ? up(taps * (size_t)c->source->planes * stride * element) : 0);
    l.planes = l.merged + (c->merge > 1 ? up((irstd_merged_words(c) + 1) * (stride + ROW_STEP) * element) : 0);
    l.bytes = l.planes + 4 * stride * sizeof(float); /* int32 sums, residual, another, result */
    return l;
}

size_t irstd_bconv_scratch(const struct irstd_session *s, const irstd_node *n) {
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

/* One plane of the residual, matched to output channel oc; on the output's grid where it has one. */
static void read_residual(const irstd_node *n, int64_t row, int oc, float *to, float *other) {
    const irstd_tensor *r = n->inputs[1], *y = n->output;
    const irstd_bconv2d_attributes *a = &n->bconv->a;
    const int count = r->channels > y->channels ? r->channels / y->channels : 1;
    const float step = a->fraction_bits < 0 ? 1 : (float)(1 << a->fraction_bits);
    const char *from = irstd_tensor_row(r, row);
    for (int k = 0; k < count; k++) {
        int channel = r->channels > y->channels ? oc + k * y->channels : oc % r->channels;
        float *target = k ? other : to;
        for (int64_t j = 0; j < y->width; j++) {
            float v = r->type == IRSTD_TENSOR_TYPE_INT16
                          ? (float)((const int16_t *)(const void *)from)[channel * r->stride + j] / (float)(1 << r->fraction_bits)
                          : ((const float *)(const void *)from)[channel * r->stride + j];
            if (a->fraction_bits >= 0) {
                v = floorf(v * step + 0.5f);
                v = v > -32768.0f ? (v < 32767.0f ? v : 32767.0f) : -32768.0f;
            }
            target[j] = v;
        }
        for (int64_t j = 0; k && j < y->width; j++) to[j] += other[j];
    }
    for (int64_t j = 0; count > 1 && j < y->width; j++) {
        to[j] /= (float)count;
        if (a->fraction_bits >= 0) to[j] = floorf(to[j] + 0.5f);
    }
}

static void store_plane(const irstd_tensor *y, int64_t row, int channel, const float *from) {
    char *to = irstd_tensor_row(y, row);
    if (y->type == IRSTD_TENSOR_TYPE_FLOAT32) {
        memcpy((float *)(void *)to + channel * y->stride, from, (size_t)y->width * sizeof *from);
        return;
    }
    int16_t *q = (int16_t *)(void *)to + channel * y->stride;
    const float step = (float)(1 << y->fraction_bits);
    for (int64_t j = 0; j < y->width; j++) q[j] = (int16_t)(int32_t)(from[j] * step);
}

/* The signs of a row, bit by bit. */
static void reference_signs(const struct irstd_session *s, const irstd_tensor *x, const irstd_map *map, int64_t row,
                            char *bits) {
    const irstd_kernels *k = s->kernels;
    const char *from = irstd_tensor_row(x, row);
    const int64_t plane_bytes = map->stride * k->bit_bytes;
    const float step = x->type == IRSTD_TENSOR_TYPE_INT16 ? 1.0f / (float)(1 << x->fraction_bits) : 1;
    for (int p = 0; p < map->planes; p++)
        memset(bits + p * plane_bytes, 0, (size_t)(x->width * k->bit_bytes));
    for (int ch = 0; ch < x->channels; ch++) {
        int within = ch % map->group_channels;
        char *plane = bits + (ch / map->group_channels * map->group_planes + within / k->bit_channels) * plane_bytes;
        int bit = within % k->bit_channels;
        float threshold = map->threshold[ch];
        for (int64_t j = 0; j < x->width; j++) {
            float v = x->type == IRSTD_TENSOR_TYPE_INT16
                          ? (float)((const int16_t *)(const void *)from)[ch * x->stride + j] * step
                          : ((const float *)(const void *)from)[ch * x->stride + j];
            int one = v >= threshold;
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
    float *plane = (float *)(void *)(scratch + l.planes), *residual = plane + l.stride, *other = residual + l.stride;
    int32_t *acc = (int32_t *)(void *)(other + l.stride);
    for (int oc = 0; oc < y->channels; oc++) {
        if (c->wide)
            reference_sums(s, n, taps, plane_bytes, row, oc, acc);
        else
            for (int64_t j = 0; j < y->width; j++) acc[j] = c->unit * sums[oc * l.stride + j];
        if (c->a.residual) read_residual(n, row, oc, residual, other);
        k->rows->finish_plane(c, oc, acc, c->a.residual ? residual : NULL, y->width, plane);
        store_plane(y, row, oc, plane);
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
    if (!t->extent || t->width % ROW_STEP == 0) return;
    float *plane = (float *)irstd_tensor_row(t, row) + t->width;
    for (int c = 0; c < t->channels; c++, plane += t->stride)
        memset(plane, 0, (size_t)(irstd_round_up(t->width, ROW_STEP) - t->width) * sizeof *plane);
}

static void run_rows(struct irstd_session *s, const irstd_step *step, int64_t first, int64_t last, char *scratch) {
    const irstd_node *n = &s->nodes[step->node];
    const int64_t unit = irstd_rows_at_once(n);
    for (int64_t row = first; row < last; row += unit) {
        if (n->bconv) {
            bconv_row(s, n, row, scratch);
            continue;
        }
        if (n->qconv)
            irstd_quant_row(n, row, scratch);
        else if (n->form)
            n->form->run(n, row, scratch);
        else
            s->kernels->rows->run(n, row, scratch);
        for (int64_t made = row; made < irstd_min(row + unit, last); made++) {
            if (n->output->stored) clear_margin(n->output, made);
            if (!(n->qconv && irstd_quant_emits(n))) write_signs(s, n->output, made);
        }
    }
}

static uint64_t nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void run_thread(void *argument, int index) {
    struct irstd_session *s = argument;
    char *scratch = s->arena + s->scratch_offset + (size_t)index * s->scratch_bytes;
    const uint64_t mode = irstd_flush_denormals();
    for (int k = 0; k < s->step_count; k++) {
        const irstd_step *step = &s->steps[k];
        const int64_t unit = irstd_rows_at_once(&s->nodes[step->node]), units = (step->last - step->first + unit - 1) / unit;
        const int64_t first = step->first + units * index / s->threads * unit;
        const int64_t last = step->first + units * (index + 1) / s->threads * unit;
        uint64_t begin = s->profile && !index ? nanoseconds() : 0;
        run_rows(s, step, first, irstd_min(last, step->last), scratch);
        if (s->threads > 1) wait_for_all(s);
        if (begin) s->profile[step->node] += nanoseconds() - begin;
    }
    irstd_set_float_mode(mode);
}

void irstd_run_node(struct irstd_session *s, int node) {
    const irstd_step step = {node, 0, (int32_t)s->nodes[node].output->height};
    run_rows(s, &step, 0, step.last, s->arena + s->scratch_offset);
}

void irstd_run_strips(struct irstd_session *s) {
    for (int k = 0; k < s->input_count; k++) /* the signs of the input itself, where it is binarised */
        for (int64_t row = 0; s->tensors[k].map_count && row < s->tensors[k].height; row++)
            write_signs(s, &s->tensors[k], row);
    if (s->threads > 1)
        irstd_pool_run(s->pool, s->threads, run_thread, s);
    else
        run_thread(s, 0);
}

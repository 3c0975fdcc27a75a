/* Quantised convolution of one row, in GCC's vector types around one dot product; compiled once for every variant, as
 * irstd_quant_<IRSTD_QUANT>, without contraction: every float step is rounded.
 *
 * Sums have the lanes of the pixels: a word of four channels of each pixel times a word of four weights that all lanes
 * share. A step multiplies and adds one word for every vector of columns and every channel of the tile. */
#include <string.h>

#include "../../engine/quant.h"

#define PASTE2(a, b) a##b
#define PASTE(a, b) PASTE2(a, b)
#define TEXT2(a) #a
#define TEXT(a) TEXT2(a)
#define QUANT_INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#if defined(__SANITIZE_ADDRESS__)
#define FIELD_LOOP /* GCC cannot then unroll it, and warns */
#elif defined(QUANT_SMLAL) || defined(QUANT_SDOT)
#define FIELD_LOOP _Pragma("GCC unroll 1") /* else compilers gather the fields, and spill */
#else
#define FIELD_LOOP UNROLL
#endif

#if defined(QUANT_DPBUSD_512)
#if defined(IRSTD_SIMDE)
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#else
#include <immintrin.h>
#endif
enum { LANES = 16, ACCUMULATORS = 16 };
#elif defined(QUANT_MADDUBS) || defined(QUANT_MADDWD) || defined(QUANT_DPBUSD_256)
#include <immintrin.h>
#define QUANT_256
enum { LANES = 8, ACCUMULATORS = 8 };
#elif defined(QUANT_SMLAL) || defined(QUANT_SDOT)
#if defined(IRSTD_SIMDE)
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/arm/neon.h>
#else
#include <arm_neon.h>
#endif
#if defined(QUANT_SDOT)
enum { LANES = 4, ACCUMULATORS = 16 };
#elif defined(__arm__)
enum { LANES = 4, ACCUMULATORS = 4 };
#else
enum { LANES = 4, ACCUMULATORS = 8 };
#endif
#else
enum { LANES = 4, ACCUMULATORS = 4 };
#endif

typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef float vf __attribute__((vector_size(LANES * 4)));

QUANT_INLINE vu load(const char *p) {
    vu v;
    memcpy(&v, p, sizeof v);
    return v;
}
QUANT_INLINE vf load_float(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
QUANT_INLINE vf all(float x) { return x - (vf){0}; }
QUANT_INLINE vi all_int(int32_t x) { return x - (vi){0}; }

/* a > b ? a : b, and a < b ? a : b: b where one is a NaN. */
#if defined(QUANT_DPBUSD_512) && !defined(IRSTD_SIMDE)
QUANT_INLINE vf larger(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
QUANT_INLINE vf smaller(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(QUANT_256)
QUANT_INLINE vf larger(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
QUANT_INLINE vf smaller(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
#else
QUANT_INLINE vf blend(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
QUANT_INLINE vf larger(vf a, vf b) { return blend(a > b, a, b); }
QUANT_INLINE vf smaller(vf a, vf b) { return blend(a < b, a, b); }
#endif
#if (defined(QUANT_SMLAL) || defined(QUANT_SDOT)) && !defined(IRSTD_SIMDE) /* GCC converts lane by lane */
QUANT_INLINE vf to_float(vi x) { return (vf)vcvtq_f32_s32((int32x4_t)x); }
#else
QUANT_INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }
#endif

/* ---- the dot product: sums of a tile, [channel * vectors + vector]; `w` are the weights of one word ---- */

#if defined(QUANT_DPBUSD_512) || defined(QUANT_DPBUSD_256)
enum { WEIGHT_WORDS = 1, PRODUCTS = 0, SIGNED_BYTES = 0 };
typedef struct {
    vi sum[ACCUMULATORS];
} sums;
#if defined(QUANT_DPBUSD_512)
#define DOT(sum, x, w) (vi)_mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(x), _mm512_set1_epi32((int)(w)))
#else
#define DOT(sum, x, w) (vi)_mm256_dpbusd_avx_epi32((__m256i)(sum), (__m256i)(x), _mm256_set1_epi32((int)(w)))
#endif
QUANT_INLINE void step(sums *s, const vu *x, const uint32_t *w, const int tile, const int vectors) {
    UNROLL
    for (int o = 0; o < tile; o++)
        UNROLL
        for (int v = 0; v < vectors; v++) s->sum[o * vectors + v] = DOT(s->sum[o * vectors + v], x[v], w[o]);
}
QUANT_INLINE void fold(sums *s, const int count) { (void)s, (void)count; }
QUANT_INLINE vi sum_of(const sums *s, int i) { return s->sum[i]; }

#elif defined(QUANT_MADDWD) /* bytes widened to int16: exact for all of 8 bits */
enum { WEIGHT_WORDS = 2, PRODUCTS = 0, SIGNED_BYTES = 0 };
typedef struct {
    vi sum[ACCUMULATORS];
} sums;
QUANT_INLINE void step(sums *s, const vu *x, const uint32_t *w, const int tile, const int vectors) {
    vu even[ACCUMULATORS], odd[ACCUMULATORS];
    UNROLL
    for (int v = 0; v < vectors; v++) {
        even[v] = x[v] & 0x00ff00ff;
        odd[v] = (vu)_mm256_srli_epi16((__m256i)x[v], 8);
    }
    UNROLL
    for (int o = 0; o < tile; o++) {
        const __m256i w0 = _mm256_set1_epi32((int)w[2 * o]), w1 = _mm256_set1_epi32((int)w[2 * o + 1]);
        UNROLL
        for (int v = 0; v < vectors; v++)
            s->sum[o * vectors + v] += (vi)_mm256_madd_epi16((__m256i)even[v], w0) + (vi)_mm256_madd_epi16((__m256i)odd[v], w1);
    }
}
QUANT_INLINE void fold(sums *s, const int count) { (void)s, (void)count; }
QUANT_INLINE vi sum_of(const sums *s, int i) { return s->sum[i]; }

#elif defined(QUANT_MADDUBS) /* pairs of products in int16, where they and the next ones fit */
enum { WEIGHT_WORDS = 1, PRODUCTS = 2, SIGNED_BYTES = 0 };
typedef struct {
    vi sum[ACCUMULATORS];
    __m256i narrow[ACCUMULATORS];
} sums;
QUANT_INLINE void step(sums *s, const vu *x, const uint32_t *w, const int tile, const int vectors) {
    UNROLL
    for (int o = 0; o < tile; o++) {
        const __m256i weight = _mm256_set1_epi32((int)w[o]);
        UNROLL
        for (int v = 0; v < vectors; v++)
            s->narrow[o * vectors + v] =
                _mm256_add_epi16(s->narrow[o * vectors + v], _mm256_maddubs_epi16((__m256i)x[v], weight));
    }
}
QUANT_INLINE void fold(sums *s, const int count) {
    UNROLL
    for (int i = 0; i < count; i++) {
        s->sum[i] += (vi)_mm256_madd_epi16(s->narrow[i], _mm256_set1_epi16(1));
        s->narrow[i] = _mm256_setzero_si256();
    }
}
QUANT_INLINE vi sum_of(const sums *s, int i) { return s->sum[i]; }

#elif defined(QUANT_SMLAL) /* products in int16, where they and the next ones fit */
#if defined(__aarch64__) || defined(IRSTD_SIMDE)
#define VMLAL_HIGH vmlal_high_s8
#else
#define VMLAL_HIGH(sum, a, b) vmlal_s8(sum, vget_high_s8(a), vget_high_s8(b))
#endif
enum { WEIGHT_WORDS = 1, PRODUCTS = 1, SIGNED_BYTES = 1 };
typedef struct {
    int32x4_t low_sum[ACCUMULATORS], high_sum[ACCUMULATORS]; /* two lanes of a pixel */
    int16x8_t low[ACCUMULATORS], high[ACCUMULATORS];
} sums;
QUANT_INLINE void step(sums *s, const vu *x, const uint32_t *w, const int tile, const int vectors) {
    UNROLL
    for (int o = 0; o < tile; o++) {
        const int8x16_t weight = vreinterpretq_s8_u32(vld1q_dup_u32(w + o));
        UNROLL
        for (int v = 0; v < vectors; v++) {
            int8x16_t pixels;
            memcpy(&pixels, &x[v], sizeof pixels);
            s->low[o * vectors + v] = vmlal_s8(s->low[o * vectors + v], vget_low_s8(pixels), vget_low_s8(weight));
            s->high[o * vectors + v] = VMLAL_HIGH(s->high[o * vectors + v], pixels, weight);
        }
    }
}
QUANT_INLINE void fold(sums *s, const int count) {
    UNROLL
    for (int i = 0; i < count; i++) {
        s->low_sum[i] = vpadalq_s16(s->low_sum[i], s->low[i]);
        s->high_sum[i] = vpadalq_s16(s->high_sum[i], s->high[i]);
        s->low[i] = s->high[i] = vdupq_n_s16(0);
    }
}
QUANT_INLINE vi sum_of(const sums *s, int i) {
    int32x4_t sum = vcombine_s32(vpadd_s32(vget_low_s32(s->low_sum[i]), vget_high_s32(s->low_sum[i])),
                                 vpadd_s32(vget_low_s32(s->high_sum[i]), vget_high_s32(s->high_sum[i])));
    vi result;
    memcpy(&result, &sum, sizeof result);
    return result;
}

#elif defined(QUANT_SDOT)
enum { WEIGHT_WORDS = 1, PRODUCTS = 0, SIGNED_BYTES = 1 };
typedef struct {
    vi sum[ACCUMULATORS];
} sums;
QUANT_INLINE void step(sums *s, const vu *x, const uint32_t *w, const int tile, const int vectors) {
    UNROLL
    for (int o = 0; o < tile; o += 4) {
        const int8x16_t weights = vreinterpretq_s8_u32(vld1q_u32(w + o));
#define CHANNEL(lane)                                                                                               \
    UNROLL                                                                                                          \
    for (int v = 0; v < vectors; v++)                                                                               \
        s->sum[(o + lane) * vectors + v] =                                                                          \
            (vi)vdotq_laneq_s32((int32x4_t)s->sum[(o + lane) * vectors + v], (int8x16_t)x[v], weights, lane);
        CHANNEL(0) CHANNEL(1) CHANNEL(2) CHANNEL(3)
#undef CHANNEL
    }
}
QUANT_INLINE void fold(sums *s, const int count) { (void)s, (void)count; }
QUANT_INLINE vi sum_of(const sums *s, int i) { return s->sum[i]; }

#else /* the definition */
enum { WEIGHT_WORDS = 1, PRODUCTS = 0, SIGNED_BYTES = 0 };
typedef struct {
    vi sum[ACCUMULATORS];
} sums;
QUANT_INLINE void step(sums *s, const vu *x, const uint32_t *w, const int tile, const int vectors) {
    for (int o = 0; o < tile; o++)
        for (int v = 0; v < vectors; v++)
            for (int k = 0; k < 4; k++)
                s->sum[o * vectors + v] += (vi)(x[v] >> 8 * k & 255) * (int32_t)(int8_t)(w[o] >> 8 * k);
}
QUANT_INLINE void fold(sums *s, const int count) { (void)s, (void)count; }
QUANT_INLINE vi sum_of(const sums *s, int i) { return s->sum[i]; }
#endif

QUANT_INLINE void clear(sums *s, const int count) {
    UNROLL
    for (int i = 0; i < count; i++) {
#if defined(QUANT_SMLAL)
        s->low_sum[i] = s->high_sum[i] = vdupq_n_s32(0);
        s->low[i] = s->high[i] = vdupq_n_s16(0);
#else
        s->sum[i] = (vi){0};
#endif
#if defined(QUANT_MADDUBS)
        s->narrow[i] = _mm256_setzero_si256();
#endif
    }
}

/* ---- the epilogue ---- */

/* Four channels, quantised, as field `part` of the bytes of words: the first part overwrites, the others are added. */
QUANT_INLINE void put_words(const irstd_quantizer *q, const vf x[4], int part, uint32_t *words) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, half to even, in the low bits */
    vu word = {0};
    UNROLL
    for (int i = 0; i < 4; i++) {
        vf t = smaller(larger(x[i] * q->inverse_step, all(q->low)), all(q->high)); /* a NaN becomes low */
        word |= (vu)((vi)(t + magic) - (0x4b400000 - q->zero)) << 8 * i;
    }
    word ^= q->flip;
    if (part) {
        vu before;
        memcpy(&before, words, sizeof before);
        word = before | word << (part * q->bits);
    }
    memcpy(words, &word, sizeof word);
}

QUANT_INLINE void finish(const irstd_qconv *c, const sums *s, int channel, int64_t column, const int tile,
                         const int vectors, const irstd_quant_output *out) {
    UNROLL
    for (int g = 0; g < tile; g += 4) {
        const int first = channel + g;
        if (first >= c->a.out_channels) return;
        UNROLL
        for (int v = 0; v < vectors; v++) {
            vf y[4];
            UNROLL
            for (int i = 0; i < 4; i++) {
                const int oc = first + i;
                vi sum = sum_of(s, (g + i) * vectors + v) + c->start[oc];
                y[i] = to_float(sum) * c->scale[oc] + c->bias[oc];
                y[i] = smaller(all(c->a.clamp_max), larger(all(c->a.clamp_min), y[i])); /* a NaN stays one */
            }
            const int64_t at = column + v * LANES;
            if (out->y)
                for (int i = 0; i < 4 && first + i < c->a.out_channels; i++)
                    memcpy(out->y + (first + i) * out->y_stride + at, &y[i], sizeof y[i]);
            for (int m = 0; m < out->maps; m++) {
                const irstd_quantizer *q = out->map[m].quantizer;
                const int channels = 32 / q->bits;
                put_words(q, y, first % channels / 4, out->map[m].words + first / channels * out->map[m].stride + at);
            }
        }
    }
}

/* ---- one row ---- */

QUANT_INLINE void run_tile(const irstd_qconv *c, const irstd_quant_tile *t, int channel, const char *const *pixels,
                           int first_tap, int last_tap, int64_t width, const irstd_quant_output *out, const int tile,
                           const int vectors, const int bits) {
    const int64_t block = vectors * LANES, columns = irstd_max(width, QUANT_COLUMNS);
    const int chunk = c->chunk;
    const uint32_t mask = ((1u << bits) - 1) * 0x01010101u;
    for (int64_t done = 0; done < columns; done += block) {
        const int64_t column = irstd_min(done, columns - block); /* the last block may overlap the one before */
        const uint32_t *w = c->weights + t->weights + first_tap * t->tap_weights;
        sums s;
        clear(&s, tile * vectors);
        int left = chunk;
        for (int tap = first_tap; tap < last_tap; tap++) {
            const char *const *words = pixels + tap * c->words + t->first;
            for (int p = 0; p < t->count; p++) {
                const char *at = words[p] + 4 * column;
                vu x[ACCUMULATORS];
                UNROLL
                for (int v = 0; v < vectors; v++) x[v] = load(at + 4 * v * LANES);
                FIELD_LOOP
                for (int part = 0; part < 8 / bits; part++, w += tile * WEIGHT_WORDS) {
                    vu field[ACCUMULATORS];
                    UNROLL
                    for (int v = 0; v < vectors; v++) field[v] = bits == 8 ? x[v] : x[v] >> part * bits & mask;
                    step(&s, field, w, tile, vectors);
                    if (PRODUCTS && !--left) {
                        fold(&s, tile * vectors);
                        left = chunk;
                    }
                }
            }
        }
        fold(&s, tile * vectors);
        finish(c, &s, channel, column, tile, vectors, out);
    }
}

static void row(const irstd_qconv *c, const char *const *pixels, int first_tap, int last_tap, int64_t width,
                const irstd_quant_output *out) {
    const irstd_quant_tile *t = c->tiles;
    for (int channel = 0; channel < c->a.out_channels; channel += c->tile, t++) {
#define FIELDS(channels, count, bits)                                                                                  \
    case bits: run_tile(c, t, channel, pixels, first_tap, last_tap, width, out, channels, count, bits); break;
#define SHAPE(channels, count)                                                                                         \
    if (channels * count <= ACCUMULATORS && c->tile == channels && c->vectors == count)                                \
        switch (c->quantizer.bits) {                                                                                   \
            FIELDS(channels, count, 2) FIELDS(channels, count, 4) FIELDS(channels, count, 8)                           \
        }
        SHAPE(4, 1) SHAPE(4, 2) SHAPE(4, 4) SHAPE(8, 1) SHAPE(8, 2) SHAPE(16, 1)
#undef SHAPE
#undef FIELDS
    }
}

/* ---- quantised maps of values ---- */

static void quantize(const irstd_quantizer *q, const float *const x[4], int part, int64_t width, uint32_t *words) {
    float narrow[4][LANES];
    for (int64_t done = 0; done < width; done += LANES) {
        const int64_t column = irstd_max(0, irstd_min(done, width - LANES)); /* never beyond the row */
        vf y[4];
        for (int i = 0; i < 4; i++) {
            y[i] = all(0);
            if (!x[i]) continue;
            if (width < LANES) {
                memset(narrow[i], 0, sizeof narrow[i]);
                memcpy(narrow[i], x[i], (size_t)width * sizeof *narrow[i]);
                y[i] = load_float(narrow[i]);
            } else {
                y[i] = load_float(x[i] + column);
            }
        }
        put_words(q, y, part, words + column);
    }
}

const irstd_quant_kernels PASTE(irstd_quant_, IRSTD_QUANT) = {
    .isa = TEXT(QUANT_ISA), .name = "qconv2d_" TEXT(QUANT_NAME), .lanes = LANES, .accumulators = ACCUMULATORS,
    .weight_words = WEIGHT_WORDS, .products = PRODUCTS, .signed_bytes = SIGNED_BYTES, .step_cost = QUANT_STEP_COST,
    .fold_cost = QUANT_FOLD_COST, .needs = IRSTD_CPU_NEEDS, .row = row, .quantize = quantize,
};

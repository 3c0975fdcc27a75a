/* Quantised convolution of one row, in GCC's vector types around one dot product; compiled once for every variant, as
 * irstd_quant_<IRSTD_QUANT>, without contraction: every float step is rounded.
 *
 * Sums have the lanes of the pixels: a word of four channels of each pixel times a word of four weights that all lanes
 * share. A step multiplies and adds one word for every vector of columns and every channel of the tile. */
#include <math.h>
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
#elif defined(QUANT_MADDUBS) || defined(QUANT_PAIRS) || defined(QUANT_MADDWD) || defined(QUANT_DPBUSD_256)
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
#if (defined(QUANT_SMLAL) || defined(QUANT_SDOT)) && defined(__aarch64__)
#define QUANT_ARMV8
#endif
#if defined(QUANT_SDOT)
enum { SHARED = 4 };
#else
enum { SHARED = 1 };
#endif

/* Compilers then add to an address what is near it in place, and not what many addresses share ahead of them. */
#if defined(__GNUC__)
#define PLAIN(address) __asm__("" : "+r"(address))
#else
#define PLAIN(address) ((void)0)
#endif

typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef float vf __attribute__((vector_size(LANES * 4)));

QUANT_INLINE vu load(const char *p) {
    vu v;
    memcpy(&v, p, sizeof v);
    return v;
}
QUANT_INLINE vf load_float(const void *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
QUANT_INLINE vf all(float x) { return x - (vf){0}; }
QUANT_INLINE vi all_int(int32_t x) { return x - (vi){0}; }

/* a > b ? a : b, and a < b ? a : b: b where b or both are NaN; `number`: b where either is. */
#if defined(QUANT_DPBUSD_512) && !defined(IRSTD_SIMDE)
QUANT_INLINE vf larger(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
QUANT_INLINE vf smaller(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#define larger_number larger
#elif defined(QUANT_256)
QUANT_INLINE vf larger(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
QUANT_INLINE vf smaller(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
#define larger_number larger
#elif defined(QUANT_ARMV8)
QUANT_INLINE vf larger(vf a, vf b) { return (vf)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
QUANT_INLINE vf smaller(vf a, vf b) { return (vf)vminq_f32((float32x4_t)a, (float32x4_t)b); }
QUANT_INLINE vf larger_number(vf a, vf b) { return (vf)vmaxnmq_f32((float32x4_t)a, (float32x4_t)b); }
#else
#define larger_number larger
QUANT_INLINE vf blend(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
QUANT_INLINE vf larger(vf a, vf b) { return blend(a > b, a, b); }
QUANT_INLINE vf smaller(vf a, vf b) { return blend(a < b, a, b); }
#endif
#if (defined(QUANT_SMLAL) || defined(QUANT_SDOT)) && !defined(IRSTD_SIMDE) /* GCC converts lane by lane */
QUANT_INLINE vf to_float(vi x) { return (vf)vcvtq_f32_s32((int32x4_t)x); }
#else
QUANT_INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }
#endif

#if defined(QUANT_MADDUBS) || defined(QUANT_SMLAL)
enum { FOLDS = 1 };
#else
enum { FOLDS = 0 };
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

#elif defined(QUANT_PAIRS) /* pairs of products in int16, summed in int32 */
enum { WEIGHT_WORDS = 1, PRODUCTS = 2, SIGNED_BYTES = 0 };
typedef struct {
    vi sum[ACCUMULATORS];
} sums;
QUANT_INLINE void step(sums *s, const vu *x, const uint32_t *w, const int tile, const int vectors) {
    const __m256i one = _mm256_set1_epi16(1);
    UNROLL
    for (int o = 0; o < tile; o++) {
        const __m256i weight = _mm256_set1_epi32((int)w[o]);
        UNROLL
        for (int v = 0; v < vectors; v++)
            s->sum[o * vectors + v] += (vi)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)x[v], weight), one);
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
    if (tile == 1) {
        UNROLL
        for (int v = 0; v < vectors; v++)
            s->sum[v] = (vi)vdotq_s32((int32x4_t)s->sum[v], (int8x16_t)x[v], vreinterpretq_s8_u32(vld1q_dup_u32(w)));
        return;
    }
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

/* Sums of a tile begin with what zeros stored as something else add. */
QUANT_INLINE void begin(sums *s, const int32_t *start, const int tile, const int vectors) {
    UNROLL
    for (int o = 0; o < tile; o++)
        UNROLL
        for (int v = 0; v < vectors; v++) {
            const int i = o * vectors + v;
#if defined(QUANT_SMLAL)
            s->low_sum[i] = s->high_sum[i] = vreinterpretq_s32_u64(vdupq_n_u64((uint32_t)start[o]));
            s->low[i] = s->high[i] = vdupq_n_s16(0);
#else
            s->sum[i] = all_int(start[o]);
#endif
#if defined(QUANT_MADDUBS)
            s->narrow[i] = _mm256_setzero_si256();
#endif
        }
}

/* ---- the epilogue ---- */

/* Values to quantise: ANY; those whose lowest level is zero, which is what NaN converts to on ARM; NEAR ones, none of them
 * beyond +-NEAREST steps or a NaN. */
enum { ANY, FROM_ZERO, NEAR, NEAREST = 16000 };

QUANT_INLINE int range_of(const irstd_quantizer *q) { return q->low == 0 && q->zero == 0 ? FROM_ZERO : ANY; }

/* Four channels, quantised, in the bytes of words. Rounded is half to even, as the unit does, or by adding 1.5 * 2^23,
 * which leaves the integer in the low bits. */
#if (defined(QUANT_256) || defined(QUANT_DPBUSD_512)) && !defined(IRSTD_SIMDE)
#if defined(QUANT_256)
#define OF(name, kind) _mm256_##name##_##kind
typedef __m256i integers;
#else
#define OF(name, kind) _mm512_##name##_##kind
typedef __m512i integers;
#endif
QUANT_INLINE vu quantised(const irstd_quantizer *q, const vf x[4], const int range) {
    integers n[4];
    UNROLL
    for (int i = 0; i < 4; i++) { /* out of range and NaN convert to the lowest integer */
        vf scaled = x[i] * q->inverse_step;
        if (range != NEAR) scaled = smaller(all(q->high), scaled);
#if defined(QUANT_256)
        n[i] = _mm256_cvtps_epi32((__m256)scaled);
#else
        n[i] = _mm512_cvtps_epi32((__m512)scaled);
#endif
    }
    const integers zero = OF(set1, epi16)((int16_t)q->zero);
    const integers low = OF(adds, epi16)(OF(packs, epi32)(n[0], n[1]), zero);
    const integers high = OF(adds, epi16)(OF(packs, epi32)(n[2], n[3]), zero);
    const integers bytes = OF(min, epu8)(OF(packus, epi16)(low, high), OF(set1, epi8)((char)(q->high - q->low)));
#if defined(QUANT_256)
    const integers order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
#else
    const integers order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
#endif
    return (vu)OF(shuffle, epi8)(bytes, order);
}
#elif defined(QUANT_ARMV8) && !defined(IRSTD_SIMDE)
QUANT_INLINE vu quantised(const irstd_quantizer *q, const vf x[4], const int range) {
    int16x8_t low, high;
    if (range == NEAR) {
        vf n[4];
        UNROLL
        for (int i = 0; i < 4; i++) n[i] = x[i] * q->inverse_step + (12582912.0f + (float)q->zero);
        low = vuzp1q_s16((int16x8_t)n[0], (int16x8_t)n[1]);
        high = vuzp1q_s16((int16x8_t)n[2], (int16x8_t)n[3]);
    } else {
        int32x4_t n[4];
        UNROLL
        for (int i = 0; i < 4; i++) {
            const vf scaled = x[i] * q->inverse_step;
            n[i] = vcvtnq_s32_f32((float32x4_t)(range == FROM_ZERO ? scaled : larger_number(scaled, all(q->low))));
        }
        low = vqmovn_high_s32(vqmovn_s32(n[0]), n[1]);
        high = vqmovn_high_s32(vqmovn_s32(n[2]), n[3]);
        if (range == ANY) {
            low = vqaddq_s16(low, vdupq_n_s16((int16_t)q->zero));
            high = vqaddq_s16(high, vdupq_n_s16((int16_t)q->zero));
        }
    }
    static const uint8_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const uint8x16_t bytes = vminq_u8(vqmovun_high_s16(vqmovun_s16(low), high), vdupq_n_u8((uint8_t)(q->high - q->low)));
    return (vu)vqtbl1q_u8(bytes, vld1q_u8(order)) ^ q->flip;
}
#else
QUANT_INLINE vu quantised(const irstd_quantizer *q, const vf x[4], const int range) {
    vu byte[4];
    (void)range;
    UNROLL
    for (int i = 0; i < 4; i++)
        byte[i] = (vu)(smaller(larger_number(x[i] * q->inverse_step, all(q->low)), all(q->high)) + 12582912.0f);
    /* Above the integers the four have the same bits, which one subtraction takes away. */
    const uint32_t above = 0x4b400000u * 0x01010101u;
    vu word = byte[0] + (byte[1] << 8) + (byte[2] << 16) + (byte[3] << 24);
    return (word - (above - (uint32_t)q->zero * 0x01010101u)) ^ q->flip;
}
#endif

/* Field `part` of the bytes: the first part overwrites, the others are added. */
QUANT_INLINE void put_words(const irstd_quantizer *q, const vf x[4], int part, const int range, char *words) {
    vu word = quantised(q, x, range);
    if (part) {
        vu before;
        memcpy(&before, words, sizeof before);
        word = before | word << (part * q->bits);
    }
    memcpy(words, &word, sizeof word);
}

/* Whether values must be clamped: where they are quantised alone, the quantisers' own bounds may do it. */
static int clamps(const irstd_qconv *c, const irstd_quant_output *out) {
    const float low = c->a.clamp_min, high = c->a.clamp_max;
    int found = 0;
    for (int m = 0; m < out->maps; m++) {
        const irstd_quantizer *q = out->map[m].quantizer;
        found |= low * q->inverse_step > q->low || high * q->inverse_step < q->high;
    }
    return (found || out->y) && (low > -INFINITY || high < INFINITY);
}

/* The values of the first map. */
static int range_of_results(const irstd_qconv *c, const irstd_quant_output *out) {
    if (!out->maps) return ANY;
    const irstd_quantizer *q = out->map[0].quantizer;
    return !out->addend && c->largest * q->inverse_step < NEAREST ? NEAR : range_of(q);
}

/* A row of `count` channels from `first`, at most four, whose sums are `stride` apart. */
QUANT_INLINE void finish_four(const irstd_qconv *c, const int32_t *sums, int64_t stride, const int first, const int count,
                              int64_t columns, const irstd_quant_output *out, const int added, const int clamped,
                              const int stored, const int maps, const int range) {
    const vf low = all(c->a.clamp_min), high = all(c->a.clamp_max);
    const char *from[4], *addend[4] = {NULL};
    char *values[4] = {NULL}, *words[MAX_MAPS];
    irstd_quantizer q[MAX_MAPS];
    int part[MAX_MAPS];
    vf scale[4], bias[4];
    for (int m = 0; m < maps; m++) {
        q[m] = *out->map[m].quantizer;
        const int channels = 32 / q[m].bits;
        words[m] = (char *)(out->map[m].words + first / channels * out->map[m].stride);
        part[m] = first % channels / 4;
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        scale[i] = all(c->scale[first + i]);
        bias[i] = all(c->bias[first + i]);
        from[i] = (const char *)(sums + i * stride);
        if (added && i < count) addend[i] = (const char *)(out->addend + (first + i) * out->addend_stride);
        if (stored && i < count) values[i] = (char *)(out->y + (first + i) * out->y_stride);
        PLAIN(from[i]);
        if (added) PLAIN(addend[i]);
        if (stored) PLAIN(values[i]);
    }
    const int64_t step = LANES * 4, last = 4 * columns - step; /* the last block may overlap the one before */
    for (int64_t at = 0;; at = irstd_min(at + step, last)) {
        vf y[4];
        UNROLL
        for (int i = 0; i < 4; i++) {
            vi sum;
            memcpy(&sum, from[i] + at, sizeof sum);
            y[i] = to_float(sum) * scale[i] + bias[i];
            if (added && i < count) y[i] += load_float(addend[i] + at);
            if (clamped) y[i] = smaller(high, larger(low, y[i])); /* a NaN stays one */
            if (stored && i < count) memcpy(values[i] + at, &y[i], sizeof y[i]);
        }
        UNROLL
        for (int m = 0; m < maps; m++) put_words(&q[m], y, part[m], range, words[m] + at);
        if (at == last) break;
    }
}

static void finish(const irstd_qconv *c, const int32_t *sums, int64_t stride, int first, int64_t columns,
                   const irstd_quant_output *out) {
    const int count = irstd_min(4, c->a.out_channels - first), clamped = clamps(c, out), range = range_of_results(c, out);
    const int added = out->addend != NULL, stored = out->y != NULL;
#define FINISH(count, added, clamped, stored, maps, range)                                                             \
    finish_four(c, sums, stride, first, count, columns, out, added, clamped, stored, maps, range)
#define CASE(added, clamped, stored)                                                                                   \
    case 8 | stored << 2 | clamped << 1 | added:                                                                       \
        if (range == NEAR && !added)                                                                                   \
            FINISH(4, added, clamped, stored, 1, NEAR);                                                                \
        else if (range == FROM_ZERO)                                                                                   \
            FINISH(4, added, clamped, stored, 1, FROM_ZERO);                                                           \
        else                                                                                                           \
            FINISH(4, added, clamped, stored, 1, ANY);                                                                 \
        return;                                                                                                        \
    case stored << 2 | clamped << 1 | added:                                                                           \
        FINISH(4, added, clamped, stored, 0, ANY);                                                                     \
        return;
    switch (count < 4 || out->maps > 1 ? -1 : out->maps << 3 | stored << 2 | clamped << 1 | added) {
        CASE(0, 0, 0) CASE(1, 0, 0) CASE(0, 1, 0) CASE(1, 1, 0) CASE(0, 0, 1) CASE(1, 0, 1) CASE(0, 1, 1) CASE(1, 1, 1)
    }
#undef CASE
    FINISH(count, added, clamped, stored, out->maps, ANY);
#undef FINISH
}

/* ---- one row ---- */

/* Field `part` of every byte. */
QUANT_INLINE vu field_of(vu x, const int part, const int bits) {
    const uint32_t mask = ((1u << bits) - 1) * 0x01010101u;
    if (bits == 8) return x;
#if defined(QUANT_ARMV8)
    if (part) x = (vu)vshrq_n_u8((uint8x16_t)x, part ? part * bits : 1);
    return (part + 1) * bits < 8 ? x & mask : x;
#else
    return x >> part * bits & mask;
#endif
}

/* Sums of a tile's row: [channel][stride]. */
QUANT_INLINE void run_tile(const irstd_qconv *c, const irstd_quant_tile *t, int channel, const char *const *pixels,
                           int first_tap, int last_tap, int64_t columns, int32_t *to, int64_t stride, const int tile,
                           const int vectors, const int bits) {
    const int64_t block = vectors * LANES;
    const int chunk = c->chunk, taps = last_tap - first_tap, pixel_words = c->words;
    const int whole = t->count == pixel_words, runs = whole ? 1 : taps, length = whole ? taps * t->count : t->count;
    const uint32_t *weights = c->weights + t->weights + first_tap * t->tap_weights;
    const int32_t *start = c->start + channel;
    for (int64_t done = 0; done < columns; done += block) {
        const int64_t column = irstd_min(done, columns - block); /* the last block may overlap the one before */
        const uint32_t *w = weights;
        sums s;
        begin(&s, start, tile, vectors);
        int left = chunk;
        for (int run = 0; run < runs; run++) {
            const char *const *words = pixels + (first_tap + run) * pixel_words + t->first;
            for (int p = 0; p < length; p++) {
                const char *at = words[p] + 4 * column;
                PLAIN(at);
                vu x[ACCUMULATORS];
                UNROLL
                for (int v = 0; v < vectors; v++) x[v] = load(at + 4 * v * LANES);
                FIELD_LOOP
                for (int part = 0; part < 8 / bits; part++, w += tile * WEIGHT_WORDS) {
                    vu field[ACCUMULATORS];
                    UNROLL
                    for (int v = 0; v < vectors; v++) field[v] = field_of(x[v], part, bits);
                    step(&s, field, w, tile, vectors);
                    if (FOLDS && !--left) { /* after every step: compilers gather what has no branch between */
                        fold(&s, tile * vectors);
                        left = chunk;
                    }
                }
            }
        }
        fold(&s, tile * vectors);
        UNROLL
        for (int o = 0; o < tile; o++)
            UNROLL
            for (int v = 0; v < vectors; v++) {
                const vi sum = sum_of(&s, o * vectors + v);
                memcpy(to + o * stride + column + v * LANES, &sum, sizeof sum);
            }
    }
}

/* Four rows of words, each of four channels, become four channels of words, each of four rows: bytes are transposed. Of
 * three rows the fourth is zero. */
QUANT_INLINE void merge(const char *const rows[4], int64_t columns, uint32_t *to, int64_t stride, const int count) {
    const uint32_t even = 0x00ff00ff, odd = 0xff00ff00, low = 0x0000ffff, high = 0xffff0000;
    for (int64_t done = 0; done < columns; done += LANES) {
        const int64_t column = irstd_min(done, columns - LANES);
        const vu a = load(rows[0] + 4 * column), b = load(rows[1] + 4 * column), c = load(rows[2] + 4 * column);
        const vu d = count > 3 ? load(rows[3] + 4 * column) : (vu){0};
        const vu ab02 = (a & even) | (b & even) << 8, ab13 = (a >> 8 & even) | (b & odd);
        const vu cd02 = (c & even) | (d & even) << 8, cd13 = (c >> 8 & even) | (d & odd);
        const vu channel[4] = {(ab02 & low) | cd02 << 16, (ab13 & low) | cd13 << 16, ab02 >> 16 | (cd02 & high),
                               ab13 >> 16 | (cd13 & high)};
        UNROLL
        for (int i = 0; i < 4; i++) memcpy(to + i * stride + column, &channel[i], sizeof channel[i]);
    }
}

/* The same of four channels that read one each. */
QUANT_INLINE void run_depthwise(const irstd_qconv *c, const irstd_quant_tile *t, int channel, const char *const *pixels,
                                int64_t columns, int32_t *to, int64_t stride, const int vectors) {
    const int64_t block = vectors * LANES, dilation = c->a.dilation_w, reach = dilation * (c->a.kernel_w - 1);
    const int64_t merged_stride = irstd_quant_merged_stride(c, columns);
    const int kernel_h = c->a.kernel_h, kernel_w = c->a.kernel_w, chunk = c->chunk;
    uint32_t *merged = (uint32_t *)(to + 4 * stride);
    for (int kh = 0; kh < kernel_h; kh += 4) {
        const char *rows[4];
        for (int r = 0; r < 4; r++) rows[r] = pixels[irstd_min(kh + r, kernel_h - 1) * kernel_w * c->words + t->first];
        if (kernel_h - kh == 3)
            merge(rows, columns + reach, merged + kh * merged_stride, merged_stride, 3);
        else
            merge(rows, columns + reach, merged + kh * merged_stride, merged_stride, 4);
    }
    for (int o = 0; o < 4; o++)
        for (int64_t done = 0; done < columns; done += block) {
            const int64_t column = irstd_min(done, columns - block);
            const uint32_t *w = c->weights + t->weights + o * WEIGHT_WORDS;
            sums s;
            begin(&s, c->start + channel + o, 1, vectors);
            int left = chunk;
            for (int kh = 0; kh < kernel_h; kh += 4) {
                const char *at = (const char *)(merged + (kh + o) * merged_stride + column);
                for (int kw = 0; kw < kernel_w; kw++, at += 4 * dilation, w += t->tap_weights) {
                    vu x[ACCUMULATORS];
                    UNROLL
                    for (int v = 0; v < vectors; v++) x[v] = load(at + 4 * v * LANES);
                    step(&s, x, w, 1, vectors);
                    if (FOLDS && !--left) {
                        fold(&s, vectors);
                        left = chunk;
                    }
                }
            }
            fold(&s, vectors);
            UNROLL
            for (int v = 0; v < vectors; v++) {
                const vi sum = sum_of(&s, v);
                memcpy(to + o * stride + column + v * LANES, &sum, sizeof sum);
            }
        }
}

static void row(const irstd_qconv *c, const char *const *pixels, int first_tap, int last_tap, int64_t width,
                const irstd_quant_output *out, int32_t *sums) {
    const irstd_quant_tile *t = c->tiles;
    const int64_t columns = irstd_max(width, QUANT_COLUMNS), stride = irstd_quant_sums_stride(width);
    for (int channel = 0; channel < c->a.out_channels; channel += c->tile, t++) {
#define FIELDS(channels, count, bits)                                                                                  \
    case bits:                                                                                                         \
        run_tile(c, t, channel, pixels, first_tap, last_tap, columns, sums, stride, channels, count, bits);            \
        break;
#define SHAPE(channels, count)                                                                                         \
    if (!c->depthwise && channels * count <= ACCUMULATORS && c->tile == channels && c->vectors == count)               \
        switch (c->quantizer.bits) {                                                                                   \
            FIELDS(channels, count, 2) FIELDS(channels, count, 4) FIELDS(channels, count, 8)                           \
        }
        switch (c->depthwise ? c->vectors : 0) {
        case 1: run_depthwise(c, t, channel, pixels, columns, sums, stride, 1); break;
        case 2: run_depthwise(c, t, channel, pixels, columns, sums, stride, 2); break;
        case 3: run_depthwise(c, t, channel, pixels, columns, sums, stride, 3); break;
        case 4: run_depthwise(c, t, channel, pixels, columns, sums, stride, 4); break;
        }
        SHAPE(4, 1) SHAPE(4, 2) SHAPE(4, 3) SHAPE(4, 4) SHAPE(8, 1) SHAPE(8, 2) SHAPE(16, 1)
#undef SHAPE
#undef FIELDS
        for (int g = 0; g < c->tile && channel + g < c->a.out_channels; g += 4)
            finish(c, sums + g * stride, stride, channel + g, columns, out);
    }
}

/* ---- quantised maps of values ---- */

QUANT_INLINE void quantize_row(const irstd_quantizer *q, const float *const x[4], int part, int64_t width,
                               uint32_t *words, const int range) {
    const char *from[4];
    char *to = (char *)words;
    UNROLL
    for (int i = 0; i < 4; i++) {
        from[i] = (const char *)x[i];
        PLAIN(from[i]);
    }
    const int64_t step = LANES * 4, last = 4 * width - step;
    for (int64_t at = 0;; at = irstd_min(at + step, last)) {
        const vf y[4] = {load_float(from[0] + at), load_float(from[1] + at), load_float(from[2] + at), load_float(from[3] + at)};
        put_words(q, y, part, range, to + at);
        if (at == last) break;
    }
}

static void quantize(const irstd_quantizer *quantizer, const float *const x[4], int part, int64_t width, uint32_t *words) {
    const irstd_quantizer q = *quantizer; /* which the words cannot alias */
    float narrow[4][LANES];
    if (x[3] && width >= LANES) {
        if (range_of(&q) == FROM_ZERO)
            quantize_row(&q, x, part, width, words, FROM_ZERO);
        else
            quantize_row(&q, x, part, width, words, ANY);
        return;
    }
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
        put_words(&q, y, part, ANY, (char *)(words + column));
    }
}

const irstd_quant_kernels PASTE(irstd_quant_, IRSTD_QUANT) = {
    .isa = TEXT(QUANT_ISA), .name = "qconv2d_" TEXT(QUANT_NAME), .lanes = LANES, .accumulators = ACCUMULATORS,
    .weight_words = WEIGHT_WORDS, .shared_weights = SHARED, .products = PRODUCTS, .signed_bytes = SIGNED_BYTES,
    .step_cost = QUANT_STEP_COST, .narrow_cost = QUANT_NARROW_COST, .fold_cost = QUANT_FOLD_COST, .needs = IRSTD_CPU_NEEDS, .row = row, .quantize = quantize,
};

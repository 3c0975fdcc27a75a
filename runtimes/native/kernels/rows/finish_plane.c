/* The epilogue of a binary convolution in float32, every step rounded: compiled without contraction, once for every
 * instruction set. Defined by irstd_bconv_value, which it equals to the last bit. */
#include <math.h>

#include "../../engine/engine.h"

#define PASTE2(a, b) a##b
#define PASTE(a, b) PASTE2(a, b)

static inline float saturated(float q) {
    q = q > -32768.0f ? q : -32768.0f;
    return q < 32767.0f ? q : 32767.0f;
}

void PASTE(irstd_finish_plane_, IRSTD_ROWS)(const irstd_bconv *c, int oc, const int32_t *acc, const float *residual,
                                            int64_t n, float *y) {
    const irstd_bconv2d_attributes *a = &c->a;
    const int rprelu = a->activation == IRSTD_ACTIVATION_RPRELU;
    const float bias = c->bias[oc], slope = rprelu ? c->slope[oc] : 0;
    const float in = rprelu ? c->shift_in[oc] : 0, out = rprelu ? c->shift_out[oc] : 0;
    if (a->activation == IRSTD_ACTIVATION_CLAMP || a->residual == IRSTD_RESIDUAL_MODULATE ||
        (a->residual && rprelu && !a->activation_first)) {
        for (int64_t j = 0; j < n; j++) y[j] = irstd_bconv_value(c, oc, acc[j], residual ? residual[j] : 0);
        return;
    }
    if (a->fraction_bits < 0) {
        const float scale = c->scale[oc];
        for (int64_t j = 0; j < n; j++) y[j] = (float)acc[j] * scale + bias;
        for (int64_t j = 0; j < n && rprelu; j++) {
            float t = y[j] - in, s = t * slope;
            y[j] = (t >= 0 ? t : s) + out;
        }
        for (int64_t j = 0; j < n && residual; j++) y[j] += residual[j];
        return;
    }
    const float step = (float)(1 << a->fraction_bits), scale = c->scale[oc], back = 1 / step;
    const float offset = floorf(bias * step + 0.5f), first = floorf(in * step + 0.5f), last = floorf(out * step + 0.5f);
    for (int64_t j = 0; j < n; j++) y[j] = saturated(saturated(floorf((float)acc[j] * scale * step + 0.5f)) + offset);
    for (int64_t j = 0; j < n && rprelu; j++) {
        float t = saturated(y[j] - first), s = saturated(floorf(t * slope + 0.5f));
        y[j] = saturated((t < 0 ? s : t) + last);
    }
    for (int64_t j = 0; j < n && residual; j++) y[j] = saturated(y[j] + residual[j]);
    for (int64_t j = 0; j < n; j++) y[j] *= back;
}

/* AVX-512 intrinsics through SIMDe, so that the very source of the kernels is tested on any x86 CPU. */
#ifndef IRSTD_AVX512_EMULATED_H
#define IRSTD_AVX512_EMULATED_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

/* Not in SIMDe 0.7. */
static inline simde__m512 irstd_emulated_maskz_loadu(uint32_t mask, const float *from) {
    float lanes[16] = {0};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) lanes[i] = from[i];
    return simde_mm512_loadu_ps(lanes);
}
#define _mm512_maskz_loadu_ps(mask, from) irstd_emulated_maskz_loadu(mask, from)
#define _mm512_mask_cmp_ps_mask(mask, a, b, compare) ((mask) & simde_mm512_cmp_ps_mask(a, b, compare))

#endif

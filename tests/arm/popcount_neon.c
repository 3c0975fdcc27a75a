/* NEON source that is native on ARM and emulated by SIMDe elsewhere: the set bits of 4096 bytes. */
#ifdef __ARM_NEON
#include <arm_neon.h>
#else
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/arm/neon.h>
#endif
#include <stdio.h>

int main(void) {
    uint8_t bytes[4096];
    for (unsigned i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i * 2654435761u >> 13);
    uint16x8_t sum = vdupq_n_u16(0);
    for (unsigned i = 0; i < sizeof bytes; i += 16) sum = vpadalq_u8(sum, vcntq_u8(vld1q_u8(bytes + i)));
    uint16_t lanes[8];
    vst1q_u16(lanes, sum);
    unsigned total = 0;
    for (int i = 0; i < 8; i++) total += lanes[i];
    printf("%u\n", total);
    return 0;
}

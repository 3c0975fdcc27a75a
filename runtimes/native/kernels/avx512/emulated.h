/* AVX-512 intrinsics through SIMDe, so that the very source of the kernels is tested on any x86 CPU. */
#ifndef IRSTD_AVX512_EMULATED_H
#define IRSTD_AVX512_EMULATED_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#endif

/* Every variant of every kernel, one row each: dispatch, tests and micro-benchmarks follow this table. */
#include "internal.h"

const irstd_bconv2d_kernel *const irstd_bconv2d_kernels[] = {
    &irstd_bconv2d_ref,
#ifdef IRSTD_HAVE_AVX2
    &irstd_bconv2d_avx2,
#endif
#ifdef IRSTD_HAVE_AVX512
    &irstd_bconv2d_avx512,
#endif
};

const int irstd_bconv2d_kernel_count = sizeof irstd_bconv2d_kernels / sizeof *irstd_bconv2d_kernels;

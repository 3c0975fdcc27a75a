/* The engine's kernels of every instruction set, one row each: dispatch, tests and layer tables follow this table.
 * The best stands last; which ones a CPU has, their flags tell (core/cpu.h). */
#include "../engine/engine.h"
#include "../engine/quant.h"

extern const irstd_row_kernels irstd_rows_ref;

/* The reference has no kernels of its own: the engine decodes every bit, in int32. */
static const irstd_kernels irstd_kernels_ref = {
    .isa = "ref", .bit_channels = 16, .bit_bytes = 2, .zero_element = -1, .rows = &irstd_rows_ref,
    .name = "bconv2d_popcount",
};
extern const irstd_kernels irstd_kernels_avx2, irstd_kernels_avx512, irstd_kernels_neon;

const irstd_kernels *const irstd_kernel_sets[] = {
    &irstd_kernels_ref,
#ifdef IRSTD_HAVE_NEON
    &irstd_kernels_neon,
#endif
#ifdef IRSTD_HAVE_AVX2
    &irstd_kernels_avx2,
#endif
#ifdef IRSTD_HAVE_AVX512
    &irstd_kernels_avx512,
#endif
};

const int irstd_kernel_set_count = sizeof irstd_kernel_sets / sizeof *irstd_kernel_sets;

/* The quantised convolution has several variants of one instruction set; prepare chooses by layer. */
extern const irstd_quant_kernels irstd_quant_ref, irstd_quant_maddubs, irstd_quant_pairs, irstd_quant_maddwd, irstd_quant_dpbusd_256,
    irstd_quant_dpbusd_512, irstd_quant_smlal, irstd_quant_sdot;

const irstd_quant_kernels *const irstd_quant_variants[] = {
    &irstd_quant_ref,
#ifdef IRSTD_HAVE_AVX2
    &irstd_quant_maddubs,
    &irstd_quant_pairs,
    &irstd_quant_maddwd,
    &irstd_quant_dpbusd_256,
#endif
#ifdef IRSTD_HAVE_AVX512
    &irstd_quant_dpbusd_512,
#endif
#ifdef IRSTD_HAVE_NEON
    &irstd_quant_smlal,
#ifdef IRSTD_HAVE_SDOT
    &irstd_quant_sdot,
#endif
#endif
};

const int irstd_quant_variant_count = sizeof irstd_quant_variants / sizeof *irstd_quant_variants;

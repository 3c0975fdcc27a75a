/* AVX-512 with VPOPCNTW (BITALG): 32 pixels by 16 channels, 512 multiply-accumulates in three instructions. */
#include <string.h>

#include "vectors.h"

#include "../popcount/finish.h"

#include "../popcount/bconv.h"

extern const irstd_row_kernels irstd_rows_avx512;

const irstd_kernels irstd_kernels_avx512 = {
    .isa = "avx512", .needs = IRSTD_CPU_NEEDS, .bit_channels = BIT_CHANNELS, .bit_bytes = BIT_BYTES, .zero_element = -1, .block = BLOCK,
    .packed_bytes = packed_bytes, .pack = pack, .sums = sums, .row = row, .signs = signs,
    .rows = &irstd_rows_avx512, .name = "bconv2d_popcntw",
};

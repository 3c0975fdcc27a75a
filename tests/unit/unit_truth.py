"""Independent arithmetic that the layers are compared with."""

import numpy as np

from irstd_edge.opspec import BinaryConv2dSpec


def integer_convolution(x, signs, s: BinaryConv2dSpec, threshold=0.0):
    """Taps of +1/-1 summed in int64, one by one, by the words of the specification."""
    b = np.where(x >= np.reshape(threshold, (-1, 1, 1)), 1, -1).astype(np.int64)
    n, _, height, width = b.shape
    rows, columns = s.output_size(height, width)
    out = np.zeros((n, s.out_channels, rows, columns), np.int64)
    per_in, per_out = s.in_channels // s.groups, s.out_channels // s.groups
    for oc in range(s.out_channels):
        group = slice(oc // per_out * per_in, (oc // per_out + 1) * per_in)
        for r in range(rows):
            for c in range(columns):
                for kr in range(s.kernel_h):
                    for kc in range(s.kernel_w):
                        y = r * s.stride_h + kr * s.dilation_h - s.pad_top
                        z = c * s.stride_w + kc * s.dilation_w - s.pad_left
                        inside = 0 <= y < height and 0 <= z < width
                        values = b[:, group, y, z] if inside else np.full((n, per_in), s.pad_value)
                        out[:, oc, r, c] += values @ signs[oc, :, kr, kc]
    return out

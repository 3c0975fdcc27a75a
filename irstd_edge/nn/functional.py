"""The reference arithmetic of the compressed operators, and their ``torch.ops.irstd`` registrations.

Every kernel and every exported graph is tested against external truth, and agrees with these
functions; they follow :mod:`irstd_edge.opspec` step by step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from irstd_edge.opspec import Activation, BinaryConv2dSpec, OpSpecError, Residual

INT16_MIN, INT16_MAX = -32768, 32767


def pack_bits(positive: torch.Tensor) -> torch.Tensor:
    """Pack weight signs ``[OC, IC/groups, KH, KW]`` (bool, True = +1) to int32 ``[OC, KH, KW, words]``.

    Bit *i* of word *j* is channel ``32 * j + i``; tail bits are zero.
    """
    bits = positive.permute(0, 2, 3, 1).to(torch.int64)
    bits = F.pad(bits, (0, -bits.shape[-1] % 32)).unflatten(-1, (-1, 32))
    words = (bits << torch.arange(32, device=bits.device)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_bits(words: torch.Tensor, channels: int) -> torch.Tensor:
    """Inverse of :func:`pack_bits`: int32 ``[OC, KH, KW, words]`` to float32 +1/-1 ``[OC, channels, KH, KW]``."""
    bits = (words.to(torch.int64).unsqueeze(-1) >> torch.arange(32, device=words.device)) & 1
    return (bits.flatten(-2)[..., :channels] * 2 - 1).permute(0, 3, 1, 2).to(torch.float32).contiguous()


def to_fixed_point(x: torch.Tensor, fraction_bits: int) -> torch.Tensor:
    """Round half to even to multiples of ``2**-fraction_bits`` and saturate to 16 bits; float32 in and out."""
    step = 2.0**fraction_bits
    return torch.clamp(torch.round(x * step), INT16_MIN, INT16_MAX) / step


def match_channels(residual: torch.Tensor, channels: int) -> torch.Tensor:
    """Repeat or average the channels of ``[N, RC, H, W]`` to ``channels`` as the specification says.

    Raises :class:`~irstd_edge.opspec.OpSpecError` where neither count divides the other.
    """
    count = residual.shape[1]
    if count == channels:
        return residual
    if channels % count == 0:
        return torch.cat([residual] * (channels // count), dim=1)
    if count % channels:
        raise OpSpecError(f"residual has {count} channels, the convolution {channels}")
    total = residual[:, :channels]
    for first in range(channels, count, channels):
        total = total + residual[:, first : first + channels]
    return total / (count // channels)


def _attributes_schema() -> str:
    spec = BinaryConv2dSpec(1, 1, 1, 1, 0).attributes()
    return ", ".join(f"{'int' if isinstance(v, int) else 'float'} {name}" for name, v in spec.items())


torch.library.define(
    "irstd::binary_conv2d",
    "(Tensor x, Tensor weight, Tensor threshold, Tensor scale, Tensor bias, Tensor? activation_parameters, "
    f"Tensor? residual_input, {_attributes_schema()}) -> Tensor",
)


@torch.library.impl("irstd::binary_conv2d", "CompositeExplicitAutograd")
def _binary_conv2d(x, weight, threshold, scale, bias, activation_parameters, residual_input, *attributes):
    spec = BinaryConv2dSpec.from_attributes(
        dict(zip(BinaryConv2dSpec(1, 1, 1, 1, 0).attributes(), attributes, strict=True))
    )
    signs = unpack_bits(weight, spec.in_channels // spec.groups).to(x.device)
    # A NaN compares false and so becomes -1, as in the kernels.
    b = torch.where(x >= threshold.view(-1, 1, 1), 1.0, -1.0)
    b = F.pad(b, (spec.pad_left, spec.pad_right, spec.pad_top, spec.pad_bottom), value=float(spec.pad_value))
    v = F.conv2d(
        b, signs, stride=(spec.stride_h, spec.stride_w), dilation=(spec.dilation_h, spec.dilation_w), groups=spec.groups
    )
    v = v * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)

    def activate(u):
        if spec.activation == Activation.RPRELU:
            shift_in, slope, shift_out = activation_parameters.view(3, -1, 1, 1)
            u = u - shift_in
            return torch.where(u >= 0, u, u * slope) + shift_out
        if spec.activation == Activation.CLAMP:
            return torch.clamp(u, spec.clamp_min, spec.clamp_max)
        return u

    def combine(u):
        if spec.residual == Residual.NONE:
            return u
        r = match_channels(residual_input, spec.out_channels)
        return u + r if spec.residual == Residual.ADD else r + r * torch.tanh(u)

    y = combine(activate(v)) if spec.activation_first else activate(combine(v))
    return to_fixed_point(y, spec.fraction_bits) if spec.fraction_bits >= 0 else y


@torch.library.register_fake("irstd::binary_conv2d")
def _(x, weight, threshold, scale, bias, activation_parameters, residual_input, *attributes):
    spec = BinaryConv2dSpec.from_attributes(
        dict(zip(BinaryConv2dSpec(1, 1, 1, 1, 0).attributes(), attributes, strict=True))
    )
    height = x.shape[2] + spec.pad_top + spec.pad_bottom - spec.dilation_h * (spec.kernel_h - 1) - 1
    width = x.shape[3] + spec.pad_left + spec.pad_right - spec.dilation_w * (spec.kernel_w - 1) - 1
    return x.new_empty(
        (x.shape[0], spec.out_channels, height // spec.stride_h + 1, width // spec.stride_w + 1), dtype=torch.float32
    )


def binary_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    threshold: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    spec: BinaryConv2dSpec,
    activation_parameters: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """``irstd.BinaryConv2d`` as :mod:`irstd_edge.opspec` defines it; float32 NCHW in and out, no gradient."""
    return torch.ops.irstd.binary_conv2d(
        x, weight, threshold, scale, bias, activation_parameters, residual, *spec.attributes().values()
    )

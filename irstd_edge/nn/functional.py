"""The reference arithmetic of the compressed operators, and their ``torch.ops.irstd`` registrations.

Every kernel and every exported graph is tested against external truth, and agrees with these
functions; they follow :mod:`irstd_edge.opspec` step by step.
"""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F

from irstd_edge.opspec import (
    Activation,
    BinaryConv2dSpec,
    FixedPointSpec,
    OpSpecError,
    QuantConv2dSpec,
    Residual,
    integer_range,
)


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


def pack_integers(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack integer weights ``[OC, IC/groups, KH, KW]`` (any dtype) of ``bits`` bits to uint8 ``[OC, bytes]``.

    Two's complement, least significant bit first, in the order kernel row, column, channel; one bit is +1 or -1.
    Raises :class:`~irstd_edge.opspec.OpSpecError` where a weight is none of the integers of so many bits.
    """
    low, high = integer_range(bits, True)
    given = weight.permute(0, 2, 3, 1).flatten(1)
    values = given.to(torch.int64)
    wrong = (values != given) | (values < low) | (values > high)
    if (wrong | (values == 0) if bits == 1 else wrong).any():
        raise OpSpecError(f"weights must be integers of {bits} bits, {low} to {high}"
                          f"{' without 0' if bits == 1 else ''}")
    values = (values + 1) // 2 if bits == 1 else values
    stream = ((values.unsqueeze(-1) >> torch.arange(bits, device=weight.device)) & 1).flatten(1)
    octets = F.pad(stream, (0, -stream.shape[1] % 8)).unflatten(1, (-1, 8))
    return (octets << torch.arange(8, device=weight.device)).sum(-1).to(torch.uint8)


def unpack_integers(packed: torch.Tensor, spec: QuantConv2dSpec) -> torch.Tensor:
    """Inverse of :func:`pack_integers`: uint8 ``[OC, bytes]`` to float32 integers ``[OC, IC/groups, KH, KW]``."""
    k = spec.weight_bits
    stream = ((packed.to(torch.int64).unsqueeze(-1) >> torch.arange(8, device=packed.device)) & 1).flatten(1)
    bits = stream[:, : spec.macs_per_output * k].unflatten(1, (-1, k))
    values = (bits << torch.arange(k, device=packed.device)).sum(-1)
    values = 2 * values - 1 if k == 1 else torch.where(values >= 2 ** (k - 1), values - 2**k, values)
    shape = (spec.out_channels, spec.kernel_h, spec.kernel_w, spec.in_channels // spec.groups)
    return values.view(shape).permute(0, 3, 1, 2).to(torch.float32).contiguous()


def round_half_up(x: torch.Tensor) -> torch.Tensor:
    """``floor(x + 1/2)``."""
    return torch.floor(x + 0.5)


def saturate(q: torch.Tensor, bits: int = 16) -> torch.Tensor:
    """``q`` within the range of signed integers of ``bits`` bits; a NaN becomes the lowest one."""
    low, high = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return torch.nan_to_num(torch.clamp(q, low, high), nan=low)


def to_integer(x: torch.Tensor, fraction_bits: int, bits: int = 16) -> torch.Tensor:
    """``x`` in units of ``2**-fraction_bits``, rounded half up and saturated; an integer held as float32."""
    return saturate(round_half_up(x * 2.0**fraction_bits), bits)


def to_fixed_point(x: torch.Tensor, fraction_bits: int, bits: int = 16) -> torch.Tensor:
    """Round half up to multiples of ``2**-fraction_bits`` and saturate to ``bits`` bits; float32 in and out."""
    return to_integer(x, fraction_bits, bits) / 2.0**fraction_bits


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
    # Not by slices: their backward pass lays gradients out as NCHW, and all before them then runs slower.
    return reduce(torch.add, residual.split(channels, dim=1)) / (count // channels)


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
    a = _FloatArithmetic(spec) if spec.fraction_bits < 0 else _IntegerArithmetic(spec)
    v = a.affine(v, scale.view(-1, 1, 1), bias.view(-1, 1, 1))

    def activate(u):
        if spec.activation == Activation.RPRELU:
            return a.rprelu(u, *activation_parameters.view(3, -1, 1, 1))
        return a.clamp(u) if spec.activation == Activation.CLAMP else u

    def combine(u):
        if spec.residual == Residual.NONE:
            return u
        r = a.match(residual_input)
        return a.add(u, r) if spec.residual == Residual.ADD else a.modulate(u, r)

    return a.result(combine(activate(v)) if spec.activation_first else activate(combine(v)))


class _FloatArithmetic:
    """The steps behind the integer convolution in float32: ``fraction_bits = -1``."""

    def __init__(self, spec: BinaryConv2dSpec):
        self.spec = spec

    def affine(self, acc, scale, bias):
        return acc * scale + bias

    def rprelu(self, v, shift_in, slope, shift_out):
        t = v - shift_in
        return torch.where(t >= 0, t, t * slope) + shift_out

    def clamp(self, v):
        return torch.clamp(v, self.spec.clamp_min, self.spec.clamp_max)

    def match(self, residual):
        return match_channels(residual, self.spec.out_channels)

    def add(self, v, r):
        return v + r

    def modulate(self, v, r):
        return r + r * torch.tanh(v)

    def result(self, v):
        return v


class _IntegerArithmetic(_FloatArithmetic):
    """The same steps on 16-bit integers, held as float32, in units of ``2**-fraction_bits``."""

    def __init__(self, spec: BinaryConv2dSpec):
        super().__init__(spec)
        self.step = 2.0**spec.fraction_bits

    def affine(self, acc, scale, bias):
        return self.add(to_integer(acc * scale, self.spec.fraction_bits), round_half_up(bias * self.step))

    def rprelu(self, v, shift_in, slope, shift_out):
        t = saturate(v - round_half_up(shift_in * self.step))
        t = torch.where(t >= 0, t, saturate(round_half_up(t * slope)))
        return self.add(t, round_half_up(shift_out * self.step))

    def clamp(self, v):
        low, high = (to_integer(torch.tensor(b), self.spec.fraction_bits).item()
                     for b in (self.spec.clamp_min, self.spec.clamp_max))
        return torch.clamp(v, low, high)

    def match(self, residual):
        return round_half_up(match_channels(to_integer(residual, self.spec.fraction_bits), self.spec.out_channels))

    def add(self, v, r):
        return saturate(v + r)

    def modulate(self, v, r):
        return to_integer(super().modulate(v / self.step, r / self.step), self.spec.fraction_bits)

    def result(self, v):
        return v / self.step


@torch.library.register_fake("irstd::binary_conv2d")
def _(x, weight, threshold, scale, bias, activation_parameters, residual_input, *attributes):
    spec = BinaryConv2dSpec.from_attributes(
        dict(zip(BinaryConv2dSpec(1, 1, 1, 1, 0).attributes(), attributes, strict=True))
    )
    return _fake_output(x, spec)


def _fake_output(x: torch.Tensor, spec: BinaryConv2dSpec | QuantConv2dSpec) -> torch.Tensor:
    """An empty output; the size may be symbolic, so it is not checked."""
    height = x.shape[2] + spec.pad_top + spec.pad_bottom - spec.dilation_h * (spec.kernel_h - 1) - 1
    width = x.shape[3] + spec.pad_left + spec.pad_right - spec.dilation_w * (spec.kernel_w - 1) - 1
    return x.new_empty(
        (x.shape[0], spec.out_channels, height // spec.stride_h + 1, width // spec.stride_w + 1), dtype=torch.float32
    )


torch.library.define("irstd::fixed_point", "(Tensor x, int fraction_bits, int bits) -> Tensor")


@torch.library.impl("irstd::fixed_point", "CompositeExplicitAutograd")
def _fixed_point(x, fraction_bits, bits):
    spec = FixedPointSpec(fraction_bits, bits)
    return to_fixed_point(x, spec.fraction_bits, spec.bits)


@torch.library.register_fake("irstd::fixed_point")
def _(x, fraction_bits, bits):
    return torch.empty_like(x)


def fixed_point(x: torch.Tensor, fraction_bits: int, bits: int = 16) -> torch.Tensor:
    """``irstd.FixedPoint`` as :mod:`irstd_edge.opspec` defines it; float32 in and out, no gradient."""
    return torch.ops.irstd.fixed_point(x, fraction_bits, bits)


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


_QUANT_EXAMPLE = QuantConv2dSpec(1, 1, 1, 1, 8, 8, 1.0)

torch.library.define(
    "irstd::quant_conv2d",
    "(Tensor x, Tensor weight, Tensor scale, Tensor bias, " + ", ".join(
        f"{'int' if isinstance(v, int) else 'float'} {name}" for name, v in _QUANT_EXAMPLE.attributes().items()
    ) + ") -> Tensor",
)


def _quant_spec(attributes) -> QuantConv2dSpec:
    return QuantConv2dSpec.from_attributes(dict(zip(_QUANT_EXAMPLE.attributes(), attributes, strict=True)))


def quantize(x: torch.Tensor, inverse_step: float, low: int, high: int, zero_point: int = 0) -> torch.Tensor:
    """``min(max(rne(x * inverse_step) + zero_point, low), high)`` as float32 integers; a NaN becomes ``low``."""
    inverse = torch.tensor(inverse_step, dtype=torch.float32, device=x.device)
    q = torch.clamp(torch.round(x * inverse) + zero_point, low, high)
    return torch.nan_to_num(q, nan=float(low))


@torch.library.impl("irstd::quant_conv2d", "CompositeExplicitAutograd")
def _quant_conv2d(x, weight, scale, bias, *attributes):
    spec = _quant_spec(attributes)
    q = quantize(x, spec.inverse_step, *spec.activation_range, spec.zero_point) - spec.zero_point
    q = F.pad(q, (spec.pad_left, spec.pad_right, spec.pad_top, spec.pad_bottom))
    # Sums beyond 24 bits are exact in float64 alone.
    exact = torch.float32 if spec.largest_sum < 2**24 else torch.float64
    acc = F.conv2d(
        q.to(exact), unpack_integers(weight, spec).to(exact), stride=(spec.stride_h, spec.stride_w),
        dilation=(spec.dilation_h, spec.dilation_w), groups=spec.groups,
    ).to(torch.float32)
    v = acc * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
    return torch.clamp(v, spec.clamp_min, spec.clamp_max)


@torch.library.register_fake("irstd::quant_conv2d")
def _(x, weight, scale, bias, *attributes):
    return _fake_output(x, _quant_spec(attributes))


def quant_conv2d(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor,
                 spec: QuantConv2dSpec) -> torch.Tensor:
    """``irstd.QuantConv2d`` as :mod:`irstd_edge.opspec` defines it; float32 NCHW in and out, no gradient."""
    return torch.ops.irstd.quant_conv2d(x, weight, scale, bias, *spec.attributes().values())

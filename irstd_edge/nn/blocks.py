"""Building blocks that the binarised networks and their float twins share.

``unit(in_channels, out_channels)`` makes the convolution unit: :class:`~irstd_edge.nn.binary.DotBinaryConv2d`
or, for the float twin, :class:`FloatUnit`; both are called as ``unit(x, shortcut)``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from irstd_edge.nn.functional import fixed_point, match_channels, round_half_up

UnitFactory = Callable[[int, int], nn.Module]


class FixedPoint(nn.Module):
    """The grid of the feature stream, between units: float map in, rounded map out, of the same shape.

    Evaluation rounds half up to multiples of 2^-fraction_bits and saturates to ``bits`` bits; training, and
    ``fraction_bits`` -1, pass values as they are.
    """

    def __init__(self, fraction_bits: int, bits: int = 16):
        super().__init__()
        self.fraction_bits, self.bits = fraction_bits, bits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.training or self.fraction_bits < 0 else fixed_point(x, self.fraction_bits, self.bits)


def grid_of(unit: nn.Module) -> FixedPoint:
    """The grid that a unit computes on: its ``fraction_bits``; none where it has no such attribute, as a float unit."""
    return FixedPoint(getattr(unit, "fraction_bits", -1))


class Down(nn.Module):
    """Halve the map, double the channels: 2x2 average pool, then C -> 2C with the pooled map repeated as shortcut."""

    def __init__(self, unit: UnitFactory, channels: int):
        super().__init__()
        self.unit = unit(channels, 2 * channels)
        self.grid = grid_of(self.unit)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unit(self.grid(F.avg_pool2d(x, 2)))


class Up(nn.Module):
    """Double the map, halve the channels: C -> C/2 with the mean of the halves as shortcut, then bilinear x2.

    The convolution runs before the up-sampling: a quarter of the work, the same shortcut.
    """

    def __init__(self, unit: UnitFactory, channels: int):
        super().__init__()
        self.unit = unit(channels, channels // 2)
        self.grid = grid_of(self.unit)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.grid(F.interpolate(self.unit(x), scale_factor=2, mode="bilinear", align_corners=False))


def conv_bn(in_channels: int, out_channels: int, kernel_size: int = 1, *, stride: int = 1, dilation: int = 1,
            groups: int = 1) -> nn.Sequential:
    """A convolution without bias, padded to keep the size, and BN."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(out_channels))


def probability_head(channels: int) -> nn.Conv2d:
    """The last convolution, 1x1 to one channel of logits."""
    head = nn.Conv2d(channels, 1, 1)
    # Targets cover some 0.1 % of an image: start from a low probability everywhere.
    nn.init.constant_(head.bias, -4.0)
    return head


class FCNHead(nn.Module):
    """ACM's head: 3x3 to a quarter of the channels, BN, ReLU, dropout of 0.1, 1x1 to one channel of logits."""

    def __init__(self, channels: int):
        super().__init__()
        self.block = nn.Sequential(*conv_bn(channels, channels // 4, 3), nn.ReLU(), nn.Dropout(0.1),
                                   probability_head(channels // 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


class FloatUnit(nn.Module):
    """The float counterpart of :class:`~irstd_edge.nn.binary.DotBinaryConv2d`: conv, BN, PReLU, shortcut."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.PReLU(out_channels)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        y = self.activation(self.norm(self.conv(x)))
        return y + match_channels(x if residual is None else residual, y.shape[1])


class ExactConv2d(nn.Conv2d):
    """A small full-precision convolution whose sums are exact in float32 whatever their order.

    In evaluation the input is rounded to multiples of 2^-7 of ``input_bits`` bits (11: within ±8), weight and bias to
    multiples of 2^(input_bits - 20) within ±2: fifteen such products and the bias fit into float32's 24 bits. Every
    runtime then gives the same sums to the last bit, rounds them to the same ``fraction_bits`` (16 bits), and so the
    signs taken from them agree everywhere. Training is an ordinary convolution.
    """

    INPUT_FRACTION_BITS = 7
    WEIGHT_LIMIT = 2.0
    MAX_TERMS = 15

    def __init__(self, *args, fraction_bits: int = 8, input_bits: int = 11, **kwargs):
        super().__init__(*args, **kwargs)
        self.fraction_bits, self.input_bits = fraction_bits, input_bits
        terms = self.weight[0].numel()
        if terms > self.MAX_TERMS:
            raise ValueError(
                f"ExactConv2d sums at most {self.MAX_TERMS} products per output to stay exact, this one {terms}")

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        """A weight or bias on its grid; rounding twice changes nothing."""
        step = 2.0 ** (20 - self.input_bits)
        return torch.clamp(round_half_up(x * step) / step, -self.WEIGHT_LIMIT, self.WEIGHT_LIMIT)

    def freeze(self) -> FrozenExactConv2d:
        return FrozenExactConv2d(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return self.freeze()(x)
        # The full-precision stream begins here: it stays float32 where the rest trains in bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def exact_conv2d(*args, fraction_bits: int, input_bits: int = 11, **kwargs) -> nn.Conv2d:
    """An :class:`ExactConv2d`, or for ``fraction_bits`` -1 the plain convolution."""
    if fraction_bits < 0:
        return nn.Conv2d(*args, **kwargs)
    return ExactConv2d(*args, fraction_bits=fraction_bits, input_bits=input_bits, **kwargs)


class FrozenExactConv2d(nn.Module):
    """:class:`ExactConv2d` for inference: input and result rounded, the constants rounded once."""

    def __init__(self, conv: ExactConv2d):
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.fraction_bits, self.input_bits = conv.fraction_bits, conv.input_bits
        self.register_buffer("weight", conv._rounded(conv.weight.detach()))
        self.register_buffer("bias", None if conv.bias is None else conv._rounded(conv.bias.detach()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = fixed_point(x, ExactConv2d.INPUT_FRACTION_BITS, self.input_bits)
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return fixed_point(x, self.fraction_bits)

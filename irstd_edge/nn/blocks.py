"""Building blocks that the binarised networks and their float twins share.

``unit(in_channels, out_channels)`` makes the convolution unit: :class:`~irstd_edge.nn.binary.DotBinaryConv2d`
or, for the float twin, :class:`FloatUnit`; both are called as ``unit(x, shortcut)``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from irstd_edge.nn.functional import match_channels

UnitFactory = Callable[[int, int], nn.Module]


class Down(nn.Module):
    """Halve the map, double the channels: 2x2 average pool, then C -> 2C with the pooled map repeated as shortcut."""

    def __init__(self, unit: UnitFactory, channels: int):
        super().__init__()
        self.unit = unit(channels, 2 * channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unit(F.avg_pool2d(x, 2))


class Up(nn.Module):
    """Double the map, halve the channels: C -> C/2 with the mean of the halves as shortcut, then bilinear x2.

    The convolution runs before the up-sampling: a quarter of the work, the same shortcut.
    """

    def __init__(self, unit: UnitFactory, channels: int):
        super().__init__()
        self.unit = unit(channels, channels // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.unit(x), scale_factor=2, mode="bilinear", align_corners=False)


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

    In evaluation the input is rounded to multiples of 2^-7 within [-8, 8], weight and bias to multiples of 2^-9
    within [-2, 2]: nine such products and the bias fit into float32's 24 bits. Every runtime then gives the same
    result to the last bit, and so the signs taken from it agree everywhere. Training is an ordinary convolution.
    """

    INPUT_STEP = 2.0**-7
    INPUT_LIMIT = 8.0
    WEIGHT_STEP = 2.0**-9
    WEIGHT_LIMIT = 2.0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        terms = self.weight[0].numel()
        if terms > 15:
            raise ValueError(f"ExactConv2d sums at most 15 products per output to stay exact, this one {terms}")

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        """A weight or bias on its grid; rounding twice changes nothing."""
        return torch.clamp(torch.round(x / self.WEIGHT_STEP) * self.WEIGHT_STEP, -self.WEIGHT_LIMIT, self.WEIGHT_LIMIT)

    def freeze(self) -> FrozenExactConv2d:
        return FrozenExactConv2d(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if self.training else self.freeze()(x)


class FrozenExactConv2d(nn.Module):
    """:class:`ExactConv2d` for inference: the input rounded, the constants rounded once."""

    def __init__(self, conv: ExactConv2d):
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.register_buffer("weight", conv._rounded(conv.weight.detach()))
        self.register_buffer("bias", None if conv.bias is None else conv._rounded(conv.bias.detach()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step, limit = ExactConv2d.INPUT_STEP, ExactConv2d.INPUT_LIMIT
        x = torch.clamp(torch.round(x * (1 / step)) * step, -limit, limit)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

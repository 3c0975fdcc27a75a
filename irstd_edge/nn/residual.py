"""Residual blocks of the float networks: ResUNet's and ACM's, with channel and spatial attention DNANet's and MSHNet's.

Parameter names are those of the public checkpoints of these networks (``conv1``, ``bn1``, ``shortcut.0``, ``ca.fc1``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class ChannelAttention(nn.Module):
    """CBAM's channel attention (arXiv 1807.06521): ``[N, C, H, W]`` to a weight in 0..1 per channel, ``[N, C, 1, 1]``.

    Args:
        channels: C.
        ratio: the hidden layer has C / ratio channels; raises :class:`ValueError` where that is none.
    """

    def __init__(self, channels: int, ratio: int):
        super().__init__()
        if channels < ratio:
            raise ValueError(f"channel attention of ratio {ratio} leaves no hidden channel of {channels}: lower it")
        self.fc1 = nn.Conv2d(channels, channels // ratio, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // ratio, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, peak = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return torch.sigmoid(sum(self.fc2(F.relu(self.fc1(pooled))) for pooled in (mean, peak)))


class SpatialAttention(nn.Module):
    """CBAM's spatial attention: ``[N, C, H, W]`` to a weight in 0..1 per pixel, ``[N, 1, H, W]``."""

    def __init__(self, kernel_size: int = 7):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.conv1(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BN, a shortcut (1x1 with BN where the shape changes), ReLU after the first and the sum.

    Args:
        in_channels, out_channels: of the convolutions.
        attention_ratio: of the channel attention, followed by spatial attention, before the sum; None for neither.
        stride: of the first convolution and the shortcut.
        bias: whether the convolutions have one; BN makes it idle, but some public weights hold it.

    Shapes: float ``[N, in_channels, H, W]`` to float ``[N, out_channels, H / stride, W / stride]``.
    """

    def __init__(self, in_channels: int, out_channels: int, attention_ratio: int | None = None, stride: int = 1,
                 bias: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias),
                                          nn.BatchNorm2d(out_channels))
        self.attended = attention_ratio is not None
        if self.attended:
            self.ca, self.sa = ChannelAttention(out_channels, attention_ratio), SpatialAttention()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.attended:
            y = y * self.ca(y)
            y = y * self.sa(y)
        return F.relu(y + self.shortcut(x))


def residual_stage(in_channels: int, out_channels: int, blocks: int = 1, attention_ratio: int | None = None,
                   stride: int = 1, bias: bool = True) -> nn.Sequential:
    """``blocks`` residual blocks, the first of which changes the channels and has the stride."""
    first = ResidualBlock(in_channels, out_channels, attention_ratio, stride, bias)
    others = (ResidualBlock(out_channels, out_channels, attention_ratio, bias=bias) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)


def upsample(x: torch.Tensor, factor: float = 2) -> torch.Tensor:
    """Bilinear with corners aligned, as the public code of these networks samples."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)

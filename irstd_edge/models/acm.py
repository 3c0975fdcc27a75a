"""ACM (WACV 2021, arXiv 2009.14530) and BasicIRSTD's ALCNet: residual encoders, asymmetric contextual modulation.

After the public code of acm-pytorch and BasicIRSTD; stages are named as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from irstd_edge.nn.blocks import FCNHead, conv_bn
from irstd_edge.nn.residual import residual_stage

_stage = partial(residual_stage, bias=False)


def _gate(channels: int, hidden: int) -> list[nn.Module]:
    """Two 1x1 convolutions with BN to a weight in 0..1 per channel."""
    return [nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(),
            nn.Conv2d(hidden, channels, 1), nn.BatchNorm2d(channels), nn.Sigmoid()]


class AsymmetricFusion(nn.Module):
    """The high feature weighs the low one by its global mean, the low one weighs the high one pixel by pixel.

    Args:
        channels: of the low feature and the result.
        high_channels: of the high feature where a 1x1 convolution brings it to ``channels`` first; else None.

    Shapes: ``forward(high, low)``, float ``[N, C, H, W]`` of one height and width, to ``[N, channels, H, W]``.
    """

    def __init__(self, channels: int, high_channels: int | None = None):
        super().__init__()
        self.feature_high = nn.Identity()
        if high_channels is not None:
            self.feature_high = nn.Sequential(nn.Conv2d(high_channels, channels, 1), nn.BatchNorm2d(channels),
                                              nn.ReLU())
        self.topdown = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_gate(channels, channels // 4))
        self.bottomup = nn.Sequential(*_gate(channels, channels // 4))
        self.post = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        high = self.feature_high(high)
        return self.post(2 * low * self.topdown(high) + 2 * high * self.bottomup(low))


class Encoder(nn.Module):
    """What the three networks share: BN of the image, a stem to a quarter of its size, three residual stages."""

    #: Heights and widths must be multiples of this.
    size_multiple = 16

    def __init__(self, channels: Sequence[int], blocks: int, in_channels: int):
        super().__init__()
        stem, c1, c2, c3 = channels
        self.stem = nn.Sequential(
            nn.BatchNorm2d(in_channels), *conv_bn(in_channels, stem, 3, stride=2), nn.ReLU(),
            *conv_bn(stem, stem, 3), nn.ReLU(), *conv_bn(stem, c1, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.layer1 = _stage(c1, c1, blocks)
        self.layer2 = _stage(c1, c2, blocks, stride=2)
        self.layer3 = _stage(c2, c3, blocks, stride=2)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The features at 1/4, 1/8 and 1/16 of the size."""
        low = self.layer1(self.stem(x))
        middle = self.layer2(low)
        return low, middle, self.layer3(middle)


class ACMUNet(Encoder):
    """ACM on a U-Net: transposed convolutions up, fusion with the encoder, residual stages.

    Args:
        channels: of the stem and the stages; the stem's last convolution has those of the first stage.
        blocks: per stage.
        project: whether the fusion has a 1x1 convolution on the high feature (acm-pytorch) or none (BasicIRSTD).
        in_channels: of the image.

    Shapes: float ``[N, in_channels, H, W]``, normalised, H and W multiples of 16, to the target probability
    ``[N, 1, H, W]``.
    """

    def __init__(self, channels: Sequence[int] = (8, 16, 32, 64), blocks: int = 3, project: bool = False,
                 in_channels: int = 1):
        super().__init__(channels, blocks, in_channels)
        _, c1, c2, c3 = channels
        self.deconv2, self.deconv1 = nn.ConvTranspose2d(c3, c2, 4, 2, 1), nn.ConvTranspose2d(c2, c1, 4, 2, 1)
        self.fuse2 = AsymmetricFusion(c2, c2 if project else None)
        self.fuse1 = AsymmetricFusion(c1, c1 if project else None)
        self.uplayer2, self.uplayer1 = _stage(c2, c2, blocks), _stage(c1, c1, blocks)
        self.head = FCNHead(c1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, middle, x = self.encode(x)
        x = self.uplayer2(self.fuse2(self.deconv2(x), middle))
        x = self.uplayer1(self.fuse1(self.deconv1(x), low))
        return torch.sigmoid(_bilinear(self.head(x), 4))


class ACMFPN(Encoder):
    """ACM on a feature pyramid: bilinear up, fusion with the encoder. Arguments and shapes: :class:`ACMUNet`."""

    def __init__(self, channels: Sequence[int] = (8, 16, 32, 64), blocks: int = 4, in_channels: int = 1):
        super().__init__(channels, blocks, in_channels)
        _, c1, c2, c3 = channels
        self.fuse23, self.fuse12 = AsymmetricFusion(c2, c3), AsymmetricFusion(c1, c2)
        self.head = FCNHead(c1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, middle, x = self.encode(x)
        x = self.fuse12(_bilinear(self.fuse23(_bilinear(x, 2), middle), 2), low)
        return torch.sigmoid(_bilinear(self.head(x), 4))


class ALCNet(Encoder):
    """BasicIRSTD's ALCNet: transposed convolutions up to half the size, fusion as ACM's, no residual stages after.

    It is not the network of the paper (arXiv 2012.08573), whose local contrast layers it lacks. The public code
    also makes residual stages that it never runs; they are not here. Arguments and shapes: :class:`ACMUNet`.
    """

    def __init__(self, channels: Sequence[int] = (8, 16, 32, 64), blocks: int = 4, in_channels: int = 1):
        super().__init__(channels, blocks, in_channels)
        c0, c1, c2, c3 = channels
        self.deconv2, self.deconv1, self.deconv0 = (
            nn.ConvTranspose2d(i, o, 4, 2, 1) for i, o in ((c3, c2), (c2, c1), (c1, c0)))
        self.fuse23, self.fuse12 = AsymmetricFusion(c2), AsymmetricFusion(c1)
        self.head = FCNHead(c0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, middle, x = self.encode(x)
        x = self.fuse12(self.deconv1(self.fuse23(self.deconv2(x), middle)), low)
        return torch.sigmoid(_bilinear(self.head(self.deconv0(x)), 2))


def _bilinear(x: torch.Tensor, factor: int) -> torch.Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

"""MDPNet, reconstructed after the abstract of Infrared Phys. & Technol. 131 (2023) 104671: no code is published.

The abstract gives stages of parallel pyramids of depth-wise separable dilated convolutions and 0.23 M parameters;
channels, depth, dilations, resampling, decoder and head are ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from irstd_edge.nn.blocks import FCNHead, conv_bn


class PyramidBlock(nn.Module):
    """A multi-branch dilated pyramid (reconstructed).

    1x1 to ``inner`` channels; one branch per dilation: depth-wise 3x3, point-wise, each with BN; every branch adds
    the one before it, so that wide dilations leave no gaps; concatenation, 1x1, shortcut, ReLU.

    Shapes: float ``[N, in_channels, H, W]`` to float ``[N, out_channels, H, W]``.
    """

    def __init__(self, in_channels: int, out_channels: int, inner: int, dilations: Sequence[int] = (1, 2, 4, 8)):
        super().__init__()
        self.reduce = conv_bn(in_channels, inner)
        self.branches = nn.ModuleList(
            nn.Sequential(*conv_bn(inner, inner, 3, dilation=d, groups=inner), *conv_bn(inner, inner))
            for d in dilations)
        self.fuse = conv_bn(inner * len(dilations), out_channels)
        self.shortcut = nn.Identity() if in_channels == out_channels else conv_bn(in_channels, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        reduced = F.relu(self.reduce(x))
        levels = [self.branches[0](reduced)]
        for branch in self.branches[1:]:
            levels.append(branch(reduced) + levels[-1])
        return F.relu(self.fuse(torch.cat(levels, 1)) + self.shortcut(x))


class Refine(nn.Module):
    """A decoder level: 1x1 to the skip's channels, bilinear x2, add the skip, one depth-wise separable convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.lateral = conv_bn(in_channels, out_channels)
        self.depthwise = conv_bn(out_channels, out_channels, 3, groups=out_channels)
        self.pointwise = conv_bn(out_channels, out_channels)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(self.lateral(x), scale_factor=2, mode="bilinear", align_corners=False) + skip
        return F.relu(self.pointwise(F.relu(self.depthwise(x))))


class MDPNet(nn.Module):
    """Three stages of pyramid blocks, max-pooled between; a two-convolution stem, a light decoder, an FCN head.

    ``stages[-1]`` gives the deepest feature, ``[N, channels[-1], H/4, W/4]``: where a distillation attaches.

    Args:
        channels: per stage.
        blocks: pyramid blocks per stage.
        reduction: a block's inner channels are its channels divided by this.
        dilations: of a block's branches.
        in_channels: of the image.

    Shapes: float ``[N, in_channels, H, W]``, normalised, H and W multiples of 4, to the target probability
    ``[N, 1, H, W]``.
    """

    #: Heights and widths must be multiples of this.
    size_multiple = 4

    def __init__(self, channels: Sequence[int], blocks: Sequence[int], reduction: int,
                 dilations: Sequence[int] = (1, 2, 4, 8), in_channels: int = 1):
        super().__init__()
        stem = channels[0]
        self.stem = nn.Sequential(*conv_bn(in_channels, stem, 3), nn.ReLU(), *conv_bn(stem, stem, 3), nn.ReLU())
        widths = (stem, *channels)
        self.stages = nn.ModuleList(
            nn.Sequential(*(PyramidBlock(before if i == 0 else width, width, width // reduction, dilations)
                            for i in range(count)))
            for before, width, count in zip(widths, channels, blocks, strict=False))
        self.decoder = nn.ModuleList(Refine(deep, width) for width, deep in itertools.pairwise(channels))
        self.head = FCNHead(channels[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, skips = self.stem(x), []
        for i, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for level, skip in zip(reversed(self.decoder), skips[-2::-1], strict=True):
            x = level(x, skip)
        return torch.sigmoid(self.head(x))


#: Both have the published 0.23 M parameters (found by search over layouts); which one the paper has is unknown.
LAYOUTS = {"a": {"channels": (16, 32, 64), "blocks": (4, 4, 4), "reduction": 1},
           "b": {"channels": (32, 64, 128), "blocks": (3, 4, 6), "reduction": 4}}


def mdpnet(layout: str = "a", **kwargs) -> MDPNet:
    """A layout of :data:`LAYOUTS`."""
    return MDPNet(**(LAYOUTS[layout] | kwargs))

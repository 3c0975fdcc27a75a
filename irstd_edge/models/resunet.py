"""ResUNet as the authors of DNANet and BasicIRSTD publish it: a residual U-Net, plain or with fewer levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from irstd_edge.nn.blocks import probability_head
from irstd_edge.nn.residual import residual_stage, upsample

#: Channels per level by the public code's name of the width.
WIDTHS = {"one": (4, 8, 16, 32, 64), "two": (8, 16, 32, 64, 128), "three": (16, 32, 64, 128, 256),
          "four": (32, 64, 128, 256, 512)}


class ResUNet(nn.Module):
    """One residual block at the first level and per decoder level, two at every other encoder level.

    Stages are named as in the public code: ``conv{level}_0`` encodes, ``conv{level}_{last - level}`` decodes.

    Args:
        channels: per level, at least two levels.
        in_channels: of the image: 1 (grey), or 3 for weights trained on three.

    Shapes: float ``[N, in_channels, H, W]``, normalised, H and W multiples of ``size_multiple``, to the target
    probability ``[N, 1, H, W]``.
    """

    def __init__(self, channels: Sequence[int] = WIDTHS["two"], in_channels: int = 1):
        super().__init__()
        self.last = len(channels) - 1
        #: Heights and widths must be multiples of this.
        self.size_multiple = 2**self.last
        before = in_channels
        for level, width in enumerate(channels):
            self.add_module(f"conv{level}_0", residual_stage(before, width, 2 if level else 1))
            before = width
        for level in reversed(range(self.last)):
            width, below = channels[level:level + 2]
            self.add_module(f"conv{level}_{self.last - level}", residual_stage(width + below, width))
        self.final = probability_head(channels[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level in range(self.last + 1):
            x = self.get_submodule(f"conv{level}_0")(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for level in reversed(range(self.last)):
            x = self.get_submodule(f"conv{level}_{self.last - level}")(torch.cat([skips[level], upsample(x)], 1))
        return torch.sigmoid(self.final(x))


def resunet(width: str = "two", **kwargs) -> ResUNet:
    """A width of :data:`WIDTHS`."""
    return ResUNet(WIDTHS[width], **kwargs)


def resunet_basicirstd(**kwargs) -> ResUNet:
    """The four levels of BasicIRSTD's ResUNet."""
    return ResUNet((16, 32, 64, 128), **kwargs)

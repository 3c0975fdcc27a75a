"""MSHNet: a residual U-Net with attention and a head at every scale (CVPR 2024, arXiv 2403.19366), after its code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from irstd_edge.models.resunet import WIDTHS
from irstd_edge.nn.blocks import probability_head
from irstd_edge.nn.residual import residual_stage, upsample


class MSHNet(nn.Module):
    """A 1x1 stem, residual stages with attention, one head per decoder level, all joined by a 3x3 convolution.

    Stages are named as in the public code: ``encoder_{level}``, ``middle_layer``, ``decoder_{level}``.

    Args:
        channels: per level; the last is the middle's.
        ratio: of the channel attention; default 16, or the narrowest width where that is less.
        in_channels: of the image.

    Shapes: float ``[N, in_channels, H, W]``, normalised, H and W multiples of ``size_multiple``, to the target
    probability ``[N, 1, H, W]``; in training to a list: one per level, up-sampled, and last that of evaluation.
    """

    def __init__(self, channels: Sequence[int] = WIDTHS["three"], ratio: int | None = None, in_channels: int = 1):
        super().__init__()
        ratio = ratio or min(16, *channels)
        self.levels = len(channels) - 1
        #: Heights and widths must be multiples of this.
        self.size_multiple = 2**self.levels
        self.conv_init = nn.Conv2d(in_channels, channels[0], 1)
        before = channels[0]
        for level, width in enumerate(channels[:-1]):
            blocks = 2 if level else 1
            self.add_module(f"encoder_{level}", residual_stage(before, width, blocks, ratio))
            self.add_module(f"decoder_{level}", residual_stage(width + channels[level + 1], width, blocks, ratio))
            self.add_module(f"output_{level}", probability_head(width))
            before = width
        self.middle_layer = residual_stage(before, channels[-1], 2, ratio)
        self.final = nn.Conv2d(self.levels, 1, 3, padding=1)
        with torch.no_grad():  # starts as the mean of the heads
            for parameter in self.final.parameters():
                parameter.zero_()
            self.final.weight[..., 1, 1] = 1 / self.levels

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        stage, x, skips = self.get_submodule, self.conv_init(x), []
        for level in range(self.levels):
            x = stage(f"encoder_{level}")(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        x, scales = self.middle_layer(F.max_pool2d(x, 2)), []
        for level in reversed(range(self.levels)):
            x = stage(f"decoder_{level}")(torch.cat([skips[level], upsample(x)], 1))
            scale = stage(f"output_{level}")(x)
            scales.insert(0, upsample(scale, 2**level) if level else scale)
        outputs = [self.final(torch.cat(scales, 1))]
        if self.training:
            outputs = [*scales, *outputs]
        outputs = [torch.sigmoid(y) for y in outputs]
        return outputs if self.training else outputs[0]


def mshnet(**kwargs) -> MSHNet:
    """The widths of the public code."""
    return MSHNet(**kwargs)

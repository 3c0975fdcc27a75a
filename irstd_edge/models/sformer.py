"""A small segmentation transformer of our own, to teach MDPNet: its paper names a transformer teacher, not which."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from irstd_edge.nn.attention import TransformerBlock
from irstd_edge.nn.blocks import FCNHead, conv_bn


class SFormer(nn.Module):
    """Convolutions down to 1/8, transformer blocks on every pixel there, convolutions and skips back up.

    ``blocks`` gives the deepest feature, ``[N, channels, H/8, W/8]``: where a distillation attaches.

    Args:
        channels: of the tokens; the levels above have half, a quarter and an eighth.
        depth: transformer blocks.
        heads: of the attention.
        in_channels: of the image.

    Shapes: float ``[N, in_channels, H, W]``, normalised, H and W multiples of 8, to the target probability
    ``[N, 1, H, W]``. Attention takes the square of the pixels at 1/8: 1024 tokens for 256 x 256.
    """

    #: Heights and widths must be multiples of this.
    size_multiple = 8

    def __init__(self, channels: int = 128, depth: int = 5, heads: int = 4, in_channels: int = 1):
        super().__init__()
        widths = [channels // 8, channels // 4, channels // 2, channels]
        self.stem = nn.Sequential(*conv_bn(in_channels, widths[0], 3), nn.ReLU())
        self.encoder = nn.ModuleList(
            nn.Sequential(*conv_bn(i, o, 3, stride=2), nn.ReLU(), *conv_bn(o, o, 3), nn.ReLU())
            for i, o in pairwise(widths))
        self.blocks = nn.Sequential(*(TransformerBlock(channels, heads) for _ in range(depth)))
        self.lateral = nn.ModuleList(conv_bn(o, i) for i, o in pairwise(widths))
        self.decoder = nn.ModuleList(nn.Sequential(*conv_bn(w, w, 3), nn.ReLU()) for w in widths[:-1])
        self.head = FCNHead(widths[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = [self.stem(x)]
        for stage in self.encoder:
            skips.append(stage(skips[-1]))
        x = self.blocks(skips.pop())
        for lateral, stage, skip in zip(reversed(self.lateral), reversed(self.decoder), reversed(skips), strict=True):
            up = F.interpolate(lateral(x), scale_factor=2, mode="bilinear", align_corners=False)
            x = stage(up + skip)
        return torch.sigmoid(self.head(x))

"""DNANet: dense nested attention network (IEEE TIP 2023, arXiv 2106.00487), after its public code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from irstd_edge.models.resunet import WIDTHS
from irstd_edge.nn.blocks import probability_head
from irstd_edge.nn.residual import residual_stage, upsample


class DNANet(nn.Module):
    """A nested U: node (level i, step j) takes all earlier nodes of its level, the one below and the one above.

    Stages are named as in the public code: ``conv{i}_{j}`` with i + j at most the last level; the last node of every
    level joins in ``conv0_{last}_final``. ``conv{last}_0`` gives the deepest feature.

    Args:
        channels: per level.
        blocks: residual blocks of every node but those of the first level, which have one (2: ResNet-18's depth).
        ratio: of the channel attention; default 16, or the narrowest width where that is less.
        in_channels: of the image.

    Shapes: float ``[N, in_channels, H, W]``, normalised, H and W multiples of ``size_multiple``, to the target
    probability ``[N, 1, H, W]``; in training to a list of one per head, the last of which is that of evaluation.
    """

    def __init__(self, channels: Sequence[int] = WIDTHS["three"], blocks: int = 2, ratio: int | None = None,
                 in_channels: int = 1):
        super().__init__()
        ratio = ratio or min(16, *channels)
        self.last = len(channels) - 1
        #: Heights and widths must be multiples of this.
        self.size_multiple = 2**self.last
        first = channels[0]
        for step in range(self.last + 1):
            for level in range(self.last + 1 - step):
                width = channels[level]
                if step:
                    inputs = width * step + channels[level + 1] + (channels[level - 1] if level else 0)
                else:
                    inputs = channels[level - 1] if level else in_channels
                self.add_module(f"conv{level}_{step}",
                                residual_stage(inputs, width, blocks if level else 1, ratio))
        for level in range(1, self.last + 1):
            self.add_module(f"conv0_{level}_1x1", nn.Conv2d(channels[level], first, 1))
            self.add_module(f"final{level}", probability_head(first))
        self.add_module(f"conv0_{self.last}_final", residual_stage(first * (self.last + 1), first, 1, ratio))

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        stage, last = self.get_submodule, self.last
        # Anti-diagonal by anti-diagonal: node (i, j) needs (i + 1, j - 1) of its own and (i - 1, j) of the one before.
        rows: list[list[torch.Tensor]] = [[] for _ in range(last + 1)]
        for depth in range(last + 1):
            below = stage(f"conv{depth}_0")(F.max_pool2d(rows[depth - 1][0], 2) if depth else x)
            rows[depth].append(below)
            for level in reversed(range(depth)):
                step = depth - level
                inputs = [*rows[level], upsample(below)]
                if level:
                    inputs.append(upsample(rows[level - 1][step], 0.5))
                below = stage(f"conv{level}_{step}")(torch.cat(inputs, 1))
                rows[level].append(below)
        joined = [upsample(stage(f"conv0_{level}_1x1")(rows[level][-1]), 2**level) for level in range(last, 0, -1)]
        joined = stage(f"conv0_{last}_final")(torch.cat([*joined, rows[0][-1]], 1))
        if not self.training:
            return torch.sigmoid(stage(f"final{last}")(joined))
        features = [*rows[0][1:-1], joined]
        return [torch.sigmoid(stage(f"final{i}")(feature)) for i, feature in enumerate(features, 1)]


def dnanet(width: str = "three", **kwargs) -> DNANet:
    """A width of :data:`~irstd_edge.models.resunet.WIDTHS`."""
    return DNANet(WIDTHS[width], **kwargs)

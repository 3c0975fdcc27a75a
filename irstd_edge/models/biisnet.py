"""BiisNet, reconstructed after the abstract of arXiv 2503.02662 (the paper's layout is not published).

A three-level U-Net in which every convolution but the first and the last is Dot-binary.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from irstd_edge.nn.binary import STYLES, BinaryUnit, DotBinaryConv2d, UnitStyle, dot_style
from irstd_edge.nn.blocks import Down, FloatUnit, UnitFactory, Up, exact_conv2d, grid_of, probability_head


class BiisNet(nn.Module):
    """Three levels of ``channels``, 2C, 4C; skips are added.

    Args:
        channels: channels of the first level.
        blocks: units per encoder and decoder stage.
        bottleneck: units at the lowest level.
        unit: the convolution unit, see :mod:`irstd_edge.nn.blocks`.
        fine_unit: that of the two finer levels, up to where a map is halved or comes back to them; default ``unit``.

    Shapes: float ``[N, 1, H, W]``, normalised, H and W multiples of 4, to the target probability ``[N, 1, H, W]``.
    """

    #: Heights and widths must be multiples of this.
    size_multiple = 4

    def __init__(self, channels: int = 16, blocks: int = 2, bottleneck: int = 4, unit: UnitFactory = DotBinaryConv2d,
                 fine_unit: UnitFactory | None = None):
        super().__init__()
        c1, c2, c3 = channels, 2 * channels, 4 * channels
        fine = fine_unit or unit

        def stage(unit: UnitFactory, width: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(unit(width, width) for _ in range(count)))

        down1 = Down(fine, c1)
        self.grid = grid_of(down1.unit)
        self.stem = exact_conv2d(1, c1, 3, padding=1, fraction_bits=self.grid.fraction_bits)
        self.encoder1, self.down1 = stage(fine, c1, blocks), down1
        self.encoder2, self.down2 = stage(fine, c2, blocks), Down(fine, c2)
        self.bottleneck = stage(unit, c3, bottleneck)
        self.up2, self.decoder2 = Up(unit, c3), stage(fine, c2, blocks)
        self.up1, self.decoder1 = Up(fine, c2), stage(fine, c1, blocks)
        self.head = probability_head(c1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e1 = self.encoder1(self.stem(x))
        e2 = self.encoder2(self.down1(e1))
        x = self.bottleneck(self.down2(e2))
        x = self.decoder2(self.grid(self.up2(x) + e2))
        x = self.decoder1(self.grid(self.up1(x) + e1))
        return torch.sigmoid(self.head(x))


def biisnet(reading: str = "add", **kwargs) -> BiisNet:
    """The binarised network (about 7.7K parameters as the field counts: binary / 32 + full-precision convolutions)."""
    return BiisNet(unit=partial(DotBinaryConv2d, reading=reading), **kwargs)


def biisnet_fine(**kwargs) -> BiisNet:
    """``biisnet`` with a full-precision depth-wise path in the two finer levels alone, where it costs few parameters.

    10,113 as the field counts. A fresh path is the identity: in training this computes what ``biisnet`` does and can go
    on from its weights; evaluation rounds what enters a path to 2^-7 and clips it to ±32.
    """
    return BiisNet(fine_unit=partial(DotBinaryConv2d, reading="pointwise"), **kwargs)


#: Networks of biisnet's topology and budget (but for ``pointwise``, whose path costs more) by what follows ``biisnet-``
#: in their names: one choice changed each, or the unit of another binary network.
VARIANTS: dict[str, UnitStyle] = {
    "modulate": dot_style("modulate"),
    "pointwise": dot_style("pointwise"),
    "nopath": dot_style("none"),
    "ste": dot_style(surrogate="ste"),
    "approxsign": dot_style(surrogate="approxsign"),
    "tanh": dot_style(surrogate="scaled-tanh"),
    **{name: style for name, style in STYLES.items() if name != "dot"},
}


def biisnet_variant(name: str, **kwargs) -> BiisNet:
    """A network of :data:`VARIANTS`."""
    return BiisNet(unit=partial(BinaryUnit, style=VARIANTS[name]), **kwargs)


def biisnet_float(**kwargs) -> BiisNet:
    """The float twin: the same topology, float convolutions with BN and PReLU."""
    return BiisNet(unit=FloatUnit, **kwargs)

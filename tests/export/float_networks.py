"""Small float networks in the forms that IRSTD networks have, for the export tests."""

import torch
import torch.nn.functional as F
from torch import nn

from irstd_edge.models.acm import ACMFPN, ACMUNet, ALCNet
from irstd_edge.models.dnanet import DNANet
from irstd_edge.models.mshnet import MSHNet
from irstd_edge.models.resunet import ResUNet


def block(inputs, outputs, dilation=1):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation), nn.BatchNorm2d(outputs),
                         nn.ReLU())


class InnerU(nn.Module):
    """A residual U-block of U2-Net: pools with ceil_mode down, dilation at the bottom, up to the size of each skip."""

    def __init__(self, inputs, middle, outputs, depth):
        super().__init__()
        self.first = block(inputs, outputs)
        self.down = nn.ModuleList(block(outputs if i == 0 else middle, middle) for i in range(depth))
        self.bottom = block(middle, middle, 2)
        self.up = nn.ModuleList(block(2 * middle, outputs if i == 0 else middle) for i in range(depth))
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)

    def forward(self, x):
        first = x = self.first(x)
        skips = []
        for i, layer in enumerate(self.down):
            x = layer(self.pool(x) if i else x)
            skips.append(x)
        x = self.bottom(x)
        for i in reversed(range(len(skips))):
            x = F.interpolate(x, size=skips[i].shape[2:], mode="bilinear", align_corners=False)
            x = self.up[i](torch.cat([x, skips[i]], 1))
        return x + first


class Interaction(nn.Module):
    """Attention between a deep and a shallow map: one gate per channel, one per pixel."""

    def __init__(self, channels):
        super().__init__()
        self.channel = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1),
                                     nn.BatchNorm2d(channels), nn.Sigmoid())
        self.pixel = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, deep, shallow):
        return 2 * shallow * self.channel(deep) + 2 * deep * self.pixel(shallow)


class UIULike(nn.Module):
    """As UIU-Net: a U of U-blocks, attention at the skips, side outputs up-sampled and fused; returns all of them."""

    size_multiple = 1

    def __init__(self, channels=4):
        super().__init__()
        self.stage1, self.stage2 = InnerU(1, channels, channels, 3), InnerU(channels, channels, channels, 2)
        self.stage3 = InnerU(channels, channels, channels, 1)
        self.meet2, self.meet1 = Interaction(channels), Interaction(channels)
        self.back2, self.back1 = InnerU(channels, channels, channels, 2), InnerU(channels, channels, channels, 3)
        self.sides = nn.ModuleList(nn.Conv2d(channels, 1, 3, padding=1) for _ in range(3))
        self.fuse = nn.Conv2d(3, 1, 1)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)

    def forward(self, x):
        def to(y, like):
            return F.interpolate(y, size=like.shape[2:], mode="bilinear", align_corners=False)

        first = self.stage1(x)
        second = self.stage2(self.pool(first))
        third = self.stage3(self.pool(second))
        second = self.back2(self.meet2(to(third, second), second))
        first = self.back1(self.meet1(to(second, first), first))
        sides = [to(side(y), x) for side, y in zip(self.sides, (first, second, third), strict=True)]
        return [torch.sigmoid(y) for y in (self.fuse(torch.cat(sides, 1)), *sides)]


#: Name -> network and the size to export it at: odd in steps of its `size_multiple`.
NETWORKS = {
    "resunet": (lambda: ResUNet((4, 8, 8)), (12, 20)),
    "dnanet": (lambda: DNANet((4, 8, 8), blocks=1), (12, 20)),
    "mshnet": (lambda: MSHNet((4, 8, 8)), (12, 20)),
    "acm": (lambda: ACMUNet((4, 8, 8, 8), blocks=1), (48, 80)),
    "acm-fpn": (lambda: ACMFPN((4, 8, 8, 8), blocks=1), (48, 80)),
    "alcnet": (lambda: ALCNet((4, 8, 8, 8), blocks=1), (48, 80)),
    "uiunet-like": (UIULike, (21, 27)),
}


@torch.no_grad()
def make(name):
    """The network, its statistics and outputs away from where they start, so that errors show."""
    torch.manual_seed(3)
    network = NETWORKS[name][0]().eval()
    for key, value in (*network.named_parameters(), *network.named_buffers()):
        if key.endswith("running_mean"):
            value.normal_(0, 0.2)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.bias.fill_(0.3)  # so that not all of a ReLU's inputs are negative
    return network


def first(outputs):
    return outputs if isinstance(outputs, torch.Tensor) else outputs[0]

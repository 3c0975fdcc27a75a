"""Small float networks that quantisation is tried on."""

import torch
import torch.nn.functional as F
from torch import nn

from irstd_edge.data import Normalisation


def conv_bn(i, o, **options):
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, **options), nn.BatchNorm2d(o), nn.ReLU())


class SmallUNet(nn.Module):
    """Two levels: down, deep, up; a functional pool between them, a skip across."""

    def __init__(self):
        super().__init__()
        self.down, self.deep, self.up = conv_bn(1, 8), conv_bn(8, 16), conv_bn(24, 8)
        self.head = nn.Conv2d(8, 1, 1)
        nn.init.constant_(self.head.bias, -3.0)

    def logits(self, x):
        skip = self.down(x)
        deep = self.deep(F.max_pool2d(skip, 2))
        return self.head(self.up(torch.cat([skip, F.interpolate(deep, scale_factor=2)], 1)))

    def forward(self, x):
        return torch.sigmoid(self.logits(x))


def small_unet():
    return SmallUNet()


#: Of the images that tests/unit/conftest.py writes.
NORMALISATION = Normalisation(85.0, 15.0)


def randomise(network, seed=0):
    """Statistics and weights of batch normalisation that are not those of a fresh one; in evaluation mode."""
    torch.manual_seed(seed)
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, 0, 0.5)
            nn.init.uniform_(m.running_var, 0.5, 2)
            nn.init.normal_(m.weight, 1, 0.3)
            nn.init.normal_(m.bias, 0, 0.3)
    return network.eval()

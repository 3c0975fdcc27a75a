"""The float networks and layers that the engines run, with fixed random weights.

Speed does not depend on the weights. Heads are scaled so that a real frame gives logits of deviation 2: the outputs
then say whether an engine computes the network.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from irstd_edge.models.biisnet import biisnet_float as make_biisnet_float
from irstd_edge.nn.binary import DotBinaryConv2d
from irstd_edge.nn.blocks import ExactConv2d, FloatUnit, grid_of
from irstd_edge.nn.convert import assign, convert, trace
from irstd_edge.nn.quant import QuantConv2d
from irstd_edge.opspec import integer_range

_SEED = 20261121
#: Deviation and mean of the logits over a real frame.
_LOGITS = 2.0, -2.0
#: Largest result of a binary convolution, its scale included.
_LARGEST = 48.0


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions (BN folded into them), ReLU, and a shortcut, 1x1 where the width changes."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.first = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class ResidualUNet(nn.Module):
    """Four levels of 16, 32, 64 and 128 channels, skips concatenated: 516,545 parameters, 2.98 GMAC at 256 x 256.

    Shapes: float ``[N, 1, H, W]``, H and W multiples of 8, to the target probability ``[N, 1, H, W]``.
    """

    size_multiple = 8

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128)):
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1)
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.encoder = nn.ModuleList(ResidualBlock(i, o) for i, o in pairs)
        self.decoder = nn.ModuleList(ResidualBlock(i + o, i) for i, o in reversed(pairs[1:]))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, skips = F.relu(self.stem(x)), []
        for level, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1))
        return torch.sigmoid(self.head(x))


class BinaryResidualUNet(nn.Module):
    """:class:`ResidualUNet` with its inner 3x3 convolutions binarised: Dot-binary units instead of them.

    Shortcuts match channels (repeated) instead of convolving; behind a concatenation the skip is the shortcut.
    """

    size_multiple = 8

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128)):
        super().__init__()
        self.stem = ExactConv2d(1, widths[0], 3, padding=1)
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.encoder = nn.ModuleList(nn.ModuleList([DotBinaryConv2d(i, o), DotBinaryConv2d(o, o)]) for i, o in pairs)
        self.decoder = nn.ModuleList(nn.ModuleList([DotBinaryConv2d(i + o, i), DotBinaryConv2d(i, i)])
                                     for i, o in reversed(pairs[1:]))  # fmt: skip
        self.grid = grid_of(self.encoder[0][0])
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, skips = self.stem(x), []
        for level, (first, second) in enumerate(self.encoder):
            x = second(first(F.max_pool2d(x, 2) if level else x))
            skips.append(x)
        for (first, second), skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = self.grid(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
            x = second(first(torch.cat([x, skip], dim=1), skip))
        return torch.sigmoid(self.head(x))


@torch.no_grad()
def _settled(network: nn.Module) -> nn.Module:
    """In evaluation, its BN statistics and its head fitted to a frame-like input."""
    x = F.avg_pool2d(torch.randn(1, 1, 260, 260), 5, stride=1)[..., :256, :256] * 5
    for module in network.modules():
        if isinstance(module, FloatUnit | DotBinaryConv2d):
            module.norm.momentum = None
    network.train()(x)
    network.eval()
    for module in network.modules():
        if isinstance(module, DotBinaryConv2d):  # random weights give a few channels scales that training does not
            scale = module.conv.alpha() * module.norm.weight / torch.sqrt(module.norm.running_var + module.norm.eps)
            module.norm.weight.mul_((_LARGEST / module.conv.spec.macs_per_output / scale).clamp(max=1))
    logits = torch.logit(network(x).double().clamp(1e-12, 1 - 1e-12))
    std, mean = _LOGITS
    gain = float(std / logits.std())
    network.head.bias.mul_(gain).add_(mean - gain * float(logits.mean()))
    network.head.weight.mul_(gain)
    return network


@torch.no_grad()
def quantised(network: nn.Module, bits: tuple[int, int], images: torch.Tensor) -> nn.Module:
    """A float network in evaluation with all convolutions quantised; the images ``[N, 1, H, W]`` span the steps."""
    seen = trace(network, tuple(images.shape[2:]))
    layers = [n for n, m in network.named_modules() if type(m) is nn.Conv2d]
    signed: dict[str, bool] = {}
    looks = [network.get_submodule(n).register_forward_pre_hook(
        lambda m, inputs, n=n: signed.update({n: bool(inputs[0].min() < 0)})) for n in layers]
    network(images)
    for look in looks:
        look.remove()
    made = convert(network, assign(dict.fromkeys(layers, bits), signed, seen.folded)).eval()
    if bits[0] == 8:  # the range that other engines reduce weights to where a CPU has no VNNI
        with torch.no_grad():
            for m in made.modules():
                if isinstance(m, QuantConv2d):
                    m.weight_step.copy_((m.weight.abs().amax((1, 2, 3)) / 63).clamp(min=1e-12))

    def span(m: QuantConv2d, inputs: tuple[torch.Tensor]) -> None:
        m.activation_step.copy_(inputs[0].abs().max() / integer_range(m.activation_bits, m.activation_signed)[1])

    hooks = [m.register_forward_pre_hook(span)
             for m in made.modules() if isinstance(m, QuantConv2d)]
    made(images)
    for hook in hooks:
        hook.remove()
    return made


def _frames() -> torch.Tensor:
    """Those that the other engines are calibrated on."""
    from irstd_edge.benchmarks.peers import works

    return torch.from_numpy(works.read_frames(Path("samples/frames"), (256, 256))[:works.CALIBRATION])


def _seeded(make) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        return make()


def biisnet_float() -> nn.Module:
    """The float twin of BiisNet."""
    return _seeded(lambda: _settled(make_biisnet_float()))


def unet() -> nn.Module:
    """:class:`ResidualUNet`."""
    return _seeded(lambda: _settled(ResidualUNet()))


def binary_unet() -> nn.Module:
    """:class:`BinaryResidualUNet`."""
    return _seeded(lambda: _settled(BinaryResidualUNet()))


def _trained(name: str) -> nn.Module:
    from irstd_edge.checkpoints import load_network  # needs more than the engines' environments have

    return load_network(name).network


def resunet() -> nn.Module:
    """ResUNet with the weights of the zoo."""
    return _trained("resunet")


def mdpnet() -> nn.Module:
    """MDPNet with the weights of the zoo."""
    return _trained("mdpnet")


def __getattr__(name: str):
    """``resunet_int8`` makes the network of ``resunet`` with all its convolutions in 8 bits, calibrated on frames."""
    make = None if name.startswith("_") else globals().get(name.removesuffix("_int8"))
    if not name.endswith("_int8") or make is None:
        raise AttributeError(name)
    return lambda: quantised(make(), (8, 8), _frames())


def convolution(channels: int) -> nn.Module:
    """One 3x3 convolution, ``[N, channels, H, W]`` to the same shape."""
    return _seeded(lambda: nn.Conv2d(channels, channels, 3, padding=1).eval())

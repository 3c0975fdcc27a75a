"""How large a network is and how much it computes, counted as the field counts.

Parameters (all integers):

``raw``
    Every learned value, one each: binary (latent) weights, convolution weights and biases, channel shifts and slopes,
    PReLU values, and two per channel of batch normalisation (its gain and offset, which is also what is left of it
    after folding). Running statistics and scales derived from weights are not learned and not counted.
``binary_div32_plus_conv``
    ``ceil(binary weights / 32)`` + the weights and biases of full-precision convolutions and linear layers: the
    "Params" of published binary networks to within some 3 % (BiSRNet and those it compares).
``binary_div32_plus_all``
    ``ceil(binary weights / 32)`` + every other learned value.

Operations, at one input size, batch 1: ``macs`` multiply-accumulates of full-precision convolutions and linear
layers, ``bops`` binary ones; one multiply-accumulate counts one (as thop counts "FLOPs"). Padding taps count;
BN, activations, additions, pooling and resampling do not. ``ops = macs + bops / 64``, as Bi-Real Net and ReActNet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from irstd_edge.nn.binary import BinaryConv2d, DotBinaryConv2d, FoldedBinaryConv2d
from irstd_edge.nn.blocks import FrozenExactConv2d

REFERENCE_INPUT = (256, 256)
_FLOAT_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class Parameters:
    """The three counts; see the module."""

    raw: int
    binary_div32_plus_conv: int
    binary_div32_plus_all: int


@dataclass(frozen=True)
class Complexity:
    """Counts of one network at ``input`` [H, W]."""

    params: Parameters
    macs: int
    bops: int
    input: tuple[int, int]

    @property
    def ops(self) -> float:
        return self.macs + self.bops / 64

    def as_dict(self) -> dict:
        return {"params": self.params.__dict__.copy(), "macs": self.macs, "bops": self.bops, "ops": self.ops,
                "input": list(self.input)}


def count_parameters(network: nn.Module) -> Parameters:
    """The three counts of a network in its training form (shared parameters once)."""
    raw = sum(p.numel() for p in network.parameters())
    seen: set[int] = set()

    def count(parameters) -> int:
        new = [p for p in parameters if p is not None and id(p) not in seen]
        seen.update(id(p) for p in new)
        return sum(p.numel() for p in new)

    modules = list(network.modules())
    binary = sum(count([m.weight]) for m in modules if isinstance(m, BinaryConv2d))
    convolutions = sum(count([m.weight, m.bias]) for m in modules if isinstance(m, _FLOAT_CONVOLUTIONS))
    words = -(-binary // 32)
    return Parameters(raw, words + convolutions, words + raw - binary)


@torch.no_grad()
def measure_complexity(network: nn.Module, size: tuple[int, int] = REFERENCE_INPUT, channels: int = 1) -> Complexity:
    """Count by one forward pass over zeros ``[1, channels, H, W]``; the network's mode is restored."""
    totals = {"macs": 0, "bops": 0}

    def count(module, inputs, output):
        if isinstance(module, DotBinaryConv2d | BinaryConv2d | FoldedBinaryConv2d):
            spec = module.conv.spec if isinstance(module, DotBinaryConv2d) else module.spec
            totals["bops"] += output.numel() * spec.macs_per_output
        elif isinstance(module, nn.ConvTranspose2d):
            totals["macs"] += inputs[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            totals["macs"] += output.numel() * module.in_features
        else:
            totals["macs"] += output.numel() * module.weight[0].numel()

    counted = (DotBinaryConv2d, BinaryConv2d, FoldedBinaryConv2d, FrozenExactConv2d, *_FLOAT_CONVOLUTIONS)
    training = {m: m.training for m in network.modules()}
    device = next((p.device for p in network.parameters()), "cpu")
    # In evaluation mode a Dot-binary unit runs its folded operator at once: the convolution inside is not called.
    network.eval()
    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, counted)]
    try:
        network(torch.zeros(1, channels, *size, device=device))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return Complexity(count_parameters(network), totals["macs"], totals["bops"], tuple(size))

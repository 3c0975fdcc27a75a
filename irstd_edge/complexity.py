"""How large a network is and how much it computes, counted as the field counts.

Parameters (all integers):

``raw``
    Every learned value, one each: binary (latent) weights, convolution weights and biases, channel shifts and slopes,
    PReLU values, and two per channel of batch normalisation (its gain and offset, which is also what is left of it
    after folding). Running statistics and scales derived from weights are not learned and not counted.
``binary_div32_plus_conv``
    ``ceil(bits of compressed weights / 32)`` + the weights and biases of full-precision convolutions and linear
    layers: the "Params" of published binary networks to within some 3 % (BiSRNet and those it compares). A binary
    weight is one bit, one of a quantised convolution its ``weight_bits``.
``binary_div32_plus_all``
    The same bits / 32 + every other learned value.

Operations, at one input size, batch 1: ``macs`` multiply-accumulates of full-precision convolutions, linear layers and
matrix products; ``bops`` those of compressed layers, times bits of weight and of input (1 where both are binary). One
multiply-accumulate counts one (as thop counts "FLOPs"). Padding taps count; BN, activations, additions, pooling and
resampling do not. ``ops = macs + bops / 64``, as Bi-Real Net and ReActNet: eight bits by eight are one full operation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from irstd_edge.nn.attention import SelfAttention
from irstd_edge.nn.binary import BinaryConv2d, BinaryUnit, FoldedBinaryConv2d
from irstd_edge.nn.blocks import FrozenExactConv2d
from irstd_edge.nn.quant import FoldedQuantConv2d, QuantConv2d

REFERENCE_INPUT = (256, 256)
_COMPRESSED = (BinaryUnit, BinaryConv2d, FoldedBinaryConv2d, QuantConv2d, FoldedQuantConv2d)
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
    weights = bits = 0
    for m in modules:
        if isinstance(m, BinaryConv2d | QuantConv2d):
            new = count([m.weight])
            weights, bits = weights + new, bits + new * getattr(m, "weight_bits", 1)
    convolutions = sum(count([m.weight, m.bias]) for m in modules if isinstance(m, _FLOAT_CONVOLUTIONS))
    convolutions += sum(count([m.bias]) for m in modules if isinstance(m, QuantConv2d))
    words = -(-bits // 32)
    return Parameters(raw, words + convolutions, words + raw - weights)


@torch.no_grad()
def measure_complexity(network: nn.Module, size: tuple[int, int] = REFERENCE_INPUT, channels: int = 1) -> Complexity:
    """Count by one forward pass over zeros ``[1, channels, H, W]``; the network's mode is restored."""
    totals = {"macs": 0, "bops": 0}

    def count(module, inputs, output):
        if isinstance(module, _COMPRESSED):
            spec = module.conv.spec if isinstance(module, BinaryUnit) else module.spec
            bits = getattr(spec, "weight_bits", 1) * getattr(spec, "activation_bits", 1)
            totals["bops"] += output.numel() * spec.macs_per_output * bits
        elif isinstance(module, SelfAttention):
            # Queries by keys, and weights by values; the projections are linear layers of their own.
            batch, tokens, channels = inputs[0].shape
            totals["macs"] += 2 * batch * tokens * tokens * channels
        elif isinstance(module, nn.ConvTranspose2d):
            totals["macs"] += inputs[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            totals["macs"] += output.numel() * module.in_features
        else:
            totals["macs"] += output.numel() * module.weight[0].numel()

    counted = (*_COMPRESSED, SelfAttention, FrozenExactConv2d, *_FLOAT_CONVOLUTIONS)
    training = {m: m.training for m in network.modules()}
    device = next((p.device for p in network.parameters()), "cpu")
    # In evaluation mode a binary unit runs its folded operator at once: the convolution inside is not called.
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

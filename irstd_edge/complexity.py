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

Precision: ``mac_bits = 1024 macs + bops`` is the sum of multiply-accumulates times bits of weight and of input, 32 by
32 for full precision. ``weight_bits_mean`` is the mean over all weights of these layers, ``activation_bits_mean`` over
all elements of their inputs (of matrix products, the input of their block).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from irstd_edge.nn.attention import SelfAttention
from irstd_edge.nn.binary import BinaryConv2d, BinaryUnit, FoldedBinaryConv2d
from irstd_edge.nn.blocks import FrozenExactConv2d
from irstd_edge.nn.quant import FoldedQuantConv2d, QuantConv2d

REFERENCE_INPUT = (256, 256)
FLOAT_BITS = 32
_COMPRESSED = (BinaryUnit, BinaryConv2d, FoldedBinaryConv2d, QuantConv2d, FoldedQuantConv2d)
_FLOAT_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class Parameters:
    """The three counts; see the module."""

    raw: int
    binary_div32_plus_conv: int
    binary_div32_plus_all: int


@dataclass(frozen=True)
class LayerCount:
    """One layer that multiplies, at one input size, batch 1; ``inputs`` and ``macs`` summed over its calls."""

    name: str
    weights: int
    #: Elements of its inputs.
    inputs: int
    macs: int
    weight_bits: int
    activation_bits: int
    #: Height and width of its output; (1, 1) where it has none.
    output_size: tuple[int, int]


@dataclass(frozen=True)
class Precision:
    """``mac_bits`` and the mean bits, see the module; ``macs`` of all layers, compressed ones included."""

    macs: int
    mac_bits: int
    weight_bits_mean: float
    activation_bits_mean: float

    @property
    def size_ratio(self) -> float:
        """Full-precision weights over these, in bits."""
        return FLOAT_BITS / self.weight_bits_mean

    @property
    def memory_ratio(self) -> float:
        """Full-precision inputs of all layers over these, in bits."""
        return FLOAT_BITS / self.activation_bits_mean

    @property
    def compute_ratio(self) -> float:
        """MACs x bits of full precision over these."""
        return FLOAT_BITS**2 * self.macs / self.mac_bits


def measure_precision(layers: Iterable[LayerCount], bits: Mapping[str, tuple[int, int] | None] | None = None
                      ) -> Precision:
    """Sums and means over layers, with their own bits or those of a table by name (None: full precision).

    Layers that the table does not name keep their own. A mean over nothing is full precision.
    """
    bits, full = bits or {}, (FLOAT_BITS, FLOAT_BITS)
    rows = [(layer, *(bits.get(layer.name, (layer.weight_bits, layer.activation_bits)) or full)) for layer in layers]
    weights, inputs = sum(layer.weights for layer, _, _ in rows), sum(layer.inputs for layer, _, _ in rows)
    return Precision(
        macs=sum(layer.macs for layer, _, _ in rows),
        mac_bits=sum(layer.macs * w * a for layer, w, a in rows),
        weight_bits_mean=sum(layer.weights * w for layer, w, _ in rows) / weights if weights else float(FLOAT_BITS),
        activation_bits_mean=sum(layer.inputs * a for layer, _, a in rows) / inputs if inputs else float(FLOAT_BITS),
    )


@dataclass(frozen=True)
class Complexity:
    """Counts of one network at ``input`` [H, W]."""

    params: Parameters
    macs: int
    bops: int
    weight_bits_mean: float
    activation_bits_mean: float
    input: tuple[int, int]

    @property
    def mac_bits(self) -> int:
        return FLOAT_BITS**2 * self.macs + self.bops

    @property
    def ops(self) -> float:
        return self.macs + self.bops / 64

    def as_dict(self) -> dict:
        return {"params": self.params.__dict__.copy(), "macs": self.macs, "bops": self.bops, "ops": self.ops,
                "mac_bits": self.mac_bits, "weight_bits_mean": self.weight_bits_mean,
                "activation_bits_mean": self.activation_bits_mean, "input": list(self.input)}


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
    layers = count_layers(network, size, channels)
    floating = sum(layer.macs for layer in layers if layer.weight_bits == FLOAT_BITS)
    p = measure_precision(layers)
    return Complexity(count_parameters(network), floating, p.mac_bits - FLOAT_BITS**2 * floating, p.weight_bits_mean,
                      p.activation_bits_mean, tuple(size))


@torch.no_grad()
def count_layers(network: nn.Module, size: tuple[int, int] = REFERENCE_INPUT, channels: int = 1) -> list[LayerCount]:
    """Every layer that multiplies, in the order of first calls, by one forward pass over zeros ``[1, channels, H, W]``;
    the network's mode is restored."""
    found: dict[str, LayerCount] = {}
    names = {m: name for name, m in network.named_modules()}

    def count(module, inputs, output):
        weight_bits = activation_bits = FLOAT_BITS
        weights = 0 if isinstance(module, (*_COMPRESSED, SelfAttention)) else module.weight.numel()
        if isinstance(module, _COMPRESSED):
            spec = module.conv.spec if isinstance(module, BinaryUnit) else module.spec
            weight_bits, activation_bits = getattr(spec, "weight_bits", 1), getattr(spec, "activation_bits", 1)
            weights, macs = spec.out_channels * spec.macs_per_output, output.numel() * spec.macs_per_output
        elif isinstance(module, SelfAttention):
            # Queries by keys, and weights by values; the projections are linear layers of their own.
            batch, tokens, channels = inputs[0].shape
            macs = 2 * batch * tokens * tokens * channels
        elif isinstance(module, nn.ConvTranspose2d):
            macs = inputs[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs = output.numel() * module.in_features
        else:
            macs = output.numel() * module.weight[0].numel()
        name = names[module]
        before = found.get(name)
        found[name] = LayerCount(
            name, weights, inputs[0].numel() + (before.inputs if before else 0), macs + (before.macs if before else 0),
            weight_bits, activation_bits, tuple(output.shape[2:]) if output.dim() == 4 else (1, 1))

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
    return list(found.values())

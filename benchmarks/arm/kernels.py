"""Float and quantised layers of which budgets are kept, one for each kernel; binary ones are works of the peers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from irstd_edge.benchmarks.peers.native_layer import TIMED
from irstd_edge.program import Node, Program, Tensor, write


@dataclass(frozen=True)
class Layer:
    """A convolution; ``kernel`` is part of the name of the kernel that must be taken for it.

    ``bits`` of weights and activations: quantised, else float32, or ``fixed`` input, on a grid.
    """

    kernel: str
    inputs: int
    outputs: int
    size: int
    side: int = 3
    stride: int = 1
    groups: int = 1
    fixed: bool = False
    bits: tuple[int, int] | None = None

    @property
    def precision(self) -> str:
        return "w{}a{}".format(*self.bits) if self.bits else "int16" if self.kernel == "int16" else "fp32"


LAYERS = {
    "winograd 32-32@128": Layer("winograd", 32, 32, 128),
    "direct 32-32@128/2": Layer("direct", 32, 32, 128, stride=2),
    "pointwise 64-64@64": Layer("pointwise", 64, 64, 64, 1),
    "depthwise 64@64": Layer("depthwise", 64, 64, 64, groups=64),
    "transposed 32-16@64*2": Layer("transposed", 32, 16, 64, 4, 2),
    "projection 32-1@128": Layer("projection", 32, 1, 128, 1, fixed=True),
    "int16 1-16@256": Layer("int16", 1, 16, 256, fixed=True),
    "w8a8 64-64@64": Layer("qconv2d", 64, 64, 64, bits=(8, 8)),
    "w4a4 64-64@64": Layer("qconv2d", 64, 64, 64, bits=(4, 4)),
    "w2a2 64-64@64": Layer("qconv2d", 64, 64, 64, bits=(2, 2)),
}


def program(layer: Layer) -> bytes:
    """model.irstd of three layers, the second of them the one to count: packed maps in and out of quantised ones."""
    rng = np.random.default_rng(1)
    before = _quant(rng, layer, layer.inputs, "first") if layer.bits else (
        "FixedPoint", {"fraction_bits": 8, "bits": 16}, {}) if layer.fixed else ("Activation", {}, {})
    timed = _quant(rng, layer, layer.outputs, TIMED) if layer.bits else _float(rng, layer)
    behind = _quant(rng, layer, 1, "last") if layer.bits else ("Activation", {}, {})
    grids = (8 if layer.fixed else -1, 8 if layer.kernel == "int16" else -1, -1)
    channels = (layer.inputs, layer.outputs, 1 if layer.bits else layer.outputs)
    tensors, nodes = [Tensor("x", layer.inputs)], []
    for i, (operator, attributes, constants) in enumerate((before, timed, behind)):
        tensors.append(Tensor(f"y{i}", channels[i], grids[i]))
        nodes.append(Node(operator, ("first", TIMED, "last")[i], (i,), i + 1, attributes, constants))
    return write(Program(tuple(tensors), tuple(nodes), 1, (3,)))


def _geometry(layer: Layer, side: int, stride: int, outputs: int, groups: int) -> dict:
    before = (side - 1) // 2
    pads = {"pad_top": before, "pad_left": before, "pad_bottom": before, "pad_right": before}
    return {"in_channels": layer.inputs, "out_channels": outputs, "kernel_h": side, "kernel_w": side,
            "stride_h": stride, "stride_w": stride, "groups": groups, **pads}


def _float(rng, layer: Layer) -> tuple[str, dict, dict]:
    transposed = layer.kernel == "transposed"
    shape = (layer.inputs, layer.outputs) if transposed else (layer.outputs, layer.inputs // layer.groups)
    weight = rng.integers(-16, 17, (*shape, layer.side, layer.side)) / 64  # int16 takes those on a grid
    return ("ConvTranspose2d" if transposed else "Conv2d",
            _geometry(layer, layer.side, layer.stride, layer.outputs, layer.groups) |
            ({} if layer.fixed else {"activation": 1}), {"weight": weight.astype(np.float32)})


def _quant(rng, layer: Layer, outputs: int, name: str) -> tuple[str, dict, dict]:
    inputs = layer.outputs if name == "last" else layer.inputs
    bytes_per_row = -(-inputs * layer.side**2 * layer.bits[0] // 8)
    constants = {"weight": rng.integers(0, 256, (outputs, bytes_per_row), dtype=np.uint8),
                 "scale": rng.uniform(0.001, 0.02, outputs).astype(np.float32),
                 "bias": rng.normal(0, 0.5, outputs).astype(np.float32)}
    attributes = _geometry(layer, layer.side, 1, outputs, 1) | {
        "version": 1, "in_channels": inputs, "weight_bits": layer.bits[0], "activation_bits": layer.bits[1],
        "inverse_step": 2.0 ** (layer.bits[1] - 2), "clamp_min": 0.0}
    return "QuantConv2d", attributes, constants

"""Small programs for the tests of engine and adapters."""

from pathlib import Path

import numpy as np

from irstd_edge import bundle as bundles
from irstd_edge.bundle import Artefact, Bundle
from irstd_edge.program import Node, Program, Tensor

SIZE = (16, 24)


def values(*shape, steps=64):
    """float32 multiples of 1/steps: sums of them are exact in any order."""
    rng = np.random.default_rng(int(np.prod(shape)) + 7 * len(shape))
    return (rng.integers(-steps, steps + 1, shape) / steps).astype(np.float32)


class Builder:
    """A program, node by node: :meth:`add` returns the tensor of the result."""

    def __init__(self, *channels: int):
        self.tensors = [Tensor(f"x{i}", c) for i, c in enumerate(channels)]
        self.nodes, self.inputs = [], len(channels)

    def add(self, operator, inputs, channels, grid=-1, constants=None, **attributes):
        self.tensors.append(Tensor(f"t{len(self.tensors)}", channels, grid))
        inputs = (inputs,) if isinstance(inputs, int) else inputs
        self.nodes.append(Node(operator, f"{operator}_{len(self.nodes)}", inputs, len(self.tensors) - 1, attributes,
                               constants or {}))
        return len(self.tensors) - 1

    def conv(self, x, out=4, kernel=(3, 3), bits=-1, groups=1, operator="Conv2d", bias=True, **attributes):
        channels = self.tensors[x].channels
        shape = (channels, out // groups) if operator == "ConvTranspose2d" else (out, channels // groups)
        constants = {"weight": values(*shape, *kernel)} | ({"bias": values(out)} if bias else {})
        if attributes.get("activation") == 2:
            constants["slope"] = values(out)
        return self.add(operator, x, out, bits, constants, in_channels=channels, out_channels=out, kernel_h=kernel[0],
                        kernel_w=kernel[1], groups=groups, **attributes)

    def binary(self, x, residual=None, out=4, bits=8, kernel=(3, 3), groups=1, activation=1, **attributes):
        channels = self.tensors[x].channels
        words = -(-(channels // groups) // 32)
        rng = np.random.default_rng(channels + out)
        weight = rng.integers(-2**31, 2**31, (out, *kernel, words)).astype(np.int32)
        if used := channels // groups % 32:
            weight[..., -1] &= (1 << used) - 1
        constants = {"weight": weight, "threshold": values(channels), "scale": values(out, steps=256) / 8,
                     "bias": values(out)}
        if activation == 1:
            constants["activation_parameters"] = values(3, out)
        return self.add("BinaryConv2d", (x,) if residual is None else (x, residual), out, bits, constants, version=1,
                        bit_order=1, in_channels=channels, out_channels=out, kernel_h=kernel[0], kernel_w=kernel[1],
                        groups=groups, activation=activation, residual=int(residual is not None), fraction_bits=bits,
                        **({"pad_value": 0} | attributes))

    def finish(self, *outputs):
        return Program(tuple(self.tensors), tuple(self.nodes), self.inputs, outputs)


def floats(b, *numbers):
    """Float copies of int16 tensors, for outputs."""
    return [b.add("Activation", n, b.tensors[n].channels) if b.tensors[n].fraction_bits >= 0 else n for n in numbers]


PAD = {"pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1}
WINDOW = {"kernel_h": 2, "kernel_w": 2, "stride_h": 2, "stride_w": 2}


def small(head=4):
    b = Builder(1)
    x = b.conv(0, 4, bits=8, **PAD)
    half = b.add("AveragePool", x, 4, 8, **WINDOW)
    y = b.add("Resize", (b.binary(half, half, **PAD), x), 4, 8, scale_h=2, scale_w=2, mode=1)
    return b.finish(b.conv(y, 1, (1, 1), activation=head))


def write_bundle(folder: Path, data: bytes, fixed: bool = False) -> Bundle:
    folder.mkdir(parents=True)
    (folder / "model.irstd").write_bytes(data)
    (folder / "weights.safetensors").write_bytes(b"")
    digest = bundles.sha256(folder / "weights.safetensors")
    entry = Artefact("native", "model.irstd", bundles.sha256(folder / "model.irstd"), len(data), "NCHW",
                     SIZE if fixed else None, (), not fixed)
    bundles.write_manifest(folder, bundles.Manifest(
        "small", "0", 1, 1, None, "weights.safetensors", digest, "nowhere:f", bundles.Preprocessing(0.0, 1.0), 0.5,
        SIZE, (entry,), bundles.TestVectors("weights.safetensors", digest, 0)))
    return Bundle.open(folder)

"""What a program computes: PyTorch in float64, kernel_truth.py for the binary convolution; no code of the engine."""

from __future__ import annotations

import kernel_truth
import numpy as np
import torch
import torch.nn.functional as F

from irstd_edge.program import Node, Program


def run_program(program: Program, *images: np.ndarray) -> list[np.ndarray]:
    """float32 ``[C, H, W]`` for each input to the same for each output."""
    values = {i: np.asarray(image, np.float32)[None] for i, image in enumerate(images)}
    assert len(values) == program.inputs
    for node in program.nodes:
        grid, channels = program.tensors[node.output].fraction_bits, program.tensors[node.output].channels
        y = run_node(node, [values[i] for i in node.inputs], grid, channels)
        assert y.shape[1] == channels, node.name
        values[node.output] = y if grid < 0 else on_grid(y, grid)
    return [values[i][0] for i in program.outputs]


def on_grid(x: np.ndarray, fraction_bits: int, bits: int = 16) -> np.ndarray:
    """Of a float32 value, in float32 steps; exact."""
    with np.errstate(all="ignore"):
        q = np.floor(np.float32(x) * np.float32(2.0**fraction_bits) + np.float32(0.5))
        low, high = np.float32(-(2.0 ** (bits - 1))), np.float32(2.0 ** (bits - 1) - 1)
        return np.where(q > low, np.minimum(q, high), low) / np.float32(2.0**fraction_bits)


def unpack(words: np.ndarray, channels: int) -> np.ndarray:
    """int32 ``[OC, KH, KW, words]`` to +1/-1 ``[OC, channels, KH, KW]``."""
    bits = np.unpackbits(np.ascontiguousarray(words, "<i4").view(np.uint8), axis=-1, bitorder="little")
    return np.moveaxis(bits[..., :channels].astype(np.int64) * 2 - 1, -1, 1)


def binary(node: Node, x: np.ndarray, residual: np.ndarray | None) -> np.ndarray:
    a, c = node.attributes, node.constants
    padded = kernel_truth.pad(kernel_truth.signs_of(x, c["threshold"]), a)
    weight = unpack(c["weight"], a["in_channels"] // a["groups"])
    sums = F.conv2d(torch.from_numpy(padded.astype(np.float64)), torch.from_numpy(weight.astype(np.float64)), None,
                    (a["stride_h"], a["stride_w"]), 0, (a["dilation_h"], a["dilation_w"]), a["groups"])
    return kernel_truth.epilogue(sums.numpy().astype(np.int64), c["scale"], c["bias"], c.get("activation_parameters"),
                                 residual, a)


def unpack_integers(packed: np.ndarray, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """uint8 ``[OC, bytes]`` to int64 ``[OC, KH, KW, channels]``, given that shape."""
    stream = np.unpackbits(packed, axis=1, bitorder="little")[:, : int(np.prod(shape[1:])) * bits]
    digits = stream.reshape(*shape, bits).astype(np.int64)
    if bits == 1:
        return digits[..., 0] * 2 - 1
    weights = 2 ** np.arange(bits, dtype=np.int64)
    weights[-1] *= -1  # two's complement
    return (digits * weights).sum(-1)


def quantized(x: np.ndarray, a) -> np.ndarray:
    """int64, less the zero point."""
    low, high = (-(2 ** (a["activation_bits"] - 1)), 2 ** (a["activation_bits"] - 1) - 1)
    if not a["activation_signed"]:
        low, high = 0, 2 ** a["activation_bits"] - 1
    with np.errstate(all="ignore"):
        q = np.rint(np.float32(x) * np.float32(a["inverse_step"])) + np.float32(a["zero_point"])
    return np.where(np.isnan(q), low, np.clip(q, low, high)).astype(np.int64) - a["zero_point"]


def quant(node: Node, x: np.ndarray) -> np.ndarray:
    """Tap by tap in int64; every step behind the sum in float32."""
    a, c = node.attributes, node.constants
    groups, per = a["groups"], a["in_channels"] // a["groups"]
    weight = unpack_integers(c["weight"], (a["out_channels"], a["kernel_h"], a["kernel_w"], per), a["weight_bits"])
    q = np.pad(quantized(x, a), [(0, 0), (0, 0), (a["pad_top"], a["pad_bottom"]), (a["pad_left"], a["pad_right"])])
    oh = (q.shape[2] - a["dilation_h"] * (a["kernel_h"] - 1) - 1) // a["stride_h"] + 1
    ow = (q.shape[3] - a["dilation_w"] * (a["kernel_w"] - 1) - 1) // a["stride_w"] + 1
    acc = np.zeros((len(q), groups, a["out_channels"] // groups, oh, ow), np.int64)
    for i in range(a["kernel_h"]):
        for j in range(a["kernel_w"]):
            top, left = i * a["dilation_h"], j * a["dilation_w"]
            part = q[:, :, top:top + (oh - 1) * a["stride_h"] + 1:a["stride_h"],
                     left:left + (ow - 1) * a["stride_w"] + 1:a["stride_w"]]
            acc += np.einsum("ngchw,goc->ngohw", part.reshape(len(q), groups, per, oh, ow),
                             weight[:, i, j].reshape(groups, -1, per))
    with np.errstate(all="ignore"):
        v = acc.reshape(len(q), -1, oh, ow).astype(np.float32) * c["scale"].reshape(-1, 1, 1)
        v = v + c["bias"].reshape(-1, 1, 1)
    return np.where(np.isnan(v), v, np.clip(v, np.float32(a["clamp_min"]), np.float32(a["clamp_max"])))


def activate(node: Node, y: torch.Tensor) -> torch.Tensor:
    a = node.attributes
    if a["activation"] == 2:
        return torch.where(y < 0, y * torch.from_numpy(node.constants["slope"].astype(np.float64)).view(-1, 1, 1), y)
    return {0: lambda: y, 1: lambda: torch.relu(y), 3: lambda: torch.clamp(y, a["clamp_min"], a["clamp_max"]),
            4: lambda: torch.sigmoid(y), 5: lambda: torch.tanh(y)}[a["activation"]]()


def run_node(node: Node, inputs: list[np.ndarray], grid: int, channels: int) -> np.ndarray:
    if node.operator == "BinaryConv2d":
        return binary(node, inputs[0], inputs[1] if len(inputs) > 1 else None)
    if node.operator == "QuantConv2d":
        return quant(node, np.concatenate(inputs, 1))
    if node.operator == "FixedPoint":
        return on_grid(inputs[0], node.attributes["fraction_bits"], node.attributes["bits"])
    tensors = [torch.from_numpy(np.asarray(i, np.float64)) for i in inputs]
    return float_node(node, tensors, grid, channels).numpy().astype(np.float32)


def pool(node: Node, x: torch.Tensor) -> torch.Tensor:
    """PyTorch's, on the image padded by hand: with what an average counts, or with nothing that a maximum sees."""
    a, average = node.attributes, node.operator == "AveragePool"
    pads = (a["pad_left"], a["pad_right"], a["pad_top"], a["pad_bottom"])
    kernel, stride = (a["kernel_h"], a["kernel_w"]), (a["stride_h"], a["stride_w"])

    def every_window(t: torch.Tensor, fill: float) -> torch.Tensor:
        """Behind the padding is more, where windows of ceil_mode reach."""
        t = F.pad(t, pads, value=fill if average else -torch.inf)
        sides = [(n - k + (s - 1) * a["ceil_mode"]) // s + 1
                 for n, k, s in zip(t.shape[2:], kernel, stride, strict=True)]
        sides = [m - (a["ceil_mode"] and (m - 1) * s >= n + p) for m, s, n, p in
                 zip(sides, stride, x.shape[2:], (a["pad_top"], a["pad_left"]), strict=True)]
        more = [max((m - 1) * s + k - n, 0) for m, s, k, n in zip(sides, stride, kernel, t.shape[2:], strict=True)]
        t = F.pad(t, (0, more[1], 0, more[0]), value=0 if average else -torch.inf)
        y = (F.avg_pool2d if average else F.max_pool2d)(t, kernel, stride)
        return y[:, :, :sides[0], :sides[1]]

    if not average:
        return every_window(x, 0)
    return every_window(x, 0) / every_window(torch.ones_like(x), float(a["count_padding"]))


def resize(node: Node, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    a = node.attributes
    options = {"mode": "bilinear", "align_corners": a["mode"] == 2} if a["mode"] else {"mode": "nearest"}
    if a["size"] == 0:
        factors = [a[f"scale_{d}"] / a[f"divisor_{d}"] for d in "hw"]
        return F.interpolate(x, scale_factor=factors, **options)
    return F.interpolate(x, size=others[0].shape[2:] if a["size"] == 1 else (a["height"], a["width"]), **options)


def float_node(node: Node, inputs: list[torch.Tensor], grid: int, channels: int) -> torch.Tensor:
    a, x = node.attributes, inputs[0]
    c = {k: torch.from_numpy(v.astype(np.float64)) for k, v in node.constants.items()}

    def pair(name):
        return a[f"{name}_h"], a[f"{name}_w"]

    if node.operator == "Conv2d":
        x = F.pad(x, (a["pad_left"], a["pad_right"], a["pad_top"], a["pad_bottom"]))
        return activate(node, F.conv2d(x, c["weight"], c.get("bias"), pair("stride"), 0, pair("dilation"), a["groups"]))
    if node.operator == "ConvTranspose2d":
        y = F.conv_transpose2d(x, c["weight"], c.get("bias"), pair("stride"), 0, pair("output_pad"), a["groups"],
                               pair("dilation"))
        h, w = y.shape[2:]
        return activate(node, y[:, :, a["pad_top"]:h - a["pad_bottom"], a["pad_left"]:w - a["pad_right"]])
    if node.operator in ("AveragePool", "MaxPool"):
        return pool(node, x)
    if node.operator == "Resize":
        y = resize(node, *inputs)
        if len(inputs) == 2 and a["size"] != 1:
            y = (y if grid < 0 else torch.from_numpy(on_grid(y.numpy(), grid))) + inputs[1]
        return y
    if node.operator == "Add":
        return activate(node, inputs[0] + inputs[1])
    if node.operator == "Multiply":
        return x * inputs[1]
    if node.operator == "Activation":
        return activate(node, x)
    if node.operator == "Concat":
        return torch.cat(inputs, 1)
    if node.operator == "Slice":
        return x[:, a["first"]:a["first"] + channels]
    reductions = {"GlobalAveragePool": lambda: x.mean((2, 3), keepdim=True),
                  "GlobalMaxPool": lambda: x.amax((2, 3), keepdim=True),
                  "ChannelAveragePool": lambda: x.mean(1, keepdim=True),
                  "ChannelMaxPool": lambda: x.amax(1, keepdim=True)}
    return reductions[node.operator]()

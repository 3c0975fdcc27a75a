"""What a program computes, by PyTorch and NumPy on float32 images: the truth for the native target and engine."""

import numpy as np
import torch
import torch.nn.functional as F

from irstd_edge.nn.functional import binary_conv2d, quant_conv2d
from irstd_edge.opspec import BinaryConv2dSpec, QuantConv2dSpec
from irstd_edge.program import Program


def run_program(program: Program, *images: np.ndarray) -> list[np.ndarray]:
    """float32 ``[C, H, W]`` for each input to the same for each output."""
    values = {i: torch.from_numpy(np.ascontiguousarray(image[None], np.float32)) for i, image in enumerate(images)}
    assert len(values) == program.inputs
    with torch.inference_mode():
        for node in program.nodes:
            tensor = program.tensors[node.output]
            y = run_node(node, [values[i] for i in node.inputs], tensor.fraction_bits, tensor.channels)
            assert y.shape[1] == tensor.channels, node.name
            values[node.output] = y if tensor.fraction_bits < 0 else on_grid(y, tensor.fraction_bits)
    return [values[i][0].numpy() for i in program.outputs]


def on_grid(x, fraction_bits, bits=16):
    step, limit = 2.0**fraction_bits, 2.0 ** (bits - 1)
    return torch.clamp(torch.floor(x * step + 0.5), -limit, limit - 1) / step


def activate(node, y):
    a = node.attributes
    if a["activation"] == 2:
        slope = torch.from_numpy(np.array(node.constants["slope"])).view(-1, 1, 1)
        return torch.where(y < 0, y * slope, y)
    return {0: lambda: y, 1: lambda: torch.relu(y), 3: lambda: torch.clamp(y, a["clamp_min"], a["clamp_max"]),
            4: lambda: torch.sigmoid(y), 5: lambda: torch.tanh(y)}[a["activation"]]()


def run_node(node, inputs, fraction_bits, channels):
    a, x = node.attributes, inputs[0]
    c = {k: torch.from_numpy(np.array(v)) for k, v in node.constants.items()}
    pair = lambda name: (a[f"{name}_h"], a[f"{name}_w"])  # noqa: E731
    if node.operator == "BinaryConv2d":
        return binary_conv2d(x, *(c[k] for k in ("weight", "threshold", "scale", "bias")),
                             BinaryConv2dSpec.from_attributes(dict(a)), c.get("activation_parameters"), *inputs[1:])
    if node.operator == "QuantConv2d":
        return quant_conv2d(torch.cat(inputs, 1), c["weight"], c["scale"], c["bias"],
                            QuantConv2dSpec.from_attributes(dict(a)))
    if node.operator == "Conv2d":
        x = F.pad(x, (a["pad_left"], a["pad_right"], a["pad_top"], a["pad_bottom"]))
        y = F.conv2d(x, c["weight"], c.get("bias"), pair("stride"), 0, pair("dilation"), a["groups"])
        return activate(node, y)
    if node.operator == "ConvTranspose2d":
        y = F.conv_transpose2d(x, c["weight"], c.get("bias"), pair("stride"), 0, pair("output_pad"), a["groups"],
                               pair("dilation"))
        h, w = y.shape[2:]
        return activate(node, y[:, :, a["pad_top"]:h - a["pad_bottom"], a["pad_left"]:w - a["pad_right"]])
    if node.operator == "FixedPoint":
        return on_grid(x, a["fraction_bits"], a["bits"])
    if node.operator in ("AveragePool", "MaxPool"):
        return (F.avg_pool2d if node.operator == "AveragePool" else F.max_pool2d)(x, pair("kernel"), pair("stride"))
    if node.operator == "Resize":
        mode, corners = ("nearest", None) if a["mode"] == 0 else ("bilinear", a["mode"] == 2)
        size = (x.shape[2] * a["scale_h"], x.shape[3] * a["scale_w"])
        y = F.interpolate(x, size=size, mode=mode, align_corners=corners)
        if len(inputs) == 1:
            return y
        return (y if fraction_bits < 0 else on_grid(y, fraction_bits)) + inputs[1]
    if node.operator == "Add":
        assert inputs[0].shape == inputs[1].shape
        return activate(node, inputs[0] + inputs[1])
    if node.operator == "Multiply":
        return x * inputs[1]
    if node.operator == "Activation":
        return activate(node, x)
    if node.operator == "Concat":
        return torch.cat(inputs, 1)
    if node.operator == "Slice":
        return x[:, a["first"]:a["first"] + channels]
    return x.mean((2, 3), keepdim=True)

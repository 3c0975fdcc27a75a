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


def pool(node, x):
    """Window by window, in NumPy's own reductions."""
    a, (h, w) = node.attributes, x.shape[2:]
    rows, columns = (windows(n, a[f"pad_{p}"], a[f"pad_{q}"], a[f"kernel_{d}"], a[f"stride_{d}"], a["ceil_mode"])
                     for n, p, q, d in ((h, "top", "bottom", "h"), (w, "left", "right", "w")))
    y = torch.empty(*x.shape[:2], len(rows), len(columns), dtype=x.dtype)
    for i, (top, bottom, tall) in enumerate(rows):
        for j, (left, right, wide) in enumerate(columns):
            window = x[:, :, top:bottom, left:right]
            count = tall * wide if a.get("count_padding") else (bottom - top) * (right - left)
            y[:, :, i, j] = window.amax((2, 3)) if node.operator == "MaxPool" else window.sum((2, 3)) / count
    return y


def windows(size, before, after, kernel, stride, ceil_mode):
    """First and last + 1 of the image's rows in each window, and how many of the padded image's it has."""
    found, start = [], -before
    while start + kernel <= size + after or (ceil_mode and start < size and start + kernel - stride < size + after):
        found.append((max(start, 0), min(start + kernel, size), min(start + kernel, size + after) - start))
        start += stride
    return found


def resize(node, x, *others):
    a = node.attributes
    mode, corners = ("nearest", None) if a["mode"] == 0 else ("bilinear", a["mode"] == 2)
    if a["size"] == 0:
        scale = [a[f"scale_{d}"] / a[f"divisor_{d}"] for d in "hw"]
        size = [n * a[f"scale_{d}"] // a[f"divisor_{d}"] for n, d in zip(x.shape[2:], "hw", strict=True)]
        y = F.interpolate(x, scale_factor=scale, mode=mode, align_corners=corners, recompute_scale_factor=False)
        assert y.shape[2:] == tuple(size)
        return y
    size = others[0].shape[2:] if a["size"] == 1 else (a["height"], a["width"])
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=corners)


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
        return pool(node, x)
    if node.operator == "Resize":
        y = resize(node, *inputs)
        if len(inputs) == 1 or a["size"] == 1:
            return y
        return (y if fraction_bits < 0 else on_grid(y, fraction_bits)) + inputs[1]
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

"""Sizes of the tensors of a program, and its operations, for one size of its inputs."""

from __future__ import annotations

from math import prod

from irstd_edge.program import Node, Program, ProgramError, ResizeSize

Size = tuple[int, int]


def tensor_sizes(program: Program, height: int, width: int) -> list[Size]:
    """(H, W) of each tensor. Raises :class:`ProgramError` naming the node that a window or a partner does not fit."""
    sizes: dict[int, Size] = dict.fromkeys(range(program.inputs), (height, width))
    for node in program.nodes:
        size = _output_size(node, [sizes[i] for i in node.inputs])
        if min(size) < 1:
            raise ProgramError(f"node {node.name!r}: a {height}x{width} image leaves nothing here")
        sizes[node.output] = size
    return [sizes[i] for i in range(len(program.tensors))]


def node_macs(program: Program, height: int, width: int) -> list[int]:
    """Multiply-accumulates of each node, binary ones among them. Raises as :func:`tensor_sizes`."""
    sizes = tensor_sizes(program, height, width)
    return [_macs(node, sizes[node.inputs[0] if node.operator == "ConvTranspose2d" else node.output])
            for node in program.nodes]


def _macs(node: Node, size: Size) -> int:
    if "in_channels" not in node.attributes:
        return 0
    return prod(size) * prod(node.attributes[k] for k in ("in_channels", "out_channels", "kernel_h", "kernel_w")
                             ) // node.attributes["groups"]


def _output_size(node: Node, inputs: list[Size]) -> Size:
    a, first = node.attributes, inputs[0]
    axes = list(zip("hw", first, (("top", "bottom"), ("left", "right")), strict=True))
    if node.operator in ("BinaryConv2d", "Conv2d", "QuantConv2d"):
        return tuple((n + a[f"pad_{before}"] + a[f"pad_{after}"] - a[f"dilation_{x}"] * (a[f"kernel_{x}"] - 1) - 1)
                     // a[f"stride_{x}"] + 1 for x, n, (before, after) in axes)
    if node.operator == "ConvTranspose2d":
        return tuple((n - 1) * a[f"stride_{x}"] - a[f"pad_{before}"] - a[f"pad_{after}"]
                     + a[f"dilation_{x}"] * (a[f"kernel_{x}"] - 1) + a[f"output_pad_{x}"] + 1
                     for x, n, (before, after) in axes)
    if node.operator in ("AveragePool", "MaxPool"):
        return tuple(_pooled(n + a[f"pad_{before}"], a[f"pad_{after}"], a[f"kernel_{x}"], a[f"stride_{x}"],
                             a["ceil_mode"]) for x, n, (before, after) in axes)
    if node.operator in ("GlobalAveragePool", "GlobalMaxPool"):
        return 1, 1
    size = first
    if node.operator == "Resize":
        if a["size"] == ResizeSize.LIKE:
            return inputs[1]
        size = tuple(n * a[f"scale_{x}"] // a[f"divisor_{x}"] for x, n, _ in axes)
        if a["size"] == ResizeSize.GIVEN:
            size = a["height"], a["width"]
    for other in inputs[1:]:
        if other != size and not (node.operator in ("Add", "Multiply") and other == (1, 1)):
            raise ProgramError(f"node {node.name!r}: {size[0]}x{size[1]} and {other[0]}x{other[1]} do not go together")
    return size


def _pooled(size: int, after: int, kernel: int, stride: int, ceil_mode: int) -> int:
    """Windows on a side; ``size`` has the padding before it."""
    count = (size + after - kernel + (stride - 1) * ceil_mode) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= size else count

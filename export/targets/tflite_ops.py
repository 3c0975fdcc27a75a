"""ONNX operator -> TFLite operators, as one table: :data:`WRITERS`.

A writer takes the graph under construction and a node whose shapes are static, and appends NHWC operators.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as tfl

from irstd_edge.export.passes.graph import STORED, attributes, constant, operand, spec_of
from irstd_edge.export.refusal import refuse
from irstd_edge.export.targets.tflite_graph import NHWC_AXIS, TfliteGraph, nhwc_shape, shape_of
from irstd_edge.opspec import BINARY_CONV2D, DOMAIN, PROGRAM, ProgramSpec

LOWEST = float(np.finfo(np.float32).min)


def write_node(graph: TfliteGraph, node: ir.Node) -> None:
    """Append ``node``. Raises :class:`~irstd_edge.export.refusal.RefusedError`."""
    key = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    writer = WRITERS.get(key)
    if writer is None:
        raise refuse(node, "tflite", "has no TFLite form here")
    graph.enter(node)
    writer(graph, node)


def _require(condition: bool, node: ir.Node, why: str) -> None:
    if not condition:
        raise refuse(node, "tflite", why)


def _axis(node: ir.Node, axis: int, rank: int) -> int:
    """An ONNX axis in the order of the TFLite tensor."""
    axis %= rank
    return NHWC_AXIS[axis] if rank == 4 else axis


def _rank(value: ir.Value) -> int:
    return len(shape_of(value))


def _ints(values) -> np.ndarray:
    return np.array(values, np.int32)


# Spatial operators -----------------------------------------------------------------------------------------------


def _explicit_pads(node: ir.Node, sizes, kernel, stride, dilation) -> list[tuple[int, int]]:
    """Padding before and after, per spatial axis, also where ``auto_pad`` describes it."""
    attrs = attributes(node)
    auto = attrs.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
            total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            small, large = total // 2, total - total // 2
            pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
        return pads
    p = list(attrs.get("pads", [0] * 4)) if auto == "NOTSET" else [0] * 4
    return [(p[0], p[2]), (p[1], p[3])]


def _same_pads(sizes, kernel, stride, dilation) -> list[tuple[int, int]]:
    """What TFLite's SAME pads."""
    pads = []
    for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        pads.append((total // 2, total - total // 2))
    return pads


def _pad(graph: TfliteGraph, x: int, pads, value: float = 0.0) -> int:
    """``x`` padded (positive) and cropped (negative) along height and width."""
    n, h, w, c = graph.shape(x)
    if any(p < 0 for pair in pads for p in pair):
        cut = [(max(-a, 0), max(-b, 0)) for a, b in pads]
        size = [n, h - sum(cut[0]), w - sum(cut[1]), c]
        x = _slice(graph, x, [0, cut[0][0], cut[1][0], 0], size)
        pads = [(max(a, 0), max(b, 0)) for a, b in pads]
        n, h, w, c = size
    if not any(p for pair in pads for p in pair):
        return x
    out = graph.temporary((n, h + sum(pads[0]), w + sum(pads[1]), c))
    return _pad_op(graph, x, [(0, 0), *pads, (0, 0)], value, out)


def _pad_op(graph: TfliteGraph, x: int, pads, value: float, out: int) -> int:
    table = graph.constant(_ints(pads))
    if value == 0:
        return graph.op("PAD", [x, table], out, option_type="PadOptions")
    return graph.op("PADV2", [x, table, graph.constant(np.float32(value))], out, option_type="PadV2Options")


def _slice(graph: TfliteGraph, x: int, begin, size, out: int | None = None) -> int:
    out = graph.temporary(size, like=x) if out is None else out
    inputs = [x, graph.constant(_ints(begin)), graph.size_constant(_ints(size))]
    return graph.op("SLICE", inputs, out, option_type="SliceOptions")


def _add(graph: TfliteGraph, x: int, y: int, out: int) -> int:
    return graph.op("ADD", [x, y], out, option_type="AddOptions")


def _conv_padding(graph: TfliteGraph, x: int, pads, kernel, stride, dilation) -> tuple[int, int]:
    """The input, padded where needed, and the TFLite padding mode."""
    sizes = graph.shape(x)[1:3]
    if not any(p for pair in pads for p in pair):
        return x, tfl.Padding.VALID
    if pads == _same_pads(sizes, kernel, stride, dilation):
        return x, tfl.Padding.SAME
    return _pad(graph, x, pads), tfl.Padding.VALID


def _weights(node: ir.Node) -> tuple[np.ndarray, np.ndarray | None]:
    weight, bias = _float_constant(node.inputs[1]), operand(node, 2)
    _require(weight is not None and (bias is None or constant(bias) is not None), node, "has computed weights")
    _require(weight.ndim == 4, node, "is not two-dimensional; use Conv2d or ConvTranspose2d")
    return weight, None if bias is None else constant(bias)


def _float_constant(value: ir.Value) -> np.ndarray | None:
    """A constant, or one of integers behind a DequantizeLinear of scale 1, as float32."""
    source = value.producer()
    if source is None or source.op_type != "DequantizeLinear":
        return constant(value)
    integers = constant(source.inputs[0])
    return None if integers is None else integers.astype(np.float32) - _zero_point(source)


def _zero_point(node: ir.Node) -> float:
    """Of a QuantizeLinear or DequantizeLinear, whose scale must be 1."""
    scale, zero = constant(node.inputs[1]), operand(node, 2)
    _require(scale is not None and scale.size == 1 and float(scale.reshape(())) == 1, node,
             "has another scale than 1; TFLite files here compute lowered layers in float32")
    return 0.0 if zero is None else float(constant(zero).reshape(()))


def _quantize(graph: TfliteGraph, node: ir.Node) -> None:
    """Integers as float32: rounded half to even, within the type."""
    zero, kind = _zero_point(node), constant(node.inputs[2]).dtype
    x = graph.tensor(node.inputs[0])
    shape, limits = graph.shape(x), np.iinfo(kind)
    x = graph.op("ROUND", [x], graph.temporary(shape))
    for name, bound in (("MAXIMUM", limits.min - zero), ("MINIMUM", limits.max - zero)):
        x = graph.op(name, [x, graph.constant(np.float32(bound))], graph.temporary(shape),
                     option_type="MaximumMinimumOptions")
    graph.alias(node.outputs[0], x)


def _dequantize(graph: TfliteGraph, node: ir.Node) -> None:
    """What :func:`_quantize` left is the value; integers that are constants become floats where they are read."""
    if constant(node.inputs[0]) is None:
        graph.alias(node.outputs[0], graph.tensor(node.inputs[0]))


def _weight_tensor(graph: TfliteGraph, node: ir.Node, weight: np.ndarray) -> int:
    """The weights in TFLite's order, stored as the node says."""
    return graph.halves(weight) if STORED in node.metadata_props else graph.constant(weight)


def _conv(graph: TfliteGraph, node: ir.Node) -> None:
    weight, bias = _weights(node)
    attrs, out = attributes(node), graph.tensor(node.outputs[0])
    x, channels = graph.tensor(node.inputs[0]), shape_of(node.inputs[0])[1]
    kernel, stride = weight.shape[2:], tuple(attrs.get("strides", [1, 1]))
    dilation, groups = tuple(attrs.get("dilations", [1, 1])), attrs.get("group", 1)
    pads = _explicit_pads(node, graph.shape(x)[1:3], kernel, stride, dilation)
    x, mode = _conv_padding(graph, x, pads, kernel, stride, dilation)
    bias = graph.constant(np.zeros(weight.shape[0], np.float32) if bias is None else bias)
    options = {"padding": mode, "strideH": stride[0], "strideW": stride[1],
               "dilationHFactor": dilation[0], "dilationWFactor": dilation[1]}
    if groups == channels and groups > 1:
        weight = _weight_tensor(graph, node, weight.transpose(1, 2, 3, 0))
        options["depthMultiplier"] = graph.shape(weight)[3] // channels
        graph.op("DEPTHWISE_CONV_2D", [x, weight, bias], out, options, 2, "DepthwiseConv2DOptions")
    else:
        weight = _weight_tensor(graph, node, weight.transpose(0, 2, 3, 1))
        graph.op("CONV_2D", [x, weight, bias], out, options, 1 if groups == 1 else 6, "Conv2DOptions")


def _conv_transpose(graph: TfliteGraph, node: ir.Node) -> None:
    weight, bias = _weights(node)
    attrs, out = attributes(node), graph.tensor(node.outputs[0])
    _require(attrs.get("auto_pad", "NOTSET") == "NOTSET", node, "uses auto_pad; give explicit padding")
    stride, groups = tuple(attrs.get("strides", [1, 1])), attrs.get("group", 1)
    weight = _dilated(weight, attrs.get("dilations", [1, 1]))
    x, channels = graph.tensor(node.inputs[0]), shape_of(node.inputs[0])[1]
    pads = list(attrs.get("pads", [0] * 4))
    _, height, width, _ = graph.shape(out)
    bias = graph.constant(np.zeros(graph.shape(out)[3], np.float32) if bias is None else bias)
    if groups == 1:
        _transpose_conv(graph, node, x, weight, stride, pads, (height, width), bias, out)
        return
    step, parts = channels // groups, []
    n, h, w, _ = graph.shape(x)
    for g in range(groups):
        part = _slice(graph, x, [0, 0, 0, g * step], [n, h, w, step])
        result = graph.temporary((n, height, width, weight.shape[1]))
        zero = graph.constant(np.zeros(weight.shape[1], np.float32))
        kernel = weight[g * step:(g + 1) * step]
        parts.append(_transpose_conv(graph, node, part, kernel, stride, pads, (height, width), zero, result))
    joined = graph.temporary(graph.shape(out))
    graph.op("CONCATENATION", parts, joined, {"axis": 3}, option_type="ConcatenationOptions")
    _add(graph, joined, bias, out)


def _dilated(weight: np.ndarray, dilation) -> np.ndarray:
    """The kernel with zeros between its taps: TRANSPOSE_CONV has no dilation."""
    (dh, dw), (kh, kw) = dilation, weight.shape[2:]
    spread = np.zeros((*weight.shape[:2], dh * (kh - 1) + 1, dw * (kw - 1) + 1), np.float32)
    spread[:, :, ::dh, ::dw] = weight
    return spread


def _transpose_conv(graph, node, x: int, weight, stride, pads, size, bias: int, out: int) -> int:
    """One group: TFLite's own paddings where they fit, else the full result cropped or extended, then the bias."""
    kernel, (n, h, w, _) = weight.shape[2:], graph.shape(x)
    filters = _weight_tensor(graph, node, weight.transpose(1, 2, 3, 0))
    options = {"strideH": stride[0], "strideW": stride[1]}
    full = tuple((i - 1) * s + k for i, s, k in zip((h, w), stride, kernel, strict=True))
    before = tuple(pads[:2])
    same = _same_pads(size, kernel, stride, (1, 1))
    covers = tuple(-(-o // s) for o, s in zip(size, stride, strict=True)) == (h, w)
    if before == (0, 0) and size == full:
        mode, produced = tfl.Padding.VALID, size
    elif covers and before == tuple(p[0] for p in same):
        mode, produced = tfl.Padding.SAME, size
    else:
        mode, produced = tfl.Padding.VALID, full
    direct = produced == size and (mode == tfl.Padding.SAME or before == (0, 0))
    shape = graph.size_constant(_ints((n, *produced, weight.shape[1])))
    target = out if direct else graph.temporary((n, *produced, weight.shape[1]))
    first_bias = bias if direct else graph.constant(np.zeros(weight.shape[1], np.float32))
    graph.op("TRANSPOSE_CONV", [shape, filters, x, first_bias], target, {"padding": mode, **options}, 3,
             "TransposeConvOptions")
    if direct:
        return out
    shift = [(-b, o + b - p) for b, o, p in zip(before, size, produced, strict=True)]
    return _add(graph, _pad(graph, target, shift), bias, out)


def _pool_geometry(node: ir.Node):
    attrs = attributes(node)
    kernel = tuple(attrs["kernel_shape"])
    _require(len(kernel) == 2, node, "is not two-dimensional")
    stride, dilation = tuple(attrs.get("strides", [1, 1])), tuple(attrs.get("dilations", [1, 1]))
    _require(dilation == (1, 1), node, "is dilated; TFLite pools are not: use a dilated convolution or dilation 1")
    sizes, outputs = shape_of(node.inputs[0])[2:], shape_of(node.outputs[0])[2:]
    pads = _explicit_pads(node, sizes, kernel, stride, dilation)
    # ceil_mode reaches beyond the padded image: pad what the windows cover. What they leave, VALID leaves too.
    covered = [(p[0], max((o - 1) * s + k - size - p[0], 0))
               for p, o, s, k, size in zip(pads, outputs, stride, kernel, sizes, strict=True)]
    options = {"filterHeight": kernel[0], "filterWidth": kernel[1], "strideH": stride[0], "strideW": stride[1]}
    return pads, covered, options


def _max_pool(graph: TfliteGraph, node: ir.Node) -> None:
    _, covered, options = _pool_geometry(node)
    x = _pad(graph, graph.tensor(node.inputs[0]), covered, LOWEST)
    graph.op("MAX_POOL_2D", [x], graph.tensor(node.outputs[0]), {"padding": tfl.Padding.VALID, **options},
             option_type="Pool2DOptions")


def _average_pool(graph: TfliteGraph, node: ir.Node) -> None:
    pads, covered, options = _pool_geometry(node)
    x, out = _pad(graph, graph.tensor(node.inputs[0]), covered), graph.tensor(node.outputs[0])
    correction = _average_correction(node, pads, covered, options)
    target = out if correction is None else graph.temporary(graph.shape(out))
    graph.op("AVERAGE_POOL_2D", [x], target, {"padding": tfl.Padding.VALID, **options}, option_type="Pool2DOptions")
    if correction is not None:
        graph.op("MUL", [target, graph.constant(correction)], out, option_type="MulOptions")


def _average_correction(node: ir.Node, pads, covered, options) -> np.ndarray | None:
    """``[1, OH, OW, 1]``: window area over the number of values that count, or None where that is 1 everywhere."""
    include = attributes(node).get("count_include_pad", 0)
    factors = []
    for size, pad, cover, key in zip(shape_of(node.inputs[0])[2:], pads, covered, ("H", "W"), strict=True):
        kernel = options["filterHeight" if key == "H" else "filterWidth"]
        counts = np.zeros(size + sum(cover))
        counts[cover[0]:cover[0] + size] = 1
        if include:
            counts[:size + pad[0] + pad[1]] = 1
        starts = range(0, size + cover[0] + cover[1] - kernel + 1, options["stride" + key])
        factors.append(np.array([kernel / counts[s:s + kernel].sum() for s in starts]))
    grid = (factors[0][:, None] * factors[1][None, :]).astype(np.float32)
    return None if np.all(grid == 1) else grid[None, :, :, None]


def _resize(graph: TfliteGraph, node: ir.Node) -> None:
    attrs, source, result = attributes(node), shape_of(node.inputs[0]), shape_of(node.outputs[0])
    _require(len(source) == 4 and source[:2] == result[:2], node, "resizes more than height and width")
    mode, place = attrs.get("mode", "nearest"), attrs.get("coordinate_transformation_mode", "half_pixel")
    _require(mode in ("linear", "nearest"), node, f"interpolates by {mode!r}; TFLite has bilinear and nearest")
    _require(not attrs.get("antialias", 0), node, "is antialiased; set antialias=False")
    scales = constant(operand(node, 2))
    if scales is not None and scales.size:
        fits = np.allclose(np.array(source) * scales, result, atol=1e-4) or place == "align_corners"
        _require(fits, node, f"scales {source[2:]} to a fraction of a pixel; use interpolate(size=...)")
    rounding = attrs.get("nearest_mode", "round_prefer_floor")
    if mode == "linear":
        known = {"half_pixel": (False, True), "pytorch_half_pixel": (False, True), "align_corners": (True, False),
                 "asymmetric": (False, False)}
        name, kind = "RESIZE_BILINEAR", "ResizeBilinearOptions"
    elif rounding == "floor":
        known, name, kind = {"asymmetric": (False, False)}, "RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"
    else:
        known, name, kind = {"half_pixel": (False, True)}, "RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"
        _require(rounding == "round_prefer_ceil", node, f"rounds by {rounding}; use 'nearest' or 'nearest-exact'")
    _require(place in known, node, f"places pixels by {place!r}; supported: {', '.join(known)}")
    corners, half = known[place]
    x, size = graph.tensor(node.inputs[0]), graph.size_constant(_ints(result[2:]))
    graph.op(name, [x, size], graph.tensor(node.outputs[0]), {"alignCorners": corners, "halfPixelCenters": half}, 3,
             kind)


def _pad_node(graph: TfliteGraph, node: ir.Node) -> None:
    pads, rank = constant(operand(node, 1)), _rank(node.inputs[0])
    _require(pads is not None, node, "has computed padding")
    axes = constant(operand(node, 3))
    axes = list(range(rank)) if axes is None else [int(a) % rank for a in axes]
    table = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        table[_axis(node, axis, rank)] = (int(pads[i]), int(pads[len(axes) + i]))
    mode, x, out = attributes(node).get("mode", "constant"), graph.tensor(node.inputs[0]), \
        graph.tensor(node.outputs[0])
    cropped = [(max(-a, 0), max(-b, 0)) for a, b in table]
    if any(a or b for a, b in cropped):
        size = [s - a - b for s, (a, b) in zip(graph.shape(x), cropped, strict=True)]
        x = _slice(graph, x, [a for a, _ in cropped], size)
        table = [(max(a, 0), max(b, 0)) for a, b in table]
    if mode == "constant":
        value = constant(operand(node, 2))
        _pad_op(graph, x, table, 0.0 if value is None or not value.size else float(value.reshape(())), out)
    elif mode == "reflect":
        graph.op("MIRROR_PAD", [x, graph.constant(_ints(table))], out, {"mode": tfl.MirrorPadMode.REFLECT},
                 option_type="MirrorPadOptions")
    else:
        raise refuse(node, "tflite", f"pads by {mode!r}; supported: constant, reflect")


# Element-wise operators ------------------------------------------------------------------------------------------


def _operand_tensor(graph: TfliteGraph, node: ir.Node, value: ir.Value, rank: int) -> int:
    """An operand of a broadcasting operator whose result has ``rank``: constants are re-laid to NHWC."""
    array = constant(value)
    if array is None:
        _require(_rank(value) in (rank, 0) or prod(shape_of(value)) == 1, node,
                 f"mixes computed ranks {_rank(value)} and {rank}; keep [N, C, 1, 1] instead of [N, C]")
        return graph.tensor(value)
    if rank == 4 and array.size > 1:
        array = array.reshape((1,) * (4 - array.ndim) + array.shape).transpose(0, 2, 3, 1)
    elif array.size == 1:
        array = array.reshape(())
    return graph.constant(array)


def _elementwise(name: str, option_type: str | None) -> Callable:
    def write(graph: TfliteGraph, node: ir.Node) -> None:
        rank, out = _rank(node.outputs[0]), graph.tensor(node.outputs[0])
        operands = [_operand_tensor(graph, node, v, rank) for v in node.inputs]
        if len(operands) == 1:
            graph.alias(node.outputs[0], operands[0])
            return
        total = operands[0]
        for i, other in enumerate(operands[1:], 2):
            target = out if i == len(operands) else graph.temporary(graph.shape(out))
            total = graph.op(name, [total, other], target, option_type=option_type)
    return write


def _unary(name: str, option_type: str | None = None) -> Callable:
    def write(graph: TfliteGraph, node: ir.Node) -> None:
        graph.op(name, [graph.tensor(node.inputs[0])], graph.tensor(node.outputs[0]), option_type=option_type)
    return write


def _clip(graph: TfliteGraph, node: ir.Node) -> None:
    low, high = (constant(operand(node, i)) for i in (1, 2))
    given = sum(operand(node, i) is not None for i in (1, 2))
    _require(given == sum(v is not None for v in (low, high)), node, "has computed bounds")
    low = -np.inf if low is None else float(low.reshape(()))
    high = np.inf if high is None else float(high.reshape(()))
    x, out = graph.tensor(node.inputs[0]), graph.tensor(node.outputs[0])
    known = {(0.0, np.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
    if (low, high) in known:
        graph.op(known[low, high], [x], out)
        return
    steps = [(n, b) for n, b in (("MAXIMUM", low), ("MINIMUM", high)) if np.isfinite(b)]
    if not steps:
        graph.alias(node.outputs[0], x)
    for i, (name, bound) in enumerate(steps, 1):
        target = out if i == len(steps) else graph.temporary(graph.shape(out))
        x = graph.op(name, [x, graph.constant(np.float32(bound))], target, option_type="MaximumMinimumOptions")


def _prelu(graph: TfliteGraph, node: ir.Node) -> None:
    slope, shape = constant(node.inputs[1]), shape_of(node.inputs[0])
    _require(slope is not None, node, "has a computed slope")
    if len(shape) == 4:
        slope = slope.reshape((1,) * (4 - slope.ndim) + slope.shape).transpose(0, 2, 3, 1)[0]
    if slope.size == 1:
        slope = np.full((*[1] * (len(shape) - 2), nhwc_shape(shape)[-1]), slope.reshape(()), np.float32)
    graph.op("PRELU", [graph.tensor(node.inputs[0]), graph.constant(slope)], graph.tensor(node.outputs[0]))


def _leaky_relu(graph: TfliteGraph, node: ir.Node) -> None:
    graph.op("LEAKY_RELU", [graph.tensor(node.inputs[0])], graph.tensor(node.outputs[0]),
             {"alpha": attributes(node).get("alpha", 0.01)}, option_type="LeakyReluOptions")


def _elu(graph: TfliteGraph, node: ir.Node) -> None:
    alpha = attributes(node).get("alpha", 1.0)
    _require(alpha == 1, node, f"has alpha {alpha:g}; TFLite's ELU has 1")
    graph.op("ELU", [graph.tensor(node.inputs[0])], graph.tensor(node.outputs[0]))


def _hard_sigmoid(graph: TfliteGraph, node: ir.Node) -> None:
    attrs = attributes(node)
    x, out = graph.tensor(node.inputs[0]), graph.tensor(node.outputs[0])
    shape = graph.shape(out)
    alpha, beta = (graph.constant(np.float32(attrs.get(k, d))) for k, d in (("alpha", 0.2), ("beta", 0.5)))
    x = graph.op("MUL", [x, alpha], graph.temporary(shape), option_type="MulOptions")
    x = _add(graph, x, beta, graph.temporary(shape))
    zero, one = graph.constant(np.float32(0)), graph.constant(np.float32(1))
    x = graph.op("MAXIMUM", [x, zero], graph.temporary(shape), option_type="MaximumMinimumOptions")
    graph.op("MINIMUM", [x, one], out, option_type="MaximumMinimumOptions")


def _batch_norm(graph: TfliteGraph, node: ir.Node) -> None:
    from irstd_edge.export.passes.graph import batch_norm_affine

    affine = batch_norm_affine(node)
    _require(affine is not None, node, "has computed statistics; call eval() on the network")
    gain, offset = (graph.constant(a) for a in affine)
    x, out = graph.tensor(node.inputs[0]), graph.tensor(node.outputs[0])
    _add(graph, graph.op("MUL", [x, gain], graph.temporary(graph.shape(out)), option_type="MulOptions"), offset, out)


def _where(graph: TfliteGraph, node: ir.Node) -> None:
    rank = _rank(node.outputs[0])
    operands = [_operand_tensor(graph, node, v, rank) for v in node.inputs]
    graph.op("SELECT_V2", operands, graph.tensor(node.outputs[0]), option_type="SelectV2Options")


def _cast(graph: TfliteGraph, node: ir.Node) -> None:
    x, out = graph.tensor(node.inputs[0]), graph.tensor(node.outputs[0])
    if graph.tensors[x].type == graph.tensors[out].type:
        graph.alias(node.outputs[0], x)
    else:
        graph.op("CAST", [x], out, option_type="CastOptions")


def _identity(graph: TfliteGraph, node: ir.Node) -> None:
    graph.alias(node.outputs[0], graph.tensor(node.inputs[0]))


def _softmax(graph: TfliteGraph, node: ir.Node) -> None:
    rank = _rank(node.inputs[0])
    axis = _axis(node, attributes(node).get("axis", -1), rank)
    _require(axis == rank - 1, node, "is not over the channels; TFLite's SOFTMAX here is")
    graph.op("SOFTMAX", [graph.tensor(node.inputs[0])], graph.tensor(node.outputs[0]), {"beta": 1.0},
             option_type="SoftmaxOptions")


# Shapes, reductions, products ------------------------------------------------------------------------------------


def _concat(graph: TfliteGraph, node: ir.Node) -> None:
    axis = _axis(node, attributes(node)["axis"], _rank(node.outputs[0]))
    graph.op("CONCATENATION", [graph.tensor(v) for v in node.inputs], graph.tensor(node.outputs[0]), {"axis": axis},
             option_type="ConcatenationOptions")


def _slice_node(graph: TfliteGraph, node: ir.Node) -> None:
    shape, rank = shape_of(node.inputs[0]), _rank(node.inputs[0])
    parts = [constant(operand(node, i)) for i in range(1, 5)]
    given = [operand(node, i) is None or parts[i - 1] is not None for i in range(1, 5)]
    _require(all(given), node, "has computed bounds")
    starts, ends, axes, steps = parts
    axes = range(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), int) if steps is None else steps
    begin, end, stride = [0] * rank, list(nhwc_shape(shape)), [1] * rank
    for first, last, axis, step in zip(starts, ends, axes, steps, strict=True):
        _require(step > 0, node, "has a negative step; use flip-free slicing")
        place, size = _axis(node, int(axis), rank), shape[int(axis) % rank]
        begin[place], end[place], _ = slice(int(first), int(last)).indices(size)
        stride[place] = int(step)
    x, out = graph.tensor(node.inputs[0]), graph.tensor(node.outputs[0])
    if all(s == 1 for s in stride):
        _slice(graph, x, begin, [e - b for b, e in zip(begin, end, strict=True)], out)
    else:
        graph.op("STRIDED_SLICE", [x, *(graph.constant(_ints(v)) for v in (begin, end, stride))], out,
                 option_type="StridedSliceOptions")


def _split(graph: TfliteGraph, node: ir.Node) -> None:
    rank = _rank(node.inputs[0])
    axis, x, start = _axis(node, attributes(node).get("axis", 0), rank), graph.tensor(node.inputs[0]), 0
    for value in node.outputs:
        out = graph.tensor(value)
        size = graph.shape(out)
        begin = [start if i == axis else 0 for i in range(rank)]
        _slice(graph, x, begin, size, out)
        start += size[axis]


def _gather(graph: TfliteGraph, node: ir.Node) -> None:
    """A channel permutation, or one entry of an axis with that axis dropped where the layout allows."""
    indices, shape, rank = constant(node.inputs[1]), shape_of(node.inputs[0]), _rank(node.inputs[0])
    onnx_axis = attributes(node).get("axis", 0) % rank
    _require(indices is not None and indices.ndim <= 1, node, "gathers by computed or multi-dimensional indices")
    axis = _axis(node, onnx_axis, rank)
    indices = np.where(indices < 0, indices + shape[onnx_axis], indices).astype(np.int32)
    if indices.ndim == 0:
        order = [a for a in range(rank) if a != onnx_axis]
        _require(_keeps_order(shape, order), node, "drops an axis across the layout; slice with a range instead")
    graph.op("GATHER", [graph.tensor(node.inputs[0]), graph.constant(indices)], graph.tensor(node.outputs[0]),
             {"axis": axis}, option_type="GatherOptions")


def _keeps_order(shape, axes) -> bool:
    """Whether these axes of an NCHW (or other) tensor come in the same memory order in NHWC; size 1 never matters."""
    if len(shape) != 4:
        return True
    places = [NHWC_AXIS[a] for a in axes if shape[a] != 1]
    return places == sorted(places)


def _view(graph: TfliteGraph, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze; through NCHW where NHWC holds the values in another order."""
    source, result = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    x, out = graph.tensor(node.inputs[0]), graph.tensor(node.outputs[0])
    if source == result or (_keeps_order(source, range(len(source))) and _keeps_order(result, range(len(result)))):
        _reshape_op(graph, x, out)
        return
    if len(source) == 4:
        x = _transpose_op(graph, x, NHWC_AXIS, graph.temporary(source))
    if len(result) == 4:
        _transpose_op(graph, _reshape_op(graph, x, graph.temporary(result)), _NCHW_AXIS, out)
    else:
        _reshape_op(graph, x, out)


def _reshape_op(graph: TfliteGraph, x: int, out: int) -> int:
    shape = _ints(graph.shape(out))
    return graph.op("RESHAPE", [x, graph.constant(shape)], out, {"newShape": shape}, option_type="ReshapeOptions")


#: Place of each NHWC axis in NCHW.
_NCHW_AXIS = (0, 2, 3, 1)


def _transpose_op(graph: TfliteGraph, x: int, axes, out: int) -> int:
    return graph.op("TRANSPOSE", [x, graph.constant(_ints(axes))], out, option_type="TransposeOptions")


def _transpose(graph: TfliteGraph, node: ir.Node) -> None:
    rank = _rank(node.inputs[0])
    axes = [int(a) for a in attributes(node).get("perm", range(rank)[::-1])]
    if rank == 4:
        axes = [NHWC_AXIS[axes[a]] for a in _NCHW_AXIS]
    _transpose_op(graph, graph.tensor(node.inputs[0]), axes, graph.tensor(node.outputs[0]))


def _layer_norm(graph: TfliteGraph, node: ir.Node) -> None:
    attrs, rank = attributes(node), _rank(node.inputs[0])
    gain, offset = constant(node.inputs[1]), constant(operand(node, 2))
    _require(rank != 4 and attrs.get("axis", -1) % rank == rank - 1 and gain is not None, node,
             "is not over the last axis of [N, T, C], with constant gain")
    x, out = graph.tensor(node.inputs[0]), graph.tensor(node.outputs[0])
    shape, row = graph.shape(out), (*graph.shape(out)[:-1], 1)

    def step(name, *inputs, to=shape, options=True):
        return graph.op(name, list(inputs), graph.temporary(to),
                        option_type=f"{name.title()}Options" if options else None)

    def mean(value):
        total = graph.temporary(row)
        _reduce_op(graph, "MEAN", value, [rank - 1], True, total)
        return total

    centred = step("SUB", x, mean(x))
    variance = step("ADD", mean(step("MUL", centred, centred)),
                    graph.constant(np.array(attrs.get("epsilon", 1e-5), np.float32)), to=row)
    scaled = step("MUL", centred, step("RSQRT", variance, to=row, options=False))
    scaled = step("MUL", scaled, graph.constant(gain))
    _add(graph, scaled, graph.constant(np.zeros_like(gain) if offset is None else offset), out)


def _reduce(name: str) -> Callable:
    def write(graph: TfliteGraph, node: ir.Node) -> None:
        attrs, shape, rank = attributes(node), shape_of(node.inputs[0]), _rank(node.inputs[0])
        axes = operand(node, 1)
        _require(axes is None or constant(axes) is not None, node, "reduces over computed axes")
        axes = attrs.get("axes", range(rank)) if axes is None else constant(axes)
        axes = sorted(int(a) % rank for a in axes)
        keep = bool(attrs.get("keepdims", 1))
        if not keep:
            left = [a for a in range(rank) if a not in axes]
            _require(_keeps_order(shape, left), node, "drops an axis across the layout; use keepdim=True")
        _reduce_op(graph, name, graph.tensor(node.inputs[0]), [_axis(node, a, rank) for a in axes], keep,
                   graph.tensor(node.outputs[0]))
    return write


def _reduce_op(graph: TfliteGraph, name: str, x: int, axes, keep: bool, out: int) -> None:
    graph.op(name, [x, graph.constant(_ints(sorted(axes)))], out, {"keepDims": keep}, option_type="ReducerOptions")


def _global_pool(name: str) -> Callable:
    def write(graph: TfliteGraph, node: ir.Node) -> None:
        _require(_rank(node.inputs[0]) == 4, node, "is not two-dimensional")
        _reduce_op(graph, name, graph.tensor(node.inputs[0]), [1, 2], True, graph.tensor(node.outputs[0]))
    return write


def _tile(name: str) -> Callable:
    def write(graph: TfliteGraph, node: ir.Node) -> None:
        rank, x, out = _rank(node.outputs[0]), graph.tensor(node.inputs[0]), graph.tensor(node.outputs[0])
        _require(_rank(node.inputs[0]) == rank, node, "adds axes")
        if name == "TILE":
            repeats = constant(node.inputs[1])
            _require(repeats is not None, node, "has computed repeats")
            sizes = nhwc_shape(repeats)
        else:
            sizes = graph.shape(out)
        graph.op(name, [x, graph.constant(_ints(sizes))], out, version=2 if name == "BROADCAST_TO" else 1,
                 option_type=_TILE_OPTIONS[name])
    return write


_TILE_OPTIONS = {"TILE": "TileOptions", "BROADCAST_TO": "BroadcastToOptions"}


def _gemm(graph: TfliteGraph, node: ir.Node) -> None:
    attrs, weight, rank = attributes(node), constant(node.inputs[1]), _rank(node.inputs[0])
    if weight is None:
        _require(rank == _rank(node.inputs[1]) == 3 and node.op_type == "MatMul", node,
                 "multiplies computed matrices of another rank than 3; TFLite here has [N, T, C] by [N, C, T]")
        graph.op("BATCH_MATMUL", [graph.tensor(v) for v in node.inputs], graph.tensor(node.outputs[0]),
                 option_type="BatchMatMulOptions")
        return
    _require(rank in (2, 3) and weight.ndim == 2, node,
             "multiplies maps; TFLite here has Linear on [N, C] or [N, T, C]")
    plain = not attrs.get("transA", 0) and attrs.get("alpha", 1.0) == 1 and attrs.get("beta", 1.0) == 1
    _require(plain, node, "is scaled or transposed")
    weight = weight if attrs.get("transB", 0) else weight.T
    given, outputs = operand(node, 2), weight.shape[0]
    bias = np.zeros(1, np.float32) if given is None else constant(given)
    _require(bias is not None and (bias.size == 1 or bias.shape in ((outputs,), (1, outputs))), node,
             "has a bias that is computed, or one per row; TFLite has one per output")
    bias = np.broadcast_to(bias.reshape(-1), (outputs,))
    inputs = [graph.tensor(node.inputs[0]), _weight_tensor(graph, node, weight), graph.constant(bias)]
    # Version 5 brought the option that keeps more than two axes.
    graph.op("FULLY_CONNECTED", inputs, graph.tensor(node.outputs[0]), {"keepNumDims": rank > 2},
             5 if rank > 2 else 1, "FullyConnectedOptions")


def _depth_to_space(graph: TfliteGraph, node: ir.Node) -> None:
    attrs = attributes(node)
    block, x, out = attrs["blocksize"], graph.tensor(node.inputs[0]), graph.tensor(node.outputs[0])
    channels = graph.shape(out)[3]
    if attrs.get("mode", "DCR") == "CRD" and channels > 1:
        # PyTorch orders channels as (channel, row, column), TFLite as (row, column, channel).
        order = np.arange(channels * block * block).reshape(channels, -1).T.reshape(-1).astype(np.int32)
        x = graph.op("GATHER", [x, graph.constant(order)], graph.temporary(graph.shape(x)), {"axis": 3},
                     option_type="GatherOptions")
    graph.op("DEPTH_TO_SPACE", [x], out, {"blockSize": block}, option_type="DepthToSpaceOptions")


def _binary_conv(graph: TfliteGraph, node: ir.Node) -> None:
    """Inputs in the specification's order, absent ones -1; options are the attributes by name."""
    spec = spec_of(node)
    inputs = []
    for index, declared in enumerate(BINARY_CONV2D.inputs):
        value = operand(node, index)
        if value is None:
            inputs.append(-1)
        elif declared.constant:  # packed weights are [OC, KH, KW, words] already
            inputs.append(graph.constant(constant(value)))
        else:
            inputs.append(graph.tensor(value))
    graph.custom(BINARY_CONV2D.tflite_name, inputs, [graph.tensor(node.outputs[0])], spec.attributes())


def _program(graph: TfliteGraph, node: ir.Node) -> None:
    spec = ProgramSpec.from_attributes(attributes(node))
    inputs, outputs = ([graph.tensor(v) for v in values] for values in (node.inputs, node.outputs))
    graph.custom(PROGRAM.tflite_name, inputs, outputs, spec.attributes())


#: ONNX operator (``domain::name`` outside the default domain) -> writer.
WRITERS: dict[str, Callable[[TfliteGraph, ir.Node], None]] = {
    f"{DOMAIN}::{BINARY_CONV2D.name}": _binary_conv,
    f"{DOMAIN}::{PROGRAM.name}": _program,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool("MEAN"),
    "GlobalMaxPool": _global_pool("REDUCE_MAX"),
    "ReduceMean": _reduce("MEAN"),
    "ReduceMax": _reduce("REDUCE_MAX"),
    "ReduceMin": _reduce("REDUCE_MIN"),
    "ReduceSum": _reduce("SUM"),
    "Resize": _resize,
    "Pad": _pad_node,
    "BatchNormalization": _batch_norm,
    "Add": _elementwise("ADD", "AddOptions"),
    "Sum": _elementwise("ADD", "AddOptions"),
    "Sub": _elementwise("SUB", "SubOptions"),
    "Mul": _elementwise("MUL", "MulOptions"),
    "Div": _elementwise("DIV", "DivOptions"),
    "Min": _elementwise("MINIMUM", "MaximumMinimumOptions"),
    "Max": _elementwise("MAXIMUM", "MaximumMinimumOptions"),
    "Pow": _elementwise("POW", "PowOptions"),
    "Greater": _elementwise("GREATER", "GreaterOptions"),
    "GreaterOrEqual": _elementwise("GREATER_EQUAL", "GreaterEqualOptions"),
    "Less": _elementwise("LESS", "LessOptions"),
    "LessOrEqual": _elementwise("LESS_EQUAL", "LessEqualOptions"),
    "Relu": _unary("RELU"),
    "Clip": _clip,
    "PRelu": _prelu,
    "LeakyRelu": _leaky_relu,
    "Sigmoid": _unary("LOGISTIC"),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary("HARD_SWISH", "HardSwishOptions"),
    "Tanh": _unary("TANH"),
    "Elu": _elu,
    "Exp": _unary("EXP", "ExpOptions"),
    "Log": _unary("LOG"),
    "Sqrt": _unary("SQRT"),
    "Abs": _unary("ABS", "AbsOptions"),
    "Neg": _unary("NEG", "NegOptions"),
    "Floor": _unary("FLOOR"),
    "Ceil": _unary("CEIL"),
    "Round": _unary("ROUND"),
    "Softmax": _softmax,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Where": _where,
    "Cast": _cast,
    "Identity": _identity,
    "Dropout": _identity,
    "Concat": _concat,
    "Slice": _slice_node,
    "Split": _split,
    "Gather": _gather,
    "Reshape": _view,
    "Flatten": _view,
    "Squeeze": _view,
    "Unsqueeze": _view,
    "Transpose": _transpose,
    "LayerNormalization": _layer_norm,
    "Tile": _tile("TILE"),
    "Expand": _tile("BROADCAST_TO"),
    "Gemm": _gemm,
    "MatMul": _gemm,
    "DepthToSpace": _depth_to_space,
}

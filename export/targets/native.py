"""The native target: ``model.irstd``, the whole network as one :mod:`program <irstd_edge.program>` for our engine.

Rounding to the fixed-point grid is folded into the operator before it, so that maps between binary layers are int16.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from irstd_edge import program
from irstd_edge.errors import UnsupportedError
from irstd_edge.export.passes.fold_activation import clamp_bounds
from irstd_edge.export.passes.graph import (
    LAYER,
    RESIDUAL,
    STORED,
    SYMBOLS,
    X,
    affine_of,
    attributes,
    constant,
    fixed_point_of,
    is_binary,
    is_compressed,
    is_fixed_point,
    is_quant,
    operand,
    per_channel,
    quant_spec_of,
    sole_user,
    spec_of,
)
from irstd_edge.export.passes.specialize import Specialize
from irstd_edge.export.refusal import refuse
from irstd_edge.opspec import BINARY_CONV2D, DOMAIN, FIXED_POINT, MAX_STEP, QUANT_CONV2D
from irstd_edge.program import FloatActivation, Node, Program, ProgramError, ResizeMode, ResizeSize, Tensor

#: Width of the int16 tensors of a program.
BITS = 16


@dataclass(frozen=True)
class NativeFile:
    """The bytes of a model.irstd and, per layer, the bytes of the constants that its nodes read.

    ``static_reason``: why it serves one image size alone, or "" where it serves any.
    """

    data: bytes
    layer_bytes: dict[str, int]
    static_reason: str


def to_native(model: ir.Model, input_size: tuple[int, int], other_size: tuple[int, int] | None = None) -> NativeFile:
    """Write a compressed model; ``model`` is left as it is.

    Args:
        model: of dynamic size, or of ``input_size``; batch 1.
        input_size: (H, W).
        other_size: another one: where the program for it is the same, it serves any. Without it the file counts as
            written for ``input_size``.

    Raises :class:`~irstd_edge.errors.UnsupportedError` naming the first node that has no native form.
    """
    written = _write(model, input_size)
    data, reason = program.write(written.program()), "written for one size"
    if other_size is not None:
        try:
            same = program.write(_write(model, other_size).program()) == data
            reason = "" if same else "another image size needs another program"
        except (UnsupportedError, ValueError) as e:
            reason = f"cannot be written for {other_size[0]}x{other_size[1]}: {e}"
    return NativeFile(data, written.layer_bytes, reason)


def write_graph(graph: ir.Graph) -> tuple[bytes, dict[str, int]]:
    """The bytes of a model.irstd for a graph of static shapes, and those of the constants of each layer.

    Its inputs are ``[1, C, H, W]`` of one H and W. Raises :class:`~irstd_edge.errors.UnsupportedError` as above.
    """
    written = _written(graph)
    return program.write(written.program()), written.layer_bytes


def has_form(node: ir.Node) -> bool:
    """Whether a node of static shapes has a native form that serves any image size, where its inputs have.

    A resize may take its size from an image that is read beside its result.
    """
    writer = _Writer(())
    beside = [v for result in node.outputs for user, _ in result.uses() for v in user.inputs
              if node.op_type == "Resize" and v is not None and v is not result and SYMBOLS in v.meta]
    try:
        for value in {v for v in (*node.inputs, *beside) if v is not None and constant(v) is None}:
            writer.add(value)
        writer.write(node)
    except UnsupportedError:
        return False
    return all(made.attributes.get("size") != ResizeSize.GIVEN for made in writer.nodes)


def _write(model: ir.Model, size: tuple[int, int]) -> _Writer:
    model = model.clone()
    Specialize(size)(model)
    return _written(model.graph)


def _written(graph: ir.Graph) -> _Writer:
    writer = _Writer(graph.inputs, graph.outputs)
    for node in graph:
        if node not in writer.folded:
            writer.write(node)
    return writer


def _require(condition: bool, node: ir.Node, why: str) -> None:
    if not condition:
        raise refuse(node, "native", why)


def _key(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


class _Writer:
    """The program under construction: :meth:`write` takes a graph's nodes in order, :meth:`program` gives the result.

    The tensor of a value is int16 exactly where :func:`grid_of` knows its grid. ``numbers``: the tensor of each value;
    ``floats``: the float32 copy of each int16 tensor that has one; ``folded``: nodes that an earlier one computes too;
    ``resizes``: the attributes of those that are left for a sum to compute.
    """

    def __init__(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value] = ()) -> None:
        self.tensors: list[Tensor] = []
        self.nodes: list[Node] = []
        self.numbers: dict[ir.Value, int] = {}
        self.floats: dict[int, int] = {}
        self.folded: set[ir.Node] = set()
        self.resizes: dict[ir.Node, dict[str, int]] = {}
        self.layer_bytes: dict[str, int] = {}
        self.outputs = outputs
        self.inputs = len(inputs)
        for value in inputs:
            self.add(value)

    def add(self, value: ir.Value) -> int:
        """The new tensor of a value."""
        self.tensors.append(Tensor(value.name, channels_of(value), grid_of(value)))
        self.numbers[value] = len(self.tensors) - 1
        return self.numbers[value]

    def write(self, node: ir.Node) -> None:
        writer = WRITERS.get(_key(node))
        _require(writer is not None, node, "has no native form")
        writer(self, node)

    def emit(self, operator: str, node: ir.Node, inputs: list[ir.Value], attributes: dict | None = None,
             constants: dict | None = None, result: ir.Value | None = None,
             numbers: tuple[int, ...] | None = None) -> None:
        """Append a node that computes ``result`` (by default the node's output), and what can be folded into it.

        ``numbers``: the tensors to read, where they are not those of ``inputs``.
        """
        values, arrays = dict(attributes or {}), dict(constants or {})
        result = node.outputs[0] if result is None else result
        if "activation" in {a.name for a in program.OPERATORS[operator].integers} and not is_compressed(node):
            result = self.fold_activation(result, values, arrays)
        if operator not in ("BinaryConv2d", "Concat", "FixedPoint", "QuantConv2d", "Slice"):
            result = self.fold_fixed_point(result)
        numbers = tuple(self.number(node, value) for value in inputs) if numbers is None else numbers
        if operator == "FixedPoint" or (operator == "Concat" and grid_of(result) < 0):
            numbers = tuple(map(self.as_float, numbers))
        try:
            self.nodes.append(Node(operator, node.name, numbers, self.add(result), values, arrays))
        except ProgramError as e:
            raise refuse(node, "native", f"does not fit the file ({e})") from e
        layer = node.metadata_props.get(LAYER) or node.name
        self.layer_bytes[layer] = self.layer_bytes.get(layer, 0) + sum(a.nbytes for a in arrays.values())

    def number(self, node: ir.Node, value: ir.Value) -> int:
        _require(value in self.numbers, node, f"reads {value.name!r}, which is no image")
        return self.numbers[value]

    def like(self, value: ir.Value) -> ir.Value | None:
        """What there is already that has the size of ``value``, whatever that of the image."""
        symbols = value.meta.get(SYMBOLS)
        return next((v for v in self.numbers if symbols is not None and v.meta.get(SYMBOLS) == symbols), None)

    def streamed(self, node: ir.Node, value: ir.Value) -> int:
        """The tensor of a value, or a copy of a program's input: the engine would quantise all of that at once."""
        number = self.number(node, value)
        if number >= self.inputs:
            return number
        if number not in self.floats:
            self.floats[number] = self.copy(number)
        return self.floats[number]

    def fold_activation(self, value: ir.Value, values: dict, arrays: dict) -> ir.Value:
        if values.get("activation", FloatActivation.NONE) != FloatActivation.NONE:
            return value
        follower = sole_user(value)
        found = None if follower is None else activation_of(follower, value)
        if found is None:
            return value
        values.update(found[0])
        arrays.update(found[1])
        self.folded.add(follower)
        return follower.outputs[0]

    def fold_fixed_point(self, value: ir.Value) -> ir.Value:
        follower = sole_user(value)
        if not is_fixed_point(follower) or fixed_point_of(follower).bits != BITS:
            return value
        self.folded.add(follower)
        return follower.outputs[0]

    def program(self) -> Program:
        outputs: list[int] = []
        for value in self.outputs:
            number = self.float_output(value)
            # Two values may be one tensor, as before and behind a grid that it lies on already.
            outputs.append(self.copy(number) if number in outputs else number)
        try:
            return Program(tuple(self.tensors), tuple(self.nodes), self.inputs, tuple(outputs))
        except ProgramError as e:
            raise UnsupportedError(f"the network has no native form: {e}; leave native out of --to") from e

    def float_output(self, value: ir.Value) -> int:
        """An output is a float32 tensor that a node writes."""
        _require(value in self.numbers, value.producer(), "is an output, and no image")
        number = self.numbers[value]
        return self.as_float(number) if number >= self.inputs else self.copy(number)

    def as_float(self, number: int) -> int:
        """The float32 form of a tensor: itself, or a copy."""
        tensor = self.tensors[number]
        if tensor.fraction_bits < 0:
            return number
        if number not in self.floats:
            self.floats[number] = self.copy(number)
        return self.floats[number]

    def negative(self, number: int) -> int:
        """The tensor times -1, which is exact."""
        channels, name = self.tensors[number].channels, f"{self.tensors[number].name}/negative"
        self.tensors.append(Tensor(name, channels))
        values = {"in_channels": channels, "out_channels": channels, "kernel_h": 1, "kernel_w": 1, "groups": channels}
        self.nodes.append(Node("Conv2d", name, (number,), len(self.tensors) - 1, values,
                               {"weight": np.full((channels, 1, 1, 1), -1, np.float32)}))
        return len(self.tensors) - 1

    def copy(self, number: int) -> int:
        self.tensors.append(replace(self.tensors[number], name=f"{self.tensors[number].name}/float", fraction_bits=-1))
        self.nodes.append(Node("Activation", self.tensors[-1].name, (number,), len(self.tensors) - 1))
        return len(self.tensors) - 1


# What values are -----------------------------------------------------------------------------------------------------


def channels_of(value: ir.Value) -> int:
    """C of a ``[1, C, H, W]``. Raises :class:`UnsupportedError` for any other shape."""
    shape = value.shape
    if shape is None or len(shape) != 4 or shape[0] != 1 or not isinstance(shape[1], int):
        kind = "of unknown shape" if shape is None else str(list(shape))
        if (producer := value.producer()) is not None:
            raise refuse(producer, "native", f"gives a tensor that is {kind}, and the native engine runs [1, C, H, W] "
                                             "images")
        raise UnsupportedError(f"{value.name!r} is {kind}; the native engine runs [1, C, H, W] images: leave native "
                               "out of --to")
    return shape[1]


def grid_of(value: ir.Value) -> int:
    """Fraction bits of the fixed-point grid on which every element of ``value`` lies for sure, or -1."""
    node = value.producer()
    if node is None:
        return -1
    if is_fixed_point(node):
        return fixed_point_of(node).fraction_bits
    if is_binary(node):
        return spec_of(node).fraction_bits
    nearest = _key(node) == "Resize" and attributes(node)["mode"] == "nearest"
    if nearest or _key(node) in ("MaxPool", "Concat", "Slice", "Split"):
        images = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        grids = {grid_of(v) for v in images}
        return grids.pop() if len(grids) == 1 else -1
    return -1


def activation_of(node: ir.Node, source: ir.Value) -> tuple[dict, dict] | None:
    """Attributes and constants of an activation node on ``source``, or None where it is none that the engine has."""
    if node.domain != "" or node.inputs[0] is not source:
        return None
    simple = {"Relu": FloatActivation.RELU, "Sigmoid": FloatActivation.SIGMOID, "Tanh": FloatActivation.TANH}
    if node.op_type in simple:
        return {"activation": int(simple[node.op_type])}, {}
    if node.op_type == "Clip" and (bounds := clamp_bounds(node)) is not None:
        return {"activation": int(FloatActivation.CLAMP), "clamp_min": bounds[0], "clamp_max": bounds[1]}, {}
    channels = channels_of(source)
    slope = None
    if node.op_type == "LeakyRelu":
        slope = np.full(channels, attributes(node).get("alpha", 0.01), np.float32)
    elif node.op_type == "PRelu":
        slope = per_channel(constant(node.inputs[1]), channels)
    return None if slope is None else ({"activation": int(FloatActivation.PRELU)}, {"slope": slope})


# Writers -------------------------------------------------------------------------------------------------------------


def _binary_conv(writer: _Writer, node: ir.Node) -> None:
    spec = spec_of(node)
    constants = {o.name: constant(v) for i, o in enumerate(BINARY_CONV2D.inputs)
                 if o.constant and (v := operand(node, i)) is not None}
    inputs = [v for v in (operand(node, X), operand(node, RESIDUAL)) if v is not None]
    writer.emit("BinaryConv2d", node, inputs, spec.attributes(), constants)


def _quant_conv(writer: _Writer, node: ir.Node) -> None:
    """Reads the inputs of a :func:`joined <_is_joined>` concatenation itself."""
    spec, source = quant_spec_of(node), node.inputs[X]
    constants = {o.name: constant(v) for o, v in zip(QUANT_CONV2D.inputs, node.inputs, strict=True) if o.constant}
    inputs = [source] if source in writer.numbers or not _is_joined(source.producer()) else source.producer().inputs
    copies = [writer.streamed(node, value) for value in inputs]
    writer.emit("QuantConv2d", node, list(inputs), spec.attributes(), constants, numbers=tuple(copies))


def _is_joined(node: ir.Node | None) -> bool:
    """Whether a concatenation of channels is only read by quantised convolutions, which take its inputs instead."""
    return (node is not None and _key(node) == "Concat" and attributes(node)["axis"] % 4 == 1
            and len(node.inputs) <= program.NODE_INPUTS and not node.outputs[0].is_graph_output()
            and all(is_quant(user) and quant_spec_of(user).groups == 1 for user, _ in node.outputs[0].uses()))


def _fixed_point(writer: _Writer, node: ir.Node) -> None:
    spec, source = fixed_point_of(node), node.inputs[0]
    if spec.bits == BITS and grid_of(source) == spec.fraction_bits:
        writer.numbers[node.outputs[0]] = writer.number(node, source)  # it is there already
    else:
        writer.emit("FixedPoint", node, [source], {"fraction_bits": spec.fraction_bits, "bits": spec.bits})


_WINDOW = ("kernel_h", "kernel_w", "stride_h", "stride_w")
_PADS = ("pad_top", "pad_left", "pad_bottom", "pad_right")


def _pads(node: ir.Node, kernel, stride, dilation) -> list[int]:
    """top, left, bottom, right."""
    attrs = attributes(node)
    auto = attrs.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return list(attrs.get("pads", [0] * 4))
    if auto == "VALID":
        return [0] * 4
    sizes = [int(s) for s in tuple(node.inputs[0].shape)[2:]]
    totals = [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
              for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return [*small, *large] if auto == "SAME_UPPER" else [*large, *small]


def _convolution(operator: str) -> Callable:
    def write(writer: _Writer, node: ir.Node) -> None:
        attrs, weight, bias = attributes(node), constant(node.inputs[1]), operand(node, 2)
        _require(weight is not None and (bias is None or constant(bias) is not None), node, "has computed weights")
        _require(weight.ndim == 4, node, "is not two-dimensional")
        kernel, groups = weight.shape[2:], attrs.get("group", 1)
        stride, dilation = attrs.get("strides", [1, 1]), attrs.get("dilations", [1, 1])
        channels = channels_of(node.inputs[0]), channels_of(node.outputs[0])
        values = dict(zip(("in_channels", "out_channels", "kernel_h", "kernel_w", "stride_h", "stride_w",
                           "dilation_h", "dilation_w"), (*channels, *kernel, *stride, *dilation), strict=True))
        if operator == "ConvTranspose2d":
            _require(attrs.get("auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in attrs, node,
                     "computes its padding; give explicit padding")
            values |= dict(zip(("output_pad_h", "output_pad_w"), attrs.get("output_padding", [0, 0]), strict=True))
        pads = _pads(node, kernel, stride, dilation)
        values |= dict(zip(_PADS, pads, strict=True)) | {"groups": groups}
        weight = weight.astype(np.float16) if STORED in node.metadata_props else weight
        constants = {"weight": weight} | ({} if bias is None else {"bias": constant(bias)})
        writer.emit(operator, node, [node.inputs[0]], {k: int(v) for k, v in values.items()}, constants)
    return write


def _pool(operator: str) -> Callable:
    def write(writer: _Writer, node: ir.Node) -> None:
        attrs = attributes(node)
        kernel = attrs["kernel_shape"]
        stride, dilation = attrs.get("strides", [1, 1]), attrs.get("dilations", [1, 1])
        _require(len(kernel) == 2, node, "is not two-dimensional")
        _require(tuple(dilation) == (1, 1), node, "is dilated")
        pads = _pads(node, kernel, stride, dilation)
        values = dict(zip((*_WINDOW, *_PADS), (*kernel, *stride, *pads), strict=True))
        values["ceil_mode"] = attrs.get("ceil_mode", 0)
        if operator == "AveragePool" and any(pads):
            values["count_padding"] = attrs.get("count_include_pad", 0)
        writer.emit(operator, node, [node.inputs[0]], {k: int(v) for k, v in values.items()})
    return write


def _whole(writer: _Writer, node: ir.Node) -> None:
    """A pool over the whole image."""
    writer.emit("GlobalMaxPool" if node.op_type == "GlobalMaxPool" else "GlobalAveragePool", node, [node.inputs[0]])


def _reduction(kind: str) -> Callable:
    def write(writer: _Writer, node: ir.Node) -> None:
        axes = operand(node, 1)
        axes = attributes(node).get("axes") if axes is None else constant(axes)
        axes = () if axes is None else sorted(int(a) % 4 for a in axes)
        over = {(2, 3): "Global", (1,): "Channel"}.get(tuple(axes))
        _require(over is not None and attributes(node).get("keepdims", 1) == 1, node,
                 "reduces neither height and width nor the channels, with keepdim=True")
        writer.emit(f"{over}{kind}Pool", node, [node.inputs[0]])
    return write


_RESIZE_MODES = {
    ("linear", "half_pixel"): ResizeMode.BILINEAR, ("linear", "pytorch_half_pixel"): ResizeMode.BILINEAR,
    ("linear", "align_corners"): ResizeMode.BILINEAR_ALIGN_CORNERS, ("nearest", "asymmetric"): ResizeMode.NEAREST,
}


def _resize_attributes(writer: _Writer, node: ir.Node) -> tuple[dict[str, int], ir.Value | None]:
    """The attributes, and the value that the size is taken from where they do not give it."""
    attrs = attributes(node)
    mode, place = attrs.get("mode", "nearest"), attrs.get("coordinate_transformation_mode", "half_pixel")
    _require((mode, place) in _RESIZE_MODES and not attrs.get("antialias", 0), node,
             f"interpolates {mode!r} at {place!r}; there are bilinear and nearest, not antialiased")
    _require(mode == "linear" or attrs.get("nearest_mode") == "floor", node, "rounds places otherwise than down")
    source, result = tuple(node.inputs[0].shape), tuple(node.outputs[0].shape)
    channels_of(node.inputs[0]), channels_of(node.outputs[0])
    _require(source[1] == result[1], node, f"resizes {source[1]} channels to {result[1]}")
    values = {"mode": int(_RESIZE_MODES[mode, place])}
    before, after = ([int(s) for s in shape[2:]] for shape in (source, result))
    scales = constant(operand(node, 2))
    if scales is not None and scales.size:
        factors = [Fraction(float(s)).limit_denominator(MAX_STEP) for s in scales[2:]]
        exact = all(0 < f.numerator <= MAX_STEP for f in factors) and np.array_equal(np.float32(factors), scales[2:])
        _require(exact and after == [int(n * f) for n, f in zip(before, factors, strict=True)], node,
                 f"scales by {scales.tolist()}, no fractions of numbers up to {MAX_STEP}")
        return values | _scaled(factors), None
    like = writer.like(node.outputs[0])
    if all(n % m == 0 for n, m in zip(after, before, strict=True)) and (like is None or _is_multiple(node)):
        return values | _scaled([Fraction(n // m) for n, m in zip(after, before, strict=True)]), None
    if like is not None:
        return values | {"size": int(ResizeSize.LIKE)}, like
    return values | {"size": int(ResizeSize.GIVEN), "height": after[0], "width": after[1]}, None


def _scaled(factors: list[Fraction]) -> dict[str, int]:
    (h, w) = factors
    return {"scale_h": h.numerator, "scale_w": w.numerator, "divisor_h": h.denominator, "divisor_w": w.denominator}


def _is_multiple(node: ir.Node) -> bool:
    """Whether a resize gives whole multiples for images of any size, as expressions like ``4*h`` and ``8*h`` tell."""
    before, after = (v.meta.get(SYMBOLS, ("", "")) for v in (node.inputs[0], node.outputs[0]))
    for pair in zip(before, after, strict=True):
        found = [re.fullmatch(r"(?:(\d+)\*)?(\w+)", s) for s in pair]
        if None in found or found[0][2] != found[1][2] or int(found[1][1] or 1) % int(found[0][1] or 1):
            return False
    return True


def _resize(writer: _Writer, node: ir.Node) -> None:
    """A rounded resize whose only use is a rounded sum on the same grid becomes one node, at the sum's place."""
    values, like = _resize_attributes(writer, node)
    rounded = sole_user(node.outputs[0])
    total = sole_user(rounded.outputs[0]) if is_fixed_point(rounded) else None
    last = None if total is None or _key(total) != "Add" else sole_user(total.outputs[0])
    if like is None and is_fixed_point(last) and fixed_point_of(rounded) == fixed_point_of(last):
        addend = next(v for v in total.inputs if v is not rounded.outputs[0])
        if (fixed_point_of(last).bits == BITS and grid_of(addend) == fixed_point_of(last).fraction_bits
                and _same_shape(addend, node.outputs[0])):
            writer.folded.add(rounded)
            writer.resizes[node] = values
            return
    writer.emit("Resize", node, [node.inputs[0], *([] if like is None else [like])], values)


def _pending_resize(writer: _Writer, node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The resize that was left for this sum to compute, and the other summand."""
    for value, other in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        rounded = value.producer()
        if is_fixed_point(rounded) and value not in writer.numbers:
            return rounded.inputs[0].producer(), other
    return None


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    return a.shape is not None and b.shape is not None and tuple(a.shape) == tuple(b.shape)


def _affine(writer: _Writer, node: ir.Node) -> bool:
    """A per-channel ``gain * x + offset`` as a convolution of one pixel and one channel, if the node is one."""
    source = next((v for v in node.inputs[:2] if constant(v) is None), None)
    if source is None or not _same_shape(source, node.outputs[0]):
        return False
    channels = channels_of(source)
    found = affine_of(node, source, channels)
    if found is None and node.op_type == "Sub" and source is node.inputs[1]:
        offset = per_channel(constant(node.inputs[0]), channels)
        found = None if offset is None else (np.full(channels, -1, np.float32), offset)
    if found is None:
        return False
    gain, offset = (a.astype(np.float32) for a in found)
    values = {"in_channels": channels, "out_channels": channels, "kernel_h": 1, "kernel_w": 1, "groups": channels}
    constants = {"weight": gain.reshape(-1, 1, 1, 1)} | ({"bias": offset} if np.any(offset) else {})
    writer.emit("Conv2d", node, [source], values, constants)
    return True


def _add(writer: _Writer, node: ir.Node) -> None:
    _require(len(node.inputs) == 2, node, f"has {len(node.inputs)} summands; add two at a time")
    if (pending := _pending_resize(writer, node)) is not None:
        resize, addend = pending
        writer.emit("Resize", resize, [resize.inputs[0], addend], writer.resizes[resize], result=node.outputs[0])
    elif not _affine(writer, node):
        writer.emit("Add", node, _pair(node))


def _pair(node: ir.Node) -> list[ir.Value]:
    """The two images of a sum or product, first the one of the result's shape."""
    image, other = node.inputs
    if not _same_shape(image, node.outputs[0]):
        image, other = other, image
    _require(_same_shape(image, node.outputs[0]), node, "joins images of which none has the shape of the result")
    shape, full = tuple(other.shape or ()), tuple(image.shape)
    fits = len(shape) == 4 and shape[1] in (1, full[1]) and shape[2:] in ((1, 1), full[2:])
    _require(fits, node, "joins images of different shapes; one may be [1, C, 1, 1] or [1, 1, H, W]")
    return [image, other]


def _multiply(writer: _Writer, node: ir.Node) -> None:
    if not _affine(writer, node):
        writer.emit("Multiply", node, _pair(node))


def _subtract(writer: _Writer, node: ir.Node) -> None:
    """A difference of images is the sum with the negative."""
    if _affine(writer, node):
        return
    a, b = node.inputs
    _require(_same_shape(a, node.outputs[0]), node, "subtracts from an image that has not the shape of the result")
    _, b = _pair(node)
    writer.emit("Add", node, [a, b], numbers=(writer.number(node, a), writer.negative(writer.number(node, b))))


def _affine_only(writer: _Writer, node: ir.Node) -> None:
    _require(_affine(writer, node), node, "has no native form but with one constant per channel")


def _activation(writer: _Writer, node: ir.Node) -> None:
    found = activation_of(node, node.inputs[0])
    _require(found is not None, node, "has computed or per-pixel parameters")
    writer.emit("Activation", node, [node.inputs[0]], *found)


def _concat(writer: _Writer, node: ir.Node) -> None:
    _require(attributes(node)["axis"] % 4 == 1, node, "joins another axis than the channels")
    if _is_joined(node):
        return
    grid, most = grid_of(node.outputs[0]), program.NODE_INPUTS
    numbers = [writer.number(node, value) for value in node.inputs]
    while len(numbers) > most:  # some of them first
        part = [writer.as_float(n) if grid < 0 else n for n in numbers[:most]]
        name = f"{node.outputs[0].name}/{len(numbers)}"
        writer.tensors.append(Tensor(name, sum(writer.tensors[n].channels for n in part), grid))
        numbers = [len(writer.tensors) - 1, *numbers[most:]]
        writer.nodes.append(Node("Concat", name, tuple(part), numbers[0]))
    writer.emit("Concat", node, list(node.inputs), numbers=tuple(numbers))


def _slice(writer: _Writer, node: ir.Node) -> None:
    starts, ends, axes, steps = (None if v is None else constant(v) for v in (operand(node, i) for i in range(1, 5)))
    _require(starts is not None and ends is not None and len(starts) == 1
             and not (axes is None and operand(node, 3)) and not (steps is None and operand(node, 4)), node,
             "takes computed places, or several axes at once")
    axis, step = 0 if axes is None else int(axes[0]) % 4, 1 if steps is None else int(steps[0])
    _require(axis == 1 and step == 1, node, "takes no range of channels")
    channels = channels_of(node.inputs[0])
    first, last = (min(max(v + channels if v < 0 else v, 0), channels) for v in (int(starts[0]), int(ends[0])))
    _require(first < last, node, "takes nothing")
    writer.emit("Slice", node, [node.inputs[0]], {"first": first})


def _split(writer: _Writer, node: ir.Node) -> None:
    _require(attributes(node).get("axis", 0) % 4 == 1, node, "divides another axis than the channels")
    first = 0
    for part in node.outputs:
        if part.uses() or part in writer.outputs:
            writer.emit("Slice", node, [node.inputs[0]], {"first": first}, result=part)
        first += channels_of(part)


def _identity(writer: _Writer, node: ir.Node) -> None:
    writer.numbers[node.outputs[0]] = writer.number(node, node.inputs[0])


#: ONNX operator (``domain::name`` outside the default domain) -> writer.
WRITERS: dict[str, Callable[[_Writer, ir.Node], None]] = {
    f"{DOMAIN}::{BINARY_CONV2D.name}": _binary_conv,
    f"{DOMAIN}::{QUANT_CONV2D.name}": _quant_conv,
    f"{DOMAIN}::{FIXED_POINT.name}": _fixed_point,
    "Conv": _convolution("Conv2d"),
    "ConvTranspose": _convolution("ConvTranspose2d"),
    "AveragePool": _pool("AveragePool"),
    "MaxPool": _pool("MaxPool"),
    "GlobalAveragePool": _whole,
    "GlobalMaxPool": _whole,
    "ReduceMean": _reduction("Average"),
    "ReduceMax": _reduction("Max"),
    "Resize": _resize,
    "Add": _add,
    "Sum": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _affine_only,
    "BatchNormalization": _affine_only,
    "Relu": _activation,
    "PRelu": _activation,
    "LeakyRelu": _activation,
    "Clip": _activation,
    "Sigmoid": _activation,
    "Tanh": _activation,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Identity": _identity,
    "Dropout": _identity,
}

"""The program: a whole network as one file, ``model.irstd``, that the native engine runs.

This file is the single source of the format, version 2: the operator table :data:`OPERATORS` (numbers and slots), the
record layouts, their C view ``irstd_program.h`` and the table in ``docs/native.md`` are all derived from it.
:func:`write` and :func:`read` hold programs to the same rules: what one writes, the other accepts, and nothing else.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf, prod

import numpy as np

from irstd_edge.opspec import (
    BINARY_CONV2D_ATTRIBUTES,
    FIXED_POINT,
    MAX_CHANNELS,
    MAX_KERNEL,
    MAX_SIDE,
    MAX_STEP,
    OPSET_VERSION,
    QUANT_CONV2D_ATTRIBUTES,
    WORD_BITS,
    Activation,
    Attribute,
    BinaryConv2dSpec,
    OpSpecError,
    QuantConv2dSpec,
    Residual,
)

MAGIC = b"\x89IRSTD\r\n"
VERSION = 2
#: Constants start at multiples of this in the file.
ALIGNMENT = 64
#: Far beyond any network; what planning costs grows with the square of them.
MAX_TENSORS = MAX_NODES = 1 << 12
NODE_INPUTS, NODE_CONSTANTS = 8, 6

#: Record -> its fields as (name, struct format), little endian.
HEADER_FIELDS = (
    ("magic", "8s"), ("version", "I"), ("opset", "I"), ("file_bytes", "Q"), ("crc32", "I"), ("tensor_count", "I"),
    ("node_count", "I"), ("input_count", "I"), ("output_count", "I"), ("outputs_offset", "I"),
    ("tensors_offset", "I"), ("nodes_offset", "I"), ("strings_offset", "I"), ("strings_bytes", "I"),
)
TENSOR_FIELDS = (("name", "I"), ("fraction_bits", "i"), ("channels", "I"))
#: What follows: inputs, then the slots that the operator has: i[], f[], and the offset and bytes of constant[].
NODE_FIELDS = (("op", "I"), ("name", "I"), ("input_count", "I"), ("output", "I"))


def _record(fields) -> struct.Struct:
    return struct.Struct("<" + "".join(code for _, code in fields))


HEADER, TENSOR, NODE = _record(HEADER_FIELDS), _record(TENSOR_FIELDS), _record(NODE_FIELDS)


class ProgramError(ValueError):
    """A program violates the format; the message names the field, and the node or tensor."""


class TensorType(IntEnum):
    FLOAT32 = 0
    INT16 = 1  # value = q * 2^-fraction_bits


class FloatActivation(IntEnum):
    """Activation of the float operators."""

    NONE = 0
    RELU = 1
    PRELU = 2  # constant `slope`, one per channel
    CLAMP = 3  # clamp_min, clamp_max
    SIGMOID = 4
    TANH = 5


class ResizeMode(IntEnum):
    NEAREST = 0
    BILINEAR = 1  # half-pixel centres
    BILINEAR_ALIGN_CORNERS = 2


class ResizeSize(IntEnum):
    """What the size of a resized image is."""

    SCALED = 0  # floor(size * scale / divisor)
    LIKE = 1  # that of the second input, of which nothing else is read
    GIVEN = 2  # height, width


@dataclass(frozen=True)
class Constant:
    """One constant of an operator.

    ``shape`` gives its shape for the node's attributes, or None where there must be none; ``optional``: may be absent;
    ``half``: may be float16 instead, which its bytes tell: the engine widens it when it opens the file.
    """

    name: str
    dtype: str  # "float32", "int32" or "uint8"
    letters: str
    shape: Callable[[Mapping], tuple[int, ...] | None]
    optional: bool = False
    half: bool = False

    @property
    def dtypes(self) -> tuple[np.dtype, ...]:
        """What it may be, the usual one first."""
        return (np.dtype(self.dtype), *((np.dtype(np.float16),) if self.half else ()))


@dataclass(frozen=True)
class OperatorType:
    """A row of the operator table: the slots of a node record in their order.

    ``inputs`` names the inputs; those that end with ``?`` may be absent, from the last; ``check`` raises
    :class:`ProgramError` for channels or types that do not fit, given attributes, inputs' tensors and output's.
    """

    name: str
    number: int
    inputs: tuple[str, ...]
    integers: tuple[Attribute, ...]
    floats: tuple[Attribute, ...]
    constants: tuple[Constant, ...]
    check: Callable[[Mapping, tuple[Tensor, ...], Tensor], None]

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        return self.integers + self.floats

    @property
    def min_inputs(self) -> int:
        return sum(not name.endswith("?") for name in self.inputs)

    @property
    def max_inputs(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Tensor:
    """One image ``[channels, H, W]``: float32, or int16 of value ``q * 2^-fraction_bits`` where that is >= 0."""

    name: str
    channels: int
    fraction_bits: int = -1

    @property
    def type(self) -> TensorType:
        return TensorType.FLOAT32 if self.fraction_bits < 0 else TensorType.INT16


@dataclass(frozen=True, eq=False)
class Node:
    """One operation: ``inputs`` and ``output`` are tensor numbers, attributes left out take their defaults.

    Raises :class:`ProgramError` for an unknown operator, attribute or constant, or a value out of range.
    """

    operator: str
    name: str
    inputs: tuple[int, ...]
    output: int
    attributes: Mapping[str, int | float] = field(default_factory=dict)
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        with _at(f"node {self.name!r}"):
            if self.operator not in OPERATORS:
                raise ProgramError(f"unknown operator {self.operator!r}")
            values = _checked_attributes(self.type, self.attributes)
            object.__setattr__(self, "attributes", values)
            object.__setattr__(self, "constants", _checked_constants(self.type, values, self.constants))

    @property
    def type(self) -> OperatorType:
        return OPERATORS[self.operator]


@dataclass(frozen=True, eq=False)
class Program:
    """A network: the first ``inputs`` tensors are its inputs, ``outputs`` are tensor numbers, nodes run in order.

    Raises :class:`ProgramError` where a node reads what is not computed yet, two write one tensor, or channels or
    types do not fit.
    """

    tensors: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    inputs: int
    outputs: tuple[int, ...]

    def __post_init__(self):
        _check_program(self)


# The operator table ------------------------------------------------------------------------------------------------


def _integer(name, minimum, maximum, default=None, doc=""):
    return Attribute(name, int, default, None, minimum, maximum, doc)


def _enum(name, kind: type[IntEnum], default=None):
    values = tuple(int(v) for v in kind)
    return Attribute(name, int, default, values, None, None, ", ".join(f"{int(v)} {v.name.lower()}" for v in kind))


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise ProgramError(text)


def _check_convolution(a, inputs, output) -> None:
    _require(inputs[0].channels == a["in_channels"], f"in_channels is {a['in_channels']}, its input has "
             f"{inputs[0].channels}")
    _require(output.channels == a["out_channels"], f"out_channels is {a['out_channels']}, its output has "
             f"{output.channels}")


def _check_binary(a, inputs, output) -> None:
    try:
        spec = BinaryConv2dSpec.from_attributes(dict(a))
        if len(inputs) > 1:
            spec.check_residual_channels(inputs[1].channels)
    except OpSpecError as e:
        raise ProgramError(str(e)) from e
    _check_convolution(a, inputs, output)
    _require((len(inputs) > 1) == (spec.residual != Residual.NONE), f"residual is {spec.residual}, with "
             f"{len(inputs)} inputs")
    # A float32 output holds the values of a fixed-point operator too.
    _require(output.fraction_bits in (-1, spec.fraction_bits), f"fraction_bits is {spec.fraction_bits}, its output's "
             f"{output.fraction_bits}")


def _check_quant(a, inputs, output) -> None:
    try:
        QuantConv2dSpec.from_attributes(dict(a))
    except OpSpecError as e:
        raise ProgramError(str(e)) from e
    channels = sum(t.channels for t in inputs)
    _require(channels == a["in_channels"], f"in_channels is {a['in_channels']}, its inputs have {channels}")
    _require(len(inputs) == 1 or a["groups"] == 1, f"groups is {a['groups']}, with {len(inputs)} inputs")
    _require(output.channels == a["out_channels"], f"out_channels is {a['out_channels']}, its output has "
             f"{output.channels}")
    _require(output.fraction_bits < 0, "its output is int16; it is float32")


def _quant_weight_shape(a) -> tuple[int, int]:
    taps = a["kernel_h"] * a["kernel_w"] * (a["in_channels"] // a["groups"])
    return a["out_channels"], -(-taps * a["weight_bits"] // 8)


def _check_same(a, inputs, output) -> None:
    for tensor in inputs:
        _require(tensor.channels == output.channels, f"input {tensor.name!r} has {tensor.channels} channels, its "
                 f"output {output.channels}")


def _check_transposed(a, inputs, output) -> None:
    _check_convolution(a, inputs, output)
    for axis in "hw":
        pad, stride = a[f"output_pad_{axis}"], a[f"stride_{axis}"]
        _require(pad < stride, f"output_pad_{axis} is {pad}, not below stride_{axis}, {stride}")


def _check_fixed_point(a, inputs, output) -> None:
    _check_same(a, inputs, output)
    _require(inputs[0].fraction_bits < 0, "its input is int16 already")
    _require(output.fraction_bits == a["fraction_bits"], f"fraction_bits is {a['fraction_bits']}, its output's "
             f"{output.fraction_bits}")


def _check_concat(a, inputs, output) -> None:
    total = sum(t.channels for t in inputs)
    _require(total == output.channels, f"its inputs have {total} channels together, its output {output.channels}")
    for tensor in inputs:
        _require(tensor.fraction_bits == output.fraction_bits, f"input {tensor.name!r} has fraction_bits "
                 f"{tensor.fraction_bits}, its output {output.fraction_bits}")


def _check_pool(a, inputs, output) -> None:
    _check_same(a, inputs, output)
    for pad, kernel in (("pad_top", "kernel_h"), ("pad_left", "kernel_w"), ("pad_bottom", "kernel_h"),
                        ("pad_right", "kernel_w")):
        _require(a[pad] < a[kernel], f"{pad} is {a[pad]}, not below {kernel}, {a[kernel]}")


def _check_channel_pool(a, inputs, output) -> None:
    _require(output.channels == 1, f"its output has {output.channels} channels, not 1")


def _check_resize(a, inputs, output) -> None:
    _check_same(a, inputs[:1], output)
    scaled, given = a["size"] == ResizeSize.SCALED, a["size"] == ResizeSize.GIVEN
    for axis, side in (("h", "height"), ("w", "width")):
        for name in (f"scale_{axis}", f"divisor_{axis}"):
            _require(scaled or a[name] == 1, f"{name} is {a[name]}, and means nothing where size is {a['size']}")
        _require((a[side] > 0) == given, f"{side} is {a[side]} where size is {a['size']}")
    if a["size"] == ResizeSize.LIKE:
        _require(len(inputs) == 2, "its size is that of a second input, which it has not")
    else:
        _check_same(a, inputs[1:], output)


def _check_pair(a, inputs, output) -> None:
    _check_same(a, inputs[:1], output)
    _require(inputs[1].channels in (1, output.channels), f"input {inputs[1].name!r} has {inputs[1].channels} channels, "
             f"its output {output.channels}")


def _check_slice(a, inputs, output) -> None:
    (x,), first = inputs, a["first"]
    _require(first + output.channels <= x.channels, f"takes channels {first} to {first + output.channels - 1} of "
             f"{x.channels}")
    _require(x.fraction_bits == output.fraction_bits, f"its input has fraction_bits {x.fraction_bits}, its output "
             f"{output.fraction_bits}")


_CHANNELS = (_integer("in_channels", 1, MAX_CHANNELS), _integer("out_channels", 1, MAX_CHANNELS))
_WINDOW = (_integer("kernel_h", 1, MAX_STEP), _integer("kernel_w", 1, MAX_STEP),
           _integer("stride_h", 1, MAX_STEP), _integer("stride_w", 1, MAX_STEP))
_PADS = tuple(_integer(name, 0, MAX_STEP, 0) for name in ("pad_top", "pad_left", "pad_bottom", "pad_right"))
#: Windows that begin inside the image, or its padding on the top left, count where ceil_mode is 1.
_POOL = (*_WINDOW, *_PADS, _integer("ceil_mode", 0, 1, 0))
_ACTIVATION = _enum("activation", FloatActivation, 0)
_CLAMP = (Attribute("clamp_min", float, -inf, None, None, None, "lower bound of the clamp"),
          Attribute("clamp_max", float, inf, None, None, None, "upper bound of the clamp"))
_CONVOLUTION = (
    *_CHANNELS, _integer("kernel_h", 1, MAX_KERNEL), _integer("kernel_w", 1, MAX_KERNEL),
    *(_integer(name, 1, MAX_STEP, 1) for name in ("stride_h", "stride_w", "dilation_h", "dilation_w")),
    *_PADS, _integer("groups", 1, MAX_CHANNELS, 1), _ACTIVATION,
)
_BIAS = Constant("bias", "float32", "[OC]", lambda a: (a["out_channels"],), optional=True)


def _slope(letters: str, size: Callable[[Mapping], int]) -> Constant:
    return Constant("slope", "float32", letters,
                    lambda a: (size(a),) if a["activation"] == FloatActivation.PRELU else None)


#: [C]: as many as the output has channels, which is known to the whole program only.
ANY = -1
_CHANNEL_SLOPE = _slope("[C]", lambda a: ANY)
_OUTPUT_SLOPE = _slope("[OC]", lambda a: a["out_channels"])

_BINARY_CONSTANTS = (
    Constant("weight", "int32", "[OC, KH, KW, ceil((IC / groups) / 32)]",
             lambda a: (a["out_channels"], a["kernel_h"], a["kernel_w"],
                        -(-(a["in_channels"] // a["groups"]) // WORD_BITS))),
    Constant("threshold", "float32", "[IC]", lambda a: (a["in_channels"],)),
    Constant("scale", "float32", "[OC]", lambda a: (a["out_channels"],)),
    Constant("bias", "float32", "[OC]", lambda a: (a["out_channels"],)),
    Constant("activation_parameters", "float32", "[3, OC]",
             lambda a: (3, a["out_channels"]) if a["activation"] == Activation.RPRELU else None),
)

_TABLE = (
    OperatorType("BinaryConv2d", 1, ("x", "residual?"),
                 tuple(a for a in BINARY_CONV2D_ATTRIBUTES if a.kind is int),
                 tuple(a for a in BINARY_CONV2D_ATTRIBUTES if a.kind is float), _BINARY_CONSTANTS, _check_binary),
    OperatorType("Conv2d", 2, ("x",), _CONVOLUTION, _CLAMP, (
        Constant("weight", "float32", "[OC, IC / groups, KH, KW]",
                 lambda a: (a["out_channels"], a["in_channels"] // a["groups"], a["kernel_h"], a["kernel_w"]),
                 half=True),
        _BIAS, _OUTPUT_SLOPE), _check_convolution),
    OperatorType("FixedPoint", 3, ("x",), tuple(a for a in FIXED_POINT.attributes if a.name != "version"), (), (),
                 _check_fixed_point),
    OperatorType("AveragePool", 4, ("x",), (*_POOL, _integer("count_padding", 0, 1, 0)), (), (), _check_pool),
    OperatorType("MaxPool", 5, ("x",), _POOL, (), (), _check_pool),
    OperatorType("Resize", 6, ("x", "addend or like?"), (
        _integer("scale_h", 1, MAX_STEP, 1), _integer("scale_w", 1, MAX_STEP, 1), _enum("mode", ResizeMode),
        _integer("divisor_h", 1, MAX_STEP, 1), _integer("divisor_w", 1, MAX_STEP, 1), _enum("size", ResizeSize, 0),
        _integer("height", 0, MAX_SIDE, 0), _integer("width", 0, MAX_SIDE, 0)), (), (), _check_resize),
    OperatorType("Add", 7, ("a", "b"), (_ACTIVATION,), _CLAMP, (_CHANNEL_SLOPE,), _check_pair),
    OperatorType("Multiply", 8, ("a", "b"), (), (), (), _check_pair),
    OperatorType("Activation", 9, ("x",), (_ACTIVATION,), _CLAMP, (_CHANNEL_SLOPE,), _check_same),
    OperatorType("Concat", 10, ("x", *(f"x{i}?" for i in range(1, NODE_INPUTS))), (), (), (), _check_concat),
    OperatorType("GlobalAveragePool", 11, ("x",), (), (), (), _check_same),
    OperatorType("ConvTranspose2d", 12, ("x",),
                 (*_CONVOLUTION, _integer("output_pad_h", 0, MAX_STEP, 0), _integer("output_pad_w", 0, MAX_STEP, 0)),
                 _CLAMP, (Constant("weight", "float32", "[IC, OC / groups, KH, KW]",
                                   lambda a: (a["in_channels"], a["out_channels"] // a["groups"], a["kernel_h"],
                                              a["kernel_w"]), half=True), _BIAS, _OUTPUT_SLOPE), _check_transposed),
    OperatorType("Slice", 13, ("x",), (_integer("first", 0, MAX_CHANNELS),), (), (), _check_slice),
    OperatorType("QuantConv2d", 14, ("x", *(f"x{i}?" for i in range(1, NODE_INPUTS))),
                 tuple(a for a in QUANT_CONV2D_ATTRIBUTES if a.kind is int),
                 tuple(a for a in QUANT_CONV2D_ATTRIBUTES if a.kind is float), (
        Constant("weight", "uint8", "[OC, ceil(KH * KW * (IC / groups) * weight_bits / 8)]", _quant_weight_shape),
        Constant("scale", "float32", "[OC]", lambda a: (a["out_channels"],)),
        Constant("bias", "float32", "[OC]", lambda a: (a["out_channels"],))), _check_quant),
    OperatorType("GlobalMaxPool", 15, ("x",), (), (), (), _check_same),
    OperatorType("ChannelAveragePool", 16, ("x",), (), (), (), _check_channel_pool),
    OperatorType("ChannelMaxPool", 17, ("x",), (), (), (), _check_channel_pool),
)
OPERATORS: dict[str, OperatorType] = {row.name: row for row in _TABLE}
_BY_NUMBER = {row.number: row for row in _TABLE}


# Rules -------------------------------------------------------------------------------------------------------------


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Names the node or tensor in the errors of the block."""
    try:
        yield
    except (ProgramError, OpSpecError) as e:
        raise ProgramError(f"{place}: {e}") from e


def _checked_attributes(kind: OperatorType, given: Mapping) -> dict[str, int | float]:
    known = {a.name: a for a in kind.attributes}
    _require(not (unknown := sorted(set(given) - set(known))), f"{kind.name} has no attribute {', '.join(unknown)}")
    values = {}
    for name, attribute in known.items():
        value = given.get(name, attribute.default)
        _require(value is not None, f"{name} is missing")
        attribute.check(value)
        values[name] = value
    if "clamp_min" in values:
        _require(values["clamp_min"] <= values["clamp_max"], f"clamp_min {values['clamp_min']} exceeds clamp_max "
                 f"{values['clamp_max']}")
    if "groups" in values:  # constants' shapes follow from it
        _require(values["in_channels"] % values["groups"] == 0 and values["out_channels"] % values["groups"] == 0,
                 f"groups is {values['groups']}, which does not divide the channels")
    return values


def _checked_constants(kind: OperatorType, attributes: Mapping, given: Mapping) -> dict[str, np.ndarray]:
    known = {c.name for c in kind.constants}
    _require(not (unknown := sorted(set(given) - known)), f"{kind.name} has no constant {', '.join(unknown)}")
    values = {}
    for constant in kind.constants:
        shape, array = constant.shape(attributes), given.get(constant.name)
        if array is None:
            _require(shape is None or constant.optional, f"{constant.name} is missing")
            continue
        _require(shape is not None, f"{constant.name} is given, and means nothing there")
        array = np.asarray(array)
        names = " or ".join(d.name for d in constant.dtypes)
        _require(array.dtype in constant.dtypes, f"{constant.name} is {array.dtype}, not {names}")
        fits = len(array.shape) == len(shape) and all(s in (n, ANY) for n, s in zip(array.shape, shape, strict=True))
        _require(fits, f"{constant.name} has shape {list(array.shape)}, not {constant.letters} = {list(shape)}")
        values[constant.name] = array
    if kind.name == "BinaryConv2d" and (used := attributes["in_channels"] // attributes["groups"] % WORD_BITS):
        _require(not np.any(values["weight"][..., -1].view(np.uint32) >> np.uint32(used)),
                 "weight has bits beyond the last channel")
    if kind.name == "QuantConv2d":
        taps = attributes["kernel_h"] * attributes["kernel_w"] * (attributes["in_channels"] // attributes["groups"])
        used = taps * attributes["weight_bits"] % 8
        _require(not used or not np.any(values["weight"][:, -1] >> used), "weight has bits beyond the last channel")
    return values


def _check_program(program: Program) -> None:
    count = len(program.tensors)
    _require(1 <= program.inputs <= count <= MAX_TENSORS, f"input_count is {program.inputs}, of {count} tensors "
             f"(at most {MAX_TENSORS})")
    _require(1 <= len(program.nodes) <= MAX_NODES, f"node_count is {len(program.nodes)}, not 1 to {MAX_NODES}")
    for i, tensor in enumerate(program.tensors):
        with _at(f"tensor {i} {tensor.name!r}"):
            _require(1 <= tensor.channels <= MAX_CHANNELS, f"channels is {tensor.channels}, not 1 to {MAX_CHANNELS}")
            _require(-1 <= tensor.fraction_bits <= 15, f"fraction_bits is {tensor.fraction_bits}, not -1 to 15")
            _require(i >= program.inputs or tensor.fraction_bits < 0, "an input is float32")
    known = set(range(program.inputs))
    for i, node in enumerate(program.nodes):
        with _at(f"node {i} {node.name!r}"):
            _check_node(program, node, known)
        known.add(node.output)
    _require(len(known) == count, f"no node writes tensor {min(set(range(count)) - known, default=None)}")
    _require(1 <= len(program.outputs) <= count, f"output_count is {len(program.outputs)}, of {count} tensors")
    twice = [n for i, n in enumerate(program.outputs) if n in program.outputs[:i]]
    _require(not twice, f"output {twice[0] if twice else 0} is named twice")
    for number in program.outputs:
        _require(number >= program.inputs, f"output {number} is an input")
        _require(number in known, f"output {number} is not a tensor")
        _require(program.tensors[number].fraction_bits < 0, f"output {number} is int16; an output is float32")


def _check_node(program: Program, node: Node, known: set[int]) -> None:
    kind = node.type
    _require(kind.min_inputs <= len(node.inputs) <= kind.max_inputs, f"input_count is {len(node.inputs)}, not "
             f"{kind.min_inputs} to {kind.max_inputs}")
    for number in node.inputs:
        _require(number in known, f"input {number} is not computed before it")
    _require(0 <= node.output < len(program.tensors), f"output {node.output} is not a tensor")
    _require(node.output not in known, f"output {node.output} is written before")
    output = program.tensors[node.output]
    kind.check(node.attributes, tuple(program.tensors[i] for i in node.inputs), output)
    if "slope" in node.constants:
        _require(len(node.constants["slope"]) == output.channels, f"slope has {len(node.constants['slope'])} values, "
                 f"its output {output.channels} channels")


# File --------------------------------------------------------------------------------------------------------------


class _Strings:
    """NUL-terminated UTF-8 names, each once; a name's number is its place among the bytes."""

    def __init__(self) -> None:
        self.data, self._places = bytearray(), {}

    def place(self, text: str) -> int:
        if text not in self._places:
            _require("\0" not in text, f"name {text!r} holds a NUL")
            self._places[text] = len(self.data)
            try:
                self.data += text.encode() + b"\0"
            except UnicodeEncodeError as e:
                raise ProgramError(f"name {text!r} is no UTF-8") from e
        return self._places[text]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def write(program: Program) -> bytes:
    """The file; equal constants are stored once. Deterministic. Raises :class:`ProgramError` above 4 GiB."""
    strings = _Strings()
    tensors = b"".join(TENSOR.pack(strings.place(t.name), t.fraction_bits, t.channels) for t in program.tensors)
    names = [strings.place(node.name) for node in program.nodes]
    outputs = struct.pack(f"<{len(program.outputs)}I", *program.outputs)
    tensors_offset = HEADER.size
    nodes_offset = tensors_offset + len(tensors)
    outputs_offset = nodes_offset + sum(NODE.size + _slots(n.type, len(n.inputs)).size for n in program.nodes)
    strings_offset = outputs_offset + len(outputs)
    places: dict[bytes, int] = {}
    constants = bytearray()
    start = _aligned(strings_offset + len(strings.data))
    nodes = bytearray()
    for node, name in zip(program.nodes, names, strict=True):
        references = []
        for slot in node.type.constants:
            array = node.constants.get(slot.name)
            if array is None:
                references += [0, 0]
                continue
            data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
            if data not in places:
                constants += bytes(_aligned(len(constants)) - len(constants))
                places[data] = start + len(constants)
                constants += data
                _require(start + len(constants) < 1 << 32, f"node {node.name!r}: its constants end beyond 4 GiB")
            references += [places[data], len(data)]
        nodes += NODE.pack(node.type.number, name, len(node.inputs), node.output)
        nodes += _slots(node.type, len(node.inputs)).pack(
            *node.inputs, *(node.attributes[a.name] for a in node.type.attributes), *references)
    body = tensors + bytes(nodes) + outputs + bytes(strings.data)
    body += bytes(start - HEADER.size - len(body)) + bytes(constants)
    header = HEADER.pack(MAGIC, VERSION, OPSET_VERSION, HEADER.size + len(body), zlib.crc32(body),
                         len(program.tensors), len(program.nodes), program.inputs, len(program.outputs),
                         outputs_offset, tensors_offset, nodes_offset, strings_offset, len(strings.data))
    return header + body


def _slots(kind: OperatorType, inputs: int) -> struct.Struct:
    """What follows the fixed part of a node record."""
    return struct.Struct(f"<{inputs}I{len(kind.integers)}i{len(kind.floats)}f{2 * len(kind.constants)}I")


def read(data: bytes) -> Program:
    """A program from a file's bytes; its constants are read-only views of them.

    Raises :class:`ProgramError` for anything that is not as :func:`write` writes it: sizes, offsets, numbers, text.
    """
    _require(len(data) >= HEADER.size, f"{len(data)} bytes are less than a header ({HEADER.size})")
    header = _Reader(data).record(HEADER, HEADER_FIELDS, 0)
    _require(header["magic"] == MAGIC, "no irstd program (magic)")
    _require(header["version"] == VERSION, f"version is {header['version']}, this release reads {VERSION}; "
             "export again")
    _require(header["opset"] == OPSET_VERSION, f"opset is {header['opset']}, this release reads {OPSET_VERSION}; "
             "export again")
    _require(header["file_bytes"] == len(data), f"file_bytes is {header['file_bytes']}, the file has {len(data)}")
    _require(header["crc32"] == zlib.crc32(data[HEADER.size:]), "damaged (crc32)")
    for name, most in (("tensor_count", MAX_TENSORS), ("node_count", MAX_NODES)):
        _require(1 <= header[name] <= most, f"{name} is {header[name]}, not 1 to {most}")
    for name in ("input_count", "output_count"):
        _require(1 <= header[name] <= header["tensor_count"], f"{name} is {header[name]}, of {header['tensor_count']} "
                 "tensors")
    reader = _Reader(data, header["strings_offset"], header["strings_bytes"])
    at, count = header["outputs_offset"], header["output_count"]
    reader.check("outputs_offset", at, 4 * count, 4)
    outputs = struct.unpack_from(f"<{count}I", data, at)
    reader.check("tensors_offset", header["tensors_offset"], TENSOR.size * header["tensor_count"], 4)
    tensors = tuple(reader.tensor(i, header["tensors_offset"] + TENSOR.size * i)
                    for i in range(header["tensor_count"]))
    nodes, at = [], header["nodes_offset"]
    for i in range(header["node_count"]):
        node, at = reader.node(i, at)
        nodes.append(node)
    return Program(tensors, tuple(nodes), header["input_count"], outputs)


class _Reader:
    """Records of a file; names are taken from its strings, given where they are."""

    def __init__(self, data: bytes, strings_offset: int | None = None, strings_bytes: int = 0):
        self.data = data
        self.strings = b""
        if strings_offset is not None:
            self.check("strings_offset", strings_offset, strings_bytes, 1)
            self.strings = data[strings_offset:strings_offset + strings_bytes]
            _require(self.strings[-1:] == b"\0", "strings do not end with NUL")

    def record(self, layout: struct.Struct, fields, offset: int) -> dict:
        return dict(zip((name for name, _ in fields), layout.unpack_from(self.data, offset), strict=True))

    def check(self, name: str, offset: int, size: int, alignment: int) -> None:
        _require(HEADER.size <= offset and offset + size <= len(self.data), f"{name} {offset} with {size} bytes is "
                 f"outside the file ({len(self.data)})")
        _require(offset % alignment == 0, f"{name} {offset} is no multiple of {alignment}")

    def text(self, place: int) -> str:
        end = self.strings.find(b"\0", place)
        _require(place < len(self.strings), f"name {place} is outside the strings ({len(self.strings)})")
        try:
            return self.strings[place:end].decode()
        except UnicodeDecodeError as e:
            raise ProgramError(f"name {place} is no UTF-8") from e

    def tensor(self, index: int, offset: int) -> Tensor:
        with _at(f"tensor {index}"):
            raw = self.record(TENSOR, TENSOR_FIELDS, offset)
            return Tensor(self.text(raw["name"]), raw["channels"], raw["fraction_bits"])

    def node(self, index: int, offset: int) -> tuple[Node, int]:
        """And where its record ends."""
        with _at(f"node {index}"):
            self.check("nodes_offset", offset, NODE.size, 4)
            raw, offset = self.record(NODE, NODE_FIELDS, offset), offset + NODE.size
            _require(raw["op"] in _BY_NUMBER, f"op is {raw['op']}")
            kind, name = _BY_NUMBER[raw["op"]], self.text(raw["name"])
            _require(raw["input_count"] <= NODE_INPUTS, f"input_count is {raw['input_count']}")
            layout = _slots(kind, raw["input_count"])
            self.check("nodes_offset", offset, layout.size, 4)
            values = layout.unpack_from(self.data, offset)
            inputs, values = values[:raw["input_count"]], values[raw["input_count"]:]
            # Their ranges are checked before they give the sizes of constants.
            attributes = _checked_attributes(kind, dict(zip((a.name for a in kind.attributes), values, strict=False)))
            references = values[len(attributes):]
            constants = {slot.name: array for i, slot in enumerate(kind.constants)
                         if (array := self.constant(slot, attributes, *references[2 * i:2 * i + 2])) is not None}
            return Node(kind.name, name, inputs, raw["output"], attributes, constants), offset + layout.size

    def constant(self, slot: Constant, attributes: Mapping, offset: int, size: int) -> np.ndarray | None:
        if offset == 0 and size == 0:
            return None
        shape = slot.shape(attributes)
        _require(shape is not None, f"{slot.name} is given, and means nothing there")
        self.check(slot.name, offset, size, ALIGNMENT)
        known = prod(n for n in shape if n != ANY)
        fits = [d for d in slot.dtypes
                if (size % (known * d.itemsize) == 0 if ANY in shape else size == known * d.itemsize)]
        _require(size > 0 and bool(fits), f"{slot.name} has {size} bytes, not those of {slot.letters} = {list(shape)}")
        array = np.frombuffer(self.data, fits[0].newbyteorder("<"), size // fits[0].itemsize, offset)
        return array.reshape(shape)

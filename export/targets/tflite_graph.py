"""A small writer of .tflite files on the generated flatbuffer classes; NHWC, transposed only where that has no form."""

from __future__ import annotations

from collections.abc import Sequence

import flatbuffers
import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as tfl
from flatbuffers import flexbuffers

from irstd_edge.errors import UnsupportedError
from irstd_edge.export.passes.graph import LAYER, constant
from irstd_edge.runtimes.tflite import IMAGE_SIZE

_TYPES = {
    np.dtype(np.float32): tfl.TensorType.FLOAT32,
    np.dtype(np.float16): tfl.TensorType.FLOAT16,
    np.dtype(np.int32): tfl.TensorType.INT32,
    np.dtype(np.int64): tfl.TensorType.INT64,
    np.dtype(np.bool_): tfl.TensorType.BOOL,
    np.dtype(np.uint8): tfl.TensorType.UINT8,
}
_IR_TYPES = {
    ir.DataType.FLOAT: tfl.TensorType.FLOAT32,
    ir.DataType.INT32: tfl.TensorType.INT32,
    ir.DataType.INT64: tfl.TensorType.INT64,
    ir.DataType.BOOL: tfl.TensorType.BOOL,
}
_BUILTIN_LIMIT = 127  # codes above it do not fit the byte of the oldest schema
ALIGNMENT = 16
#: Place of each NCHW axis in NHWC.
NHWC_AXIS = (0, 3, 1, 2)
_OPTION_NAMES = {name: value for name, value in vars(tfl.BuiltinOptions).items() if not name.startswith("_")}


class _AlignedBuffer(tfl.BufferT):
    """A buffer whose bytes start on a 16-byte boundary of the file, and are copied in one piece."""

    def Pack(self, builder):
        data = None
        if self.data is not None:
            builder.StartVector(1, len(self.data), ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head:builder.head + len(self.data)] = self.data
            data = builder.EndVector()
        tfl.BufferStart(builder)
        if data is not None:
            tfl.BufferAddData(builder, data)
        return tfl.BufferEnd(builder)


def nhwc_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """A rank-4 shape from NCHW to NHWC; other ranks stay."""
    shape = tuple(int(s) for s in shape)
    return (shape[0], shape[2], shape[3], shape[1]) if len(shape) == 4 else shape


class TfliteGraph:
    """Collects tensors and operators; :meth:`serialize` gives the file.

    ``tensor(value)`` maps an ONNX value to a tensor index: rank 4 becomes NHWC, other ranks keep their order.
    ``layer_tensors`` lists the constant tensors that the operators of each layer read.
    """

    def __init__(self) -> None:
        self.tensors: list[tfl.TensorT] = []
        self.buffers: list[tfl.BufferT] = [_AlignedBuffer()]
        self.operators: list[tfl.OperatorT] = []
        self.codes: dict[tuple[int, str | None], int] = {}
        self.versions: dict[int, int] = {}
        self.layer_tensors: dict[str, dict[int, int]] = {}
        self._values: dict[ir.Value, int] = {}
        self._constants: dict[tuple, int] = {}
        self._buffer_of: dict[bytes, int] = {}
        self._widened: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._size_constants: set[int] = set()
        self._layer = ""

    # tensors

    def tensor(self, value: ir.Value) -> int:
        """The tensor of a computed value, or of a constant as it is (NCHW rank 4 re-laid to NHWC)."""
        if value in self._values:
            return self._values[value]
        array = constant(value)
        if array is not None:
            return self.constant(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array)
        index = self._add_tensor(value.name, nhwc_shape(shape_of(value)), _type_of(value))
        self._values[value] = index
        return index

    def alias(self, value: ir.Value, index: int) -> None:
        """``value`` is the tensor ``index``: an operator that does nothing."""
        self._values[value] = index

    def temporary(self, shape: Sequence[int], like: int | None = None) -> int:
        """A new intermediate tensor of an NHWC shape, float32 or of the type of ``like``."""
        kind = tfl.TensorType.FLOAT32 if like is None else self.tensors[like].type
        return self._add_tensor(f"t{len(self.tensors)}", shape, kind)

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(int(s) for s in self.tensors[index].shape)

    def constant(self, array: np.ndarray) -> int:
        """A constant tensor; equal ones are shared, and equal bytes share one buffer."""
        array = np.array(array, order="C")
        data = array.tobytes()
        key = (array.dtype.str, array.shape, data)
        if key not in self._constants:
            if data not in self._buffer_of:
                self._buffer_of[data] = self._add_buffer(data)
            self._constants[key] = self._add_constant(array, self._buffer_of[data])
        return self._constants[key]

    def halves(self, array: np.ndarray) -> int:
        """A float32 tensor whose values a float16 constant holds: DEQUANTIZE, which interpreters run once."""
        stored = self.constant(array.astype(np.float16))
        if stored not in self._widened:
            # Version 3 brought float16.
            self._widened[stored] = self.op("DEQUANTIZE", [stored], self.temporary(array.shape), version=3,
                                            option_type="DequantizeOptions")
        return self._widened[stored]

    def size_constant(self, array: np.ndarray) -> int:
        """An int32 ``[H, W]`` or ``[N, H, W, C]`` that may follow the image size: a tensor and buffer of its own."""
        index = self._add_constant(array, self._add_buffer(array.tobytes()))
        self._size_constants.add(index)
        return index

    def _add_buffer(self, data: bytes) -> int:
        buffer = _AlignedBuffer()
        buffer.data = data
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def _add_constant(self, array: np.ndarray, buffer: int) -> int:
        index = self._add_tensor(f"c{len(self.tensors)}", array.shape, _TYPES[array.dtype])
        self.tensors[index].buffer = buffer
        self._sizes[index] = array.nbytes
        return index

    def _add_tensor(self, name: str, shape: Sequence[int], kind: int) -> int:
        tensor = tfl.TensorT()
        tensor.name, tensor.shape, tensor.type = name, np.array(shape, np.int32), kind
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    # operators

    def enter(self, node: ir.Node) -> None:
        """What follows belongs to the layer of ``node``."""
        self._layer = node.metadata_props.get(LAYER, "")

    def op(self, name: str, inputs: Sequence[int], output: int, options: dict | None = None, version: int = 1,
           option_type: str | None = None) -> int:
        """Append the built-in operator ``name`` (as ``CONV_2D``); returns ``output``.

        ``option_type`` is the options table where its name is not the operator's, as ``Conv2DOptions``.
        """
        code = self._code(getattr(tfl.BuiltinOperator, name), None, version)
        operator = self._operator(code, inputs, [output])
        if option_type is not None:
            operator.builtinOptionsType = _OPTION_NAMES[option_type]
            operator.builtinOptions = getattr(tfl, option_type + "T")()
            for key, value in (options or {}).items():
                if not hasattr(operator.builtinOptions, key):
                    raise AttributeError(f"{option_type} has no field {key}")
                setattr(operator.builtinOptions, key, value)
        return output

    def custom(self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: dict[str, int | float]) -> None:
        """Append a custom operator; its options are a flexbuffer map of scalars."""
        operator = self._operator(self._code(tfl.BuiltinOperator.CUSTOM, name, 1), inputs, outputs)
        operator.customOptions = np.frombuffer(bytes(flex_map(options)), np.uint8)
        operator.customOptionsFormat = tfl.CustomOptionsFormat.FLEXBUFFERS

    def _operator(self, code: int, inputs: Sequence[int], outputs: Sequence[int]) -> tfl.OperatorT:
        operator = tfl.OperatorT()
        operator.opcodeIndex = code
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        self.operators.append(operator)
        sizes = self.layer_tensors.setdefault(self._layer, {})
        sizes.update({i: self._sizes[i] for i in inputs if i in self._sizes})
        return operator

    def _code(self, builtin: int, custom: str | None, version: int) -> int:
        index = self.codes.setdefault((builtin, custom), len(self.codes))
        self.versions[index] = max(version, self.versions.get(index, 1))
        return index

    # image size

    def mark_image_sizes(self, other: TfliteGraph, size: tuple[int, int], other_size: tuple[int, int],
                         multiple: int) -> str:
        """Mark the constants that follow the image size, given the same network written for ``other_size``.

        Returns the reason why rewriting them does not make this file into the other, or "" where it does. Then each of
        them is a whole number times ``image size / multiple``, every map grows by a whole number with each step of
        ``multiple``, and nothing else differs: so it is for the other multiples too. Both sizes of the images differ.
        """
        if len(self.tensors) != len(other.tensors) or self._operator_keys() != other._operator_keys():
            return "another image size needs other operators"
        marked: set[int] = set()
        for operator, twin in zip(self.operators, other.operators, strict=True):
            name = self._name(operator)
            if _options(operator) != _options(twin):
                return f"the options of {name} depend on the image size"
            for i in (*operator.inputs, *operator.outputs):
                if i < 0:
                    continue
                tensor, counterpart = self.tensors[i], other.tensors[i]
                data, wanted = (g.buffers[t.buffer].data for g, t in ((self, tensor), (other, counterpart)))
                if data is None or wanted is None:
                    if data is not wanted or not _follows(tensor.shape, counterpart.shape, size, other_size, multiple):
                        return f"a map of {name} does not grow evenly with the image size"
                elif data != wanted or tuple(tensor.shape) != tuple(counterpart.shape):
                    if i not in self._size_constants:
                        return f"a constant of {name} depends on the image size"
                    values, others = (np.frombuffer(d, np.int32) for d in (data, wanted))
                    if not _scales(values, others, size, other_size, multiple):
                        return f"a size of {name} is no fixed part of the image size"
                    marked.add(int(i))
        for i in marked:
            self.tensors[i].name += IMAGE_SIZE
        return ""

    def _operator_keys(self) -> list:
        codes = {index: key for key, index in self.codes.items()}
        return [(codes[o.opcodeIndex], tuple(o.inputs), tuple(o.outputs)) for o in self.operators]

    def _name(self, operator: tfl.OperatorT) -> str:
        builtin, custom = next(key for key, index in self.codes.items() if index == operator.opcodeIndex)
        return custom or next(n for n, v in vars(tfl.BuiltinOperator).items() if v == builtin)

    # file

    def serialize(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> bytes:
        """The flatbuffer with these inputs and outputs."""
        subgraph = tfl.SubGraphT()
        subgraph.name = "main"
        subgraph.tensors, subgraph.operators = self.tensors, self.operators
        subgraph.inputs = np.array([self._values[v] for v in inputs], np.int32)
        subgraph.outputs = np.array([self._values[v] for v in outputs], np.int32)
        model = tfl.ModelT()
        model.version = 3
        model.description = "irstd-edge"
        model.subgraphs, model.buffers = [subgraph], self.buffers
        model.operatorCodes = [self._operator_code(key, index) for key, index in self.codes.items()]
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _operator_code(self, key: tuple[int, str | None], index: int) -> tfl.OperatorCodeT:
        code = tfl.OperatorCodeT()
        code.builtinCode, code.customCode = key
        code.deprecatedBuiltinCode = min(key[0], _BUILTIN_LIMIT)
        code.version = self.versions[index]
        return code


def _options(operator: tfl.OperatorT) -> dict:
    """Every option of an operator, comparable."""
    options = {} if operator.builtinOptions is None else vars(operator.builtinOptions)
    custom = operator.customOptions
    return {k: np.asarray(v).tolist() for k, v in options.items()} | {"": None if custom is None else bytes(custom)}


def _scales(values, others, size, other_size, multiple: int) -> bool:
    """Whether height and width in ``[H, W]`` or ``[N, H, W, C]`` are fixed parts of the image's."""
    first = len(values) // 4
    ends = [i for i in range(len(values)) if not first <= i < first + 2]
    return len(values) == len(others) and all(values[i] == others[i] for i in ends) and all(
        int(a) * new == int(b) * old and int(a) * multiple % old == 0
        for a, b, old, new in zip(values[first:], others[first:], size, other_size, strict=False))


def _follows(shape, other, size, other_size, multiple: int) -> bool:
    """Whether a map has the same size for both images, or grows by a whole number with each step of ``multiple``."""
    if tuple(shape) == tuple(other):
        return True
    if len(shape) != 4 or len(other) != 4 or shape[0] != other[0] or shape[3] != other[3]:
        return False
    return all(int(b - a) * multiple % (new - old) == 0
               for a, b, old, new in zip(shape[1:3], other[1:3], size, other_size, strict=True))


def flex_map(options: dict[str, int | float]) -> bytearray:
    """A flexbuffer map of scalars; integers stay integers, floats floats."""
    builder = flexbuffers.Builder()
    with builder.Map():
        for key, value in options.items():
            if isinstance(value, float):
                builder.Float(key, value)
            else:
                builder.Int(key, int(value))
    return builder.Finish()


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The static shape of a value; raises :class:`UnsupportedError` where inference left it open."""
    if value.shape is None or not value.shape.is_static():
        producer = value.producer()
        kind = producer.op_type if producer is not None else "input"
        raise UnsupportedError(
            f"the shape of {value.name!r} ({kind}) depends on data, and TFLite files here have fixed shapes; "
            "rewrite the layer with fixed sizes or leave tflite out of --to"
        )
    return tuple(int(s) for s in value.shape)


def _type_of(value: ir.Value) -> int:
    kind = ir.DataType.FLOAT if value.dtype is None else value.dtype
    if kind not in _IR_TYPES:
        raise UnsupportedError(f"{value.name!r} is {kind.name.lower()}; TFLite files here hold float32, int and bool")
    return _IR_TYPES[kind]

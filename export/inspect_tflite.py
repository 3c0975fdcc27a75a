"""The layers of a TFLite file."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from irstd_edge.bundle import BundleError
from irstd_edge.errors import MissingError
from irstd_edge.export.inspect import Inspection, Layer, Weights, inspect_programs, precision_name
from irstd_edge.opspec import BINARY_CONV2D, PROGRAM, BinaryConv2dSpec, OpSpecError
from irstd_edge.program import ProgramError

#: Operator -> places of weights and image among its inputs; both None: a product of computed matrices.
_MULTIPLYING = {"CONV_2D": (1, 0), "DEPTHWISE_CONV_2D": (1, 0), "TRANSPOSE_CONV": (1, 2), "FULLY_CONNECTED": (1, 0),
                "BATCH_MATMUL": (None, None), BINARY_CONV2D.tflite_name: (1, 0)}
#: Bits of the schema's types of tensors, by name.
_BITS = {"FLOAT32": 32, "FLOAT16": 16, "INT16": 16, "INT8": 8, "UINT8": 8, "INT4": 4, "INT2": 2}
_PADS = ("PAD", "PADV2", "MIRROR_PAD")


def inspect_tflite(path: Path) -> Inspection:
    """One row per operator, and those inside of Programs; at the size that the file is written for.

    Raises :class:`BundleError` for a damaged file, :class:`MissingError` where the schema's package is not installed.
    """
    graph = TfliteFile.read(path)
    weights = Weights()
    try:
        programs = [op for op in graph.operators if op.name == PROGRAM.tflite_name]
        isa, inside, plans = inspect_programs(
            [(op.outputs[0].name, op.inputs[0].data, op.inputs[1].shape[1:3]) for op in programs], weights)
        layers: list[Layer] = []
        for op in graph.operators:
            if op in programs:
                layers += inside[programs.index(op)]
            elif not _widens(op):
                layers.append(_layer(graph, op, weights))
        _, height, width, _ = graph.inputs[0].shape
    except (ProgramError, OpSpecError, ValueError, IndexError) as e:
        raise BundleError(f"{path}: cannot be read as a TFLite file ({e})") from e
    return Inspection(path.name, "tflite", path.stat().st_size, (height, width), tuple(layers), isa, plans)


class TfliteTensor:
    """``data`` is None where it is computed; ``kind``: name of the schema's type."""

    def __init__(self, name: str, shape: tuple[int, ...], kind: str, data: bytes | None):
        self.name, self.shape, self.kind, self.data = name, shape, kind, data

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``[C, H, W]`` of a ``[1, H, W, C]``, else its own."""
        n, *rest = self.shape or (0,)
        return (rest[2], *rest[:2]) if n == 1 and len(rest) == 3 else self.shape


class TfliteOperator:
    """``inputs``: None where one is left out; ``name``: of the schema, or of the custom operator, whose ``options``
    are a dictionary."""

    def __init__(self, name: str, inputs: list[TfliteTensor | None], outputs: list[TfliteTensor], options):
        self.name, self.inputs, self.outputs, self.options = name, inputs, outputs, options


class TfliteFile:
    """The operators of a file's first graph, and its inputs and outputs."""

    def __init__(self, operators: list[TfliteOperator], inputs: list[TfliteTensor], outputs: list[TfliteTensor]):
        self.operators, self.inputs, self.outputs = operators, inputs, outputs
        self.makers = {t: op for op in operators for t in op.outputs}

    @classmethod
    def read(cls, path: Path) -> TfliteFile:
        """Raises :class:`BundleError` and :class:`MissingError`."""
        try:
            from ai_edge_litert import schema_py_generated as tfl
            from flatbuffers import flexbuffers
        except ImportError as e:
            raise MissingError(f"reading {path} needs {e.name}; install it with: pip install irstd-edge[tflite]") from e

        def words(table) -> dict[int, str]:
            return {v: k for k, v in vars(table).items() if not k.startswith("_")}

        names, kinds = words(tfl.BuiltinOperator), words(tfl.TensorType)
        try:
            model = tfl.ModelT.InitFromPackedBuf(bytearray(path.read_bytes()), 0)
            graph = model.subgraphs[0]
            tensors = []
            for t in graph.tensors:
                data = model.buffers[t.buffer].data
                tensors.append(TfliteTensor(
                    t.name.decode(), () if t.shape is None else tuple(int(n) for n in t.shape), kinds[t.type],
                    None if data is None or not len(data) else np.asarray(data, np.uint8).tobytes()))
            operators = []
            for op in graph.operators:
                code, options = model.operatorCodes[op.opcodeIndex], op.builtinOptions
                if op.customOptions is not None and len(op.customOptions):
                    options = flexbuffers.Loads(bytes(op.customOptions))
                operators.append(TfliteOperator(
                    code.customCode.decode() if code.customCode else names[code.builtinCode],
                    [tensors[i] if i >= 0 else None for i in op.inputs], [tensors[i] for i in op.outputs],
                    options))
            return cls(operators, [tensors[i] for i in graph.inputs], [tensors[i] for i in graph.outputs])
        except Exception as e:  # the generated classes check nothing: a damaged file raises anything
            raise BundleError(f"{path}: cannot be read as a TFLite file ({type(e).__name__})") from e


def _widens(op: TfliteOperator) -> bool:
    """Whether an operator only makes floats of stored weights of 16 bits."""
    return op.name == "DEQUANTIZE" and op.inputs[0].kind == "FLOAT16" and op.inputs[0].data is not None


def _layer(graph: TfliteFile, op: TfliteOperator, weights: Weights) -> Layer:
    def stored(tensor: TfliteTensor) -> TfliteTensor:
        maker = graph.makers.get(tensor)
        return maker.inputs[0] if maker is not None and _widens(maker) else tensor

    held = [stored(t) for t in op.inputs if t is not None]
    result = op.outputs[0]
    size = sum(len(t.data) for t in held if t.data is not None)
    common = {"shape": result.image_shape, "reads": tuple(t.name for t in held if t.data is None),
              "writes": result.name}
    if op.name not in _MULTIPLYING:
        return Layer(result.name, op.name, size, **common)
    at, image = _MULTIPLYING[op.name]
    if at is None:
        x = op.inputs[0]
        depth = x.shape[-2 if getattr(op.options, "adjX", False) else -1]
        return Layer(result.name, op.name, size, precision_name(_bits(x), _bits(x)), macs=result.elements * depth,
                     inputs=sum(t.elements for t in held), weight_bits=_bits(x), activation_bits=_bits(x), **common)
    weight, x = stored(op.inputs[at]), op.inputs[image]
    number, macs, bits = weight.elements, _macs(op.name, weight, x, result), (_bits(weight), _bits(x))
    if op.name == BINARY_CONV2D.tflite_name:
        spec = BinaryConv2dSpec.from_attributes(op.options)
        number, bits = spec.out_channels * spec.macs_per_output, (1, 1)
        macs = result.elements * spec.macs_per_output
    # Margins that another operator adds are no inputs of the layer.
    while (maker := graph.makers.get(x)) is not None and maker.name in _PADS:
        x = maker.inputs[0]
    return Layer(result.name, op.name, size, precision_name(*bits), macs=macs,
                 weights=weights.count(weight.data or b"", number), inputs=x.elements, weight_bits=bits[0],
                 activation_bits=bits[1], **common)


def _bits(tensor: TfliteTensor) -> int:
    return _BITS.get(tensor.kind, 32)


def _macs(name: str, weight: TfliteTensor, x: TfliteTensor, result: TfliteTensor) -> int:
    if name == "DEPTHWISE_CONV_2D":  # [1, KH, KW, OC]
        return result.elements * prod(weight.shape[1:3])
    if name == "TRANSPOSE_CONV":  # [OC, KH, KW, IC]: every pixel of the input meets all of one channel's
        return x.elements * prod(weight.shape[:3])
    return result.elements * prod(weight.shape[1:])  # [OC, KH, KW, IC / groups], [O, I]

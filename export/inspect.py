"""What a file of a bundle holds, layer by layer: precision, kernel, bytes, operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from irstd_edge import program
from irstd_edge.bundle import Bundle, BundleError
from irstd_edge.errors import MissingError, UnsupportedError
from irstd_edge.opspec import BINARY_CONV2D, PROGRAM, QUANT_CONV2D
from irstd_edge.program_sizes import node_macs

BINARY, FLOAT, HALF = "W1A1", "float32", "float16"
_KINDS = {".irstd": "native", ".onnx": "onnx", ".tflite": "tflite"}


@dataclass(frozen=True)
class Layer:
    """One operator of a file. ``precision``: "" where it has no weights; None elsewhere: that file does not tell.

    ``bytes``: of its constants; ``output_bytes``: of the memory of its result; ``macs``: at the inspected size.
    """

    name: str
    op: str
    precision: str
    bytes: int
    kernel: str | None = None
    output_bytes: int | None = None
    macs: int | None = None


@dataclass(frozen=True)
class Inspection:
    """One file; ``arena_bytes`` is the memory between layers, and its lower bound what is alive at one time."""

    file: str
    kind: str
    file_bytes: int
    input: tuple[int, int] | None
    layers: tuple[Layer, ...]
    isa: str | None = None
    arena_bytes: int | None = None
    arena_lower_bound_bytes: int | None = None

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def inspect_path(path: Path, size: tuple[int, int] | None = None) -> list[Inspection]:
    """The artefacts of a bundle folder, or one ``.irstd``, ``.onnx`` or ``.tflite`` file.

    Args:
        path: folder or file.
        size: (H, W) at which memory and operations are counted; by default the bundle's, or 256 x 256. A TFLite file,
            and what a bundle's manifest tells, stays at its own size.

    Raises :class:`~irstd_edge.bundle.BundleError`, :class:`~irstd_edge.errors.UnsupportedError` (size or kind) and
    :class:`~irstd_edge.errors.MissingError` (the engine for ``.irstd``, the schema for ``.tflite``).
    """
    path = Path(path)
    if path.is_dir():
        return [_artefact(bundle, kind, size) for bundle in [Bundle.open(path)] for kind in bundle.kinds]
    kind = _KINDS.get(path.suffix)
    if kind is None:
        raise UnsupportedError(f"{path}: no file that can be inspected; known: {', '.join(_KINDS)}, and bundle folders")
    if not path.is_file():
        raise BundleError(f"{path}: missing; write one with: irstd-edge export NETWORK --out DIR")
    size = (256, 256) if size is None else size
    return [{"native": _native, "onnx": _onnx, "tflite": _tflite}[kind](path, size)]


def _artefact(bundle: Bundle, kind: str, size: tuple[int, int] | None) -> Inspection:
    """From the file where our engine tells more than the manifest, else from the manifest."""
    entry, path = bundle.artefact(kind)
    reference = tuple(bundle.manifest.reference_input)
    if kind == "native":
        return _native(path, size or reference)
    layers = tuple(Layer(x.name, x.operator, x.realised, x.bytes, macs=x.macs) for x in entry.layers)
    return Inspection(path.name, kind, entry.bytes, reference, layers)


def _native(path: Path, size: tuple[int, int]) -> Inspection:
    from irstd_edge.runtimes.native import Engine, EngineError

    try:
        nodes = program.read(path.read_bytes()).nodes
    except program.ProgramError as e:
        raise BundleError(f"{path}: {e}; export again") from e
    try:
        found = Engine(path, size).description
    except EngineError as e:
        raise UnsupportedError(str(e)) from e
    layers = tuple(
        Layer(node.name, node.operator, _program_precision(node),
              sum(a.nbytes for a in node.constants.values()), told["kernel"], told["output_bytes"], told["macs"])
        for node, told in zip(nodes, found["layers"], strict=True))
    return Inspection(path.name, "native", found["file_bytes"], size, layers, found["isa"], found["arena_bytes"],
                      found["arena_lower_bound_bytes"])


def _precision(operator: str, attributes: Mapping = MappingProxyType({})) -> str:
    """Of an operator of any of our files, by its name and attributes there."""
    if operator.removeprefix("irstd.") == QUANT_CONV2D.name:
        return f"W{attributes['weight_bits']}A{attributes['activation_bits']}"
    if operator.removeprefix("irstd.") == BINARY_CONV2D.name:
        return BINARY
    weights = {"Conv", "Conv2d", "ConvTranspose", "ConvTranspose2d", "Gemm", "MatMul", "CONV_2D", "DEPTHWISE_CONV_2D",
               "TRANSPOSE_CONV", "FULLY_CONNECTED"}
    return FLOAT if operator in weights else ""


def _program_precision(node: program.Node) -> str:
    weight = node.constants.get("weight")
    return HALF if weight is not None and weight.dtype == np.float16 else _precision(node.operator, node.attributes)


def _inside(data: bytes, size: tuple[int, int] | None) -> list[Layer]:
    """The layers of a Program, whose images are of ``size`` where that is known."""
    found = program.read(data)
    macs = [None] * len(found.nodes) if size is None else node_macs(found, *size)
    return [Layer(node.name, f"{PROGRAM.tflite_name}/{node.operator}", _program_precision(node),
                  sum(a.nbytes for a in node.constants.values()), macs=count)
            for node, count in zip(found.nodes, macs, strict=True)]


def _onnx(path: Path, size: tuple[int, int]) -> Inspection:
    import onnx
    import onnx_ir as ir

    from irstd_edge.export.layers import node_bytes
    from irstd_edge.export.passes.graph import STORED, attributes, constant, is_program
    from irstd_edge.export.passes.halve_weights import widen
    from irstd_edge.export.passes.specialize import Specialize
    from irstd_edge.export.schema import register_schemas

    register_schemas()
    try:
        model = ir.load(path)
    except Exception as e:  # protobuf's and onnx-ir's errors have no common class
        raise BundleError(f"{path}: cannot be read as an ONNX file ({type(e).__name__})") from e
    source = next(iter(model.graph.inputs), None)
    if source is None or source.shape is None or len(source.shape) != 4:
        raise UnsupportedError(f"{path}: its input is no [1, C, H, W] image")
    source.shape = ir.Shape((1, *tuple(source.shape)[1:]))
    widen(model)
    try:
        Specialize(size)(model)
        # The sizes behind a Program follow from its bytes, which the pass does not read.
        model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True))
    except ValueError as e:
        raise UnsupportedError(f"{path}: {e}") from e
    layers: list[Layer] = []
    for node in model.graph:
        if is_program(node):
            image = node.inputs[1].shape
            known = image is not None and image.is_static()
            layers += _inside(constant(node.inputs[0]).tobytes(), tuple(image)[2:] if known else None)
            continue
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        precision = node.metadata_props.get(STORED) or _precision(operator, attributes(node))
        layers.append(Layer(node.name, operator, precision, node_bytes(node), macs=_macs(node)))
    return Inspection(path.name, "onnx", path.stat().st_size, size, tuple(layers))


def _macs(node) -> int | None:
    """0 without weights, None where a size depends on data."""
    from irstd_edge.export.layers import count_macs
    from irstd_edge.export.passes.simplify import has_weights

    if not has_weights(node):
        return 0
    static = all(v.shape is not None and v.shape.is_static() for v in (node.inputs[0], node.outputs[0]))
    return count_macs(node) if static else None


def _tflite(path: Path, size: tuple[int, int]) -> Inspection:
    try:
        from ai_edge_litert import schema_py_generated as tfl
    except ImportError as e:
        raise MissingError(f"reading {path} needs {e.name}; install it with: pip install irstd-edge[tflite]") from e
    names = {v: k for k, v in vars(tfl.BuiltinOperator).items() if not k.startswith("_")}
    try:
        model = tfl.ModelT.InitFromPackedBuf(bytearray(path.read_bytes()), 0)
        graph, layers, halves = model.subgraphs[0], [], {}
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            name = code.customCode.decode() if code.customCode else names[code.builtinCode]
            source = graph.tensors[operator.inputs[0]]
            if name == "DEQUANTIZE" and source.type == tfl.TensorType.FLOAT16:
                halves[int(operator.outputs[0])] = source  # the weights of the layer behind it
                continue
            held = [halves.get(int(i), graph.tensors[i]) for i in operator.inputs if i >= 0]
            data = [model.buffers[tensor.buffer].data for tensor in held]
            output = graph.tensors[operator.outputs[0]]
            if name == PROGRAM.tflite_name:
                image = graph.tensors[operator.inputs[1]].shape
                layers += _inside(bytes(data[0]), (int(image[1]), int(image[2])))
                continue
            precision = HALF if any(t.type == tfl.TensorType.FLOAT16 for t in held) else _precision(name)
            layers.append(Layer(output.name.decode(), name, precision, sum(len(d) for d in data if d is not None)))
        shape = [int(s) for s in graph.tensors[graph.inputs[0]].shape]
    except Exception as e:  # the generated classes check nothing: a damaged file raises anything
        raise BundleError(f"{path}: cannot be read as a TFLite file ({type(e).__name__})") from e
    return Inspection(path.name, "tflite", path.stat().st_size, (shape[1], shape[2]), tuple(layers))

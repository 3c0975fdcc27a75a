"""LiteRT with XNNPACK: our float .tflite file, or the same quantised to int8 by ai-edge-quantizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

_SIGNATURE = "serving_default"


def preload(artefact: str) -> None:
    import ai_edge_litert.interpreter  # noqa: F401


def convert(work: Path, out: Path, precision: str) -> None:
    source = work / "bundle" / "model.tflite"
    model = fused(source.read_bytes()) if source.exists() else convolution(work)
    if precision == "int8":
        from ai_edge_quantizer import quantizer, recipe

        quantiser = quantizer.Quantizer(signed(model), recipe.static_wi8_ai8())
        images = np.load(work / "inputs.npz")["calibration"].transpose(0, 2, 3, 1)
        samples = [{"input": np.ascontiguousarray(image[None])} for image in images]
        model = bytes(quantiser.quantize(quantiser.calibrate({_SIGNATURE: samples})).quantized_model)
    (out / "model.tflite").write_bytes(model)


def convolution(work: Path) -> bytes:
    """A .tflite file of one 3x3 convolution with SAME padding, NHWC."""
    from ai_edge_litert import schema_py_generated as schema

    weights = np.load(work / "weights.npz")
    x = np.load(work / "inputs.npz")["check"]
    shape = [1, *x.shape[2:], x.shape[1]]
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    graph.tensors, graph.inputs, graph.outputs = [], [0], [3]
    constants = {"weight": weights["weight"].transpose(0, 2, 3, 1), "bias": weights["bias"]}
    for name, value in {"input": None, **constants, "output": None}.items():
        tensor = schema.TensorT()
        tensor.name, tensor.type = name.encode(), schema.TensorType.FLOAT32
        tensor.shape = np.array(shape if value is None else value.shape, np.int32)
        tensor.buffer = 0
        if value is not None:
            tensor.buffer = len(model.buffers)
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
            model.buffers.append(buffer)
        graph.tensors.append(tensor)
    code, operator, options = schema.OperatorCodeT(), schema.OperatorT(), schema.Conv2DOptionsT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CONV_2D
    code.version = 1
    options.padding = schema.Padding.SAME
    options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    operator.inputs, operator.outputs = [0, 1, 2], [3]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.Conv2DOptions, options
    model.operatorCodes, graph.operators = [code], [operator]
    return _packed(model)


def fused(model: bytes) -> bytes:
    """The file with every ReLU inside the convolution or sum before it, as TensorFlow's converter writes it.

    XNNPACK does so by itself in float32 and not in int8.
    """
    from ai_edge_litert import schema_py_generated as schema

    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model))
    graph = tree.subgraphs[0]
    readers = Counter(int(i) for operator in graph.operators for i in operator.inputs)
    makers = {int(operator.outputs[0]): operator for operator in graph.operators}
    kept = []
    for operator in graph.operators:
        maker = makers.get(int(operator.inputs[0]))
        relu = tree.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.RELU
        if relu and readers[int(operator.inputs[0])] == 1 and hasattr(maker.builtinOptions, "fusedActivationFunction"):
            maker.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.RELU
            maker.outputs = operator.outputs
        else:
            kept.append(operator)
    graph.operators = kept
    _drop_unused_tensors(graph)
    return _packed(tree)


def _drop_unused_tensors(graph) -> None:
    """The quantiser cannot read a tensor that no operator writes."""
    holders = [(graph, "inputs"), (graph, "outputs")]
    holders += [(operator, side) for operator in graph.operators for side in ("inputs", "outputs")]
    used = sorted({int(i) for holder, side in holders for i in getattr(holder, side) if i >= 0})
    number = {old: new for new, old in enumerate(used)} | {-1: -1}
    for holder, side in holders:
        setattr(holder, side, [number[int(i)] for i in getattr(holder, side)])
    graph.tensors = [graph.tensors[i] for i in used]


def signed(model: bytes) -> bytes:
    """The file with a signature of ``input`` and ``output``, which the quantiser asks for."""
    from ai_edge_litert import schema_py_generated as schema

    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model))
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = _SIGNATURE.encode(), 0
    for name, tensors in (("input", tree.subgraphs[0].inputs), ("output", tree.subgraphs[0].outputs)):
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), int(tensors[0])
        setattr(signature, f"{name}s", [entry])
    tree.signatureDefs = [signature]
    return _packed(tree)


def _packed(tree) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _interpreter(model: bytes, threads: int = 1):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_content=model, num_threads=threads)


class Session:
    """One .tflite file; int8 inputs and outputs are converted outside the timed call."""

    isa = None

    def __init__(self, path: Path, threads: int):
        from importlib.metadata import version

        self.runtime = f"ai-edge-litert {version('ai-edge-litert')}"
        self.interpreter = _interpreter(path.read_bytes(), threads)
        self.interpreter.allocate_tensors()
        self.input = self.interpreter.get_input_details()[0]
        self.output = self.interpreter.get_output_details()[0]

    def run(self, x: np.ndarray) -> np.ndarray:
        self.prepare(x)()
        y = self.interpreter.get_tensor(self.output["index"])
        if self.output["dtype"] is not np.float32:
            scale, zero = self.output["quantization"]
            y = (y.astype(np.float32) - zero) * np.float32(scale)
        return y.transpose(0, 3, 1, 2)

    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        if self.input["dtype"] is not np.float32:
            scale, zero = self.input["quantization"]
            x = np.clip(np.rint(x / scale) + zero, -128, 127).astype(self.input["dtype"])
        self.interpreter.set_tensor(self.input["index"], x)
        return self.interpreter.invoke


def open_session(bundle: str, artefact: str, threads: int) -> Session:
    return Session(Path(bundle) / "model.tflite", threads)

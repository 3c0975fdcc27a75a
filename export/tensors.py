"""The tensors inside of a file, computed on one image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from irstd_edge import program
from irstd_edge.opspec import DOMAIN, PROGRAM
from irstd_edge.program import Node, Program, ProgramError

Tensors = dict[str, np.ndarray]


def inner_tensors(path: Path, kind: str, x: np.ndarray) -> Tensors:
    """Every float tensor that an operator of the file writes, by name, ``[N, C, H, W]`` where it has four axes.

    A copy of the file in memory is run that gives them all, in its own runtime: ``.irstd`` in our engine, TFLite
    without XNNPACK, which keeps its own tensors to itself; what is inside of a Program in our engine, on the inputs
    that the Program has there. A runtime that must give all tensors merges fewer operators, so that floats may differ
    in the last bits from those of an ordinary run.

    Args:
        path: a file that :func:`irstd_edge.export.inspect.kind_of` knows.
        kind: native, onnx or tflite.
        x: float32 ``[1, C, H, W]``.

    Raises what opening the file raises.
    """
    return {"native": _native, "onnx": _onnx, "tflite": _tflite}[kind](path, x)


def exposed(found: Program) -> tuple[Program, list[str]]:
    """The same program with every tensor that a node writes as an output, and their names; int16 ones as floats."""
    tensors, nodes, outputs = list(found.tensors), list(found.nodes), []
    for node in found.nodes:
        number = node.output
        if found.tensors[number].fraction_bits >= 0:
            tensors.append(replace(found.tensors[number], fraction_bits=-1))
            nodes.append(Node("Activation", f"{node.name}/float", (number,), len(tensors) - 1))
            number = len(tensors) - 1
        outputs.append(number)
    return (Program(tuple(tensors), tuple(nodes), found.inputs, tuple(outputs)),
            [found.tensors[node.output].name for node in found.nodes])


def run_program(data: bytes, images: list[np.ndarray]) -> Tensors:
    """The tensors of a Program on its inputs, float32 ``[1, C, H, W]`` each."""
    from irstd_edge.runtimes.native import Engine

    try:
        opened, names = exposed(program.read(data))
        source = program.write(opened)
    except ProgramError:  # too many tensors for one file
        return {}
    engine = Engine(source, images[0].shape[2:])
    results = [np.empty(shape, np.float32) for shape in engine.output_shapes]
    engine.bind([np.ascontiguousarray(image[0], np.float32) for image in images], results)()
    return {name: result[None] for name, result in zip(names, results, strict=True)}


def _native(path: Path, x: np.ndarray) -> Tensors:
    return run_program(path.read_bytes(), [x])


def _onnx(path: Path, x: np.ndarray) -> Tensors:
    import onnx

    from irstd_edge.runtimes.ort import OrtSession

    model = onnx.load(path)
    known = {v.name for v in model.graph.output}
    written = [name for node in model.graph.node for name in node.output if name]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in written if name not in known)
    values = OrtSession("onnx", path, 1, custom_operators=True, model=model.SerializeToString()).run_tensors(x)
    values[model.graph.input[0].name] = x
    constants = {t.name: t for t in model.graph.initializer}
    found = {name: values[name] for name in written}
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type == PROGRAM.name:
            data = onnx.numpy_helper.to_array(constants[node.input[0]]).tobytes()
            found |= run_program(data, [values[name] for name in node.input[1:]])
    return {name: value for name, value in found.items() if value.dtype == np.float32}


def _tflite(path: Path, x: np.ndarray) -> Tensors:
    from irstd_edge.export.inspect_tflite import TfliteFile
    from irstd_edge.runtimes.tflite import TfliteSession

    file = TfliteFile.read(path)
    values = {name: value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
              for name, value in TfliteSession("tflite", path, 1, resizable=True, keep=True).run_tensors(x).items()}
    found: Tensors = {}
    for op in file.operators:
        if op.name == PROGRAM.tflite_name:
            found |= run_program(op.inputs[0].data, [values[t.name] for t in op.inputs[1:]])
        found |= {t.name: values[t.name] for t in op.outputs if t.kind == "FLOAT32"}
    return found

"""The layers of an ONNX file."""

from __future__ import annotations

from math import prod
from pathlib import Path

import onnx
import onnx_ir as ir

from irstd_edge.bundle import BundleError
from irstd_edge.complexity import FLOAT_BITS
from irstd_edge.errors import UnsupportedError
from irstd_edge.export.inspect import DEFAULT_SIZE, Inspection, Layer, Weights, inspect_programs, precision_name
from irstd_edge.export.layers import count_macs
from irstd_edge.export.passes.graph import (
    constant,
    is_binary,
    is_compressed,
    is_program,
    is_quant,
    quant_spec_of,
    spec_of,
)
from irstd_edge.export.passes.simplify import has_weights
from irstd_edge.export.passes.specialize import Specialize
from irstd_edge.export.schema import register_schemas


def load_onnx(path: Path) -> ir.Model:
    """A model of one ``[N, C, H, W]`` image. Raises :class:`BundleError` and :class:`UnsupportedError`."""
    register_schemas()
    try:
        model = ir.load(path)
    except Exception as e:  # protobuf's and onnx-ir's errors have no common class
        raise BundleError(f"{path}: cannot be read as an ONNX file ({type(e).__name__})") from e
    source = next(iter(model.graph.inputs), None)
    if source is None or source.shape is None or len(source.shape) != 4:
        raise UnsupportedError(f"{path}: its input is no [1, C, H, W] image")
    return model


def fixed_size(model: ir.Model) -> tuple[int, int] | None:
    """(H, W) of the image that a model is written for, None where it serves several."""
    sides = tuple(model.graph.inputs[0].shape)[2:]
    return sides if all(isinstance(side, int) for side in sides) else None


def inspect_onnx(path: Path, size: tuple[int, int] | None = None) -> Inspection:
    """One row per node, and those inside of Programs; at ``size``, by default the file's own or 256 x 256.

    Raises :class:`BundleError` for a damaged file, :class:`UnsupportedError` where it does not fit the size.
    """
    model = load_onnx(path)
    size = size or fixed_size(model) or DEFAULT_SIZE
    stored = {node.outputs[0].name: node.inputs[0] for node in model.graph if _widens(node)}
    source = model.graph.inputs[0]
    source.shape = ir.Shape((1, *tuple(source.shape)[1:]))
    try:
        Specialize(size)(model)
        # The sizes behind a Program follow from its bytes, which the pass does not read.
        model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True))
    except ValueError as e:
        raise UnsupportedError(f"{path}: {e}") from e
    weights = Weights()
    programs = [node for node in model.graph if is_program(node)]
    isa, inside, plans = inspect_programs(
        [(node.name, constant(node.inputs[0]).tobytes(), _side(node.inputs[1])) for node in programs], weights)
    layers: list[Layer] = []
    for node in model.graph:
        if is_program(node):
            layers += inside[programs.index(node)]
        elif not (_widens(node) or node.outputs[0].name in stored):
            layers.append(_layer(node, weights, stored))
    return Inspection(path.name, "onnx", path.stat().st_size, size, tuple(layers), isa, plans)


def _widens(node: ir.Node) -> bool:
    """Whether a node only makes floats of stored weights of 16 bits."""
    return (node.op_type == "Cast" and node.domain == "" and constant(node.inputs[0]) is not None
            and node.inputs[0].dtype == ir.DataType.FLOAT16)


def _layer(node: ir.Node, weights: Weights, stored: dict[str, ir.Value]) -> Layer:
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    held = {v.name: stored.get(v.name, v) for v in node.inputs if v is not None}
    constants = {v.name: v.const_value.nbytes for v in held.values() if v.const_value is not None}
    shape = _static(node.outputs[0])
    common = {"shape": shape[1:] if shape is not None and shape[:1] == (1,) else shape,
              "reads": tuple(v.name for v in node.inputs if v is not None and v.const_value is None),
              "writes": node.outputs[0].name}
    images = node.inputs[:1]
    if has_weights(node):
        bits, weight = _bits(node, stored)
        data = constant(weight)
        number = weights.count(data.tobytes(), _number(node, data))
        images = [v for v in node.inputs[:2] if v is not None and not _is_constant(v)][:1]
    elif node.op_type == "MatMul" and node.domain == "":
        bits, number, images = (FLOAT_BITS, FLOAT_BITS), 0, node.inputs
    else:
        return Layer(node.name, operator, sum(constants.values()), **common)
    shapes = [_static(v) for v in images]
    known = None not in (*shapes, shape)
    macs = None
    if known:
        macs = count_macs(node) if has_weights(node) else prod(shape) * shapes[0][-1]
    return Layer(node.name, operator, sum(constants.values()), precision_name(*bits), macs=macs, weights=number,
                 inputs=sum(map(prod, shapes)) if known else 0, weight_bits=bits[0], activation_bits=bits[1], **common)


def _bits(node: ir.Node, stored: dict[str, ir.Value]) -> tuple[tuple[int, int], ir.Value]:
    """Bits of weight and activation as the file stores them, and the constant that holds the weights."""
    if is_binary(node):
        return (1, 1), node.inputs[1]
    if is_quant(node):
        spec = quant_spec_of(node)
        return (spec.weight_bits, spec.activation_bits), node.inputs[1]
    weight = next(v for v in node.inputs[1::-1] if v is not None and _is_constant(v))
    image = next((v for v in node.inputs[:2] if v is not None and not _is_constant(v)), None)
    if (maker := weight.producer()) is not None and constant(weight) is None:
        weight = maker.inputs[0]
    weight = stored.get(weight.name, weight)
    maker = None if image is None else image.producer()
    source = maker.inputs[0] if maker is not None and maker.op_type == "DequantizeLinear" else image
    known = FLOAT_BITS if source is None or source.dtype is None else source.dtype.bitwidth
    return (weight.dtype.bitwidth, known), weight


def _is_constant(value: ir.Value) -> bool:
    """Whether a value is a constant, or made of one by a DequantizeLinear."""
    maker = value.producer()
    return constant(value) is not None or (
        maker is not None and maker.op_type == "DequantizeLinear" and constant(maker.inputs[0]) is not None)


def _number(node: ir.Node, data) -> int:
    if not is_compressed(node):
        return data.size
    spec = quant_spec_of(node) if is_quant(node) else spec_of(node)
    return spec.out_channels * spec.macs_per_output


def _static(value: ir.Value) -> tuple[int, ...] | None:
    return tuple(int(s) for s in value.shape) if value.shape is not None and value.shape.is_static() else None


def _side(value: ir.Value) -> tuple[int, int] | None:
    shape = _static(value)
    return None if shape is None else shape[2:]

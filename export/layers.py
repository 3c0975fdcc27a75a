"""The precision table of an artefact: one row per layer, requested and realised."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from irstd_edge.bundle import LayerPrecision
from irstd_edge.export.passes.graph import (
    LAYER,
    REASON,
    REQUESTED,
    STORED,
    is_compressed,
    is_quant,
    precision_of,
    quant_spec_of,
    spec_of,
    weight_index,
    weights_of,
)
from irstd_edge.export.passes.simplify import has_weights
from irstd_edge.opspec import DOMAIN

#: What the standard operators make of a quantised layer.
INT8 = "int8"


def describe_layers(
    model: ir.Model, static: ir.Model, reason: str = "", layer_bytes: dict[str, int] | None = None
) -> tuple[LayerPrecision, ...]:
    """One row per convolution or matrix product of ``model``, named by its PyTorch module, in the order of the graph.

    Args:
        model: what the artefact holds; a layer used several times has one row.
        static: the compressed model at the reference input, from which operations are counted.
        reason: why a layer's realised precision is not the requested one.
        layer_bytes: constants by layer where they are not those of ``model``'s own nodes.
    """
    macs: dict[str, int | None] = {}
    for node in static.graph:
        if has_weights(node):
            so_far, more = macs.get(_name(node), 0), count_macs(node)
            macs[_name(node)] = None if None in (so_far, more) else so_far + more
    sizes = constant_bytes(model) if layer_bytes is None else layer_bytes
    rows: dict[str, LayerPrecision] = {}
    for node in model.graph:
        name = _name(node)
        if not has_weights(node) or name in rows:
            continue
        realised = INT8 if weights_of(node).dtype == np.int8 else precision_of(node)
        requested = node.metadata_props.get(REQUESTED, realised)
        operator = f"{node.domain}.{node.op_type}" if node.domain == DOMAIN else node.op_type
        rows[name] = LayerPrecision(name, operator, requested, realised, sizes.get(name, 0), macs.get(name, 0),
                                    node.metadata_props.get(REASON, reason) if requested != realised else "")
    return tuple(rows.values())


def constant_bytes(model: ir.Model) -> dict[str, int]:
    """Bytes of the constants that each layer's nodes read; one that a layer reads twice counts once."""
    sizes: dict[str, dict[str, int]] = {}
    for node in model.graph:
        sizes.setdefault(_name(node), {}).update(_constants(node))
    return {name: sum(values.values()) for name, values in sizes.items()}


def _constants(node: ir.Node) -> dict[str, int]:
    """Bytes by name, as they are stored."""
    sizes = {v.name: v.const_value.nbytes for v in node.inputs if v is not None and v.const_value is not None}
    if STORED in node.metadata_props:
        sizes[node.inputs[weight_index(node)].name] //= 2
    return sizes


def count_macs(node: ir.Node) -> int | None:
    """Multiply-accumulates of a node; a binary one counts one each, padding taps included.

    None where its shapes are unknown: those behind an operator that shape inference does not know.
    """
    if any(v.shape is None or v.shape.is_dynamic() for v in (node.inputs[0], node.outputs[0])):
        return None
    if is_compressed(node):
        spec = quant_spec_of(node) if is_quant(node) else spec_of(node)
        return prod(node.outputs[0].shape.numpy()) * spec.macs_per_output
    weight = weights_of(node)
    if node.op_type in ("Conv", "ConvInteger"):
        return prod(node.outputs[0].shape.numpy()) * prod(weight.shape[1:])
    if node.op_type == "ConvTranspose":
        return prod(node.inputs[0].shape.numpy()) * prod(weight.shape[1:])
    return prod(node.outputs[0].shape.numpy()[:-1]) * prod(weight.shape)


def _name(node: ir.Node) -> str:
    return node.metadata_props.get(LAYER) or node.name

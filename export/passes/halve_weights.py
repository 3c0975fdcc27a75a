"""Round the weights of float layers to 16 bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from irstd_edge.export.passes.graph import (
    LAYER,
    REASON,
    REQUESTED,
    STORED,
    constant,
    initializer,
    is_compressed,
    weight_index,
)
from irstd_edge.export.passes.simplify import has_weights

HALF = "float16"
#: Largest loss of a layer that is rounded, as a share of its weights (root mean squares). Normal halves lose 2^-12.
LARGEST_LOSS = 2.0**-10


class HalveWeights(ir.passes.InPlacePass):
    """The weights of float convolutions and matrix products become numbers that float16 holds, still as float32.

    Rounding here and not in the targets gives all of them the same network; they store what :data:`STORED` marks in
    two bytes a weight, and compute in float32. Biases stay. Layers stay float32, with the :data:`REASON`, that
    float16 cannot hold (a weight beyond 65504, or too small ones), and those that a compressed layer depends on: its
    inputs, and so its signs and integers, are those of PyTorch to the last bit.

    Requires: nothing folds into weights any more. Ensures: every float layer is marked :data:`REQUESTED` float16.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = _needed_by_compressed(model.graph)
        rounded: dict[ir.Value, ir.Value] = {}
        for node in model.graph:
            if not has_weights(node) or is_compressed(node):
                continue
            node.metadata_props[REQUESTED] = HALF
            index = weight_index(node)
            value = node.inputs[index]
            weight = constant(value)
            reason = "a compressed layer depends on it" if node in before else misfit(weight)
            if reason:
                node.metadata_props[REASON] = reason
                continue
            node.metadata_props[STORED] = HALF
            if value not in rounded:
                halves = weight.astype(np.float16).astype(np.float32)
                rounded[value] = initializer(model.graph, f"{value.name}.{HALF}", halves)
            node.replace_input_with(index, rounded[value])
        return ir.passes.PassResult(model, bool(rounded))


def store(model: ir.Model) -> None:
    """Put a Cast from float16 before every weight that is marked :data:`STORED` so, in place; a shared one has one."""
    graph, widened = model.graph, {}
    for node in list(graph):
        if STORED not in node.metadata_props:
            continue
        index = weight_index(node)
        value = node.inputs[index]
        if value not in widened:
            halves = initializer(graph, f"{value.name}.stored", constant(value).astype(np.float16))
            cast = ir.node("Cast", [halves], {"to": int(ir.DataType.FLOAT)}, name=f"{node.name}/Cast")
            cast.metadata_props.update({k: v for k, v in node.metadata_props.items() if k == LAYER})
            graph.insert_before(node, cast)
            widened[value] = cast.outputs[0]
            widened[value].name = f"{value.name}.widened"
        node.replace_input_with(index, widened[value])
    for value in widened:
        if not value.uses():
            del graph.initializers[value.name]


def misfit(weight: np.ndarray) -> str:
    """Why float16 cannot hold float32 weights, or ""."""
    largest = float(np.max(np.abs(weight), initial=0))
    if not largest <= float(np.finfo(np.float16).max):
        return f"a weight of {largest:.3g} is beyond float16"
    exact = weight.astype(np.float64)
    lost = float(np.linalg.norm(weight.astype(np.float16) - exact)) / (float(np.linalg.norm(exact)) or 1.0)
    return f"its weights, up to {largest:.3g}, are too small for float16" if lost > LARGEST_LOSS else ""


def _needed_by_compressed(graph: ir.Graph) -> set[ir.Node]:
    found: set[ir.Node] = set()
    for node in reversed(graph):
        if is_compressed(node) or node in found:
            found.update(p for v in node.inputs if v is not None and (p := v.producer()) is not None)
    return found

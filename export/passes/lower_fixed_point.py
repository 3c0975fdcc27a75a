"""Lower ``irstd::FixedPoint`` to standard operators, bit for bit; and what this and other lowerings share."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from irstd_edge.export.passes.graph import (
    LAYER,
    constant,
    fixed_point_of,
    initializer,
    is_binary,
    is_fixed_point,
    spec_of,
)
from irstd_edge.opspec import DOMAIN

#: Operators that make no NaN of numbers on a grid and constants.
_KEEP_FINITE = ("Add", "AveragePool", "Concat", "Conv", "Identity", "MaxPool", "Relu", "Resize", "Slice", "Split",
                "Sub")


class LowerFixedPoint(ir.passes.InPlacePass):
    """Each FixedPoint node becomes Mul, Add 1/2, Floor, Clip, Mul; every step is exact or beyond saturation.

    A Clip lets a NaN pass, so one that may come (behind the network's input) is replaced by the lowest value first.
    Requires: topological order. Ensures: no FixedPoint node is left, and no ``irstd`` import that nothing needs.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        finite: set[ir.Value] = set()
        modified = False
        for node in list(model.graph):
            if is_fixed_point(node):
                spec, step, x = fixed_point_of(node), Lowering(node), node.inputs[0]
                q = step.to_integer(x, spec.fraction_bits, spec.bits, guard=x not in finite)
                finite.add(step.replace(step.from_integer(q, spec.fraction_bits)))
                modified = True
            elif _is_finite(node, finite):
                finite.update(node.outputs)
        if not any(node.domain == DOMAIN for node in model.graph):
            model.opset_imports.pop(DOMAIN, None)
        return ir.passes.PassResult(model, modified)


def _is_finite(node: ir.Node, finite: set[ir.Value]) -> bool:
    """Whether a node gives no NaN where the values in ``finite`` hold none."""
    if is_binary(node):
        return spec_of(node).fraction_bits >= 0
    return node.domain == "" and node.op_type in _KEEP_FINITE and all(
        v is None or v in finite or constant(v) is not None for v in node.inputs)


class Lowering:
    """The replacement of one node; :meth:`emit` inserts before it and returns the value.

    Integers are held as float32, as in :mod:`irstd_edge.nn.functional`.
    """

    metadata: ClassVar[dict[str, str]] = {}

    def __init__(self, node: ir.Node):
        self.node, self.graph = node, node.graph
        self.layer = node.metadata_props.get(LAYER) or node.name or node.op_type

    def emit(self, op_type: str, inputs, shape=None, **attrs) -> ir.Value:
        """A node of the default domain; ``shape`` is that of the whole result where it is not given."""
        node = ir.node(op_type, inputs=inputs, attributes=attrs or None)
        node.metadata_props.update({LAYER: self.layer, **self.metadata})
        value = node.outputs[0]
        value.type = ir.TensorType(ir.DataType.BOOL if op_type == "GreaterOrEqual" else ir.DataType.FLOAT)
        value.shape = shape if shape is not None else self.node.outputs[0].shape
        self.graph.insert_before(self.node, node)
        return value

    def const(self, label: str, array) -> ir.Value:
        return initializer(self.graph, f"{self.layer}.{label}", np.asarray(array))

    def scalar(self, label: str, value: float) -> ir.Value:
        return self.const(label, np.float32(value))

    def typed(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        value.type = ir.TensorType(kind)
        return value

    def replace(self, value: ir.Value) -> ir.Value:
        """``value`` takes the node's place; the node goes."""
        old = self.node.outputs[0]
        name = old.name
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        self.graph.remove(self.node, safe=True)
        value.name = name
        return value

    def round_half_up(self, v: ir.Value) -> ir.Value:
        return self.emit("Floor", [self.emit("Add", [v, self.scalar("half", 0.5)], v.shape)], v.shape)

    def clip(self, v: ir.Value, low: float, high: float) -> ir.Value:
        return self.emit("Clip", [v, self.scalar("low", low), self.scalar("high", high)], v.shape)

    def to_integer(self, x: ir.Value, fraction_bits: int, bits: int = 16, guard: bool = True) -> ir.Value:
        """``x`` in units of 2^-fraction_bits, rounded half up and saturated; ``guard``: it may hold a NaN."""
        low, high = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
        q = self.round_half_up(self.scaled(x, 2.0**fraction_bits))
        if guard:
            lowest = self.scalar("low", low)
            q = self.emit("Where", [self.emit("GreaterOrEqual", [q, lowest], x.shape), q, lowest], x.shape)
        return self.clip(q, low, high)

    def from_integer(self, q: ir.Value, fraction_bits: int) -> ir.Value:
        return self.scaled(q, 2.0**-fraction_bits)

    def scaled(self, v: ir.Value, factor: float) -> ir.Value:
        """``v`` times a power of two; one node even for 1, so that the result is a value of its own."""
        return self.emit("Mul", [v, self.scalar("step", factor)], v.shape)

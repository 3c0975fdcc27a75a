"""Fold the addition of a shortcut after a binary convolution into the node."""

from __future__ import annotations

import onnx_ir as ir

from irstd_edge.export.passes.graph import RESIDUAL, absorb, binary_nodes, constant, set_attribute, sole_user, spec_of
from irstd_edge.opspec import Residual


class FoldResidual(ir.passes.InPlacePass):
    """``BinaryConv2d(x) + r`` with r of the same shape becomes the node's residual input. Exact.

    Requires: shapes on values (the exporter writes them). Ensures: no binary node without a residual and without
    rounding has the addition of a computed value of its own shape as its only use.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        # Of two binary nodes added, the later one takes the other as its residual.
        for node in reversed(binary_nodes(model)):
            modified |= _fold(node)
        return ir.passes.PassResult(model, modified)


def _fold(node: ir.Node) -> bool:
    spec, result = spec_of(node), node.outputs[0]
    follower = sole_user(result)
    if spec.residual != Residual.NONE or spec.fraction_bits >= 0 or follower is None:
        return False
    if follower.op_type != "Add" or follower.domain != "":
        return False
    other = follower.inputs[1] if follower.inputs[0] is result else follower.inputs[0]
    if constant(other) is not None or other is result or not _same_shape(other, result):
        return False
    graph = node.graph
    graph.remove(node)
    graph.insert_before(follower, node)  # other may be computed after the node's old place
    node.resize_inputs(RESIDUAL + 1)
    node.replace_input_with(RESIDUAL, other)
    set_attribute(node, "residual", int(Residual.ADD))
    # The node's own activation, if it has one, came before the sum; without a residual the attribute means nothing.
    set_attribute(node, "activation_first", 1)
    absorb(node, follower)
    return True


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    if a.shape is None or b.shape is None or len(a.shape) != 4 or tuple(a.shape) != tuple(b.shape):
        return False
    # Two unknown sizes compare equal.
    return all(isinstance(size, int) or size.value is not None for size in a.shape)

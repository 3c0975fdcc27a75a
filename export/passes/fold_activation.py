"""Fold the activation after a binary convolution into the node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from irstd_edge.export.passes.graph import (
    ACTIVATION,
    absorb,
    affine_of,
    attributes,
    binary_nodes,
    constant,
    per_channel,
    set_attribute,
    set_constant,
    sole_user,
    spec_of,
)
from irstd_edge.opspec import Activation, Residual


class FoldActivation(ir.passes.InPlacePass):
    """PRelu, LeakyRelu, Relu, Clip and RPReLU (shift, PRelu, shift) after a binary node become its activation. Exact.

    Requires: constants are initializers; BatchNormalization is folded. Ensures: no binary node without an activation
    and without rounding has one of these operators as its only use. The activation is marked
    ``activation_first = 0`` after a residual, and 1 without one.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in binary_nodes(model):
            while _fold_rprelu(node) or _fold_clamp(node) or _fold_shift_out(node):
                modified = True
        return ir.passes.PassResult(model, modified)


def _mark(node: ir.Node, activation: Activation) -> None:
    set_attribute(node, "activation", int(activation))
    set_attribute(node, "activation_first", int(spec_of(node).residual == Residual.NONE))


def _accepts(node: ir.Node) -> bool:
    spec = spec_of(node)
    return spec.activation == Activation.NONE and spec.fraction_bits < 0


def _fold_rprelu(node: ir.Node) -> bool:
    if not _accepts(node):
        return False
    channels, result = spec_of(node).out_channels, node.outputs[0]
    shift_in, shift = np.zeros(channels, np.float32), None
    follower = sole_user(result)
    if follower is not None and follower.op_type in ("Add", "Sub"):
        affine = affine_of(follower, result, channels)
        if affine is None:
            return False
        shift, shift_in = follower, -affine[1]
        result, follower = follower.outputs[0], sole_user(follower.outputs[0])
    slope = _slope(follower, result, channels)
    if slope is None:
        return False
    if shift is not None:
        absorb(node, shift)
    absorb(node, follower)
    parameters = np.stack([shift_in + np.float32(0), slope, np.zeros(channels, np.float32)])
    set_constant(node, ACTIVATION, parameters, "activation_parameters")
    _mark(node, Activation.RPRELU)
    return True


def _slope(node: ir.Node | None, source: ir.Value, channels: int) -> np.ndarray | None:
    if node is None or node.domain != "" or node.inputs[0] is not source:
        return None
    if node.op_type == "LeakyRelu":
        return np.full(channels, attributes(node).get("alpha", 0.01), np.float32)
    if node.op_type == "PRelu":
        return per_channel(constant(node.inputs[1]), channels)
    return None


def _fold_clamp(node: ir.Node) -> bool:
    follower = sole_user(node.outputs[0])
    bounds = clamp_bounds(follower) if _accepts(node) else None
    if bounds is None or follower.inputs[0] is not node.outputs[0]:
        return False
    set_attribute(node, "clamp_min", bounds[0])
    set_attribute(node, "clamp_max", bounds[1])
    absorb(node, follower)
    _mark(node, Activation.CLAMP)
    return True


def clamp_bounds(node: ir.Node | None) -> tuple[float, float] | None:
    """``(low, high)`` of a Relu or a Clip with constant bounds, else None."""
    if node is None or node.domain != "":
        return None
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    bounds = []
    for index, default in ((1, float("-inf")), (2, float("inf"))):
        value = node.inputs[index] if index < len(node.inputs) else None
        array = constant(value)
        if value is not None and (array is None or array.size != 1):
            return None
        bounds.append(default if value is None else float(array.reshape(())))
    return (bounds[0], bounds[1]) if bounds[0] <= bounds[1] else None


def _fold_shift_out(node: ir.Node) -> bool:
    """The Add after an RPReLU's PRelu, where the activation is the node's last step."""
    spec = spec_of(node)
    last = spec.residual == Residual.NONE or not spec.activation_first
    if spec.activation != Activation.RPRELU or spec.fraction_bits >= 0 or not last:
        return False
    parameters, follower = constant(node.inputs[ACTIVATION]), sole_user(node.outputs[0])
    if follower is None or follower.op_type not in ("Add", "Sub") or np.any(parameters[2]):
        return False
    affine = affine_of(follower, node.outputs[0], spec.out_channels)
    if affine is None:
        return False
    set_constant(node, ACTIVATION, np.stack([parameters[0], parameters[1], affine[1]]), "activation_parameters")
    absorb(node, follower)
    return True

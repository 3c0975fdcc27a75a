"""Fold BatchNormalization after a float convolution into its weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from irstd_edge.export.passes.graph import (
    absorb,
    attributes,
    batch_norm_affine,
    constant,
    operand,
    set_constant,
    sole_user,
)


class FoldConvBatchNorm(ir.passes.InPlacePass):
    """``BatchNormalization(Conv(x))`` becomes one Conv under the convolution's own name; so with ConvTranspose.

    Requires: constants are initializers. Ensures: no Conv or ConvTranspose with constant weights has a
    BatchNormalization as its only use; the result differs by float32 rounding alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.domain == "" and node.op_type in ("Conv", "ConvTranspose"):
                modified |= _fold(node)
        return ir.passes.PassResult(model, modified)


def _fold(node: ir.Node) -> bool:
    follower, weight = sole_user(node.outputs[0]), constant(node.inputs[1])
    bias = constant(operand(node, 2))
    if follower is None or follower.op_type != "BatchNormalization" or follower.domain != "" or weight is None:
        return False
    affine = batch_norm_affine(follower)
    if affine is None or (bias is None and operand(node, 2) is not None):
        return False
    gain, offset = affine
    shape = [-1] + [1] * (weight.ndim - 1)
    if node.op_type == "ConvTranspose":  # weights [IC, OC / groups, ...]: output channels follow their group
        groups = attributes(node).get("group", 1)
        per_group = gain.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        folded = (weight.reshape(groups, -1, *weight.shape[1:]) * per_group).reshape(weight.shape)
    else:
        folded = weight * gain.reshape(shape)
    set_constant(node, 1, folded.astype(np.float32), "weight")
    set_constant(node, 2, (offset if bias is None else bias * gain + offset).astype(np.float32), "bias")
    absorb(node, follower)
    return True

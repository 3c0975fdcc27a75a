"""Fold BatchNormalization and per-channel affine maps after a binary convolution into its scale and bias."""

from __future__ import annotations

import onnx_ir as ir

from irstd_edge.export.passes.graph import (
    BIAS,
    SCALE,
    absorb_affine,
    affine_of,
    binary_nodes,
    sole_user,
    spec_of,
)
from irstd_edge.opspec import Activation, BinaryConv2dSpec, Residual

_SHAPED = ("PRelu", "LeakyRelu")


class FoldBatchNorm(ir.passes.InPlacePass):
    """``gain * BinaryConv2d(x) + offset`` becomes one node: scale ``gain * scale``, bias ``gain * bias + offset``.

    Requires: constants are initializers. Ensures: a plain binary node (no residual, activation or rounding yet) whose
    only use is a per-channel affine map is merged with it; the result differs from the two steps by float32 rounding
    alone. The shift of an RPReLU (a Sub or Add before a PRelu) is left to
    :class:`~irstd_edge.export.passes.fold_activation.FoldActivation`, which keeps it exact.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in binary_nodes(model):
            while _fold(node):
                modified = True
        return ir.passes.PassResult(model, modified)


def is_plain(spec: BinaryConv2dSpec) -> bool:
    """Whether the node ends with scale and bias."""
    return spec.residual == Residual.NONE and spec.activation == Activation.NONE and spec.fraction_bits < 0


def _fold(node: ir.Node) -> bool:
    spec, result = spec_of(node), node.outputs[0]
    follower = sole_user(result)
    affine = affine_of(follower, result, spec.out_channels) if is_plain(spec) else None
    if affine is None or _is_activation_shift(follower):
        return False
    absorb_affine(node, follower, affine, SCALE, BIAS)
    return True


def _is_activation_shift(node: ir.Node) -> bool:
    if node.op_type not in ("Add", "Sub"):
        return False
    after = sole_user(node.outputs[0])
    return after is not None and after.op_type in _SHAPED

"""Fold what follows a quantised convolution into its scale, bias and clamp."""

from __future__ import annotations

from math import inf

import numpy as np
import onnx_ir as ir

from irstd_edge.export.passes.fold_activation import clamp_bounds
from irstd_edge.export.passes.graph import (
    QUANT_BIAS,
    QUANT_SCALE,
    absorb,
    absorb_affine,
    affine_of,
    quant_nodes,
    quant_spec_of,
    set_attribute,
    sole_user,
)


class FoldQuant(ir.passes.InPlacePass):
    """BatchNormalization or another affine map per channel, and Relu or Clip, after a QuantConv2d become part of it.

    Requires: constants are initializers. Ensures: no QuantConv2d has a Relu or a constant Clip as its only use, and
    none that does not clamp has a per-channel affine map; the latter changes results by float32 rounding alone, a
    clamp by nothing.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in quant_nodes(model):
            while _fold_affine(node) or _fold_clamp(node):
                modified = True
        return ir.passes.PassResult(model, modified)


def _fold_affine(node: ir.Node) -> bool:
    spec, result = quant_spec_of(node), node.outputs[0]
    follower = sole_user(result)
    affine = affine_of(follower, result, spec.out_channels) if (spec.clamp_min, spec.clamp_max) == (-inf, inf) else None
    if affine is None:
        return False
    absorb_affine(node, follower, affine, QUANT_SCALE, QUANT_BIAS)
    return True


def _fold_clamp(node: ir.Node) -> bool:
    spec, follower = quant_spec_of(node), sole_user(node.outputs[0])
    bounds = clamp_bounds(follower)
    if bounds is None or follower.inputs[0] is not node.outputs[0]:
        return False
    for name in ("clamp_min", "clamp_max"):  # clamped twice
        set_attribute(node, name, float(np.clip(np.float32(getattr(spec, name)), *np.float32(bounds))))
    absorb(node, follower)
    return True

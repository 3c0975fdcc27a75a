"""Graph passes on onnx-ir models; one pass a file, each with its pre- and postconditions.

:func:`compress` is the pipeline of the targets that have our operators, :func:`lower` continues to standard operators.
"""

from __future__ import annotations

import onnx_ir as ir

from irstd_edge.export.passes.fold_activation import FoldActivation
from irstd_edge.export.passes.fold_batch_norm import FoldBatchNorm
from irstd_edge.export.passes.fold_conv_batch_norm import FoldConvBatchNorm
from irstd_edge.export.passes.fold_quant import FoldQuant
from irstd_edge.export.passes.fold_residual import FoldResidual
from irstd_edge.export.passes.fold_threshold import FoldThreshold
from irstd_edge.export.passes.lower_binary import LowerBinary
from irstd_edge.export.passes.lower_fixed_point import LowerFixedPoint
from irstd_edge.export.passes.lower_quant import LowerQuant
from irstd_edge.export.passes.name_values import NameValues
from irstd_edge.export.passes.simplify import Finish, Simplify

#: Thresholds come first: they are exact, while folding the same map into the convolution before it is not.
FOLDS = (FoldThreshold, FoldBatchNorm, FoldActivation, FoldResidual, FoldQuant)


def fold(model: ir.Model) -> ir.Model:
    """Run :data:`FOLDS` until nothing changes, in place; the model is returned."""
    ir.passes.PassManager([step() for step in FOLDS], steps=8, early_stop=True)(model)
    return model


def compress(model: ir.Model) -> ir.Model:
    """Fold everything around the compressed nodes into them, in place; the model is returned."""
    Simplify()(model)
    fold(model)
    FoldConvBatchNorm()(model)
    Simplify(rewrite=True)(model)
    Finish()(model)
    NameValues()(model)
    return model


def lower(model: ir.Model) -> ir.Model:
    """Replace ``irstd`` nodes by standard operators, in place; the model is returned."""
    LowerBinary()(model)
    LowerQuant()(model)
    return lower_fixed_point(model)


def lower_fixed_point(model: ir.Model) -> ir.Model:
    """Replace FixedPoint nodes alone, in place, for runtimes that have BinaryConv2d; the model is returned."""
    LowerFixedPoint()(model)
    Simplify()(model)
    Finish()(model)
    return model

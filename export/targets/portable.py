"""The portable target: the same network in standard operators alone, for any ONNX runtime or vendor compiler."""

from __future__ import annotations

import onnx_ir as ir

from irstd_edge.export.passes import lower
from irstd_edge.export.targets.onnx import to_onnx


def lowered(model: ir.Model) -> ir.Model:
    """A copy of a compressed model in which every ``irstd`` node is lowered, bit for bit."""
    return lower(model.clone())


def to_portable(model: ir.Model) -> bytes:
    """The lowered model as one ONNX file: default domain only, opset 18, IR version 8."""
    return to_onnx(lowered(model))

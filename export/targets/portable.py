"""The portable target: the same network in standard operators alone, for any ONNX runtime or vendor compiler."""

from __future__ import annotations

import onnx_ir as ir

from irstd_edge.export.passes import lower


def lowered(model: ir.Model) -> ir.Model:
    """A copy of a compressed model in which every ``irstd`` node is lowered, bit for bit: default domain only."""
    return lower(model.clone())

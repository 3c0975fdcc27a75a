"""The onnx target: standard operators plus ``irstd`` ones, dynamic height and width."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from irstd_edge.export.passes import lower_fixed_point
from irstd_edge.export.passes.graph import SOURCE
from irstd_edge.export.passes.halve_weights import store
from irstd_edge.export.passes.lower_quant import LowerQuant
from irstd_edge.export.schema import register_schemas


def to_onnx(model: ir.Model) -> bytes:
    """A single-file ONNX model, checked with full shape inference; metadata is reduced to layer names.

    FixedPoint nodes are lowered, and QuantConv2d ones outside of Programs, as ONNX Runtime's adapter has no kernel for
    them. Weights that are marked so are float16 behind a Cast, which a runtime folds when it loads the file. ``model``
    is left as it is.
    Raises ``onnx.checker.ValidationError`` only on a defect of the exporter itself.
    """
    register_schemas()
    model = model.clone()
    LowerQuant()(model)
    lower_fixed_point(model)
    store(model)
    for node in model.graph:
        node.metadata_props.pop(SOURCE, None)
    proto = ir.to_proto(model)
    # Values inside carry the exporter's own size symbols; the file keeps those of its input and output alone.
    del proto.graph.value_info[:]
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString(deterministic=True)

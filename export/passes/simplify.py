"""Constant folding and removal of what nothing needs.

onnxscript's folder and onnx-ir's own passes do this in place on the onnx-ir model. onnxslim and onnxsim were tried
on the same graphs: both keep ``irstd`` nodes and symbolic sizes too, but they leave the exporter's ``CastLike``,
need a round trip through protobuf that drops the layer names, and merge BatchNormalization into a float convolution
before :class:`~irstd_edge.export.passes.fold_threshold.FoldThreshold` can take it over exactly.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxscript import optimizer, rewriter

from irstd_edge.export.passes.graph import LAYER, REASON, REQUESTED, SOURCE, STORED, is_compressed, weights_of

#: Constants up to this many values are folded; weights are never recomputed.
FOLD_LIMIT = 1 << 16
_KEPT = (LAYER, REQUESTED, STORED, REASON, SOURCE)


class Simplify(ir.passes.InPlacePass):
    """Fold constants and shape arithmetic, lift constants to initializers, drop dead and duplicate nodes.

    Requires: any valid model. Ensures: no Constant, CastLike or Identity of constants is left, every constant is an
    initializer, and the number of ``irstd`` nodes is what it was unless one was dead.

    Args:
        rewrite: also apply onnxscript's rewrite rules (Conv + BatchNormalization, Pad + Conv, no-ops). They change
            rounding, so this belongs after the exact folds.
    """

    def __init__(self, rewrite: bool = False):
        super().__init__()
        self.rewrite = rewrite

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = [(node.op_type, node.name) for node in model.graph]
        optimizer.fold_constants(
            model, onnx_shape_inference=True, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT,
            should_fold=lambda node: False if is_compressed(node) else None,
        )
        if self.rewrite:
            rewriter.rewrite(model)
        for step in (
            common_passes.IdentityEliminationPass(),
            common_passes.RemoveUnusedNodesPass(),
            common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common_passes.DeduplicateInitializersPass(),
            common_passes.CommonSubexpressionEliminationPass(),
            common_passes.RemoveUnusedNodesPass(),
            common_passes.RemoveUnusedOpsetsPass(),
            common_passes.TopologicalSortPass(),
        ):
            step(model)
        return ir.passes.PassResult(model, before != [(node.op_type, node.name) for node in model.graph])


class Finish(ir.passes.InPlacePass):
    """Name every node once, by its layer where it has one, and drop metadata (PyTorch's holds local file paths).

    Requires: a topologically sorted model. Ensures: unique node names; no metadata but the layer, its precisions and
    its place in the code, which no file is to hold.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        taken: set[str] = set()
        for node in model.graph:
            layer = node.metadata_props.get(LAYER, "")
            kept = {k: v for k, v in node.metadata_props.items() if k in _KEPT and v}
            stem = layer if has_weights(node) and layer else f"{layer or 'network'}/{node.op_type}"
            name, n = stem, 1
            while name in taken:
                n += 1
                name = f"{stem}_{n}"
            taken.add(name)
            node.name = name
            node.metadata_props.clear()
            node.metadata_props.update(kept)
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*model.graph.inputs, *model.graph.initializers.values()):
            value.metadata_props.clear()
        model.graph.metadata_props.clear()
        model.metadata_props.clear()
        model.graph.name, model.graph.doc_string, model.doc_string = "network", None, None
        model.producer_name, model.producer_version = "irstd-edge", None
        return ir.passes.PassResult(model, True)


def has_weights(node: ir.Node) -> bool:
    """Whether a node is a layer of the precision table: a convolution or a matrix product with constant weights."""
    if is_compressed(node):
        return True
    if node.domain != "" or node.op_type not in ("Conv", "ConvInteger", "ConvTranspose", "Gemm", "MatMul"):
        return False
    return weights_of(node) is not None

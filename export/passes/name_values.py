"""Name every value by its layer."""

from __future__ import annotations

import onnx_ir as ir


class NameValues(ir.passes.InPlacePass):
    """A value gets the name of the node that makes it, so that files of all kinds call their tensors alike.

    Requires: unique node names. Ensures: unique value names; those of inputs, outputs and initializers stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        taken = {v.name for v in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
        for node in graph:
            for i, value in enumerate(node.outputs):
                if value.is_graph_output():
                    continue
                stem = f"{node.name}:{i}" if i else node.name
                name, n = stem, 1
                while name in taken:
                    n += 1
                    name = f"{stem}_{n}"
                taken.add(name)
                value.name = name
        return ir.passes.PassResult(model, True)

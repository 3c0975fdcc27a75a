"""Fix the input size of a dynamic model."""

from __future__ import annotations

import onnx_ir as ir

from irstd_edge.export.passes.graph import SYMBOLS
from irstd_edge.export.passes.simplify import Finish, Simplify

_LAST_WINDOW_OPSET = 22


class Specialize(ir.passes.InPlacePass):
    """Set height and width of the input, infer every shape anew, and fold the shape arithmetic this makes constant.

    Requires: one input ``[1, C, H, W]``. Ensures: all shapes that do not depend on data are static; images keep their
    symbolic height and width as ``value.meta[SYMBOLS]``.

    Args:
        input_size: (H, W); must equal the model's where that is fixed already.
    """

    def __init__(self, input_size: tuple[int, int]):
        super().__init__()
        self.input_size = input_size

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        source = model.graph.inputs[0]
        fixed = tuple(source.shape)[2:]
        if all(isinstance(d, int) for d in fixed) and fixed != tuple(self.input_size):
            raise ValueError(f"the network was exported for {fixed}, not {self.input_size}; choose that --input-size")
        for value in (source, *(v for node in model.graph for v in node.outputs)):
            if value.shape is not None and len(value.shape) == 4 and not value.shape.is_static():
                value.meta[SYMBOLS] = tuple(str(d) for d in tuple(value.shape)[2:])
        source.shape = ir.Shape((*tuple(source.shape)[:2], *self.input_size))
        for node in model.graph:
            for value in node.outputs:
                value.shape = None
        version = model.graph.opset_imports[""]
        # Below, ONNX's shapes of a ceil_mode pool count a last window that begins behind the image; PyTorch has none.
        model.graph.opset_imports[""] = max(version, _LAST_WINDOW_OPSET)
        Simplify()(model)
        Finish()(model)
        model.graph.opset_imports[""] = version
        return ir.passes.PassResult(model, True)

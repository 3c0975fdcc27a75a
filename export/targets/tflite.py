"""The tflite target: one fixed input size, NHWC, our operator as a custom one."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from irstd_edge.errors import MissingError
from irstd_edge.export.passes.specialize import Specialize


@dataclass(frozen=True)
class TfliteFile:
    """The bytes of a .tflite file and, per layer, the bytes of the constants that its operators read."""

    data: bytes
    layer_bytes: dict[str, int]


def to_tflite(model: ir.Model, input_size: tuple[int, int]) -> TfliteFile:
    """Write a compressed or lowered model for inputs ``[1, H, W, C]``; ``model`` is left as it is.

    Raises :class:`~irstd_edge.errors.UnsupportedError` naming the first node that has no TFLite form, and
    :class:`~irstd_edge.errors.MissingError` where the writer's packages are not installed.
    """
    try:
        from irstd_edge.export.targets.tflite_graph import TfliteGraph
        from irstd_edge.export.targets.tflite_ops import write_node
    except ImportError as e:
        raise MissingError(f"the tflite target needs {e.name}; install it with: pip install irstd-edge[tflite]") from e
    model = model.clone()
    Specialize(input_size)(model)
    graph = TfliteGraph()
    for value in model.graph.inputs:
        graph.tensor(value)
    for node in model.graph:
        write_node(graph, node)
    data = graph.serialize(model.graph.inputs, model.graph.outputs)
    return TfliteFile(data, {layer: sum(sizes.values()) for layer, sizes in graph.layer_tensors.items()})

"""The tflite target: written for one input size, NHWC, our operator as a custom one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from irstd_edge.errors import MissingError, UnsupportedError
from irstd_edge.export.passes import lower_fixed_point
from irstd_edge.export.passes.specialize import Specialize
from irstd_edge.export.targets.fused import Part, fuse


@dataclass(frozen=True)
class TfliteFile:
    """The bytes of a .tflite file and, per layer, the bytes of the constants that its operators read.

    ``static_reason``: why a session cannot run another image size, or "" where the writer sees no obstacle.
    """

    data: bytes
    layer_bytes: dict[str, int]
    static_reason: str


def to_tflite(model: ir.Model, input_size: tuple[int, int], other_size: tuple[int, int] | None = None,
              size_multiple: int = 1, parts: Sequence[Part] = ()) -> TfliteFile:
    """Write a compressed or lowered model for inputs ``[1, H, W, C]``; ``model`` is left as it is.

    Args:
        model: of dynamic size, or of ``input_size``.
        input_size: (H, W).
        other_size: another one: the sizes in the file that differ at it are named as such, for
            :func:`irstd_edge.runtimes.tflite.at_size`. Without it the file counts as fixed.
        size_multiple: of height and width of every image.
        parts: of the model, for which Program operators stand; their layers are not among ``layer_bytes``.

    Raises :class:`~irstd_edge.errors.UnsupportedError` naming the first node that has no TFLite form, and
    :class:`~irstd_edge.errors.MissingError` where the writer's packages are not installed.
    """
    graph, static = _write(model, input_size, parts)
    reason = "written for one size"
    if other_size is not None:
        try:
            other, _ = _write(model, other_size, parts)
        except (UnsupportedError, ValueError) as e:
            reason = f"cannot be written for {other_size[0]}x{other_size[1]}: {e}"
        else:
            reason = graph.mark_image_sizes(other, input_size, other_size, size_multiple)
    data = graph.serialize(static.graph.inputs, static.graph.outputs)
    return TfliteFile(data, {layer: sum(sizes.values()) for layer, sizes in graph.layer_tensors.items()}, reason)


def _write(model: ir.Model, input_size: tuple[int, int], parts: Sequence[Part]):
    """The graph under construction and the model specialised for it."""
    model = model.clone()
    Specialize(input_size)(model)
    model = lower_fixed_point(fuse(model, parts))
    return write_static(model), model


def write_static(model: ir.Model):
    """The graph under construction for a model of static shapes. Raises as :func:`to_tflite`."""
    try:
        from irstd_edge.export.targets.tflite_graph import TfliteGraph
        from irstd_edge.export.targets.tflite_ops import write_node
    except ImportError as e:
        raise MissingError(f"the tflite target needs {e.name}; install it with: pip install irstd-edge[tflite]") from e
    graph = TfliteGraph()
    for value in model.graph.inputs:
        graph.tensor(value)
    for node in model.graph:
        write_node(graph, node)
    return graph

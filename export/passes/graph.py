"""Small helpers that the passes and targets share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from irstd_edge.opspec import (
    BINARY_CONV2D,
    DOMAIN,
    FIXED_POINT,
    PROGRAM,
    QUANT_CONV2D,
    BinaryConv2dSpec,
    FixedPointSpec,
    QuantConv2dSpec,
)

#: Metadata keys of a node: the PyTorch path of its layer, the precision that this layer asked for, and the type that
#: its weights are stored in where that is not float32, or the reason why they are not.
LAYER, REQUESTED, STORED, REASON = "layer", "requested", "stored", "reason"
#: In memory alone, for messages: the line of the user's code that made a node.
SOURCE = "source"
#: In memory alone, of a value of a model that was dynamic: its height and width as expressions of the image's.
SYMBOLS = "symbols"
#: Input slots of ``irstd::BinaryConv2d`` in the specification's order.
X, WEIGHT, THRESHOLD, SCALE, BIAS, ACTIVATION, RESIDUAL = range(7)
#: Those of ``irstd::QuantConv2d``, behind X and WEIGHT.
QUANT_SCALE, QUANT_BIAS = 2, 3


def is_binary(node: ir.Node | None) -> bool:
    """Whether a node is an ``irstd::BinaryConv2d``."""
    return node is not None and node.domain == DOMAIN and node.op_type == BINARY_CONV2D.name


def is_quant(node: ir.Node | None) -> bool:
    """Whether a node is an ``irstd::QuantConv2d``."""
    return node is not None and node.domain == DOMAIN and node.op_type == QUANT_CONV2D.name


def is_compressed(node: ir.Node | None) -> bool:
    """Whether a node is a compressed layer of either kind."""
    return is_binary(node) or is_quant(node)


def is_fixed_point(node: ir.Node | None) -> bool:
    """Whether a node is an ``irstd::FixedPoint``."""
    return node is not None and node.domain == DOMAIN and node.op_type == FIXED_POINT.name


def is_program(node: ir.Node | None) -> bool:
    """Whether a node is an ``irstd::Program``."""
    return node is not None and node.domain == DOMAIN and node.op_type == PROGRAM.name


def binary_nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if is_binary(node)]


def quant_nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if is_quant(node)]


def attributes(node: ir.Node) -> dict:
    """Attribute values by name."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def spec_of(node: ir.Node) -> BinaryConv2dSpec:
    """The validated attributes of a binary node."""
    return BinaryConv2dSpec.from_attributes(attributes(node))


def quant_spec_of(node: ir.Node) -> QuantConv2dSpec:
    """The validated attributes of a quantised convolution."""
    return QuantConv2dSpec.from_attributes(attributes(node))


def precision_of(node: ir.Node) -> str:
    """``W1A1``, ``W4A8`` ... of a compressed layer, else the type of the weights: ``float32``, ``float16``."""
    if is_quant(node):
        spec = quant_spec_of(node)
        return f"W{spec.weight_bits}A{spec.activation_bits}"
    return "W1A1" if is_binary(node) else node.metadata_props.get(STORED, "float32")


def fixed_point_of(node: ir.Node) -> FixedPointSpec:
    """The validated attributes of an ``irstd::FixedPoint``."""
    return FixedPointSpec.from_attributes(attributes(node))


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The value of an initializer or Constant node as a NumPy array, None where it is computed."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def weights_of(node: ir.Node) -> np.ndarray | None:
    """The constant that a convolution or matrix product multiplies by, also where it is stored as integers."""
    for value in node.inputs[1::-1]:
        found = constant(value)
        source = None if value is None else value.producer()
        if found is None and source is not None and source.op_type == "DequantizeLinear":
            found = constant(source.inputs[0])
        if found is not None:
            return found
    return None


def weight_index(node: ir.Node) -> int:
    """The input of a float layer that is its weights: the first or, of a matrix product, the second factor."""
    return 1 if constant(node.inputs[1]) is not None else 0


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """Input ``index``, None where absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def sole_user(value: ir.Value) -> ir.Node | None:
    """The node that alone uses ``value``, once; None where there are more uses or it is an output of the graph."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer; ``name`` is made unique."""
    unique, n = name, 0
    while unique in graph.initializers:
        n += 1
        unique = f"{name}_{n}"
    tensor = ir.Tensor(np.array(array, order="C"), name=unique)
    value = ir.Value(name=unique, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def set_constant(node: ir.Node, index: int, array: np.ndarray, label: str) -> None:
    """Replace constant input ``index`` of ``node`` by a new initializer."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    layer = node.metadata_props.get(LAYER) or node.name or node.op_type
    node.replace_input_with(index, initializer(node.graph, f"{layer}.{label}", array))


def set_attribute(node: ir.Node, name: str, value: int | float) -> None:
    node.attributes[name] = ir.AttrFloat32(name, value) if isinstance(value, float) else ir.AttrInt64(name, value)


def absorb(node: ir.Node, follower: ir.Node) -> None:
    """``node`` now computes what ``follower``, its sole user, computed: take over its uses and remove it."""
    result, old = node.outputs[0], follower.outputs[0]
    name, is_output = old.name, old.is_graph_output()
    result.shape = old.shape or result.shape
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    follower.graph.remove(follower, safe=True)
    if is_output:
        result.name = name


def per_channel(array: np.ndarray | None, channels: int, rank: int = 4) -> np.ndarray | None:
    """A constant as float32 ``[channels]`` where it broadcasts over ``[N, C, H, W]`` per channel, else None."""
    if array is None or array.ndim > rank or array.dtype != np.float32:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if shape[1] not in (1, channels) or any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        return None
    return np.broadcast_to(array.reshape(shape[1]), (channels,)).astype(np.float32)


def batch_norm_affine(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """``(gain, offset)`` of a BatchNormalization in inference form, in the float32 order of PyTorch."""
    parts = [constant(v) for v in node.inputs[1:5]]
    if any(p is None for p in parts):
        return None
    weight, bias, mean, variance = (p.astype(np.float32) for p in parts)
    epsilon = np.float32(attributes(node).get("epsilon", 1e-5))
    gain = (np.float32(1) / np.sqrt(variance + epsilon)) * weight
    return gain, bias - mean * gain


def affine_of(node: ir.Node | None, source: ir.Value, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """``(gain, offset)``, each ``[channels]``, where ``node`` is ``gain * source + offset`` per channel, else None."""
    if node is None or node.domain != "":
        return None
    if node.op_type == "BatchNormalization":
        return batch_norm_affine(node) if node.inputs[0] is source else None
    if node.op_type not in ("Mul", "Add", "Sub", "Div") or len(node.inputs) != 2:
        return None
    left = node.inputs[0] is source
    if not left and node.op_type in ("Sub", "Div"):
        return None
    value = per_channel(constant(node.inputs[1 if left else 0]), channels)
    if value is None:
        return None
    one, zero = np.ones_like(value), np.zeros_like(value)
    if node.op_type == "Mul":
        return value, zero
    if node.op_type == "Div":
        # A power of two has an exact reciprocal; any other divisor would round twice.
        return (one / value, zero) if np.all(np.frexp(np.abs(value))[0] == 0.5) else None
    return one, value if node.op_type == "Add" else -value


def absorb_affine(node: ir.Node, follower: ir.Node, affine: tuple[np.ndarray, np.ndarray], scale: int,
                  bias: int) -> None:
    """Fold ``affine``, what ``follower`` does to the output, into the constants ``scale`` and ``bias`` (inputs)."""
    gain, offset = (a.astype(np.float64) for a in affine)
    old_scale, old_bias = constant(node.inputs[scale]), constant(node.inputs[bias])
    set_constant(node, scale, (gain * old_scale).astype(np.float32), "scale")
    set_constant(node, bias, (gain * old_bias + offset).astype(np.float32), "bias")
    absorb(node, follower)

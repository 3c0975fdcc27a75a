"""Lower ``irstd::BinaryConv2d`` to standard operators, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from irstd_edge.export.passes.graph import (
    ACTIVATION,
    BIAS,
    LAYER,
    REQUESTED,
    RESIDUAL,
    SCALE,
    THRESHOLD,
    WEIGHT,
    X,
    binary_nodes,
    constant,
    initializer,
    operand,
    spec_of,
)
from irstd_edge.nn.functional import unpack_bits
from irstd_edge.opspec import Activation, BinaryConv2dSpec, Residual

INT16_MIN, INT16_MAX = -32768.0, 32767.0


class LowerBinary(ir.passes.InPlacePass):
    """Each binary node becomes Where, Pad, Conv with ±1 weights, Mul, Add and what follows, in the order of the spec.

    Requires: constant weights, thresholds, scales and biases; known channels of the residual. Ensures: no ``irstd``
    node and no ``irstd`` import is left; the results are the same to the last bit (tanh aside, whose last bits a
    runtime chooses), also after ONNX Runtime's own fusions.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = binary_nodes(model)
        for node in nodes:
            _Lowering(node).run()
        model.opset_imports.pop("irstd", None)
        return ir.passes.PassResult(model, bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        if binary_nodes(model):
            raise ir.passes.PostconditionError("an irstd node is left")


def exact_in_any_order(spec: BinaryConv2dSpec, scale: np.ndarray, bias: np.ndarray) -> bool:
    """Whether ``acc * scale + bias`` is exact in float32 however a runtime orders it.

    True where scales and biases are multiples of one power of two and every partial sum stays below 2**24 of it.
    """
    for bits in range(24):
        step = 2.0**bits
        if not (np.any(np.rint(scale * step) != scale * step) or np.any(np.rint(bias * step) != bias * step)):
            return bool(np.max(spec.macs_per_output * np.abs(scale) + np.abs(bias)) * step < 2.0**24)
    return False


class _Lowering:
    """The replacement of one node; ``emit`` inserts before it and returns the value."""

    def __init__(self, node: ir.Node):
        self.node, self.graph, self.spec = node, node.graph, spec_of(node)
        self.layer = node.metadata_props.get(LAYER) or node.name or "binary"

    def emit(self, op_type: str, inputs, shape=None, **attrs) -> ir.Value:
        node = ir.node(op_type, inputs=inputs, attributes=attrs or None)
        node.metadata_props.update({LAYER: self.layer, REQUESTED: "W1A1"})
        value = node.outputs[0]
        value.type = ir.TensorType(ir.DataType.BOOL if op_type == "GreaterOrEqual" else ir.DataType.FLOAT)
        value.shape = shape if shape is not None else self.node.outputs[0].shape
        self.graph.insert_before(self.node, node)
        return value

    def const(self, label: str, array) -> ir.Value:
        return initializer(self.graph, f"{self.layer}.{label}", np.asarray(array))

    def channels(self, label: str, array: np.ndarray) -> ir.Value:
        return self.const(label, array.astype(np.float32).reshape(1, -1, 1, 1))

    def run(self) -> None:
        value = self.convolve(self.binarize())
        activated_first = self.spec.activation_first or self.spec.residual == Residual.NONE
        steps = (self.activate, self.combine) if activated_first else (self.combine, self.activate)
        for step in steps:
            value = step(value)
        value = self.round(value)
        old = self.node.outputs[0]
        name = old.name
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        self.graph.remove(self.node, safe=True)
        value.name = name

    def binarize(self) -> ir.Value:
        x, s = self.node.inputs[X], self.spec
        threshold = self.channels("threshold", constant(self.node.inputs[THRESHOLD]))
        above = self.emit("GreaterOrEqual", [x, threshold], x.shape)
        plus, minus = self.const("plus", np.float32(1)), self.const("minus", np.float32(-1))
        b = self.emit("Where", [above, plus, minus], x.shape)
        if s.pad_value and any((s.pad_top, s.pad_left, s.pad_bottom, s.pad_right)):
            pads = np.array([0, 0, s.pad_top, s.pad_left, 0, 0, s.pad_bottom, s.pad_right], np.int64)
            shape = None
            if x.shape is not None and x.shape.is_static():
                n, c, h, w = x.shape.numpy()
                shape = ir.Shape((n, c, h + s.pad_top + s.pad_bottom, w + s.pad_left + s.pad_right))
            b = self.emit("Pad", [b, self.const("pads", pads), self.const("pad_value", np.float32(s.pad_value))],
                          shape or ir.Shape((None,) * 4), mode="constant")
        return b

    def convolve(self, b: ir.Value) -> ir.Value:
        s = self.spec
        pads = [0, 0, 0, 0] if s.pad_value else [s.pad_top, s.pad_left, s.pad_bottom, s.pad_right]
        words = torch.from_numpy(np.array(constant(self.node.inputs[WEIGHT])))
        weight = self.const("weight", unpack_bits(words, s.in_channels // s.groups).numpy())
        v = self.emit(
            "Conv", [b, weight], kernel_shape=[s.kernel_h, s.kernel_w], strides=[s.stride_h, s.stride_w],
            dilations=[s.dilation_h, s.dilation_w], group=s.groups, pads=pads,
        )
        scale, bias = (constant(self.node.inputs[i]) for i in (SCALE, BIAS))
        if self.needs_guard(scale, bias):
            limit = float(s.macs_per_output)
            v = self.emit("Clip", [v, self.const("low", np.float32(-limit)), self.const("high", np.float32(limit))])
        if np.any(scale != 1):
            v = self.emit("Mul", [v, self.channels("scale", scale)])
        if np.any(bias):
            v = self.emit("Add", [v, self.channels("bias", bias)])
        return v

    def needs_guard(self, scale: np.ndarray, bias: np.ndarray) -> bool:
        """Whether a runtime that merges scale, bias or residual into the convolution could round differently.

        A Clip to the bounds that the integer sum keeps anyway changes no value, and stands in the way of that merge;
        ONNX Runtime runs it inside the convolution, for nothing.
        """
        s = self.spec
        next_is_add = s.residual == Residual.ADD and (s.activation == Activation.NONE or not s.activation_first)
        return next_is_add or not exact_in_any_order(s, scale, bias)

    def activate(self, v: ir.Value) -> ir.Value:
        s = self.spec
        if s.activation == Activation.RPRELU:
            shift_in, slope, shift_out = constant(self.node.inputs[ACTIVATION])
            v = self.emit("Sub", [v, self.channels("shift_in", shift_in)]) if np.any(shift_in) else v
            v = self.emit("PRelu", [v, self.const("slope", slope.reshape(-1, 1, 1))])
            return self.emit("Add", [v, self.channels("shift_out", shift_out)]) if np.any(shift_out) else v
        if s.activation == Activation.CLAMP:
            low = self.const("clamp_min", np.float32(s.clamp_min))
            return self.emit("Clip", [v, low, self.const("clamp_max", np.float32(s.clamp_max))])
        return v

    def combine(self, v: ir.Value) -> ir.Value:
        if self.spec.residual == Residual.NONE:
            return v
        r = self.residual()
        if self.spec.residual == Residual.MODULATE:
            v = self.emit("Mul", [r, self.emit("Tanh", [v])])
            return self.emit("Add", [r, v])
        return self.emit("Add", [v, r])

    def residual(self) -> ir.Value:
        """The residual with its channels repeated or averaged to OC."""
        r, channels = operand(self.node, RESIDUAL), self.spec.out_channels
        count = r.shape[1]
        self.spec.check_residual_channels(count)
        if count == channels:
            return r
        if count < channels:
            return self.emit("Concat", [r] * (channels // count), axis=1)
        total = None
        for start in range(0, count, channels):
            ends = [self.const(k, np.array([v], np.int64))
                    for k, v in (("start", start), ("end", start + channels), ("axis", 1))]
            part = self.emit("Slice", [r, *ends])
            total = part if total is None else self.emit("Add", [total, part])
        return self.emit("Div", [total, self.const("parts", np.float32(count // channels))])

    def round(self, v: ir.Value) -> ir.Value:
        if self.spec.fraction_bits < 0:
            return v
        step = np.float32(2.0**self.spec.fraction_bits)
        v = self.emit("Round", [self.emit("Mul", [v, self.const("step", step)])])
        v = self.emit("Clip", [v, self.const("int16_min", np.float32(INT16_MIN)),
                               self.const("int16_max", np.float32(INT16_MAX))])
        return self.emit("Mul", [v, self.const("inverse_step", np.float32(1) / step)])

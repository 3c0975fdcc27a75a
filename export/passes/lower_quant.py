"""Lower ``irstd::QuantConv2d`` to standard operators, bit for bit: int8 with explicit Q/DQ of scale 1."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch

from irstd_edge.export.passes.graph import (
    QUANT_BIAS,
    QUANT_SCALE,
    REQUESTED,
    WEIGHT,
    X,
    constant,
    is_quant,
    precision_of,
    quant_nodes,
    quant_spec_of,
)
from irstd_edge.export.passes.lower_fixed_point import Lowering
from irstd_edge.nn.functional import unpack_integers

#: Integers below it are exact in float32.
EXACT = 2**24
#: Operators that make no NaN of numbers.
_KEEP_FINITE = ("AveragePool", "Concat", "Identity", "MaxPool", "Relu", "Resize", "Slice", "Split")


class LowerQuant(ir.passes.InPlacePass):
    """Each node becomes Mul, Clip, QuantizeLinear, DequantizeLinear, Conv, Mul, Add, Clip, in the order of the spec.

    QuantizeLinear and DequantizeLinear have the scale 1: they round half to even and move the zero point, exactly.
    Weights are int8 behind a DequantizeLinear of scale 1, so the convolution sums integers, exactly below 2**24. A
    layer whose sums may be larger takes ConvInteger, which few compilers know but which has no such bound. A Clip to
    bounds that the sum keeps anyway stands between Conv and Mul, since a runtime that merged the two would round
    otherwise. A NaN becomes the lowest integer by a Where, in those layers that one may reach.

    Requires: constant weights, scales and biases. Ensures: no QuantConv2d is left; the results are the same to the
    last bit.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = quant_nodes(model)
        finite: set[ir.Value] = set()
        for node in list(model.graph):
            if is_quant(node):
                finite.add(_Lowering(node).run(guard=node.inputs[X] not in finite))
            elif node.domain == "" and node.op_type in _KEEP_FINITE and all(
                    v is None or v in finite or constant(v) is not None for v in node.inputs):
                finite.update(node.outputs)
        return ir.passes.PassResult(model, bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        if quant_nodes(model):
            raise ir.passes.PostconditionError("an irstd node is left")


class _Lowering(Lowering):
    metadata: ClassVar = {}

    def __init__(self, node: ir.Node):
        super().__init__(node)
        self.spec, self.metadata = quant_spec_of(node), {REQUESTED: precision_of(node)}

    def run(self, guard: bool) -> ir.Value:
        scale, bias = (constant(self.node.inputs[i]).reshape(1, -1, 1, 1) for i in (QUANT_SCALE, QUANT_BIAS))
        q = self.quantize(self.node.inputs[X], guard)
        v = self.convolve(q)
        v = self.emit("Add", [self.emit("Mul", [v, self.const("scale", scale)]), self.const("bias", bias)])
        if (self.spec.clamp_min, self.spec.clamp_max) != (-np.inf, np.inf):
            v = self.clip(v, self.spec.clamp_min, self.spec.clamp_max)
        return self.replace(v)

    @property
    def integer(self) -> type:
        return np.int8 if self.spec.activation_signed else np.uint8

    def quantize(self, x: ir.Value, guard: bool) -> ir.Value:
        low, high = (float(v - self.spec.zero_point) for v in self.spec.activation_range)
        t = self.emit("Mul", [x, self.scalar("inverse_step", self.spec.inverse_step)], x.shape)
        if guard:
            lowest = self.scalar("low", low)
            t = self.emit("Where", [self.emit("GreaterOrEqual", [t, lowest], x.shape), t, lowest], x.shape)
        t = self.clip(t, low, high)  # before the rounding: the bounds are integers, so this is the same
        q = self.emit("QuantizeLinear", [t, self.scalar("one", 1), self.zero_point()], x.shape)
        return self.typed(q, ir.DataType.INT8 if self.spec.activation_signed else ir.DataType.UINT8)

    def zero_point(self) -> ir.Value:
        return self.const("zero_point", self.integer(self.spec.zero_point))

    def convolve(self, q: ir.Value) -> ir.Value:
        s = self.spec
        packed = torch.from_numpy(np.array(constant(self.node.inputs[WEIGHT])))
        weight = self.const("weight", unpack_integers(packed, s).numpy().astype(np.int8))
        geometry = {"kernel_shape": [s.kernel_h, s.kernel_w], "strides": [s.stride_h, s.stride_w],
                    "dilations": [s.dilation_h, s.dilation_w], "group": s.groups,
                    "pads": [s.pad_top, s.pad_left, s.pad_bottom, s.pad_right]}
        if s.largest_sum >= EXACT:
            acc = self.emit("ConvInteger", [q, weight, self.zero_point()], **geometry)
            return self.emit("Cast", [self.typed(acc, ir.DataType.INT32)], to=int(ir.DataType.FLOAT))
        one = self.scalar("one", 1)
        x = self.emit("DequantizeLinear", [q, one, self.zero_point()], q.shape)
        w = self.emit("DequantizeLinear", [weight, one, self.const("weight_zero_point", np.int8(0))], weight.shape)
        bound = float(s.largest_sum)
        return self.clip(self.emit("Conv", [x, w], **geometry), -bound, bound)

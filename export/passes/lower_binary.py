"""Lower ``irstd::BinaryConv2d`` to standard operators, bit for bit."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch

from irstd_edge.export.passes.graph import (
    ACTIVATION,
    BIAS,
    REQUESTED,
    RESIDUAL,
    SCALE,
    THRESHOLD,
    WEIGHT,
    X,
    binary_nodes,
    constant,
    fixed_point_of,
    is_fixed_point,
    operand,
    spec_of,
)
from irstd_edge.export.passes.lower_fixed_point import Lowering
from irstd_edge.nn.functional import unpack_bits
from irstd_edge.opspec import Activation, BinaryConv2dSpec, Residual

INT16_MIN, INT16_MAX = -32768.0, 32767.0


class LowerBinary(ir.passes.InPlacePass):
    """Each binary node becomes Where, Pad, Conv, Mul, Add and what follows, in the order of the spec.

    The ±1 on both sides of the convolution are int8 behind DequantizeLinear of scale 1, as compilers for int8 take
    them: the weights are stored so, and the inputs pass a QuantizeLinear of scale 1, which keeps them.

    Requires: constant weights, thresholds, scales and biases; known channels of the residual. Ensures: no BinaryConv2d
    node is left; the results are the same to the last bit (tanh aside, whose last bits a runtime chooses), also after
    ONNX Runtime's own fusions. :class:`~irstd_edge.export.passes.lower_fixed_point.LowerFixedPoint` comes after it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = binary_nodes(model)
        grids = {n.outputs[0]: fixed_point_of(n).fraction_bits for n in model.graph if is_fixed_point(n)}
        for node in nodes:
            (_Lowering if spec_of(node).fraction_bits < 0 else _IntegerLowering)(node, grids).run()
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


class _Lowering(Lowering):
    """The replacement of one binary node, whose steps behind the convolution are float32 ones.

    ``grids``: fraction bits of the values that are known to be 16-bit fixed-point numbers.
    """

    metadata: ClassVar = {REQUESTED: "W1A1"}

    def __init__(self, node: ir.Node, grids: dict[ir.Value, int]):
        super().__init__(node)
        self.spec, self.grids = spec_of(node), grids

    def channels(self, label: str, array: np.ndarray) -> ir.Value:
        return self.const(label, array.astype(np.float32).reshape(1, -1, 1, 1))

    def run(self) -> None:
        value = self.convolve(self.binarize())
        activated_first = self.spec.activation_first or self.spec.residual == Residual.NONE
        steps = (self.activate, self.combine) if activated_first else (self.combine, self.activate)
        for step in steps:
            value = step(value)
        self.replace(self.result(value))

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
        one, zero = self.scalar("one", 1), self.const("zero", np.int8(0))
        q = self.typed(self.emit("QuantizeLinear", [b, one, zero], b.shape), ir.DataType.INT8)
        return self.emit("DequantizeLinear", [q, one, zero], b.shape)

    def convolve(self, b: ir.Value) -> ir.Value:
        s = self.spec
        pads = [0, 0, 0, 0] if s.pad_value else [s.pad_top, s.pad_left, s.pad_bottom, s.pad_right]
        words = torch.from_numpy(np.array(constant(self.node.inputs[WEIGHT])))
        packed = self.const("weight", unpack_bits(words, s.in_channels // s.groups).numpy().astype(np.int8))
        weight = self.emit("DequantizeLinear", [packed, self.scalar("one", 1), self.const("zero", np.int8(0))],
                           packed.shape)
        v = self.emit(
            "Conv", [b, weight], kernel_shape=[s.kernel_h, s.kernel_w], strides=[s.stride_h, s.stride_w],
            dilations=[s.dilation_h, s.dilation_w], group=s.groups, pads=pads,
        )
        return self.affine(v, *(constant(self.node.inputs[i]) for i in (SCALE, BIAS)))

    def affine(self, acc: ir.Value, scale: np.ndarray, bias: np.ndarray) -> ir.Value:
        v = self.clip(acc, *self.limits()) if self.needs_guard(scale, bias) else acc
        return self.add_channels("bias", self.multiply_channels("scale", v, scale), bias)

    def limits(self) -> tuple[float, float]:
        """What the integer sum keeps between."""
        return float(-self.spec.macs_per_output), float(self.spec.macs_per_output)

    def add_channels(self, label: str, v: ir.Value, array: np.ndarray) -> ir.Value:
        return self.emit("Add", [v, self.channels(label, array)]) if np.any(array) else v

    def multiply_channels(self, label: str, v: ir.Value, array: np.ndarray) -> ir.Value:
        return self.emit("Mul", [v, self.channels(label, array)]) if np.any(array != 1) else v

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
            return self.rprelu(v, *constant(self.node.inputs[ACTIVATION]))
        return self.clamp(v, s.clamp_min, s.clamp_max) if s.activation == Activation.CLAMP else v

    def rprelu(self, v: ir.Value, shift_in: np.ndarray, slope: np.ndarray, shift_out: np.ndarray) -> ir.Value:
        # A Sub: ONNX Runtime would merge a second Add into the first.
        v = self.emit("Sub", [v, self.channels("shift_in", shift_in)]) if np.any(shift_in) else v
        v = self.prelu(v, slope)
        return self.add_channels("shift_out", v, shift_out)

    def prelu(self, v: ir.Value, slope: np.ndarray) -> ir.Value:
        return self.emit("PRelu", [v, self.const("slope", slope.reshape(-1, 1, 1))])

    def clamp(self, v: ir.Value, low: float, high: float) -> ir.Value:
        return self.clip(v, low, high)

    def combine(self, v: ir.Value) -> ir.Value:
        if self.spec.residual == Residual.NONE:
            return v
        r = self.residual()
        return self.modulate(v, r) if self.spec.residual == Residual.MODULATE else self.add(v, r)

    def modulate(self, v: ir.Value, r: ir.Value) -> ir.Value:
        return self.emit("Add", [r, self.emit("Mul", [r, self.emit("Tanh", [v])])])

    def add(self, v: ir.Value, r: ir.Value) -> ir.Value:
        return self.emit("Add", [v, r])

    def residual(self) -> ir.Value:
        return self.match(operand(self.node, RESIDUAL))

    def match(self, r: ir.Value) -> ir.Value:
        """The residual with its channels repeated or averaged to OC."""
        channels, count = self.spec.out_channels, r.shape[1]
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
        return self.emit("Div", [total, self.scalar("parts", count // channels)])

    def result(self, v: ir.Value) -> ir.Value:
        return v


class _IntegerLowering(_Lowering):
    """The same on 16-bit integers in units of 2^-fraction_bits.

    ``bound`` is the largest magnitude that a value can have: saturation is left out where it can do nothing.
    """

    def __init__(self, node: ir.Node, grids: dict[ir.Value, int]):
        super().__init__(node, grids)
        self.bits, self.step = self.spec.fraction_bits, np.float32(2.0**self.spec.fraction_bits)

    def integers(self, array: np.ndarray) -> np.ndarray:
        return np.floor(array * self.step + np.float32(0.5))

    def saturate(self, v: ir.Value, bound: float) -> ir.Value:
        self.bound = bound
        if bound <= INT16_MAX:
            return v
        self.bound = -INT16_MIN
        return self.clip(v, INT16_MIN, INT16_MAX)

    def shifted(self, label: str, v: ir.Value, integers: np.ndarray) -> ir.Value:
        return self.saturate(self.add_channels(label, v, integers), self.bound + np.max(np.abs(integers)))

    def affine(self, acc: ir.Value, scale: np.ndarray, bias: np.ndarray) -> ir.Value:
        scale = scale * self.step
        if not exact_in_any_order(self.spec, scale, np.full_like(scale, 0.5)):
            acc = self.clip(acc, *self.limits())
        v = self.round_half_up(self.multiply_channels("scale", acc, scale))
        v = self.saturate(v, self.spec.macs_per_output * np.max(np.abs(scale)) + 1)
        return self.shifted("bias", v, self.integers(bias))

    def rprelu(self, v: ir.Value, shift_in: np.ndarray, slope: np.ndarray, shift_out: np.ndarray) -> ir.Value:
        v = self.shifted("shift_in", v, -self.integers(shift_in))
        # Rounding leaves the integers above zero as they are.
        v = self.round_half_up(self.prelu(v, slope))
        v = self.saturate(v, self.bound * max(1, np.max(np.abs(slope))) + 1)
        return self.shifted("shift_out", v, self.integers(shift_out))

    def clamp(self, v: ir.Value, low: float, high: float) -> ir.Value:
        low, high = np.clip(self.integers(np.array([low, high], np.float32)), INT16_MIN, INT16_MAX)
        self.bound = max(abs(low), abs(high))
        return self.clip(v, low, high)

    def residual(self) -> ir.Value:
        r = operand(self.node, RESIDUAL)
        known = self.grids.get(r) == self.bits
        matched = self.match(self.scaled(r, self.step) if known else self.to_integer(r, self.bits))
        return self.round_half_up(matched) if r.shape[1] > self.spec.out_channels else matched

    def add(self, v: ir.Value, r: ir.Value) -> ir.Value:
        return self.saturate(self.emit("Add", [v, r]), self.bound - INT16_MIN)

    def modulate(self, v: ir.Value, r: ir.Value) -> ir.Value:
        v, r = (self.from_integer(u, self.bits) for u in (v, r))
        self.bound = -INT16_MIN
        return self.to_integer(super().modulate(v, r), self.bits, guard=False)

    def result(self, v: ir.Value) -> ir.Value:
        v = self.from_integer(v, self.bits)
        self.grids[v] = self.bits
        return v

"""The operator specification, version 1, of the ONNX / TFLite domain ``irstd``.

This file is the single source of the contract between training, export, the kernels and the
runtimes: ONNX schemas, TFLite option keys, the C constants, the validation on load, the docs table
and the test parameters are all derived from :data:`OPERATORS`.

Bits
    Packed along the input channels of one group in int32 words: bit *i* (least significant first)
    of word *j* is channel ``32 * j + i``; bit 1 is +1, bit 0 is -1, tail bits are zero.
    Weights are ``[OC, KH, KW, ceil((IC / groups) / 32)]``.

``irstd.BinaryConv2d`` with fraction_bits = -1, in this order, every step rounded to float32 (no fused multiply-add)::

    b    = +1 where x >= threshold[ic], else -1          (sign(0) = +1; NaN gives -1)
    acc  = sum of b * w over the taps inside the image
           + sum of pad_value * w over the taps outside  (exact integer)
    v    = acc * scale[oc] + bias[oc]
    r    = residual, its channels matched to OC: repeated (r[oc % RC]) where RC divides OC,
           averaged (sum of r[oc + j * OC] / (RC / OC), j ascending) where OC divides RC
    act  = RPReLU: t = v - shift_in; t = t if t >= 0 else t * slope; t + shift_out
           or clamp: min(max(v, clamp_min), clamp_max)
    residual mode `add` is v + r, `modulate` is r + r * tanh(v)
    activation_first = 1: act, then residual;  0: residual, then act

With fraction_bits = f >= 0 the values behind acc are 16-bit integers in units of 2^-f. rnd(x) is floor(x + 1/2), half
up; sat(q) is min(max(q, -32768), 32767), a NaN becomes -32768; the steps are float32 operations still::

    v    = sat(rnd(acc * scale[oc] * 2^f));  v = sat(v + rnd(bias[oc] * 2^f))
    r    = sat(rnd(residual * 2^f)), matched as above; the average is rnd(sum / (RC / OC))
    act  = RPReLU: t = sat(v - rnd(shift_in * 2^f)); t = t if t >= 0 else sat(rnd(t * slope));
           sat(t + rnd(shift_out * 2^f))
           or clamp: min(max(v, sat(rnd(clamp_min * 2^f))), sat(rnd(clamp_max * 2^f)))
    residual mode `add` is sat(v + r), `modulate` is sat(rnd((r' + r' * tanh(v')) * 2^f)), r' = r / 2^f, v' = v / 2^f
    y    = the last of these / 2^f

``irstd.FixedPoint``: the 2^-f grid of `bits` bits; a NaN becomes the lowest value::

    y    = min(max(rnd(x * 2^f), -2^(bits - 1)), 2^(bits - 1) - 1) / 2^f

``irstd.QuantConv2d``, weights of k bits, activations of m bits; inside Programs only: no adapter has it as a node, and
the portable file holds standard operators of the same bits. Every step behind acc is rounded to float32 (no fused
multiply-add)::

    q    = min(max(rne(x * inverse_step) + zero_point, low), high)   rne: half to even; a NaN becomes low
           low, high = -2^(m - 1), 2^(m - 1) - 1 where activation_signed, else 0, 2^m - 1
    acc  = sum of (q - zero_point) * w over the taps inside the image (exact integer; padding is an exact zero)
    v    = acc * scale[oc] + bias[oc]
    y    = min(max(v, clamp_min), clamp_max)                          (ReLU: clamp_min = 0)

Weights are integers -2^(k - 1) .. 2^(k - 1) - 1, or -1 and +1 where k = 1; `scale` is the step of an output channel's
weights times that of the activations, with what was folded into it. Those of an output channel are a string of k-bit
two's complement numbers (k = 1: bit 1 is +1), least significant bit first, in the order kernel row, kernel column,
input channel of the group, filled up with zero bits to whole bytes.

``irstd.Program``: a part of a network, or all of it, as one node: for each image of the batch, the outputs of the
``model.irstd`` (docs/native.md) in `program` for the images `x`. Why one node, and no packed tensors between nodes: a
tensor between nodes is written to memory whole and read again; inside, maps are packed bits and 16-bit rows, and only
the lines that the next layer needs exist at a time. BinaryConv2d nodes stay possible, beside Programs or alone. Why a
constant input, and no attribute: STRING attributes are UTF-8 text, which tools decode and C may end at the first zero
byte; a uint8 constant is binary in every tool, in both formats.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from typing import ClassVar, Self

DOMAIN = "irstd"
OPSET_VERSION = 1
WORD_BITS = 32
#: The only bit order of version 1: least significant bit first, set bit = +1.
BIT_ORDER_LSB_PLUS_ONE = 1
MAX_KERNEL = 31
MAX_CHANNELS = 1 << 16
MAX_STEP = 1 << 12
MAX_SIDE = 1 << 15
#: Inputs, and outputs, of one Program.
MAX_IMAGES = 16


class OpSpecError(ValueError):
    """An operator violates the specification; the message names the attribute and the way out."""


class Residual(IntEnum):
    NONE = 0
    ADD = 1
    MODULATE = 2


class Activation(IntEnum):
    NONE = 0
    RPRELU = 1
    CLAMP = 2


@dataclass(frozen=True)
class Attribute:
    """One scalar attribute: the ONNX attribute, the flexbuffer key and the C field of one name."""

    name: str
    kind: type  # int or float
    default: int | float | None  # None: mandatory
    allowed: tuple | None  # a set of values, or None
    minimum: int | float | None
    maximum: int | float | None
    doc: str

    def check(self, value: int | float) -> None:
        if self.kind is int and (isinstance(value, bool) or not isinstance(value, int)):
            raise OpSpecError(f"{self.name} must be an integer, got {value!r}")
        if self.allowed is not None and value not in self.allowed:
            raise OpSpecError(f"{self.name} must be one of {list(self.allowed)}, got {value}")
        if self.minimum is not None and not value >= self.minimum:
            raise OpSpecError(f"{self.name} must be at least {self.minimum}, got {value}")
        if self.maximum is not None and not value <= self.maximum:
            raise OpSpecError(f"{self.name} must be at most {self.maximum}, got {value}")


@dataclass(frozen=True)
class Operand:
    """One input: name, element type, shape in terms of the specification's letters."""

    name: str
    dtype: str  # "float32", "int32" or "uint8"
    shape: str
    optional: bool
    constant: bool
    doc: str
    variadic: bool = False  # one or more of them, the last


def _int(name, default, doc, allowed=None, minimum=None, maximum=None):
    return Attribute(name, int, default, allowed, minimum, maximum, doc)


BINARY_CONV2D_ATTRIBUTES: tuple[Attribute, ...] = (
    _int("version", None, "operator version", allowed=(OPSET_VERSION,)),
    _int("bit_order", None, "1: least significant bit first, set bit = +1", allowed=(BIT_ORDER_LSB_PLUS_ONE,)),
    _int("in_channels", None, "input channels IC", minimum=1, maximum=MAX_CHANNELS),
    _int("out_channels", None, "output channels OC", minimum=1, maximum=MAX_CHANNELS),
    _int("kernel_h", None, "kernel height KH", minimum=1, maximum=MAX_KERNEL),
    _int("kernel_w", None, "kernel width KW", minimum=1, maximum=MAX_KERNEL),
    _int("stride_h", 1, "vertical stride", minimum=1, maximum=MAX_STEP),
    _int("stride_w", 1, "horizontal stride", minimum=1, maximum=MAX_STEP),
    _int("dilation_h", 1, "vertical dilation", minimum=1, maximum=MAX_STEP),
    _int("dilation_w", 1, "horizontal dilation", minimum=1, maximum=MAX_STEP),
    _int("pad_top", 0, "padding rows above", minimum=0, maximum=MAX_STEP),
    _int("pad_left", 0, "padding columns on the left", minimum=0, maximum=MAX_STEP),
    _int("pad_bottom", 0, "padding rows below", minimum=0, maximum=MAX_STEP),
    _int("pad_right", 0, "padding columns on the right", minimum=0, maximum=MAX_STEP),
    _int("groups", 1, "groups; divides IC and OC", minimum=1, maximum=MAX_CHANNELS),
    _int("pad_value", None, "value of the padding after binarisation: 0 (exact zero), +1 or -1", allowed=(-1, 0, 1)),
    _int("residual", 0, "0 none, 1 add, 2 modulate (r + r * tanh(v))", allowed=tuple(int(r) for r in Residual)),
    _int("activation", 0, "0 none, 1 RPReLU, 2 clamp", allowed=tuple(int(a) for a in Activation)),
    _int("activation_first", 1, "1: activation before the residual, 0: after it", allowed=(0, 1)),
    Attribute("clamp_min", float, float("-inf"), None, None, None, "lower bound of the clamp"),
    Attribute("clamp_max", float, float("inf"), None, None, None, "upper bound of the clamp"),
    _int("fraction_bits", -1, "-1: float32 arithmetic; 0..15: 16-bit fixed-point arithmetic in units of 2^-f",
         minimum=-1, maximum=15),
)

BINARY_CONV2D_INPUTS: tuple[Operand, ...] = (
    Operand("x", "float32", "[N, IC, H, W]", False, False, "input feature map (TFLite: [N, H, W, IC])"),
    Operand("weight", "int32", "[OC, KH, KW, ceil((IC / groups) / 32)]", False, True, "packed weight signs"),
    Operand("threshold", "float32", "[IC]", False, True, "bit is 1 where x >= threshold"),
    Operand("scale", "float32", "[OC]", False, True, "per-channel scale of the integer result"),
    Operand("bias", "float32", "[OC]", False, True, "per-channel bias"),
    Operand("activation_parameters", "float32", "[3, OC]", True, True,
            "RPReLU rows shift_in, slope, shift_out; absent otherwise"),
    Operand("residual_input", "float32", "[N, RC, OH, OW]", True, False,
            "residual; RC divides OC or OC divides RC (TFLite: [N, OH, OW, RC])"),
)


_CONVOLUTION_ATTRIBUTES = tuple(a for a in BINARY_CONV2D_ATTRIBUTES if a.name in (
    "in_channels", "out_channels", "kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w",
    "pad_top", "pad_left", "pad_bottom", "pad_right", "groups"))

QUANT_CONV2D_ATTRIBUTES: tuple[Attribute, ...] = (
    _int("version", None, "operator version", allowed=(OPSET_VERSION,)),
    *_CONVOLUTION_ATTRIBUTES,
    _int("weight_bits", None, "bits of a weight, k", minimum=1, maximum=8),
    _int("activation_bits", None, "bits of a quantised input, m", minimum=1, maximum=8),
    _int("activation_signed", 0, "1: quantised inputs are signed, and of 2 bits or more", allowed=(0, 1)),
    _int("zero_point", 0, "quantised value of 0", minimum=-128, maximum=255),
    Attribute("inverse_step", float, None, None, 2.0**-126, 2.0**126, "1 / step of the quantised input"),
    Attribute("clamp_min", float, float("-inf"), None, None, None, "lower bound of the output"),
    Attribute("clamp_max", float, float("inf"), None, None, None, "upper bound of the output"),
)

QUANT_CONV2D_INPUTS: tuple[Operand, ...] = (
    Operand("x", "float32", "[N, IC, H, W]", False, False, "input feature map (TFLite: [N, H, W, IC])"),
    Operand("weight", "uint8", "[OC, ceil(KH * KW * (IC / groups) * k / 8)]", False, True, "packed weights"),
    Operand("scale", "float32", "[OC]", False, True, "per-channel scale of the integer result"),
    Operand("bias", "float32", "[OC]", False, True, "per-channel bias"),
)


@dataclass(frozen=True)
class Operator:
    name: str
    doc: str
    attributes: tuple[Attribute, ...]
    inputs: tuple[Operand, ...]

    @property
    def tflite_name(self) -> str:
        """Custom code in a .tflite file."""
        return f"{DOMAIN}.{self.name}"


BINARY_CONV2D = Operator(
    "BinaryConv2d",
    "Threshold, binary convolution, scale, bias, activation and residual in one node.",
    BINARY_CONV2D_ATTRIBUTES,
    BINARY_CONV2D_INPUTS,
)
QUANT_CONV2D = Operator(
    "QuantConv2d",
    "Uniform quantisation of the input, integer convolution, scale, bias and clamp in one node. It stands inside "
    "Programs only: neither ONNX Runtime's nor TFLite's adapter has it as a node, and the portable file lowers it to "
    "standard operators.",
    QUANT_CONV2D_ATTRIBUTES,
    QUANT_CONV2D_INPUTS,
)
FIXED_POINT = Operator(
    "FixedPoint",
    "Round every value half up to a fixed-point grid and saturate it there. Outside of Programs, files hold it as "
    "standard operators.",
    (
        _int("version", None, "operator version", allowed=(OPSET_VERSION,)),
        _int("fraction_bits", None, "the step of the grid is 2^-fraction_bits", minimum=0, maximum=15),
        _int("bits", None, "bits of a value, its sign included", minimum=2, maximum=16),
    ),
    (Operand("x", "float32", "any", False, False, "values to round"),),
)
PROGRAM = Operator(
    "Program",
    "A part of a network, or all of it, run by the engine from the bytes of a model.irstd. There is one output "
    "`[N, C, H, W]` (TFLite: `[N, H, W, C]`) for each of the program's.",
    (
        _int("version", None, "operator version", allowed=(OPSET_VERSION,)),
        _int("height", None, "of an image that the program fits: it is opened for one when the model is loaded",
             minimum=1, maximum=MAX_SIDE),
        _int("width", None, "its width; any other size is opened when it comes", minimum=1, maximum=MAX_SIDE),
    ),
    (
        Operand("program", "uint8", "[B]", False, True, "bytes of a model.irstd"),
        Operand("x", "float32", "[N, C, H, W]", False, False, "one for each of the 1 to 16 inputs of the program, "
                "all of one size (TFLite: [N, H, W, C])", variadic=True),
    ),
)
OPERATORS: dict[str, Operator] = {o.name: o for o in (BINARY_CONV2D, QUANT_CONV2D, FIXED_POINT, PROGRAM)}


class _Spec:
    """Attributes of one node, as a dataclass that knows its ``operator``."""

    operator: ClassVar[Operator]

    def __post_init__(self):
        for attribute in self.operator.attributes:
            attribute.check(getattr(self, attribute.name))

    @classmethod
    def from_attributes(cls, attributes: dict[str, int | float]) -> Self:
        """Build and validate from a node's attributes; unknown or missing ones are errors."""
        known = {a.name: a for a in cls.operator.attributes}
        unknown = sorted(set(attributes) - set(known))
        if unknown:
            raise OpSpecError(f"unknown attributes of {DOMAIN}.{cls.operator.name}: {', '.join(unknown)}")
        missing = [a.name for a in known.values() if a.default is None and a.name not in attributes]
        if missing:
            raise OpSpecError(f"missing attributes of {DOMAIN}.{cls.operator.name}: {', '.join(missing)}")
        return cls(**attributes)

    def attributes(self) -> dict[str, int | float]:
        """All attributes by name, in the specification's order."""
        values = asdict(self)
        return {a.name: values[a.name] for a in self.operator.attributes}


@dataclass(frozen=True)
class FixedPointSpec(_Spec):
    """The attributes of one ``irstd.FixedPoint`` node; an :class:`OpSpecError` where one is out of range."""

    fraction_bits: int
    bits: int
    version: int = OPSET_VERSION

    operator = FIXED_POINT


@dataclass(frozen=True)
class ProgramSpec(_Spec):
    """The attributes of one ``irstd.Program`` node; an :class:`OpSpecError` where one is out of range."""

    height: int
    width: int
    version: int = OPSET_VERSION

    operator = PROGRAM


class _ConvolutionSpec(_Spec):
    """What the convolutions' attributes have in common."""

    def __post_init__(self):
        super().__post_init__()
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise OpSpecError(
                f"groups must divide in_channels and out_channels: groups={self.groups}, "
                f"in_channels={self.in_channels}, out_channels={self.out_channels}"
            )
        if not self.clamp_min <= self.clamp_max:
            raise OpSpecError(f"clamp_min must not exceed clamp_max: {self.clamp_min} > {self.clamp_max}")

    @property
    def macs_per_output(self) -> int:
        """Multiply-accumulates per output value."""
        return self.kernel_h * self.kernel_w * (self.in_channels // self.groups)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Output height and width; raises :class:`OpSpecError` when the kernel exceeds the padded image."""
        out = []
        for size, before, after, kernel, stride, dilation, axis in (
            (height, self.pad_top, self.pad_bottom, self.kernel_h, self.stride_h, self.dilation_h, "height"),
            (width, self.pad_left, self.pad_right, self.kernel_w, self.stride_w, self.dilation_w, "width"),
        ):
            extent = dilation * (kernel - 1) + 1
            if size + before + after < extent:
                raise OpSpecError(f"input {axis} {size} plus padding is smaller than the dilated kernel ({extent})")
            out.append((size + before + after - extent) // stride + 1)
        return out[0], out[1]


@dataclass(frozen=True)
class BinaryConv2dSpec(_ConvolutionSpec):
    """The attributes of one ``irstd.BinaryConv2d`` node; the fields are :data:`BINARY_CONV2D_ATTRIBUTES`.

    Raises :class:`OpSpecError` on construction when an attribute is out of range.
    """

    in_channels: int
    out_channels: int
    kernel_h: int
    kernel_w: int
    pad_value: int
    stride_h: int = 1
    stride_w: int = 1
    dilation_h: int = 1
    dilation_w: int = 1
    pad_top: int = 0
    pad_left: int = 0
    pad_bottom: int = 0
    pad_right: int = 0
    groups: int = 1
    residual: int = 0
    activation: int = 0
    activation_first: int = 1
    clamp_min: float = float("-inf")
    clamp_max: float = float("inf")
    fraction_bits: int = -1
    version: int = OPSET_VERSION
    bit_order: int = BIT_ORDER_LSB_PLUS_ONE

    operator = BINARY_CONV2D

    @property
    def words(self) -> int:
        """int32 words per kernel tap: ceil((IC / groups) / 32)."""
        return -(-(self.in_channels // self.groups) // WORD_BITS)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.out_channels, self.kernel_h, self.kernel_w, self.words)

    def check_residual_channels(self, channels: int) -> None:
        if channels < 1 or (self.out_channels % channels and channels % self.out_channels):
            raise OpSpecError(
                f"residual channels ({channels}) must divide out_channels ({self.out_channels}) or be a multiple of it"
            )


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """The lowest and the highest integer of ``bits`` bits; one signed bit is -1 and +1."""
    if not signed:
        return 0, 2**bits - 1
    return (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@dataclass(frozen=True)
class QuantConv2dSpec(_ConvolutionSpec):
    """The attributes of one ``irstd.QuantConv2d`` node; the fields are :data:`QUANT_CONV2D_ATTRIBUTES`.

    Raises :class:`OpSpecError` on construction when an attribute is out of range.
    """

    in_channels: int
    out_channels: int
    kernel_h: int
    kernel_w: int
    weight_bits: int
    activation_bits: int
    inverse_step: float
    activation_signed: int = 0
    zero_point: int = 0
    stride_h: int = 1
    stride_w: int = 1
    dilation_h: int = 1
    dilation_w: int = 1
    pad_top: int = 0
    pad_left: int = 0
    pad_bottom: int = 0
    pad_right: int = 0
    groups: int = 1
    clamp_min: float = float("-inf")
    clamp_max: float = float("inf")
    version: int = OPSET_VERSION

    operator = QUANT_CONV2D

    def __post_init__(self):
        super().__post_init__()
        if self.activation_signed and self.activation_bits < 2:
            raise OpSpecError("activation_bits must be at least 2 where activation_signed is 1; "
                              "inputs of -1 and +1 are BinaryConv2d's")
        low, high = self.activation_range
        if not low <= self.zero_point <= high:
            raise OpSpecError(f"zero_point must be among the quantised inputs, {low} to {high}, got {self.zero_point}")
        if self.largest_sum >= 2**31:
            raise OpSpecError(f"sums of {self.macs_per_output} products of {self.weight_bits} and "
                              f"{self.activation_bits} bits can exceed 32 bits: use fewer channels or bits")

    @property
    def activation_range(self) -> tuple[int, int]:
        """The lowest and the highest quantised input."""
        return integer_range(self.activation_bits, bool(self.activation_signed))

    @property
    def weight_range(self) -> tuple[int, int]:
        """The lowest and the highest weight."""
        return integer_range(self.weight_bits, True)

    @property
    def weight_shape(self) -> tuple[int, int]:
        return (self.out_channels, -(-self.macs_per_output * self.weight_bits // 8))

    @property
    def largest_sum(self) -> int:
        """A bound of the absolute value of the integer result."""
        low, high = self.activation_range
        return (self.macs_per_output * -min(self.weight_range)
                * max(high - self.zero_point, self.zero_point - low))


for _spec in (BinaryConv2dSpec, QuantConv2dSpec, FixedPointSpec, ProgramSpec):
    assert {f.name for f in fields(_spec)} == {a.name for a in _spec.operator.attributes}

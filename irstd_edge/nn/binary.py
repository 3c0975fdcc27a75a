"""Binarised layers: sign with its surrogates, the plain binary convolution, the units of BiisNet and its rivals.

Dynamic Softsign and Dot-binary convolution are reconstructed from the abstract of BiisNet
(arXiv 2503.02662), which prints no formula; what is here is our reading. The other units
(:data:`STYLES`) follow their papers' descriptions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from irstd_edge.nn.blocks import ExactConv2d, exact_conv2d
from irstd_edge.nn.functional import binary_conv2d, match_channels, pack_bits, round_half_up
from irstd_edge.opspec import Activation, BinaryConv2dSpec, OpSpecError, Residual

#: Grids of folded scales and of the slopes of a fixed-point RPReLU: ``acc * scale`` and ``t * slope`` are then exact in
#: float32 wherever they do not saturate, whatever order, contraction or fusion a runtime chooses, so all of them give
#: the same signs further on.
SCALE_FRACTION_BITS = 14
SLOPE_FRACTION_BITS = 8
DOT_READINGS = ("add", "modulate", "pointwise")


#: What the backward pass takes for the derivative of sign, as s'(v) of v = k (x + shift), and whether k is learned.
SURROGATES = {
    # BiisNet, reconstructed: v / (1 + |v|), in place, as maps are large
    "dynamic-softsign": (lambda v: v.abs().add_(1).square_().reciprocal_(), True),
    "ste": (lambda v: (v.abs() <= 1).to(v.dtype), False),  # XNOR-Net: clip(v, -1, 1)
    "approxsign": (lambda v: torch.clamp(2 - 2 * v.abs(), min=0), False),  # Bi-Real Net: piecewise quadratic
    "scaled-tanh": (lambda v: 1 - torch.tanh(v).square(), True),  # BiSRNet: tanh(v)
}


class _Sign(torch.autograd.Function):
    """Forward sign(x + shift) with sign(0) = +1; backward through s(k (x + shift)), s by its name.

    Shift and k may be None.
    """

    @staticmethod
    def forward(ctx, x, shift, k, surrogate):
        ctx.save_for_backward(x, shift, k)
        ctx.surrogate = surrogate
        bound = 0 if shift is None else -shift
        if torch.compiler.is_compiling():  # and exporting, whose passes know a sign by this form
            return torch.where(x >= bound, 1.0, -1.0).to(x.dtype)
        return _indicator(torch.ge, x, bound).mul_(2).sub_(1)

    @staticmethod
    def backward(ctx, grad):
        x, shift, k = ctx.saved_tensors
        u = x if shift is None else x + shift
        derivative, _ = SURROGATES[ctx.surrogate]
        gx = derivative(u if k is None else k * u) * grad
        gk = None
        if k is not None:
            gk = _reduce(gx * u, k)
            gx.mul_(k)
        return gx, None if shift is None else _reduce(gx, shift), gk, None


def _indicator(compare, x: torch.Tensor, bound: torch.Tensor | float) -> torch.Tensor:
    """1 where the comparison holds, else 0, in the dtype of x: on a CPU faster than by way of a mask."""
    if torch.compiler.is_compiling():  # which fuses the mask, but does not take ``out``
        return compare(x, bound).to(x.dtype)
    return compare(x, bound, out=torch.empty_like(x))


def _reduce(grad: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Sum a gradient down to the (broadcast) shape of a parameter."""
    return grad.sum_to_size(parameter.shape)


def sign_ste(x: torch.Tensor) -> torch.Tensor:
    """sign with sign(0) = +1 and the clipped straight-through gradient."""
    return _Sign.apply(x, None, None, "ste")


class Binarize(nn.Module):
    """Binarise ``x + shift`` to +1/-1; the backward pass uses a surrogate, see :data:`SURROGATES`.

    Args:
        channels: input channels; shift and slope, where there are any, are learned per channel.
        surrogate: a key of :data:`SURROGATES`.
        shifted: whether a shift is learned.
        k_init: initial slope k > 0 of a surrogate that learns it.

    Shapes: float ``[N, C, H, W]`` to float ``[N, C, H, W]`` of +1 and -1. Raises :class:`ValueError`.
    """

    def __init__(self, channels: int, surrogate: str = "dynamic-softsign", shifted: bool = True, k_init: float = 1.0):
        super().__init__()
        if surrogate not in SURROGATES:
            raise ValueError(f"surrogate must be one of {', '.join(SURROGATES)}, got {surrogate!r}")
        self.surrogate, (_, learned) = surrogate, SURROGATES[surrogate]
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1)) if shifted else None
        slope = torch.full((channels, 1, 1), math.log(math.expm1(k_init)))
        self.slope = nn.Parameter(slope) if learned else None

    @property
    def k(self) -> torch.Tensor | None:
        return None if self.slope is None else F.softplus(self.slope)

    def threshold(self) -> torch.Tensor | float:
        """``[C]``, or 0 without a shift: the output is +1 where x >= threshold."""
        return 0.0 if self.shift is None else -self.shift.detach().flatten()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Sign.apply(x, self.shift, self.k, self.surrogate)


class DynamicSoftsign(Binarize):
    """Binarise with Dynamic Softsign of a learned slope and shift per channel.

    The gradient is that of ``k x / (1 + k |x|)``, smooth, in -1..1, which tends to sign as k grows (reconstructed)."""

    def __init__(self, channels: int, k_init: float = 1.0):
        super().__init__(channels, k_init=k_init)


class _PReLU(torch.autograd.Function):
    """``F.prelu``; on a CPU its own backward pass goes value by value, not by vectors."""

    @staticmethod
    def forward(ctx, t, slope):
        ctx.save_for_backward(t, slope)
        return F.prelu(t, slope.flatten())

    @staticmethod
    def backward(ctx, grad):
        t, slope = ctx.saved_tensors
        derivative = _indicator(torch.gt, t, 0.0).mul_(1 - slope).add_(slope)
        return derivative.mul_(grad), _reduce(t.clamp(max=0).mul_(grad), slope)


class RPReLU(nn.Module):
    """ReActNet's shifted PReLU: ``prelu(x - shift_in) + shift_out``, all per channel."""

    def __init__(self, channels: int, slope: float = 0.25):
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), slope))
        self.shift_out = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shift_in, slope, shift_out = (p.view(-1, 1, 1) for p in (self.shift_in, self.slope, self.shift_out))
        return _PReLU.apply(x - shift_in, slope) + shift_out


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


class BinaryConv2d(nn.Module):
    """Convolution of sign(input) with sign(weight), scaled per output channel by mean |weight|.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as in ``nn.Conv2d``.
        pad_value: what the padding holds after binarisation: 0 (exact zero, as PyTorch pads), +1 or -1.
        scale: multiply by mean |weight| of each output channel (XNOR-Net), detached from the gradient.
        binarize_input: False where the input already is +1/-1 (an explicit :class:`DynamicSoftsign` before it).

    Shapes: float ``[N, IC, H, W]`` to float ``[N, OC, OH, OW]``. Raises :class:`OpSpecError` on impossible sizes.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, *,
                 pad_value: int = 0, scale: bool = True, binarize_input: bool = True):
        super().__init__()
        kernel, step, pad, spread = _pair(kernel_size), _pair(stride), _pair(padding), _pair(dilation)
        self.spec = BinaryConv2dSpec(
            in_channels, out_channels, *kernel, pad_value, *step, *spread, pad[0], pad[1], pad[0], pad[1], groups
        )
        self.scale = scale
        self.binarize_input = binarize_input
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *kernel))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def alpha(self) -> torch.Tensor:
        """``[OC]``: mean |weight|, or ones without scaling; detached."""
        if not self.scale:
            return torch.ones(self.spec.out_channels, device=self.weight.device)
        return self.weight.detach().abs().mean((1, 2, 3))

    def packed_weight(self) -> torch.Tensor:
        return pack_bits(self.weight.detach() >= 0)

    def freeze(self) -> FoldedBinaryConv2d:
        """The inference form: threshold 0, scale alpha, no bias."""
        device = self.weight.device
        return FoldedBinaryConv2d(
            self.spec, self.packed_weight(), torch.zeros(self.spec.in_channels, device=device), self.alpha(),
            torch.zeros(self.spec.out_channels, device=device),
        )

    def extra_repr(self) -> str:
        s = self.spec
        return f"{s.in_channels}, {s.out_channels}, kernel={s.kernel_h}x{s.kernel_w}, pad_value={s.pad_value}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = self.spec
        if not self.training:
            return self.freeze()(x)
        x = sign_ste(x) if self.binarize_input else x
        weight = sign_ste(self.weight) * self.alpha().view(-1, 1, 1, 1)
        padding = (s.pad_top, s.pad_left)
        if s.pad_value and any(padding):
            x = F.pad(x, (s.pad_left, s.pad_right, s.pad_top, s.pad_bottom), value=float(s.pad_value))
            padding = 0
        return F.conv2d(x, weight, None, (s.stride_h, s.stride_w), padding, (s.dilation_h, s.dilation_w), s.groups)


class FoldedBinaryConv2d(nn.Module):
    """The inference form of a binary unit: exactly one ``irstd.BinaryConv2d`` operator, all constants in buffers.

    ``forward(x, residual=None)``: float ``[N, IC, H, W]`` (and ``[N, RC, OH, OW]``) to float ``[N, OC, OH, OW]``.
    """

    def __init__(self, spec: BinaryConv2dSpec, weight, threshold, scale, bias, activation_parameters=None):
        super().__init__()
        self.spec = spec
        for name, value in (("weight", weight), ("threshold", threshold), ("scale", scale), ("bias", bias),
                            ("activation_parameters", activation_parameters)):
            self.register_buffer(name, value)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        return binary_conv2d(
            x, self.weight, self.threshold, self.scale, self.bias, self.spec, self.activation_parameters, residual
        )


@dataclass(frozen=True)
class UnitStyle:
    """How a unit is built around its binary convolution; r is the full-precision feature that goes past it.

    Args:
        residual: a reading of Dot-binary convolution, or ``none``: nothing goes past.
        surrogate: a key of :data:`SURROGATES`.
        shifted: whether signs are taken of ``x + shift``, shift learned per channel.
        norm: BN ``after`` the convolution, ``before`` the sign (without gain: a positive one changes no sign, and
            the shift is its offset), or ``none``.
        activation: ``rprelu``, ``relu`` or ``none``.
        activation_first: whether the activation comes before r is added.
    """

    residual: str = "add"
    surrogate: str = "dynamic-softsign"
    shifted: bool = True
    norm: str = "after"
    activation: str = "rprelu"
    activation_first: bool = True


#: The units by name: BiisNet's (reconstructed) and those that binary networks compare with.
STYLES: dict[str, UnitStyle] = {
    "dot": UnitStyle(),
    "xnor": UnitStyle("none", "ste", norm="before", activation="relu"),
    "bireal": UnitStyle("add", "approxsign", shifted=False, activation="none"),
    "reactnet": UnitStyle("add", "approxsign", activation_first=False),
    "bisrnet": UnitStyle("add", "scaled-tanh", norm="none"),
}


class BinaryUnit(nn.Module):
    """A binary convolution with its sign, normalisation, activation and full-precision path, as a style says.

    Training computes them as separate differentiable steps. Evaluation computes the folded operator (:meth:`fold`),
    whose constants lie on fixed-point grids and whose steps are 16-bit integers, so that every runtime reproduces it
    bit for bit.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, pad_value: as :class:`BinaryConv2d`.
        style: a :class:`UnitStyle`.
        fraction_bits: fixed-point grid of evaluation, or -1 for plain float32.

    Shapes: ``forward(x, r=None)``; r (default x) has channels that divide or are a multiple of OC
    (repeated or averaged), and the output's height and width.
    """

    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, padding=1, dilation=1, groups=1, *,
                 style: UnitStyle = STYLES["dot"], pad_value: int = 0, fraction_bits: int = 8):
        super().__init__()
        self.style = style
        self.fraction_bits = fraction_bits
        self.sign = Binarize(in_channels, style.surrogate, style.shifted)
        self.conv = BinaryConv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups,
                                 pad_value=pad_value, binarize_input=False)
        self.norm = nn.Identity()
        if style.norm != "none":
            self.norm = nn.BatchNorm2d(out_channels) if style.norm == "after" \
                else nn.BatchNorm2d(in_channels, affine=False)
        self.activation = RPReLU(out_channels) if style.activation == "rprelu" else None
        self.path = None
        if style.residual == "pointwise":
            # Features are larger than inputs: 13 bits are ±32, at the price of coarser weights.
            self.path = exact_conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False,
                                     fraction_bits=fraction_bits, input_bits=13)
            nn.init.dirac_(self.path.weight, groups=in_channels)

    def fold(self) -> FoldedBinaryConv2d:
        """The inference form. Scales lie on the grid of :data:`SCALE_FRACTION_BITS`; biases and shifts on that of the
        output and slopes on that of :data:`SLOPE_FRACTION_BITS`, or all with the scales without ``fraction_bits``."""
        style, norm, fixed = self.style, self.norm, self.fraction_bits >= 0
        shift_bits, slope_bits = (self.fraction_bits, SLOPE_FRACTION_BITS) if fixed else (SCALE_FRACTION_BITS,) * 2
        scale, bias = self.conv.alpha(), torch.zeros_like(self.conv.alpha())
        threshold = self.sign.threshold() + torch.zeros(self.conv.spec.in_channels, device=scale.device)
        if style.norm == "after":
            gain = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
            scale, bias = scale * gain, norm.bias.detach() - norm.running_mean * gain
        elif style.norm == "before":
            threshold = norm.running_mean + threshold * torch.sqrt(norm.running_var + norm.eps)
        parameters = None
        if self.activation is not None:
            act = self.activation
            rows = ((act.shift_in, shift_bits), (act.slope, slope_bits), (act.shift_out, shift_bits))
            parameters = torch.stack([_to_grid(row.detach(), bits) for row, bits in rows])
        spec = BinaryConv2dSpec(**{
            **self.conv.spec.attributes(),
            "residual": int({"none": Residual.NONE, "modulate": Residual.MODULATE}.get(style.residual, Residual.ADD)),
            "activation": int({"rprelu": Activation.RPRELU, "relu": Activation.CLAMP}.get(
                style.activation, Activation.NONE)),
            "activation_first": int(style.activation_first),
            "fraction_bits": self.fraction_bits,
            **({"clamp_min": 0.0} if style.activation == "relu" else {}),
        })
        return FoldedBinaryConv2d(spec, self.conv.packed_weight(), threshold, _to_grid(scale, SCALE_FRACTION_BITS),
                                  _to_grid(bias, shift_bits), parameters)

    def freeze(self) -> nn.Module:
        """The folded operator, and the full-precision path where the style has one."""
        return FrozenBinaryUnit(self)

    def _activate(self, y: torch.Tensor) -> torch.Tensor:
        if self.activation is not None:
            return self.activation(y)
        return F.relu(y) if self.style.activation == "relu" else y

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        style, r = self.style, x if residual is None else residual
        if self.path is not None:
            r = self.path(r)
        if not self.training:
            return self.fold()(x, None if style.residual == "none" else r)
        y = self.conv(self.sign(self.norm(x))) if style.norm == "before" else self.norm(self.conv(self.sign(x)))
        if style.residual == "none":
            return self._activate(y)
        r = _match(r, y.shape[1])
        if style.residual == "modulate":
            return r + r * torch.tanh(y)
        return self._activate(y) + r if style.activation_first else self._activate(y + r)


class DotBinaryConv2d(BinaryUnit):
    """Dot-binary convolution (reconstructed): a binary convolution that keeps a full-precision path around it.

    Args:
        in_channels ... pad_value, fraction_bits: as :class:`BinaryUnit`.
        reading: how the binary result meets the full-precision feature r:
            ``add``: RPReLU(BN(a * bconv(x))) + r;  ``modulate``: r + r * tanh(BN(a * bconv(x)));
            ``pointwise``: RPReLU(BN(a * bconv(x))) + depthwise(r), a full-precision 3x3 depth-wise path.
        surrogate: a key of :data:`SURROGATES`.
    """

    def __init__(self, *args, reading: str = "add", surrogate: str = "dynamic-softsign", **kwargs):
        if reading not in DOT_READINGS:
            raise ValueError(f"reading must be one of {', '.join(DOT_READINGS)}, got {reading!r}")
        self.reading = reading
        super().__init__(*args, style=dot_style(reading, surrogate), **kwargs)


def dot_style(reading: str = "add", surrogate: str = "dynamic-softsign") -> UnitStyle:
    """The style of Dot-binary convolution with a reading (or ``none``: no path goes past) and a surrogate."""
    return UnitStyle(reading, surrogate, activation="none" if reading == "modulate" else "rprelu")


class FrozenBinaryUnit(nn.Module):
    """:class:`BinaryUnit` for inference: its folded operator and its full-precision path."""

    def __init__(self, unit: BinaryUnit):
        super().__init__()
        self.operator = unit.fold()
        self.path = unit.path.freeze() if isinstance(unit.path, ExactConv2d) else unit.path
        self.residual = unit.style.residual != "none"

    def forward(self, x, residual=None):
        if not self.residual:
            return self.operator(x)
        r = x if residual is None else residual
        return self.operator(x, r if self.path is None else self.path(r))


def _to_grid(x: torch.Tensor, fraction_bits: int) -> torch.Tensor:
    step = 2.0**fraction_bits
    return round_half_up(x * step) / step


def _match(r: torch.Tensor, channels: int) -> torch.Tensor:
    try:
        return match_channels(r, channels)
    except (RuntimeError, ValueError) as e:
        raise OpSpecError(f"residual has {r.shape[1]} channels, the convolution {channels}") from e

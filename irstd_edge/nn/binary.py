"""Binarised layers: the surrogate, the plain binary convolution and the Dot-binary unit.

Dynamic Softsign and Dot-binary convolution are reconstructed from the abstract of BiisNet
(arXiv 2503.02662), which prints no formula; what is here is our reading.
"""

from __future__ import annotations

import math

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


class _SignDynamicSoftsign(torch.autograd.Function):
    """Forward sign(k * (x + shift)) with sign(0) = +1; backward through k u / (1 + k |u|), u = x + shift."""

    @staticmethod
    def forward(ctx, x, shift, k):
        ctx.save_for_backward(x, shift, k)
        return torch.where(x >= -shift, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, shift, k = ctx.saved_tensors
        u = x + shift
        g = grad / (1 + k * u.abs()).square()
        gx = g * k
        return gx, _reduce(gx, shift), _reduce(g * u, k)


class _SignClipped(torch.autograd.Function):
    """Forward sign with sign(0) = +1; backward the straight-through estimator clipped to [-1, 1]."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


def _reduce(grad: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Sum a gradient down to the (broadcast) shape of a parameter."""
    return grad.sum_to_size(parameter.shape)


def dynamic_softsign(x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """``k x / (1 + k |x|)``: smooth, in (-1, 1), tends to sign as k grows (reconstructed)."""
    return k * x / (1 + k * x.abs())


def sign_ste(x: torch.Tensor) -> torch.Tensor:
    """sign with sign(0) = +1 and the clipped straight-through gradient."""
    return _SignClipped.apply(x)


class DynamicSoftsign(nn.Module):
    """Binarise ``x + shift`` to +1/-1; the backward pass uses Dynamic Softsign of learned slope k > 0.

    Args:
        channels: input channels; shift and slope are learned per channel (``channel shift/scale``).
        k_init: initial slope.

    Shapes: float ``[N, C, H, W]`` to float ``[N, C, H, W]`` of +1 and -1.
    """

    def __init__(self, channels: int, k_init: float = 1.0):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.slope = nn.Parameter(torch.full((channels, 1, 1), math.log(math.expm1(k_init))))

    @property
    def k(self) -> torch.Tensor:
        return F.softplus(self.slope)

    def threshold(self) -> torch.Tensor:
        """``[C]``: the output is +1 where x >= threshold."""
        return -self.shift.detach().flatten()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _SignDynamicSoftsign.apply(x, self.shift, self.k)


class RPReLU(nn.Module):
    """ReActNet's shifted PReLU: ``prelu(x - shift_in) + shift_out``, all per channel."""

    def __init__(self, channels: int, slope: float = 0.25):
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), slope))
        self.shift_out = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.prelu(x - self.shift_in.view(-1, 1, 1), self.slope) + self.shift_out.view(-1, 1, 1)


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


class DotBinaryConv2d(nn.Module):
    """Dot-binary convolution (reconstructed): a binary convolution that keeps a full-precision path around it.

    Training computes sign, convolution, BN, RPReLU and the full-precision path as separate differentiable steps.
    Evaluation computes the folded operator (:meth:`fold`), whose constants lie on fixed-point grids and whose steps
    are 16-bit integers, so that every runtime reproduces it bit for bit.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, pad_value: as :class:`BinaryConv2d`.
        reading: how the binary result meets the full-precision feature r:
            ``add``: RPReLU(BN(a * bconv(x))) + r;  ``modulate``: r + r * tanh(BN(a * bconv(x)));
            ``pointwise``: RPReLU(BN(a * bconv(x))) + depthwise(r), a full-precision 3x3 depth-wise path.
        fraction_bits: fixed-point grid of evaluation, or -1 for plain float32.

    Shapes: ``forward(x, r=None)``; r (default x) has channels that divide or are a multiple of OC
    (repeated or averaged), and the output's height and width.
    """

    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, padding=1, dilation=1, groups=1, *,
                 pad_value: int = 0, reading: str = "add", fraction_bits: int = 8):
        super().__init__()
        if reading not in DOT_READINGS:
            raise ValueError(f"reading must be one of {', '.join(DOT_READINGS)}, got {reading!r}")
        self.reading = reading
        self.fraction_bits = fraction_bits
        self.sign = DynamicSoftsign(in_channels)
        self.conv = BinaryConv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups,
                                 pad_value=pad_value, binarize_input=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = None if reading == "modulate" else RPReLU(out_channels)
        self.path = None
        if reading == "pointwise":
            # Features are larger than inputs: 13 bits are ±32, at the price of coarser weights.
            self.path = exact_conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False,
                                     fraction_bits=fraction_bits, input_bits=13)
            nn.init.dirac_(self.path.weight, groups=in_channels)

    def fold(self) -> FoldedBinaryConv2d:
        """The inference form. Scales lie on the grid of :data:`SCALE_FRACTION_BITS`; biases and shifts on that of the
        output and slopes on that of :data:`SLOPE_FRACTION_BITS`, or all with the scales without ``fraction_bits``."""
        norm, fixed = self.norm, self.fraction_bits >= 0
        shift_bits, slope_bits = (self.fraction_bits, SLOPE_FRACTION_BITS) if fixed else (SCALE_FRACTION_BITS,) * 2
        gain = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        scale = _to_grid(self.conv.alpha() * gain, SCALE_FRACTION_BITS)
        bias = _to_grid(norm.bias.detach() - norm.running_mean * gain, shift_bits)
        parameters = None
        if self.activation is not None:
            act = self.activation
            rows = ((act.shift_in, shift_bits), (act.slope, slope_bits), (act.shift_out, shift_bits))
            parameters = torch.stack([_to_grid(row.detach(), bits) for row, bits in rows])
        spec = BinaryConv2dSpec(**{
            **self.conv.spec.attributes(),
            "residual": int(Residual.MODULATE if self.reading == "modulate" else Residual.ADD),
            "activation": int(Activation.NONE if parameters is None else Activation.RPRELU),
            "fraction_bits": self.fraction_bits,
        })
        return FoldedBinaryConv2d(spec, self.conv.packed_weight(), self.sign.threshold(), scale, bias, parameters)

    def freeze(self) -> nn.Module:
        """The folded operator, and the full-precision path where the reading has one."""
        return FrozenDotBinaryConv2d(self)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        r = x if residual is None else residual
        if self.path is not None:
            r = self.path(r)
        if not self.training:
            return self.fold()(x, r)
        y = self.norm(self.conv(self.sign(x)))
        r = _match(r, y.shape[1])
        return r + r * torch.tanh(y) if self.reading == "modulate" else self.activation(y) + r


class FrozenDotBinaryConv2d(nn.Module):
    """:class:`DotBinaryConv2d` for inference: its folded operator and its full-precision path."""

    def __init__(self, unit: DotBinaryConv2d):
        super().__init__()
        self.operator = unit.fold()
        self.path = unit.path.freeze() if isinstance(unit.path, ExactConv2d) else unit.path

    def forward(self, x, residual=None):
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

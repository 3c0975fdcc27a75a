"""The uniformly quantised convolution: learned step sizes in training, ``irstd.QuantConv2d`` in evaluation.

Step sizes are learned as in LSQ (Esser et al., ICLR 2020, arXiv 1902.08153): rounding passes gradients straight
through, and a step's gradient is scaled by 1 / sqrt(values * highest level).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from irstd_edge.nn.functional import pack_integers, quant_conv2d
from irstd_edge.opspec import QuantConv2dSpec, integer_range


def fake_quantize(x: torch.Tensor, step: torch.Tensor, low: int, high: int, values: int) -> torch.Tensor:
    """``clamp(rne(x / step), low, high) * step`` with LSQ's gradients for ``x`` and ``step`` (broadcast over x).

    ``values`` is the number of values that share one step. Levels -1 .. +1 stand for one bit where low = -1, high = 1.
    """
    x = x.float()  # under autocast too: in bfloat16 the higher levels of 8 bits would fall together
    scale = 1 / math.sqrt(values * max(high, 1))
    step = (step - step * scale).detach() + step * scale  # the value of step, a scaled gradient
    t = torch.clamp(x / step, low, high)
    q = torch.where(t >= 0, 1.0, -1.0) if (low, high) == (-1, 1) else torch.round(t)
    return ((q - t).detach() + t) * step


def initial_step(x: torch.Tensor, low: int, high: int, dim: tuple[int, ...] | None = None) -> torch.Tensor:
    """LSQ's first step, ``2 mean|x| / sqrt(high)``, over the dimensions ``dim`` (all where None); positive.

    One bit (levels -1 and +1) takes ``mean|x|``, as XNOR-Net does.
    """
    mean = x.detach().abs().mean() if dim is None else x.detach().abs().mean(dim)
    return torch.clamp(mean if (low, high) == (-1, 1) else 2 * mean / math.sqrt(max(high, 1)), min=1e-6)


class QuantConv2d(nn.Module):
    """Convolution of inputs of ``activation_bits`` bits with weights of ``weight_bits`` bits.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in ``nn.Conv2d``.
        weight_bits: 1..8, one step per output channel; 1 bit is -1 and +1.
        activation_bits: 1..8, one step for the tensor.
        activation_signed: whether inputs may be negative; False suits what comes out of ReLU.

    Parameters: ``weight``, ``bias``, ``weight_step`` ``[OC]``, ``activation_step`` ``[]``. Give ``activation_step`` its
    first value by :meth:`calibrate`.

    Shapes: float ``[N, IC, H, W]`` to float ``[N, OC, OH, OW]``. Raises :class:`~irstd_edge.opspec.OpSpecError` on
    impossible sizes or bits.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True, *,
                 weight_bits: int = 8, activation_bits: int = 8, activation_signed: bool = False):
        super().__init__()
        kernel, step, pad, spread = (v if isinstance(v, tuple) else (v, v)
                                     for v in (kernel_size, stride, padding, dilation))
        self._geometry = {
            "in_channels": in_channels, "out_channels": out_channels, "kernel_h": kernel[0], "kernel_w": kernel[1],
            "stride_h": step[0], "stride_w": step[1], "dilation_h": spread[0], "dilation_w": spread[1],
            "pad_top": pad[0], "pad_left": pad[1], "pad_bottom": pad[0], "pad_right": pad[1], "groups": groups,
        }
        self.weight_bits, self.activation_bits = weight_bits, activation_bits
        self.activation_signed = activation_signed
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *kernel))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.activation_step = nn.Parameter(torch.tensor(1.0))
        low, high = QuantConv2dSpec(**self._geometry, weight_bits=weight_bits, activation_bits=activation_bits,
                                    activation_signed=int(activation_signed), inverse_step=1.0).weight_range
        self.weight_step = nn.Parameter(initial_step(self.weight, low, high, (1, 2, 3)))

    @classmethod
    def from_float(cls, conv: nn.Conv2d, weight_bits: int, activation_bits: int,
                   activation_signed: bool = False) -> QuantConv2d:
        """The quantised layer of a float convolution's weights. Raises :class:`ValueError` for other padding than
        a number of zeros."""
        if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            raise ValueError(f"a quantised convolution pads a number of zeros, not padding={conv.padding!r}, "
                             f"padding_mode={conv.padding_mode!r}")
        layer = cls(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
                    conv.groups, conv.bias is not None, weight_bits=weight_bits, activation_bits=activation_bits,
                    activation_signed=activation_signed).to(conv.weight.device)
        with torch.no_grad():
            layer.weight.copy_(conv.weight)
            if conv.bias is not None:
                layer.bias.copy_(conv.bias)
            layer.weight_step.copy_(initial_step(layer.weight, *layer.spec.weight_range, (1, 2, 3)))
        return layer

    @property
    def spec(self) -> QuantConv2dSpec:
        """The operator's attributes, with the present step of the inputs."""
        inverse = float(1 / self.activation_step.detach().abs().float())
        return QuantConv2dSpec(**self._geometry, weight_bits=self.weight_bits, activation_bits=self.activation_bits,
                               activation_signed=int(self.activation_signed), inverse_step=inverse)

    @torch.no_grad()
    def calibrate(self, x: torch.Tensor) -> None:
        """Set the step of the inputs from some of them, ``[N, IC, H, W]``."""
        low, high = integer_range(self.activation_bits, self.activation_signed)
        self.activation_step.copy_(initial_step(x, low, high))

    def integer_weight(self) -> torch.Tensor:
        """``[OC, IC/groups, KH, KW]``: the integers that the weights round to, as float32."""
        low, high = integer_range(self.weight_bits, True)
        t = self.weight.detach() / self.weight_step.detach().abs().view(-1, 1, 1, 1)
        return torch.where(t >= 0, 1.0, -1.0) if self.weight_bits == 1 else torch.clamp(torch.round(t), low, high)

    def freeze(self) -> FoldedQuantConv2d:
        """The inference form: exactly one ``irstd.QuantConv2d`` operator."""
        bias = torch.zeros_like(self.weight_step) if self.bias is None else self.bias
        scale = self.weight_step.detach().abs() * self.activation_step.detach().abs()
        weight = pack_integers(self.integer_weight(), self.weight_bits)
        return FoldedQuantConv2d(self.spec, weight, scale, bias.detach())

    def extra_repr(self) -> str:
        g = self._geometry
        return (f"{g['in_channels']}, {g['out_channels']}, kernel={g['kernel_h']}x{g['kernel_w']}, "
                f"weight_bits={self.weight_bits}, activation_bits={self.activation_bits}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return self.freeze()(x)
        g = self._geometry
        x = fake_quantize(x, self.activation_step.abs(), *integer_range(self.activation_bits, self.activation_signed),
                          x[0].numel())
        weight = fake_quantize(self.weight, self.weight_step.abs().view(-1, 1, 1, 1),
                               *integer_range(self.weight_bits, True), self.weight[0].numel())
        return F.conv2d(x, weight, self.bias, (g["stride_h"], g["stride_w"]), (g["pad_top"], g["pad_left"]),
                        (g["dilation_h"], g["dilation_w"]), g["groups"])


class FoldedQuantConv2d(nn.Module):
    """The inference form of a quantised convolution: exactly one ``irstd.QuantConv2d``, all constants in buffers.

    Shapes: float ``[N, IC, H, W]`` to float ``[N, OC, OH, OW]``.
    """

    def __init__(self, spec: QuantConv2dSpec, weight, scale, bias):
        super().__init__()
        self.spec = spec
        for name, value in (("weight", weight), ("scale", scale), ("bias", bias)):
            self.register_buffer(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return quant_conv2d(x, self.weight, self.scale, self.bias, self.spec)

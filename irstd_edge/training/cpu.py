"""What makes training on a CPU faster, for any network: memory that is kept, dilated depth-wise convolutions undone."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

#: Numbers of glibc's ``mallopt`` (malloc.h), and sizes to ask for: before glibc 2.35 the second is the largest.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _SIZES = -1, -3, (2**31 - 1, 2**25)


def keep_freed_memory() -> bool:
    """Let the process keep the memory of freed tensors for the next ones; returns whether the C library does so.

    Every step makes and frees the same maps of many megabytes. glibc gives each back to the system, which has to clear
    its pages anew. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(any(mallopt(name, size) == 1 for size in _SIZES)
                                       for name in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD))


@contextmanager
def undilated(network: nn.Module) -> Iterator[None]:
    """While the block runs, depth-wise convolutions with dilation d run as ones without, over phases of the map.

    PyTorch has fast depth-wise kernels for CPUs without dilation alone. The pixels that a dilated kernel reads lie d
    apart: each of the d x d phases of the map, every d-th pixel from one start, is convolved by itself. The sums are
    the same. It is done to plain ``nn.Conv2d`` of stride 1, odd kernels and paddings that keep the size, on maps that
    d divides; others run as they are.
    """
    changed = [m for m in network.modules() if type(m) is nn.Conv2d and _dilated_depthwise(m)]
    # A class of its own, not a mode of PyTorch's: what runs a layer again in the backward pass must find it, too.
    for module in changed:
        module.__class__ = _UndilatedConv2d
    try:
        yield
    finally:
        for module in changed:
            module.__class__ = nn.Conv2d


def _dilated_depthwise(conv: nn.Conv2d) -> bool:
    step, across = conv.dilation
    return (step == across > 1 and conv.groups == conv.in_channels > 1 and conv.stride == (1, 1)
            and conv.padding_mode == "zeros" and all(k % 2 for k in conv.kernel_size)
            and conv.padding == tuple(step * (k // 2) for k in conv.kernel_size))


class _UndilatedConv2d(nn.Conv2d):
    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        step = self.dilation[0]
        if x.ndim != 4 or x.shape[2] % step or x.shape[3] % step:
            return super()._conv_forward(x, weight, bias)
        n, c, h, w = x.shape
        x = x.permute(0, 2, 3, 1).reshape(n, h // step, step, w // step, step, c).permute(0, 2, 4, 1, 3, 5)
        x = x.reshape(n * step**2, h // step, w // step, c).permute(0, 3, 1, 2)
        y = F.conv2d(x, weight, bias, 1, tuple(k // 2 for k in self.kernel_size), 1, self.groups)
        c = y.shape[1]
        y = y.permute(0, 2, 3, 1).reshape(n, step, step, h // step, w // step, c).permute(0, 3, 1, 4, 2, 5)
        return y.reshape(n, h, w, c).permute(0, 3, 1, 2)

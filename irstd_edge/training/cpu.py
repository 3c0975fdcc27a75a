"""What makes training on a CPU faster, for any network: memory that is kept, dilated depth-wise convolutions undone."""

from __future__ import annotations

import ctypes
import sys

import torch
from torch.overrides import TorchFunctionMode

#: Numbers of glibc's ``mallopt`` (malloc.h), and the largest value that all of them take.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST = -1, -3, 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the process keep the memory of freed tensors for the next ones; returns whether the C library does so.

    Every step makes and frees the same maps of many megabytes. glibc gives each back to the system, which has to clear
    its pages anew. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, _LARGEST) == 1 for name in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))


class UndilatedDepthwise(TorchFunctionMode):
    """While active, depth-wise convolutions with dilation d run as ones without, over phases of the map.

    PyTorch has fast depth-wise kernels for CPUs without dilation alone. The pixels that a dilated kernel reads lie d
    apart: each of the d x d phases of the map, every d-th pixel from one start, is convolved by itself. The sums are
    the same. Of stride 1, odd kernels and paddings that keep the size, on maps that d divides; others run as they are.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d:
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # torch's names
    step = _phases(input, weight, stride, padding, dilation, groups)
    if step == 1:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    kernel = weight.shape[2:]
    n, c, h, w = input.shape
    x = input.permute(0, 2, 3, 1).reshape(n, h // step, step, w // step, step, c).permute(0, 2, 4, 1, 3, 5)
    x = x.reshape(n * step**2, h // step, w // step, c).permute(0, 3, 1, 2)
    y = torch.conv2d(x, weight, bias, 1, [k // 2 for k in kernel], 1, groups)
    c = y.shape[1]
    y = y.permute(0, 2, 3, 1).reshape(n, step, step, h // step, w // step, c).permute(0, 3, 1, 4, 2, 5)
    return y.reshape(n, h, w, c).permute(0, 3, 1, 2)


def _phases(x, weight, stride, padding, dilation, groups) -> int:
    """The dilation to undo, or 1 for none."""
    if isinstance(padding, str) or x.ndim != 4 or x.is_cuda or groups != x.shape[1] or groups == 1:
        return 1
    (step, across), pads, strides = (_pair(v) for v in (dilation, padding, stride))
    same = all(k % 2 and p == step * (k // 2) for k, p in zip(weight.shape[2:], pads, strict=True))
    whole = x.shape[2] % step == 0 and x.shape[3] % step == 0
    return step if step == across and strides == (1, 1) and same and whole else 1


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))

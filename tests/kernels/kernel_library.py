"""A ctypes view of the native core for the kernel tests and micro-benchmarks."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from irstd_edge.opspec import BINARY_CONV2D_ATTRIBUTES

OK, INVALID, UNSUPPORTED, OUT_OF_MEMORY = range(4)
NCHW, NHWC = 0, 1
UNSET = -(2**31)


class Attributes(ctypes.Structure):
    _fields_ = [(a.name, ctypes.c_int32 if a.kind is int else ctypes.c_float) for a in BINARY_CONV2D_ATTRIBUTES]


class Error(ctypes.Structure):
    _fields_ = [("message", ctypes.c_char * 256)]


TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)
RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, TASK, ctypes.c_void_p)


class Parallel(ctypes.Structure):
    _fields_ = [("run", RUN), ("context", ctypes.c_void_p), ("threads", ctypes.c_int)]


class KernelError(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


def _pointer(array):
    if array is None:
        return None
    assert array.flags.c_contiguous
    return array.ctypes.data


def _as(array, dtype):
    return None if array is None else np.ascontiguousarray(array, dtype)


class Library:
    def __init__(self, path: Path):
        self.path = path
        self.c = c = ctypes.CDLL(str(path))
        pointer, i64, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
        c.irstd_bconv2d_attributes_init.argtypes = [ctypes.POINTER(Attributes)]
        c.irstd_bconv2d_create.argtypes = [
            pointer,
            pointer,
            size,
            pointer,
            pointer,
            pointer,
            pointer,
            ctypes.c_int,
            pointer,
            ctypes.POINTER(Error),
        ]
        c.irstd_bconv2d_destroy.argtypes = [pointer]
        c.irstd_bconv2d_destroy.restype = None
        c.irstd_bconv2d_output_size.argtypes = [pointer, i64, i64, pointer, pointer, pointer]
        c.irstd_bconv2d_workspace_bytes.argtypes = [pointer, i64, i64, ctypes.c_int, pointer, pointer]
        c.irstd_bconv2d_run.argtypes = [
            pointer,
            i64,
            i64,
            i64,
            pointer,
            pointer,
            i64,
            pointer,
            pointer,
            size,
            pointer,
            pointer,
        ]
        c.irstd_bconv2d_variant.argtypes = [pointer]
        c.irstd_bconv2d_variant.restype = ctypes.c_char_p
        c.irstd_isa.argtypes = [ctypes.POINTER(Error)]
        c.irstd_isa.restype = ctypes.c_char_p
        c.irstd_isa_name.restype = ctypes.c_char_p
        c.irstd_isa_name.argtypes = c.irstd_isa_available.argtypes = [ctypes.c_int]

    def isas(self) -> dict[str, bool]:
        """Instruction sets of this build, and whether this CPU has them."""
        return {
            self.c.irstd_isa_name(i).decode(): bool(self.c.irstd_isa_available(i))
            for i in range(self.c.irstd_isa_count())
        }

    def isa(self) -> str:
        error = Error()
        name = self.c.irstd_isa(ctypes.byref(error))
        if name is None:
            raise KernelError(UNSUPPORTED, error.message.decode())
        return name.decode()

    @contextmanager
    def forced(self, isa: str | None):
        """IRSTD_ISA set to `isa` within the block."""
        before = os.environ.pop("IRSTD_ISA", None)
        if isa is not None:
            os.environ["IRSTD_ISA"] = isa
        try:
            yield self
        finally:
            os.environ.pop("IRSTD_ISA", None)
            if before is not None:
                os.environ["IRSTD_ISA"] = before

    def bconv2d(self, attributes: dict, *constants, **options) -> BinaryConv2d:
        return BinaryConv2d(self, attributes, *constants, **options)


class BinaryConv2d:
    """One operator. Layout NHWC takes and gives NHWC arrays."""

    def __init__(
        self,
        library,
        attributes,
        weight,
        threshold,
        scale,
        bias,
        activation_parameters=None,
        layout=NCHW,
        weight_words=None,
    ):
        self.library = library
        a = Attributes()
        library.c.irstd_bconv2d_attributes_init(ctypes.byref(a))
        for name, value in attributes.items():
            setattr(a, name, value)
        self.handle = ctypes.c_void_p()
        weight = _as(weight, np.int32)
        constants = [_as(v, np.float32) for v in (threshold, scale, bias, activation_parameters)]
        words = (0 if weight is None else weight.size) if weight_words is None else weight_words
        self._call(
            "irstd_bconv2d_create",
            ctypes.byref(a),
            _pointer(weight),
            words,
            *map(_pointer, constants),
            layout,
            ctypes.byref(self.handle),
        )
        self.layout, self.out_channels = layout, a.out_channels

    def __del__(self):
        if getattr(self, "handle", None):
            self.library.c.irstd_bconv2d_destroy(self.handle)

    def _call(self, name, *arguments):
        error = Error()
        status = getattr(self.library.c, name)(*arguments, ctypes.byref(error))
        if status != OK:
            raise KernelError(status, error.message.decode())

    @property
    def variant(self) -> str:
        return self.library.c.irstd_bconv2d_variant(self.handle).decode()

    def output_size(self, height, width) -> tuple[int, int]:
        out = (ctypes.c_int64 * 2)()
        self._call("irstd_bconv2d_output_size", self.handle, height, width, ctypes.byref(out, 0), ctypes.byref(out, 8))
        return out[0], out[1]

    def workspace_bytes(self, height, width, threads=1) -> int:
        size = ctypes.c_size_t()
        self._call("irstd_bconv2d_workspace_bytes", self.handle, height, width, threads, ctypes.byref(size))
        return size.value

    def prepare(self, x, residual=None, threads=1, run=None):
        """Buffers of one call, and the call itself as a function of no argument."""
        x, residual = _as(x, np.float32), _as(residual, np.float32)
        channel = 1 if self.layout == NCHW else 3
        batch = x.shape[0]
        height, width = (x.shape[2], x.shape[3]) if self.layout == NCHW else (x.shape[1], x.shape[2])
        oh, ow = self.output_size(height, width)
        shape = (batch, self.out_channels, oh, ow) if self.layout == NCHW else (batch, oh, ow, self.out_channels)
        y = np.full(shape, np.float32(np.nan))
        size = self.workspace_bytes(height, width, threads)
        workspace = np.full(max(size, 1), 0xA5, np.uint8)
        parallel = Parallel(run or in_reverse, None, threads)
        arguments = (
            self.handle,
            batch,
            height,
            width,
            _pointer(x),
            _pointer(residual),
            residual.shape[channel] if residual is not None else 0,
            _pointer(y),
            _pointer(workspace),
            size,
            ctypes.byref(parallel) if threads > 1 else None,
        )
        keep = (x, residual, workspace, parallel)

        def call():
            assert keep
            self._call("irstd_bconv2d_run", *arguments)

        return call, y

    def __call__(self, x, residual=None, threads=1, run=None):
        call, y = self.prepare(x, residual, threads, run)
        call()
        return y


@RUN
def in_reverse(_context, tasks, task, argument):
    """Tasks one after the other, last first: they must not depend on each other."""
    for index in reversed(range(tasks)):
        task(argument, index)

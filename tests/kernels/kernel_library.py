"""A ctypes view of the native core for the kernel tests and micro-benchmarks."""

from __future__ import annotations

import ctypes
import json
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


class Operator(ctypes.Structure):
    """irstd_bconv2d"""

    _fields_ = [("attributes", Attributes), ("constants", ctypes.c_void_p * 5),
                ("constant_bytes", ctypes.c_size_t * 5), ("layout", ctypes.c_int)]


class Parallel(ctypes.Structure):
    _fields_ = [("run", RUN), ("context", ctypes.c_void_p)]


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
        pointer, i64 = ctypes.c_void_p, ctypes.c_int64
        c.irstd_bconv2d_attributes_init.argtypes = [ctypes.POINTER(Attributes)]
        c.irstd_check_bconv2d.argtypes = [pointer]
        c.irstd_open_bconv2d.argtypes = [pointer, i64, i64, i64, ctypes.c_int, pointer]
        c.irstd_run.argtypes = [pointer] * 3
        c.irstd_run_parallel.argtypes = [pointer] * 4
        c.irstd_output_shape.argtypes = [pointer, ctypes.c_int, pointer]
        c.irstd_output_shape.restype = None
        c.irstd_close.argtypes = c.irstd_describe.argtypes = [pointer]
        c.irstd_last_error.restype = c.irstd_describe.restype = ctypes.c_char_p
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

    def check(self, status: int) -> None:
        if status != OK:
            raise KernelError(status, self.c.irstd_last_error().decode())

    def bconv2d(self, attributes: dict, *constants, **options) -> BinaryConv2d:
        return BinaryConv2d(self, attributes, *constants, **options)


class BinaryConv2d:
    """One operator, checked; a session is opened for each size that comes. Layout NHWC takes and gives NHWC arrays."""

    def __init__(self, library, attributes, weight, threshold, scale, bias, activation_parameters=None, layout=NCHW):
        self.library, self.layout = library, layout
        self.operator = o = Operator(layout=layout)
        library.c.irstd_bconv2d_attributes_init(ctypes.byref(o.attributes))
        for key, value in attributes.items():
            setattr(o.attributes, key, value)
        given = (threshold, scale, bias, activation_parameters)
        self.constants = [_as(weight, np.int32), *(_as(v, np.float32) for v in given)]
        for i, array in enumerate(self.constants):
            o.constants[i] = _pointer(array)
            o.constant_bytes[i] = 0 if array is None else array.nbytes
        library.check(library.c.irstd_check_bconv2d(ctypes.byref(o)))

    def open(self, height, width, residual_channels=0, threads=1) -> Session:
        return Session(self, height, width, residual_channels, threads)

    def output_size(self, height, width) -> tuple[int, int]:
        return self.open(height, width, self.operator.attributes.out_channels * bool(self.operator.attributes.residual)
                         ).shape[1:]

    @property
    def variant(self) -> str:
        return self.open(64, 64).kernel

    def __call__(self, x, residual=None, threads=1, run=None):
        height, width = x.shape[2:] if self.layout == NCHW else x.shape[1:3]
        channels = 0 if residual is None else residual.shape[1 if self.layout == NCHW else 3]
        session = self.open(height, width, channels, threads)
        images = [session(x[n], None if residual is None else residual[n], run) for n in range(len(x))]
        return np.stack(images)


class Session:
    """An operator for one size."""

    def __init__(self, op: BinaryConv2d, height, width, residual_channels, threads):
        self.op, self.library, self.threads = op, op.library, threads
        self.handle = ctypes.c_void_p()
        self.library.check(self.library.c.irstd_open_bconv2d(
            ctypes.byref(op.operator), height, width, residual_channels, threads, ctypes.byref(self.handle)))
        shape = (ctypes.c_int64 * 3)()
        self.library.c.irstd_output_shape(self.handle, 0, shape)
        self.shape = tuple(shape)
        self.kernel = json.loads(self.library.c.irstd_describe(self.handle))["layers"][0]["kernel"]

    def __del__(self):
        if getattr(self, "handle", None):
            self.library.c.irstd_close(self.handle)

    def __call__(self, x, residual=None, run=None):
        images = [_as(image, np.float32) for image in (x, residual) if image is not None]
        y = np.full(self.shape if self.op.layout == NCHW else (*self.shape[1:], self.shape[0]), np.float32(np.nan))
        inputs = (ctypes.c_void_p * len(images))(*map(_pointer, images))
        parallel = Parallel(run or in_reverse, None)
        self.library.check(self.library.c.irstd_run_parallel(
            self.handle, inputs, (ctypes.c_void_p * 1)(_pointer(y)), ctypes.byref(parallel)))
        return y


@RUN
def in_reverse(_context, tasks, task, argument):
    """Tasks one after the other, last first: they must not depend on each other."""
    for index in reversed(range(tasks)):
        task(argument, index)

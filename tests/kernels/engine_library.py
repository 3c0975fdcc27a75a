"""A ctypes view of the engine: one program opened for one image size."""

from __future__ import annotations

import ctypes
import json
import os
from contextlib import contextmanager

import numpy as np
from kernel_library import OK, KernelError, Library


@contextmanager
def chosen(strip: int | None = None, quant: str | None = None):
    """IRSTD_STRIP (rows) and IRSTD_QUANT (a variant) set within the block."""
    values = {"IRSTD_STRIP": strip, "IRSTD_QUANT": quant}
    os.environ.update({key: str(value) for key, value in values.items() if value is not None})
    try:
        yield
    finally:
        for key in values:
            os.environ.pop(key, None)


class Engine:
    """An open session; raises :class:`KernelError` with the status and the message of a failure."""

    def __init__(self, library: Library, data: bytes, height: int, width: int, threads: int = 1):
        self.c, self.handle = library.c, ctypes.c_void_p()
        self.c.irstd_last_error.restype = self.c.irstd_describe.restype = ctypes.c_char_p
        self.c.irstd_describe.argtypes = self.c.irstd_close.argtypes = [ctypes.c_void_p]
        self.c.irstd_open_memory.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int64,
                                             ctypes.c_int, ctypes.c_void_p]
        self.c.irstd_run.argtypes = [ctypes.c_void_p] * 3
        self._check(self.c.irstd_open_memory(data, len(data), height, width, threads, ctypes.byref(self.handle)))
        self.description = json.loads(self.c.irstd_describe(self.handle))

    def _check(self, status: int) -> None:
        if status != OK:
            raise KernelError(status, self.c.irstd_last_error().decode())

    @property
    def kernels(self) -> list[str]:
        return [layer["kernel"] for layer in self.description["layers"]]

    def __call__(self, *images: np.ndarray) -> list[np.ndarray]:
        """float32 ``[C, H, W]`` in and out."""
        images = [np.ascontiguousarray(image, np.float32) for image in images]
        shapes = [tuple(t[k] for k in ("channels", "height", "width")) for t in self.description["inputs"]]
        assert [image.shape for image in images] == shapes
        outputs = [np.full((t["channels"], t["height"], t["width"]), np.nan, np.float32)
                   for t in self.description["outputs"]]
        pointers = [(ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays)) for arrays in (images, outputs)]
        self._check(self.c.irstd_run(self.handle, *pointers))
        return outputs

    def close(self) -> None:
        self.c.irstd_close(self.handle)
        self.handle = ctypes.c_void_p()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_) -> None:
        self.close()

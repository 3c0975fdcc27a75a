"""Our own engine, libirstd.so: the ``native`` artefact, ``model.irstd``, by ctypes."""

from __future__ import annotations

import ctypes
import json
import os
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from irstd_edge import __version__, program
from irstd_edge.bundle import Bundle, BundleError
from irstd_edge.errors import MissingError, UnsupportedError
from irstd_edge.program import ProgramError
from irstd_edge.runtimes import library
from irstd_edge.runtimes.session import Session

_OK, _INVALID = 0, 1
_POINTER = ctypes.c_void_p
#: Function of irstd.h -> result and arguments.
_SIGNATURES = {
    "irstd_open": (ctypes.c_int, [ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int,
                                  ctypes.POINTER(_POINTER)]),
    "irstd_open_memory": (ctypes.c_int, [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int64, ctypes.c_int,
                                         ctypes.POINTER(_POINTER)]),
    "irstd_run": (ctypes.c_int, [_POINTER, _POINTER, _POINTER]),
    "irstd_describe": (ctypes.c_char_p, [_POINTER]),
    "irstd_describe_plan": (ctypes.c_char_p, [_POINTER]),
    "irstd_run_layer": (ctypes.c_int, [_POINTER, ctypes.c_char_p]),
    "irstd_last_error": (ctypes.c_char_p, []),
    "irstd_close": (None, [_POINTER]),
}


class EngineError(Exception):
    """The engine refused: its status and its message."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@cache
def _load(path: Path) -> ctypes.CDLL:
    try:
        engine = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            getattr(engine, name).restype, getattr(engine, name).argtypes = result, arguments
    except (OSError, AttributeError) as e:
        raise MissingError(f"{path}: cannot be loaded ({e}); build it again with `make build`") from e
    return engine


class Engine:
    """A file, or its bytes, opened for one image size; one thread uses it at a time.

    Raises :class:`EngineError`, and :class:`~irstd_edge.errors.MissingError` where there is no library.
    ``description`` is what ``irstd_describe`` tells: isa, height, width, threads, file_bytes, arena_bytes,
    arena_lower_bound_bytes, strip_rows, and the lists inputs, outputs and layers.
    """

    def __init__(self, source: Path | bytes, size: tuple[int, int], threads: int = 1):
        self._engine = _load(library.find("native"))
        self._session = _POINTER()
        session = ctypes.byref(self._session)
        if isinstance(source, bytes):
            self._check(self._engine.irstd_open_memory(source, len(source), *size, threads, session))
        else:
            self._check(self._engine.irstd_open(os.fsencode(source), *size, threads, session))
        weakref.finalize(self, self._engine.irstd_close, self._session)
        self.size = size
        self.description = json.loads(self._engine.irstd_describe(self._session))
        self.input_shapes, self.output_shapes = (
            [(t["channels"], t["height"], t["width"]) for t in self.description[k]] for k in ("inputs", "outputs"))

    def plan(self) -> dict:
        """What ``irstd_describe_plan`` tells: arena_bytes, scratch_offset, scratch_bytes, steps and buffers."""
        text = self._engine.irstd_describe_plan(self._session)
        if text is None:
            raise MemoryError("the plan of a run")
        return json.loads(text)

    def bind(self, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> Callable[[], None]:
        """A call that runs the network from contiguous float32 ``[C, H, W]`` arrays into others."""
        for arrays, shapes in ((inputs, self.input_shapes), (outputs, self.output_shapes)):
            if [a.shape for a in arrays] != shapes:
                raise ValueError(f"images must be {shapes}, got {[a.shape for a in arrays]}")
            assert all(a.dtype == np.float32 and a.flags.c_contiguous for a in arrays)
        tables = [(_POINTER * len(arrays))(*(a.ctypes.data for a in arrays)) for arrays in (inputs, outputs)]

        def call(run=self._engine.irstd_run, session=self._session, tables=tables, keep=(self, inputs, outputs)):
            status = run(session, *tables)
            if status:
                self._check(status)

        return call

    def layer(self, name: str) -> Callable[[], None]:
        """A call that computes one layer again, from what a run left in its inputs: to time it alone."""

        encoded = name.encode()

        def call(run=self._engine.irstd_run_layer, session=self._session, keep=self):
            status = run(session, encoded)
            if status:
                self._check(status)

        return call

    def _check(self, status: int) -> None:
        if status != _OK:
            raise EngineError(status, self._engine.irstd_last_error().decode(errors="replace"))


class NativeSession(Session):
    """One ``model.irstd``, opened for one size at a time.

    Args:
        path: the file.
        size: (H, W) to open it for; another is opened when an image has it.
        threads: of the engine.
        fixed: export found that the file serves ``size`` alone.
    """

    artefact = "native"
    runtime = f"irstd {__version__}"

    def __init__(self, path: Path, size: tuple[int, int], threads: int = 1, fixed: bool = False):
        try:
            program.read(path.read_bytes())
        except ProgramError as e:
            raise BundleError(f"{path}: {e}; export again") from e
        self._path, self._threads, self._fixed = path, threads, size if fixed else None
        try:
            self._engine = Engine(path, size, threads)
        except EngineError as e:
            raise (BundleError if e.status == _INVALID else UnsupportedError)(str(e)) from e
        self.isa = self._engine.description["isa"]

    def run(self, x: np.ndarray) -> np.ndarray:
        return self.run_all(x)[0]

    def run_all(self, x: np.ndarray) -> list[np.ndarray]:
        results, calls = self._bind(np.ascontiguousarray(x, np.float32))
        for call in calls:
            call()
        return results

    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        _, calls = self._bind(np.array(x, np.float32, order="C"))
        if len(calls) == 1:
            return calls[0]

        def call() -> None:
            for single in calls:
                single()

        return call

    def _bind(self, x: np.ndarray) -> tuple[list[np.ndarray], list[Callable[[], None]]]:
        """The arrays of the results, and one call for each image of the batch."""
        engine = self._at(tuple(x.shape[2:]))
        outputs = [np.empty((len(x), *shape), np.float32) for shape in engine.output_shapes]
        return outputs, [engine.bind([image], [out[i] for out in outputs]) for i, image in enumerate(x)]

    def _at(self, size: tuple[int, int]) -> Engine:
        if size != self._engine.size:
            h, w = size
            if self._fixed:
                raise UnsupportedError(f"{self._path}: written for {self._fixed[0]}x{self._fixed[1]} images, cannot "
                                       f"run {h}x{w}; export again with --input-size {h}x{w}, or run "
                                       "--artefact torch")
            try:
                self._engine = Engine(self._path, size, self._threads)
            except EngineError as e:
                raise UnsupportedError(f"cannot run {h}x{w} images: {e}") from e
        return self._engine


def open_session(bundle: Bundle, threads: int = 1) -> Session:
    """The ``native`` artefact. Raises as :func:`irstd_edge.runtimes.session.open_session` does."""
    artefact, path = bundle.artefact("native")
    size = artefact.input or bundle.manifest.reference_input
    return NativeSession(path, tuple(size), threads, fixed=artefact.input is not None and not artefact.resizable)

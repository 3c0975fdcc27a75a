"""TFLite and LiteRT: the ``tflite`` artefact, our operators through an external delegate."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np

from irstd_edge.bundle import Bundle, BundleError
from irstd_edge.errors import MissingError, UnsupportedError
from irstd_edge.opspec import OPERATORS
from irstd_edge.runtimes import library
from irstd_edge.runtimes.session import Session

#: Module -> distribution, the preferred one first.
INTERPRETERS = {"ai_edge_litert.interpreter": "ai-edge-litert", "tflite_runtime.interpreter": "tflite-runtime"}


def interpreter_module():
    """The interpreter's module and its name and version for reports. Raises :class:`MissingError`."""
    for module, distribution in INTERPRETERS.items():
        try:
            return import_module(module), f"{distribution} {version(distribution)}"
        except ModuleNotFoundError as e:
            # An installed interpreter that lacks something else must say so itself.
            if e.name not in (module, module.split(".")[0]):
                raise MissingError(f"{distribution} cannot be imported: {e}") from e
    raise MissingError("no TFLite interpreter is installed; get one with: pip install 'irstd-edge[tflite]'")


class TfliteSession(Session):
    """One .tflite file; the delegate is loaded only where the file has an operator of ours.

    The file is written for one image size; for another its resizes are rewritten and the input is resized.
    """

    def __init__(self, artefact: str, path: Path, threads: int):
        module, self.runtime = interpreter_module()
        self.artefact = artefact
        self._path = path
        model = path.read_bytes()
        delegates = []
        if any(operator.tflite_name.encode() in model for operator in OPERATORS.values()):
            self.isa = library.selected_isa("tflite")
            file = library.find("tflite")
            try:
                delegates = [module.load_delegate(str(file), {"num_threads": threads})]
            except (ValueError, OSError) as e:
                raise MissingError(f"{file}: {self.runtime} cannot load it as a delegate ({e})") from e
        self._model = model
        self._open = lambda content: module.Interpreter(
            model_content=content, num_threads=threads, experimental_delegates=delegates
        )
        try:
            self._interpreter = self._open(model)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as e:
            raise BundleError(f"{path}: {self.runtime} cannot load it: {e}") from e
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]
        self._written = self._shape = tuple(int(n) for n in self._interpreter.get_input_details()[0]["shape"])

    def _load(self, x: np.ndarray) -> None:
        """Set the input, resizing the graph where the size is new."""
        count, channels, height, width = x.shape
        if channels != 1:
            raise ValueError(f"images must have 1 channel, got {channels}")
        shape = (count, height, width, 1)
        if shape != self._shape:
            self._shape = None
            try:
                self._interpreter = self._open(at_size(self._model, self._written[1:3], (height, width)))
                self._interpreter.resize_tensor_input(self._input, shape)
                self._interpreter.allocate_tensors()
            except (RuntimeError, ValueError) as e:
                _, h, w, _ = self._written
                raise UnsupportedError(
                    f"{self._path}: written for {h}x{w} images, cannot run {height}x{width} ({e}); "
                    "export again for that size"
                ) from e
            self._shape = shape
        # One channel: NCHW and NHWC are the same bytes.
        self._interpreter.set_tensor(self._input, np.ascontiguousarray(x, np.float32).reshape(shape))

    def run(self, x: np.ndarray) -> np.ndarray:
        self._load(x)
        self._interpreter.invoke()
        y = self._interpreter.get_tensor(self._output)
        return y.reshape(y.shape[0], 1, y.shape[1], y.shape[2])

    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        self._load(x)
        return self._interpreter.invoke


#: Builtin code -> which input holds height and width of an image as constants, and where in it they stand:
#: RESIZE_BILINEAR, RESIZE_NEAREST_NEIGHBOR ([H, W]) and SLICE ([N, H, W, C]).
_SIZES = {23: (1, 0), 97: (1, 0), 65: (2, 1)}


def at_size(model: bytes, written: tuple[int, int], wanted: tuple[int, int]) -> bytes:
    """The file with the image sizes in its constants scaled from ``written`` to ``wanted`` (H, W)."""
    from flatbuffers import encode, number_types
    from flatbuffers.table import Table

    data = bytearray(model)

    def tables(parent: Table, slot: int) -> list[Table]:
        offset = parent.Offset(4 + 2 * slot)
        start = parent.Vector(offset) if offset else 0
        return [Table(data, parent.Indirect(start + 4 * i)) for i in range(parent.VectorLen(offset) if offset else 0)]

    def scalar(table: Table, slot: int, kind) -> int:
        return table.GetSlot(4 + 2 * slot, 0, kind)

    def integer(table: Table, slot: int, index: int) -> int:
        start = table.Vector(table.Offset(4 + 2 * slot))
        return encode.Get(number_types.Int32Flags.packer_type, data, start + 4 * index)

    root = Table(data, encode.Get(number_types.UOffsetTFlags.packer_type, data, 0))
    codes = [max(scalar(c, 0, number_types.Int8Flags), scalar(c, 3, number_types.Int32Flags)) for c in tables(root, 1)]
    buffers, sizes = tables(root, 4), set()
    for graph in tables(root, 2):
        tensors = tables(graph, 0)
        for operator in tables(graph, 3):
            place = _SIZES.get(codes[scalar(operator, 0, number_types.Uint32Flags)])
            if place:
                sizes.add((scalar(tensors[integer(operator, 1, place[0])], 2, number_types.Uint32Flags), place[1]))
    for index, first in sizes:
        size = np.frombuffer(data, "<i4", 2, buffers[index].Vector(buffers[index].Offset(4)) + 4 * first)
        size[:] = size * wanted // written
    return bytes(data)


def open_session(bundle: Bundle, threads: int = 1) -> Session:
    """The ``tflite`` artefact. Raises as :func:`irstd_edge.runtimes.session.open_session` does."""
    return TfliteSession("tflite", bundle.artefact("tflite")[1], threads)

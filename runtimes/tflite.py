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

    The file is written for one image size. Where the export found it ``resizable``, another one is run by rewriting
    the sizes inside it and resizing the input. ``keep``: every tensor can be read after a run (:meth:`run_tensors`),
    for which the interpreter's own delegate, XNNPACK, is left out.
    """

    def __init__(self, artefact: str, path: Path, threads: int, *, resizable: bool, keep: bool = False):
        module, self.runtime = interpreter_module()
        self.artefact = artefact
        self._path = path
        self._resizable = resizable
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
        kept = {}
        if keep:
            kept = {"experimental_preserve_all_tensors": True,
                    "experimental_op_resolver_type": module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}
        self._open = lambda content: module.Interpreter(
            model_content=content, num_threads=threads, experimental_delegates=delegates, **kept
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
        if count != self._written[0]:
            raise ValueError(f"images must come one by one, got {count}")
        shape = (count, height, width, 1)
        _, h, w, _ = self._written
        if shape != self._shape:
            refusal = f"{self._path}: written for {h}x{w} images, cannot run {height}x{width}"
            if not self._resizable:
                raise UnsupportedError(f"{refusal}: its sizes are fixed; export again with --input-size "
                                       f"{height}x{width}, or run --artefact torch")
            self._shape = None
            try:
                self._interpreter = self._open(at_size(self._model, (h, w), (height, width)))
                self._interpreter.resize_tensor_input(self._input, shape)
                self._interpreter.allocate_tensors()
            except (RuntimeError, ValueError) as e:
                raise UnsupportedError(f"{refusal} ({e}); export again with --input-size {height}x{width}") from e
            self._shape = shape
        # One channel: NCHW and NHWC are the same bytes.
        self._interpreter.set_tensor(self._input, np.ascontiguousarray(x, np.float32).reshape(shape))

    def run(self, x: np.ndarray) -> np.ndarray:
        if len(x) > 1:
            return np.concatenate([self.run(image[None]) for image in x])
        self._load(x)
        self._interpreter.invoke()
        y = self._interpreter.get_tensor(self._output)
        return y.reshape(y.shape[0], 1, y.shape[1], y.shape[2])

    def run_tensors(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Every tensor of the file by name, as it lies there, of a session that keeps them; ``x``: one image."""
        self._load(x)
        self._interpreter.invoke()
        found = {}
        for tensor in self._interpreter.get_tensor_details():
            try:
                found[tensor["name"]] = self._interpreter.get_tensor(tensor["index"])
            except ValueError:  # one that only a delegate has
                continue
        return found

    def run_all(self, x: np.ndarray) -> list[np.ndarray]:
        if len(x) > 1:
            return [np.concatenate(parts) for parts in zip(*(self.run_all(image[None]) for image in x), strict=True)]
        self._load(x)
        self._interpreter.invoke()
        found = [self._interpreter.get_tensor(d["index"]) for d in self._interpreter.get_output_details()]
        return [np.ascontiguousarray(y.transpose(0, 3, 1, 2)) if y.ndim == 4 else y for y in found]

    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        self._load(x)
        return self._interpreter.invoke


#: End of the name of a constant tensor that holds a part of the image size: int32 [H, W] or [N, H, W, C].
IMAGE_SIZE = ":image_size"


def at_size(model: bytes, written: tuple[int, int], wanted: tuple[int, int]) -> bytes:
    """The file with its constants of the name :data:`IMAGE_SIZE` scaled from ``written`` to ``wanted`` (H, W).

    The writer gives that name to constants that are a fixed part of the image size, each with a buffer of its own.
    Raises :class:`ValueError` where ``wanted`` has no such part.
    """
    from flatbuffers import encode, number_types
    from flatbuffers.table import Table

    data = bytearray(model)

    def tables(parent: Table, slot: int) -> list[Table]:
        offset = parent.Offset(4 + 2 * slot)
        start = parent.Vector(offset) if offset else 0
        return [Table(data, parent.Indirect(start + 4 * i)) for i in range(parent.VectorLen(offset) if offset else 0)]

    def name(tensor: Table) -> bytes:
        offset = tensor.Offset(4 + 2 * 3)
        return tensor.String(tensor.Pos + offset) if offset else b""

    root = Table(data, encode.Get(number_types.UOffsetTFlags.packer_type, data, 0))
    buffers = tables(root, 4)
    for graph in tables(root, 2):
        for tensor in tables(graph, 0):
            if name(tensor).endswith(IMAGE_SIZE.encode()):
                buffer = buffers[tensor.GetSlot(4 + 2 * 2, 0, number_types.Uint32Flags)]
                content = buffer.Offset(4)
                first = 1 if buffer.VectorLen(content) == 16 else 0
                size = np.frombuffer(data, "<i4", 2, buffer.Vector(content) + 4 * first)
                if np.any(size.astype(np.int64) * wanted % written):
                    raise ValueError("height and width must be multiples of the network's")
                size[:] = size.astype(np.int64) * wanted // written
    return bytes(data)


def open_session(bundle: Bundle, threads: int = 1) -> Session:
    """The ``tflite`` artefact. Raises as :func:`irstd_edge.runtimes.session.open_session` does."""
    entry, path = bundle.artefact("tflite")
    return TfliteSession("tflite", path, threads, resizable=entry.resizable)

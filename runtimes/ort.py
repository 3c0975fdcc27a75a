"""ONNX Runtime: the ``onnx`` artefact with our operators, and the ``portable`` one without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from irstd_edge.bundle import Bundle, BundleError
from irstd_edge.errors import MissingError, UnsupportedError
from irstd_edge.opspec import DOMAIN
from irstd_edge.runtimes import library
from irstd_edge.runtimes.session import Session

#: The field `domain` of a node of ours in the serialised graph (protobuf field 7, length, text).
_NODE_DOMAIN = b"\x3a" + bytes([len(DOMAIN)]) + DOMAIN.encode()


class OrtSession(Session):
    """One ONNX file; the library of our operators is registered only where the file has such a node.

    ``model``: a copy of the file with other outputs, to run in its place.
    """

    def __init__(self, artefact: str, path: Path, threads: int, *, custom_operators: bool, model: bytes | None = None):
        try:
            import onnxruntime
        except ImportError as e:
            raise MissingError(f"onnxruntime cannot be imported ({e}); install it with: pip install onnxruntime") from e
        self.artefact = artefact
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        # Without it, denormal activations slow a trained network down tenfold.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        model = path.read_bytes() if model is None else model
        if custom_operators and _NODE_DOMAIN in model:
            self.isa = library.selected_isa("ort")
            options.add_session_config_entry("irstd.threads", str(threads))
            options.register_custom_ops_library(str(library.find("ort")))
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # every error of ORT is a class of its own, derived from Exception alone
            raise BundleError(f"{path}: onnxruntime {onnxruntime.__version__} cannot load it: {e}") from e
        self._path = path
        self._input = self._session.get_inputs()[0].name
        self._shape = self._session.get_inputs()[0].shape
        self._output = self._session.get_outputs()[0].name

    def run(self, x: np.ndarray) -> np.ndarray:
        return self._run(x, [self._output])[0]

    def run_tensors(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Every output of the file by name."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._run(x, names), strict=True))

    def run_all(self, x: np.ndarray) -> list[np.ndarray]:
        return self._run(x, None)

    def _run(self, x: np.ndarray, outputs: list[str] | None) -> list[np.ndarray]:
        # A dynamic size is a name; a file of a network that PyTorch could not export dynamically has numbers.
        fixed = [n for n in self._shape[2:] if isinstance(n, int)]
        if fixed and fixed != list(x.shape[2:]):
            raise UnsupportedError(
                f"{self._path}: written for {fixed[0]}x{fixed[1]} images, cannot run {x.shape[2]}x{x.shape[3]}; "
                "export again with that --input-size, or run --artefact torch"
            )
        return self._session.run(outputs, {self._input: np.ascontiguousarray(x, np.float32)})

    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        from onnxruntime import OrtValue

        binding = self._session.io_binding()
        source = OrtValue.ortvalue_from_numpy(np.array(x, np.float32, order="C"))
        result = OrtValue.ortvalue_from_numpy(self.run(x))
        binding.bind_ortvalue_input(self._input, source)
        binding.bind_ortvalue_output(self._output, result)

        def call(run=self._session.run_with_iobinding, binding=binding, keep=(source, result)) -> None:
            run(binding)

        return call


def open_session(bundle: Bundle, threads: int = 1) -> Session:
    """The ``onnx`` artefact. Raises as :func:`irstd_edge.runtimes.session.open_session` does."""
    return OrtSession("onnx", bundle.artefact("onnx")[1], threads, custom_operators=True)


def open_portable_session(bundle: Bundle, threads: int = 1) -> Session:
    """The ``portable`` artefact, of standard operators alone: no library of ours is loaded."""
    return OrtSession("portable", bundle.artefact("portable")[1], threads, custom_operators=False)

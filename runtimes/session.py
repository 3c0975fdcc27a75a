"""One interface for every runtime: open an artefact of a bundle, run images, get probability maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from irstd_edge.bundle import Bundle, BundleError
from irstd_edge.errors import UnsupportedError


class Session(ABC):
    """A loaded network in one runtime; not shared between threads.

    Sessions take and give NCHW float32 whatever the artefact's own layout is.
    """

    #: ``torch`` or one of :data:`irstd_edge.bundle.ARTEFACTS`.
    artefact: str
    #: Runtime and version for reports, as ``onnxruntime 1.31.1``.
    runtime: str
    #: Kernel ISA of our operators in this session (``avx2`` ...), or None where none of them runs.
    isa: str | None = None

    @abstractmethod
    def run(self, x: np.ndarray) -> np.ndarray:
        """Normalised, padded float32 ``[N, 1, H, W]`` to the probability ``[N, 1, H, W]``."""

    def run_all(self, x: np.ndarray) -> list[np.ndarray]:
        """Every output that was exported, float32 in NCHW: the probability, then what the network returns besides."""
        return [self.run(x)]

    @abstractmethod
    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        """Bind one input and return a call that runs the network alone: what a benchmark times."""


#: Artefact kind -> "module:function(bundle, threads) -> Session"; imported only when opened.
OPENERS: dict[str, str] = {
    "torch": "irstd_edge.runtimes.pytorch:open_session",
    "onnx": "irstd_edge.runtimes.ort:open_session",
    "tflite": "irstd_edge.runtimes.tflite:open_session",
    "native": "irstd_edge.runtimes.native:open_session",
    "portable": "irstd_edge.runtimes.ort:open_portable_session",
}


#: What runs of a bundle where none is named.
PREFERRED = ("onnx", "native", "tflite", "portable")


def preferred_artefact(bundle: Bundle) -> str:
    """The kind of the first of :data:`PREFERRED` that a bundle holds; one that runs images of any size goes first.

    Raises :class:`~irstd_edge.bundle.BundleError` where it holds none: PyTorch, which runs the bundle's code, is never
    chosen unasked.
    """
    found = sorted(bundle.manifest.artefacts, key=lambda a: (not a.resizable, PREFERRED.index(a.kind)))
    if not found:
        raise BundleError(f"{bundle.path}: holds no exported file: export it again, or run --artefact torch")
    return found[0].kind


def open_session(bundle: Bundle, kind: str, threads: int = 1) -> Session:
    """Open one artefact of a bundle (``torch``: the PyTorch network itself).

    Raises :class:`~irstd_edge.errors.UnsupportedError`, :class:`~irstd_edge.errors.MissingError`,
    :class:`~irstd_edge.bundle.BundleError`.
    """
    from importlib import import_module

    if kind not in OPENERS:
        raise UnsupportedError(f"no runtime for {kind!r}; known: {', '.join(OPENERS)}")
    module, function = OPENERS[kind].split(":")
    return getattr(import_module(module), function)(bundle, threads)

"""PyTorch: the network itself, with the bundle's weights, in the form that export starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from irstd_edge.bundle import Bundle
from irstd_edge.checkpoints import open_bundle_network
from irstd_edge.errors import UnsupportedError
from irstd_edge.nn.inference import freeze
from irstd_edge.outputs import check_shape, check_values, run_network
from irstd_edge.runtimes.session import Session


class TorchSession(Session):
    """The frozen network in eager mode. The thread count is PyTorch's own, which is one per process."""

    artefact = "torch"

    def __init__(self, network: torch.nn.Module, threads: int, outputs: Sequence[int] = (0,)):
        """``outputs``: places of those that were exported among the tensors that the network returns."""
        self.runtime = f"torch {torch.__version__}"
        self._network = freeze(network).eval()
        self._threads, self._outputs = threads, outputs

    def _call(self, x: torch.Tensor) -> list[torch.Tensor]:
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        # Per thread, and left off for the caller, who may count on denormals.
        torch.set_flush_denormal(True)
        try:
            with torch.inference_mode():
                tensors = run_network(self._network, x)
        finally:
            torch.set_flush_denormal(False)
        if len(tensors) <= max(self._outputs):
            raise UnsupportedError(f"the network returns {len(tensors)} tensors for an input {list(x.shape)}; return "
                                   "as many as when it was exported")
        return [tensors[place] for place in self._outputs]

    def run(self, x: np.ndarray) -> np.ndarray:
        return self.run_all(x)[0]

    def run_all(self, x: np.ndarray) -> list[np.ndarray]:
        image = torch.from_numpy(np.ascontiguousarray(x, np.float32))
        found = self._call(image)
        check_shape(found[0], image)
        check_values(found[0])
        return [y.float().numpy() for y in found]

    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        held = torch.from_numpy(np.array(x, np.float32, order="C"))

        def call() -> None:
            self._call(held)

        return call


def open_session(bundle: Bundle, threads: int = 1) -> Session:
    """The network of the bundle's weights. Raises as :func:`irstd_edge.runtimes.session.open_session` does."""
    return TorchSession(open_bundle_network(bundle), threads, bundle.manifest.outputs)

"""PyTorch: the network itself, with the bundle's weights, in the form that export starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from irstd_edge.bundle import Bundle
from irstd_edge.checkpoints import open_bundle_network
from irstd_edge.errors import MissingError, UnsupportedError
from irstd_edge.nn.inference import freeze
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
                result = self._network(x)
        except (UnsupportedError, MissingError):
            raise
        except Exception as e:  # whatever a user's network raises
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise UnsupportedError(f"the network does not run on an input {list(x.shape)}: {reason}; networks here "
                                   "take one grey channel: wrap it, or use images of another size") from e
        finally:
            torch.set_flush_denormal(False)
        tensors = [y for y in tree_leaves(result) if isinstance(y, torch.Tensor)]
        if len(tensors) <= max(self._outputs):
            leaves = [type(leaf).__name__ for leaf in tree_leaves(result)]
            got = f"{len(tensors)} tensors" if tensors else ", ".join(leaves) or type(result).__name__
            raise UnsupportedError(f"the network returns {got} for an input {list(x.shape)}; return one probability "
                                   "map of the input's size, and as many tensors besides as when it was exported")
        return [tensors[place] for place in self._outputs]

    def run(self, x: np.ndarray) -> np.ndarray:
        return self.run_all(x)[0]

    def run_all(self, x: np.ndarray) -> list[np.ndarray]:
        found = self._call(torch.from_numpy(np.ascontiguousarray(x, np.float32)))
        if found[0].shape != x.shape:
            raise UnsupportedError(f"the network returns {list(found[0].shape)} for an input {list(x.shape)}; return "
                                   "one probability map of the input's size, first where there are several")
        return [y.float().numpy() for y in found]

    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        held = torch.from_numpy(np.array(x, np.float32, order="C"))

        def call() -> None:
            self._call(held)

        return call


def open_session(bundle: Bundle, threads: int = 1) -> Session:
    """The network of the bundle's weights. Raises as :func:`irstd_edge.runtimes.session.open_session` does."""
    return TorchSession(open_bundle_network(bundle), threads, bundle.manifest.outputs)

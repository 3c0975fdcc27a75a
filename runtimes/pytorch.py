"""PyTorch: the network itself, with the bundle's weights, in the form that export starts from."""

from __future__ import annotations

from collections.abc import Callable

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

    def __init__(self, network: torch.nn.Module, threads: int):
        self.runtime = f"torch {torch.__version__}"
        self._network = freeze(network).eval()
        self._threads = threads

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        # Per thread, and left off for the caller, who may count on denormals.
        torch.set_flush_denormal(True)
        try:
            with torch.inference_mode():
                # Of several outputs (deep supervision) the first, as export keeps it.
                return tree_leaves(self._network(x))[0]
        except (UnsupportedError, MissingError):
            raise
        except Exception as e:  # whatever a user's network raises
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise UnsupportedError(f"the network does not run on an input {list(x.shape)}: {reason}; networks here "
                                   "take one grey channel: wrap it, or use images of another size") from e
        finally:
            torch.set_flush_denormal(False)

    def run(self, x: np.ndarray) -> np.ndarray:
        y = self._call(torch.from_numpy(np.ascontiguousarray(x, np.float32)))
        if not isinstance(y, torch.Tensor) or y.shape != x.shape:
            got = list(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
            raise UnsupportedError(f"the network returns {got} for an input {list(x.shape)}; return one probability "
                                   "map of the input's size, first where there are several")
        return y.float().numpy()

    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        held = torch.from_numpy(np.array(x, np.float32, order="C"))

        def call() -> None:
            self._call(held)

        return call


def open_session(bundle: Bundle, threads: int = 1) -> Session:
    """The network of the bundle's weights. Raises as :func:`irstd_edge.runtimes.session.open_session` does."""
    return TorchSession(open_bundle_network(bundle), threads)

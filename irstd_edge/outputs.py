"""What a network returns, checked: one probability map of the input's size, first where there are several tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from irstd_edge.errors import MissingError, UnsupportedError, first_line

#: Interpolation, and bfloat16, may round a probability a little past 0 or 1. An export allows none.
SLACK = 0.01


def run_network(network: nn.Module, x: torch.Tensor, *, name: str = "the network",
                way_out: str = "use images of another size") -> list[torch.Tensor]:
    """The tensors that a network returns for ``x``, flattened in the order of the return value.

    Raises :class:`~irstd_edge.errors.UnsupportedError` where it does not run, ending in ``way_out``, or returns none.
    """
    try:
        result = network(x)
    except (UnsupportedError, MissingError):
        raise
    except Exception as e:  # whatever a user's network raises
        raise UnsupportedError(f"{name} does not run on an input {list(x.shape)}: {first_line(e)}; networks here take "
                               f"one grey channel: wrap it, or {way_out}") from e
    leaves = tree_leaves(result)
    tensors = [y for y in leaves if isinstance(y, torch.Tensor)]
    if not tensors:
        got = ", ".join(type(y).__name__ for y in leaves) or type(result).__name__
        raise UnsupportedError(f"{name} returns {got} for an input {list(x.shape)}; return one probability map of the "
                               "input's size")
    return tensors


def check_shape(y: torch.Tensor, x: torch.Tensor, size: Sequence[int] | None = None) -> None:
    """Raise :class:`~irstd_edge.errors.UnsupportedError` unless ``y`` is ``[N, 1, *size]``, by default of x's size."""
    if y.ndim != 4 or tuple(y.shape) != (x.shape[0], 1, *(x.shape[2:] if size is None else size)):
        raise UnsupportedError(f"the network returns {list(y.shape)} for an input {list(x.shape)}; return one "
                               "probability map of the input's size, first where there are several")


def check_values(y: torch.Tensor, slack: float = SLACK) -> None:
    """Raise :class:`~irstd_edge.errors.UnsupportedError` unless all values are in 0..1, give or take ``slack``."""
    low, high = (float(v) for v in y.detach().float().aminmax())
    if not (low > -float("inf") and high < float("inf")):  # NaN is neither
        raise UnsupportedError("the network returns NaN or infinity; check its weights and the normalisation")
    if low < -slack or high > 1 + slack:
        raise UnsupportedError(f"the network returns values in [{low:.3g}, {high:.3g}], no probabilities; end "
                               "forward() with torch.sigmoid")


def probability_of(network: nn.Module, x: torch.Tensor, **options) -> torch.Tensor:
    """The probability ``[N, 1, H, W]`` that a network returns for ``x``, checked.

    ``options`` are those of :func:`run_network`. Raises :class:`~irstd_edge.errors.UnsupportedError`.
    """
    y = run_network(network, x, **options)[0]
    check_shape(y, x)
    check_values(y)
    return y

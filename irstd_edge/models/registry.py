"""The networks known by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from irstd_edge.models.biisnet import biisnet, biisnet_float


class UnknownModelError(ValueError):
    """No network of this name; the message lists the nearest."""


@dataclass(frozen=True)
class Model:
    name: str
    factory: Callable[..., nn.Module]
    summary: str
    source: str
    #: The float network of the same topology to compare speed with, if any.
    float_twin: str | None = None


MODELS: dict[str, Model] = {
    m.name: m
    for m in (
        Model("biisnet", biisnet, "binarised three-level U-Net, Dot-binary convolutions",
              "reconstructed after the abstract of arXiv 2503.02662", "biisnet-float"),
        Model("biisnet-float", biisnet_float, "float twin of biisnet: same topology, float convolutions", "ours"),
    )
}


def get_model(name: str) -> Model:
    """The entry of a name; raises :class:`UnknownModelError`."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 1, 0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownModelError(f"unknown model {name!r}; {hint}known: {', '.join(MODELS)}")
    return MODELS[name]

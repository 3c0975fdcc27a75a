"""Trained weights of the package: ``<name>.safetensors``, ``<name>.json`` (facts) and ``<name>.md`` (model card).

A name is that of a network of the registry, or ``NETWORK@DATASET`` for weights of it whose last training was on that
data set alone.
"""

from __future__ import annotations

import json
from pathlib import Path

ZOO = Path(__file__).parent


def network_of(name: str) -> str:
    """The network in the registry that weights called ``name`` are for."""
    return name.partition("@")[0]


def zoo_names(network: str) -> list[str]:
    """The names of all weights of a network of the registry; those that go by its own name first."""
    found = [p.stem for p in ZOO.glob("*.safetensors") if network_of(p.stem) == network]
    return sorted(found, key=lambda name: (name != network, name))


def zoo_weights(name: str) -> Path | None:
    """The weights of a name, or None where there are none."""
    path = ZOO / f"{name}.safetensors"
    return path if path.is_file() else None


def zoo_card(name: str) -> dict | None:
    """The facts of the weights of a name, as :mod:`irstd_edge.zoo.card` wrote them, or None."""
    path = ZOO / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def zoo_cards() -> list[dict]:
    """The facts of all weights."""
    return [zoo_card(path.stem) for path in sorted(ZOO.glob("*.json"))]

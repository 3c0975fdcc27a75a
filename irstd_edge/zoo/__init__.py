"""Trained weights of the package: ``<name>.safetensors``, ``<name>.json`` (facts) and ``<name>.md`` (model card)."""

from __future__ import annotations

import json
from pathlib import Path

ZOO = Path(__file__).parent


def zoo_weights(name: str) -> Path | None:
    """The weights of a network of the registry, or None where there are none."""
    path = ZOO / f"{name}.safetensors"
    return path if path.is_file() else None


def zoo_card(name: str) -> dict | None:
    """The facts of the weights of a network, as :mod:`irstd_edge.zoo.card` wrote them, or None."""
    path = ZOO / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None

"""Which images a network was trained on, so that nobody measures on them unawares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from irstd_edge.data import DataError, Dataset, split_validation
from irstd_edge.training.recipe import parse_datasets
from irstd_edge.zoo import zoo_card, zoo_names


def training_recipe(factory: str, checkpoint: Path | None, checkpoint_sha256: str | None) -> dict | None:
    """The recipe that weights were trained by, or None where that is not recorded.

    That of the run in whose folder ``checkpoint`` lies, or where its digest is that of the zoo's weights of
    ``factory``, the one on their card.
    """
    if checkpoint is not None and checkpoint.name in ("best.safetensors", "last.safetensors"):
        try:
            return json.loads((checkpoint.parent / "recipe.json").read_text())
        except (OSError, ValueError):
            return None
    cards = map(zoo_card, zoo_names(factory))
    card = next((card for card in cards if card["weights"]["sha256"] == checkpoint_sha256), None)
    return card["training"]["recipe"] if card and card["training"] else None


def names_trained_on(recipe: Mapping, root: Path, folder: str) -> set[str]:
    """Names of the images of a data set's folder that a training by ``recipe`` saw; those held out are not of them.

    A set of the training that is not in ``root`` is passed over. Which images were held out is then unknown: none.
    """
    images, whole = [], True
    for reference in parse_datasets(recipe["dataset"]):
        try:
            images += [(reference.partition(":")[0], name) for name in Dataset.named(root, reference, "train").names]
        except DataError:
            whole = False
    kept = split_validation(len(images), recipe["validation"])[0] if whole else range(len(images))
    return {name for f, name in (images[i] for i in kept) if f == folder}


def count_seen(recipe: Mapping, root: Path, samples: Dataset, names: list[str] | None = None) -> int:
    """How many images of a split, or of ``names`` in it, a training by ``recipe`` saw."""
    return len(names_trained_on(recipe, root, samples.name).intersection(samples.names if names is None else names))

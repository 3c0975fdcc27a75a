"""Which images a network was trained on, so that nobody measures on them unawares."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from irstd_edge.data import DataError, Dataset, split_validation
from irstd_edge.training.recipe import parse_datasets
from irstd_edge.zoo import zoo_cards


def training_recipes(checkpoint: Path | None, checkpoint_sha256: str | None) -> list[dict]:
    """The recipes that weights were trained by, the last stage first; none where that is not recorded.

    Those of the run in whose folder ``checkpoint`` lies, or of the card of the zoo's weights of this digest; then of
    the zoo's weights that it began from, and so on.
    """
    if checkpoint is not None and checkpoint.name in ("best.safetensors", "last.safetensors"):
        try:
            return with_earlier(json.loads((checkpoint.parent / "recipe.json").read_text()))
        except (OSError, ValueError):
            return []
    return _of_the_zoo(checkpoint_sha256)


def with_earlier(record: dict) -> list[dict]:
    """The record of a run, then the recipes of the zoo's weights that it began from."""
    return [record, *_of_the_zoo((record.get("initial") or {}).get("sha256"))]


def _of_the_zoo(digest: str | None) -> list[dict]:
    training = next((card["training"] for card in zoo_cards() if card["weights"]["sha256"] == digest), None)
    return with_earlier(training["recipe"] | {"initial": training["initial"]}) if training else []


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


def count_seen(recipes: Sequence[Mapping], root: Path, samples: Dataset, names: list[str] | None = None) -> int | None:
    """How many images of a split, or of ``names`` in it, a training by ``recipes`` saw; None where there are none."""
    if not recipes:
        return None
    seen = set().union(*(names_trained_on(recipe, root, samples.name) for recipe in recipes))
    return len(seen.intersection(samples.names if names is None else names))

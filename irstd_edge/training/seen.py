"""Which images a network was trained on, so that nobody measures on them unawares."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from irstd_edge.checkpoints import QUANTISED
from irstd_edge.data import DataError, Dataset, split_validation
from irstd_edge.training.recipe import parse_datasets
from irstd_edge.zoo import zoo_cards

#: The files of a run and of a quantising, and the record beside each.
_RECORDS = {"best.safetensors": "recipe.json", "last.safetensors": "recipe.json", QUANTISED: "quantisation.json"}
#: Of a recipe, what tells the images that a training saw.
_FIELDS = ("network", "dataset", "validation")


def training_recipes(checkpoint: Path | None, checkpoint_sha256: str | None) -> list[dict]:
    """The recipes that weights were trained by, the last stage first; none where that is not recorded.

    Those of the run or the quantising in whose folder ``checkpoint`` lies, or of the card of the zoo's weights of this
    digest; each then goes back as :func:`recipes_of` does.
    """
    if checkpoint is not None and checkpoint.name in _RECORDS:
        try:
            return recipes_of(json.loads((checkpoint.parent / _RECORDS[checkpoint.name]).read_text()))
        except (OSError, ValueError):
            return []
    return _of_the_zoo(checkpoint_sha256)


def recipes_of(record: Mapping) -> list[dict]:
    """The recipe of a run's record (none of a quantising's manifest), then those of ``earlier`` trainings: of the
    weights that it began from, of the float network that was quantised, of its teacher.

    Records without ``earlier`` name such weights by their digests: those of the zoo are known.
    """
    own = [dict(record)] if "validation" in record else []
    if "earlier" in record:
        return own + record["earlier"]
    digests = ((record.get("initial") or {}).get("sha256"), record.get("checkpoint_sha256"),
               (record.get("teacher") or {}).get("sha256"))
    return own + [recipe for digest in digests if digest for recipe in _of_the_zoo(digest)]


def earlier_trainings(recipes: Iterable[Mapping]) -> list[dict]:
    """What a record keeps of the ``recipes`` before it, each once."""
    return [dict(kept) for kept in dict.fromkeys(tuple((k, r[k]) for k in _FIELDS if k in r) for r in recipes)]


def _of_the_zoo(digest: str | None) -> list[dict]:
    training = next((card["training"] for card in zoo_cards() if card["weights"]["sha256"] == digest), None)
    return recipes_of({**training["recipe"], **{k: training[k] for k in ("initial", "teacher", "earlier")
                                                if k in training}}) if training else []


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

"""Training recipes: small readable TOML files, one per network and data set."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path


class RecipeError(ValueError):
    """A recipe has an unknown or wrong field; the message names it."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, besides where the data lies.

    ``validation`` is the share of the training images held out (every n-th of the split file) to choose the best
    checkpoint by IoU; the test split is never looked at. ``average`` is the decay, per step, of the running average
    of the weights that is validated and saved.
    """

    network: str
    dataset: str
    epochs: int = 400
    batch: int = 16
    crop: int = 128
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    average: float = 0.99
    validation: float = 0.1
    validate_every: int = 5
    seed: int = 42

    def __post_init__(self):
        for name in ("epochs", "batch", "crop", "validate_every"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate:
            raise RecipeError(f"learning_rate must be positive, got {self.learning_rate}")
        for name in ("average", "validation"):
            if not 0 <= getattr(self, name) < 1:
                raise RecipeError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    @classmethod
    def read(cls, path: Path) -> Recipe:
        try:
            values = tomllib.loads(Path(path).read_text())
        except (OSError, tomllib.TOMLDecodeError) as e:
            raise RecipeError(f"{path}: {e}") from e
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise RecipeError(f"{path}: unknown field {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        try:
            return cls(**values)
        except TypeError as e:
            raise RecipeError(f"{path}: {e}") from e

    def as_dict(self) -> dict:
        return asdict(self)

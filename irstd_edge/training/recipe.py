"""Training recipes: small readable TOML files, one per network and data set."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

#: Recipes shipped with the package, by name.
RECIPES = Path(__file__).parent / "recipes"


class RecipeError(ValueError):
    """A recipe has an unknown or wrong field; the message names it."""


def parse_datasets(text: str) -> dict[str, int]:
    """``A*3+B`` as ``{"A": 3, "B": 1}``. Raises :class:`RecipeError`."""
    found = {}
    for part in text.split("+"):
        name, star, times = part.partition("*")
        if not name or name in found or (star and not (times.isdigit() and int(times) > 0)):
            raise RecipeError(f"dataset must be names joined by +, each once, as NAME or NAME*2, got {text!r}")
        found[name] = int(times) if star else 1
    return found


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, besides where the data lies.

    ``validation`` is the share of the training images held out (every n-th of the split file) to choose the best
    checkpoint by IoU; the test split is never looked at. ``average`` is the decay, per step, of the running average
    of the weights that is validated and saved; it is less in the first steps, so that the first weights are soon
    forgotten. ``dataset`` may name several, joined by ``+``: their training splits are put together and normalised
    by the constants of the first; ``NAME*3`` takes a set three times an epoch. The learning rate follows a half
    cosine from ``learning_rate`` to ``final_learning_rate``. ``crop`` is in pixels; a normalised image is multiplied
    by exp(U(-contrast, contrast)) and U(-brightness, brightness) is added.

    Raises :class:`RecipeError` on construction.
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
    contrast: float = 0.0
    brightness: float = 0.0
    seed: int = 42

    def __post_init__(self):
        for f in fields(self):
            value, kind = getattr(self, f.name), {"str": str, "int": int, "float": (int, float)}[f.type]
            if not isinstance(value, kind) or isinstance(value, bool):
                raise RecipeError(f"{f.name} must be {f.type}, got {value!r}")
        _ = self.datasets  # raises where it is malformed
        for name in ("epochs", "batch", "crop", "validate_every"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (0 < self.learning_rate < float("inf") and 0 <= self.final_learning_rate <= self.learning_rate):
            raise RecipeError("learning_rate must be positive and final_learning_rate between 0 and it, "
                              f"got {self.learning_rate} and {self.final_learning_rate}")
        for name in ("contrast", "brightness", "seed"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise RecipeError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("average", "validation"):
            if not 0 <= getattr(self, name) < 1:
                raise RecipeError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a TOML file. Raises :class:`RecipeError` naming the file and the field."""
        try:
            values = tomllib.loads(Path(path).read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
            raise RecipeError(f"{path}: {e}") from e
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise RecipeError(f"{path}: unknown field {', '.join(unknown)}; known: {', '.join(known)}")
        if missing := [name for name in known[:2] if name not in values]:
            raise RecipeError(f"{path}: {' and '.join(missing)} missing")
        try:
            return cls(**values)
        except RecipeError as e:
            raise RecipeError(f"{path}: {e}") from e

    @classmethod
    def find(cls, reference: str) -> Recipe:
        """A recipe by the path of a TOML file or by the name of one shipped here. Raises :class:`RecipeError`."""
        if Path(reference).is_file():
            return cls.read(Path(reference))
        names = sorted(p.stem for p in RECIPES.glob("*.toml"))
        if reference in names:
            return cls.read(RECIPES / f"{reference}.toml")
        raise RecipeError(f"{reference}: no such recipe file, and no recipe of this name; names: {', '.join(names)}")

    @property
    def datasets(self) -> dict[str, int]:
        """Each data set that ``dataset`` joins by ``+``, and how often an epoch takes it."""
        return parse_datasets(self.dataset)

    def as_dict(self) -> dict:
        return asdict(self)

"""Training recipes: small readable TOML files, one per network and data set."""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from irstd_edge.layouts import LAYOUTS

if TYPE_CHECKING:
    import torch

#: Recipes shipped with the package, by name.
RECIPES = Path(__file__).parent / "recipes"
#: Choices of the fields that are names; the optimisers with what they take besides torch's defaults.
OPTIMIZERS = {"adam": {}, "adamw": {}, "adagrad": {}, "sgd": {"momentum": 0.9}}
SCHEDULES = ("cosine", "multistep", "constant")
LOSS_NAMES = ("soft_iou", "image_iou", "bce_iou")
DISTILLATIONS = ("msa", "semantic")


class RecipeError(ValueError):
    """A recipe has an unknown or wrong field; the message names it."""


def parse_datasets(text: str) -> dict[str, int]:
    """``A*3+B:idx/trainval`` as ``{"A": 3, "B:idx/trainval": 1}``. Raises :class:`RecipeError`."""
    found = {}
    for part in text.split("+"):
        name, star, times = part.partition("*")
        if not name or name in found or (star and not (times.isdigit() and int(times) > 0)):
            raise RecipeError(f"dataset must be names joined by +, each once, as NAME or NAME*2, got {text!r}")
        found[name] = int(times) if star else 1
    return found


_KINDS = {"str": str, "int": int, "float": (int, float), "tuple[int, ...]": tuple, "tuple[str, ...]": tuple}


def _check_kinds(values) -> None:
    for f in fields(values):
        if f.type not in _KINDS:
            continue
        value, kind = getattr(values, f.name), _KINDS[f.type]
        inner = value if isinstance(value, tuple) else ()
        element = {"tuple[int, ...]": int, "tuple[str, ...]": str}.get(f.type)
        if not isinstance(value, kind) or isinstance(value, bool) or not all(
                isinstance(v, element) and not isinstance(v, bool) for v in inner):
            expected = f.type if element is None else f"a list of {element.__name__}"
            raise RecipeError(f"{f.name} must be {expected}, got {list(value) if inner else repr(value)}")


def _check_choice(name: str, value: str, known) -> None:
    if value not in known:
        raise RecipeError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _fill(kind: type, values: dict, required: int):
    """An instance of a dataclass from a TOML table or JSON object. Raises :class:`RecipeError`."""
    known = [f.name for f in fields(kind)]
    if unknown := sorted(set(values) - set(known)):
        raise RecipeError(f"unknown field {', '.join(unknown)}; known: {', '.join(known)}")
    if missing := [name for name in known[:required] if name not in values]:
        raise RecipeError(f"{' and '.join(missing)} missing")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


@dataclass(frozen=True)
class Distill:
    """The table ``[distill]`` of a recipe: what the network learns from a teacher besides the masks.

    ``teacher`` is a name of the registry or ``package.module:factory``, ``checkpoint`` its weights (default those of
    the zoo); of a public one ``from_layout`` is a key of :data:`~irstd_edge.layouts.LAYOUTS`. ``features`` are pairs
    ``teacher.layer=student.layer`` of names as ``named_modules()`` gives them. ``method`` is ``msa`` (feature
    distillation guided by multi-scale spatial attention) or ``semantic`` (through a self-attention sub-network).
    ``weight`` is the norm of the distillation's gradient over that of the loss; ``attention`` (``msa``) how much more
    the most salient place counts than the background.

    Raises :class:`RecipeError` on construction.
    """

    teacher: str
    features: tuple[str, ...]
    method: str = "msa"
    checkpoint: str = ""
    from_layout: str = ""
    weight: float = 1.0
    attention: float = 1.0

    def __post_init__(self):
        _check_kinds(self)
        _check_choice("method", self.method, DISTILLATIONS)
        if self.from_layout:
            _check_choice("from_layout", self.from_layout, LAYOUTS)
            if not self.checkpoint:
                raise RecipeError(f"from_layout {self.from_layout} says how to read a checkpoint of the teacher: give "
                                  "checkpoint (--teacher-checkpoint) too")
        if not self.features:
            raise RecipeError("features must name at least one pair teacher.layer=student.layer")
        _ = self.pairs  # raises where one is malformed
        for name in ("weight", "attention"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RecipeError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Layer names of teacher and student."""
        found = [tuple(part.strip() for part in text.split("=")) for text in self.features]
        if wrong := [t for t, pair in zip(self.features, found, strict=True) if len(pair) != 2 or not all(pair)]:
            raise RecipeError(f"features must be teacher.layer=student.layer, got {wrong[0]!r}")
        return found


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, besides where the data lies.

    ``validation`` is the share of the training images held out (every n-th of the split file) to choose the best
    checkpoint by IoU; the test split is never looked at. ``average`` is the decay, per step, of the running average
    of the weights that is validated and saved; it is less in the first steps, so that the first weights are soon
    forgotten. ``dataset`` may name several, joined by ``+``: their training splits are put together and normalised
    by the constants of the first; ``NAME*3`` takes a set three times an epoch. ``crop`` is in pixels; ``targets`` is
    the share of crops that are placed on a target, the others are drawn from all places; a normalised image is
    multiplied by exp(U(-contrast, contrast)) and U(-brightness, brightness) is added; a crop is enlarged, or reduced,
    by exp(U(-scale, scale)). In the last ``fixed_norm`` of the epochs batch normalisation takes the averaged
    statistics, as it will at inference, not those of the batch.

    ``dataset`` may name a split file too, as ``NAME:idx_427/trainval``. ``schedule`` is ``cosine`` (half a period over
    the run, from ``learning_rate`` towards ``final_learning_rate``, which the last epoch, one step before the end, does
    not quite reach), ``multistep`` (times ``gamma`` after each of ``milestones``, in epochs) or ``constant``.

    Raises :class:`RecipeError` on construction.
    """

    network: str
    dataset: str
    epochs: int = 400
    batch: int = 16
    crop: int = 128
    targets: float = 0.5
    loss: str = "soft_iou"
    optimizer: str = "adam"
    weight_decay: float = 0.0
    schedule: str = "cosine"
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    milestones: tuple[int, ...] = (200, 300)
    gamma: float = 0.1
    average: float = 0.99
    validation: float = 0.1
    validate_every: int = 5
    contrast: float = 0.0
    brightness: float = 0.0
    scale: float = 0.0
    fixed_norm: float = 0.0
    seed: int = 42
    distill: Distill | None = None

    def __post_init__(self):
        _check_kinds(self)
        _ = self.datasets  # raises where it is malformed
        for name in ("epochs", "batch", "crop", "validate_every"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (0 < self.learning_rate < float("inf") and 0 <= self.final_learning_rate <= self.learning_rate):
            raise RecipeError("learning_rate must be positive and final_learning_rate between 0 and it, "
                              f"got {self.learning_rate} and {self.final_learning_rate}")
        for name, known in (("loss", LOSS_NAMES), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            _check_choice(name, getattr(self, name), known)
        if not 0 < self.gamma <= 1:
            raise RecipeError(f"gamma must be in (0, 1], got {self.gamma}")
        if any(m < 1 for m in self.milestones) or list(self.milestones) != sorted(set(self.milestones)):
            raise RecipeError(f"milestones must be rising epochs, got {list(self.milestones)}")
        for name in ("contrast", "brightness", "seed", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise RecipeError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("targets", "scale", "fixed_norm"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} must be in [0, 1], got {getattr(self, name)}")
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
        try:
            return cls.from_dict(values)
        except RecipeError as e:
            raise RecipeError(f"{path}: {e}") from e

    @classmethod
    def from_dict(cls, values: dict) -> Recipe:
        """The inverse of :meth:`as_dict`; fields that are absent have their defaults. Raises :class:`RecipeError`."""
        table = values.get("distill")
        if table is not None:
            if not isinstance(table, dict):
                raise RecipeError(f"distill must be a table, got {table!r}")
            try:
                values = values | {"distill": _fill(Distill, table, 2)}
            except RecipeError as e:
                raise RecipeError(f"distill: {e}") from e
        return _fill(cls, values, 2)

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

    @property
    def fixed_norm_from(self) -> int:
        """The first epoch, counted from 1, whose batch normalisation is fixed; beyond the last where none is."""
        return self.epochs - round(self.fixed_norm * self.epochs) + 1

    def learning_rate_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 1."""
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "multistep":
            return self.learning_rate * self.gamma ** sum(m < epoch for m in self.milestones)
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * 0.5 * (
            1 + math.cos(math.pi * (epoch - 1) / self.epochs))

    def make_optimizer(self, parameters, fused: bool = False) -> torch.optim.Optimizer:
        """The optimiser of the recipe; ``fused`` where the device has such kernels."""
        import torch

        make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad,
                "sgd": torch.optim.SGD}[self.optimizer]
        options = OPTIMIZERS[self.optimizer] | ({"fused": True} if fused and self.optimizer != "adagrad" else {})
        return make(parameters, self.learning_rate, weight_decay=self.weight_decay, **options)

    def as_dict(self) -> dict:
        """Plain values, ready for TOML or JSON; without ``distill`` where there is none."""
        values = asdict(self, dict_factory=lambda pairs: {
            k: list(v) if isinstance(v, tuple) else v for k, v in pairs})
        if self.distill is None:
            del values["distill"]
        return values

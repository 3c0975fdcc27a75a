"""Distillation between any two networks: the student learns from named layers of a teacher besides the masks.

Nothing of it remains in the student: the layers that only fit one network's features to the other's are part of the
objective, not of the network.

Two methods, both reconstructed, as only the abstracts of the papers are readable:

``msa``
    Feature distillation guided by multi-scale spatial attention, with L2-normalised features and an adaptive weighted
    mean squared error (after J. Infrared Millim. Waves, id 2025281).
``semantic``
    The student's feature against a transformer's tokens, through a self-attention sub-network (after MDPNet, Infrared
    Phys. & Technol. 131, 104671).
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from irstd_edge.checkpoints import CheckpointError, LoadedNetwork, load_network, recorded_normalisation
from irstd_edge.data import Normalisation
from irstd_edge.layouts import LAYOUTS
from irstd_edge.models.registry import get_model
from irstd_edge.outputs import run_network
from irstd_edge.training.losses import Supervised
from irstd_edge.training.parallel import mean_over_ranks
from irstd_edge.training.recipe import Distill
from irstd_edge.zoo import network_of, zoo_weights

#: Windows, in pixels of the feature, of the multi-scale attention; each is compared with one three times as wide.
WINDOWS = (1, 3, 5, 7)
#: Attention between tokens is computed on maps of at most this side.
TOKEN_SIDE = 32
#: Steps between two looks at the gradients, and how far the balance then goes from the old to the new.
BALANCE_EVERY, BALANCE_SHARE = 20, 0.3
_EPS = 1e-6
_NEAREST = 5


class DistillationError(ValueError):
    """A teacher, student and their layers do not go together; the message names the layer and the nearest ones."""


def spatial_attention(feature: torch.Tensor) -> torch.Tensor:
    """Multi-scale spatial attention without parameters: float ``[N, C, H, W]`` to ``[N, 1, H, W]`` in 0..1.

    The energy ``G = mean_c F^2`` gives the local contrast ``relu(avg_s G - avg_3s G)`` of each window s of
    :data:`WINDOWS`, divided by its largest value in the image; the attention is their mean. Averages are over the
    pixels inside the image. Reconstructed.
    """
    energy = feature.square().mean(1, keepdim=True)

    def average(side: int) -> torch.Tensor:
        # Along rows, then along columns: the pixels of a window that lie inside the image are a rectangle.
        means = F.avg_pool2d(energy, (1, side), 1, (0, side // 2), count_include_pad=False)
        return F.avg_pool2d(means, (side, 1), 1, (side // 2, 0), count_include_pad=False)

    contrasts = [F.relu(average(s) - average(3 * s)) for s in WINDOWS]
    # Rounding leaves traces of contrast in a flat map; they are none.
    floor = energy.amax((2, 3), keepdim=True) * _EPS + torch.finfo(energy.dtype).tiny
    return torch.stack([torch.where(c > floor, c, 0) / c.amax((2, 3), keepdim=True).maximum(floor)
                        for c in contrasts]).mean(0)


def weighted_feature_error(teacher: torch.Tensor, student: torch.Tensor, attention: float = 1.0) -> torch.Tensor:
    """Adaptive weighted mean squared error of L2-normalised features, both ``[N, C, H, W]``; a scalar in 0..4.

    Each pixel's channels are divided by their norm. The squared distance of a pixel weighs
    ``(1 + attention A_t) (1 + |A_t - A_s|)``, of the :func:`spatial_attention` of both, without gradient: more where
    the teacher looks, and more where the student looks elsewhere. Reconstructed.
    """
    seen, own = spatial_attention(teacher), spatial_attention(student.detach())
    weight = ((1 + attention * seen) * (1 + (seen - own).abs())).detach()
    distance = (_unit(teacher) - _unit(student)).square().sum(1, keepdim=True)
    return ((weight * distance).sum((1, 2, 3)) / weight.sum((1, 2, 3))).mean()


def _unit(feature: torch.Tensor) -> torch.Tensor:
    return F.normalize(feature, dim=1, eps=_EPS)


class FeatureFit(nn.Module):
    """``msa`` for one pair of layers: a 1x1 convolution where the channels differ, the size by bilinear resampling."""

    def __init__(self, teacher_channels: int, student_channels: int, attention: float):
        super().__init__()
        if teacher_channels == 1:
            raise DistillationError("one channel, normalised by pixel, is a sign alone: name a layer before it")
        self.attention = attention
        self.fit = (nn.Identity() if student_channels == teacher_channels
                    else nn.Conv2d(student_channels, teacher_channels, 1, bias=False))

    def forward(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        return weighted_feature_error(teacher, _resize(self.fit(student), teacher.shape[2:]), self.attention)


class SemanticFit(nn.Module):
    """``semantic`` for one pair of layers: the sub-network of self-attention between student and transformer.

    With S the student's feature fitted to the teacher's width by a 1x1 convolution, T the teacher's, both as
    layer-normalised tokens of d values: ``A_s = softmax(S W_q (S W_k)' / sqrt d)``, ``A_t = softmax(T T' / sqrt d)``,
    ``Z = LN(S + A_s S W_v)``. The loss is ``KL(A_t || A_s)``, the mean over tokens, plus the mean squared error of Z
    and T. Reconstructed.
    """

    def __init__(self, teacher_channels: int, student_channels: int):
        super().__init__()
        self.fit = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
        self.query, self.key, self.value = (nn.Linear(teacher_channels, teacher_channels, bias=False) for _ in "qkv")

    def forward(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        size = [min(s, TOKEN_SIDE) for s in teacher.shape[2:]]
        t, s = (_normal(_resize(f, size).flatten(2).transpose(1, 2)) for f in (teacher, self.fit(student)))
        scale = 1 / math.sqrt(t.shape[2])
        seen = (t @ t.transpose(1, 2) * scale).log_softmax(2)
        own = (self.query(s) @ self.key(s).transpose(1, 2) * scale).log_softmax(2)
        mixed = _normal(s + own.exp() @ self.value(s))
        return (seen.exp() * (seen - own)).sum(2).mean() + F.mse_loss(mixed, t)


def _normal(tokens: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:])


def _resize(feature: torch.Tensor, size) -> torch.Tensor:
    """To ``[N, C, *size]``: bilinear, by means of areas where it shrinks in both directions."""
    size = tuple(size)
    if tuple(feature.shape[2:]) == size:
        return feature
    if all(a >= b for a, b in zip(feature.shape[2:], size, strict=True)):
        return F.adaptive_avg_pool2d(feature, size)
    return F.interpolate(feature, size, mode="bilinear", align_corners=False)


class Distillation(nn.Module):
    """The objective: the loss on the masks plus ``beta`` times the distillation loss, summed over the pairs of layers.

    ``beta`` keeps the norms of the gradients of the two terms, with respect to the student's parameters, in the ratio
    that ``settings.weight`` says: it is set at the first step, and every :data:`BALANCE_EVERY` steps follows by
    :data:`BALANCE_SHARE` on a logarithmic scale. Once would not do: the first soft IoU has hardly a gradient, as all
    probabilities are low. The parts ``task`` and ``distillation`` are logged.

    Args:
        settings: layers, method and weights.
        teacher: from :func:`load_teacher`; it is not trained and not saved.
        student: the network to be trained; it is not changed.
        normalisation: of the student's input.
        loss: name of the loss on the masks.
        crop: side of the training crops, with which both networks are run once to learn their channels.

    Raises :class:`DistillationError`, and :class:`~irstd_edge.errors.UnsupportedError` where one does not run on crops.
    """

    def __init__(self, settings: Distill, teacher: LoadedNetwork, student: nn.Module, normalisation: Normalisation,
                 loss: str, crop: int):
        super().__init__()
        self.pairs = settings.pairs
        self.weight = settings.weight
        self.supervised = Supervised(loss)
        self.beta, self.calls = 1.0, 0
        # In a list, so that it is neither a parameter, nor saved, nor put into training mode.
        self._teacher = [copy.deepcopy(teacher.network).eval().requires_grad_(False)]
        own, p = normalisation, teacher.preprocessing
        # The teacher sees the image as it was normalised for the teacher.
        self._gain, self._offset = own.std / p.std, (own.mean - p.mean) / p.std
        self.record = {"teacher": {
            "name": teacher.factory, "sha256": teacher.checkpoint_sha256,
            "parameters": sum(p.numel() for p in teacher.network.parameters()),
        }}
        x = torch.zeros(2, 1, crop, crop, device=next((p.device for p in student.parameters()), None))
        seen = self._probe("teacher", self._teacher[0].cpu(), [t for t, _ in self.pairs], x.cpu(), training=False)
        felt = self._probe("student", student, [s for _, s in self.pairs], x, training=True)
        make = {"msa": lambda t, s: FeatureFit(t, s, settings.attention), "semantic": SemanticFit}[settings.method]
        self.fits = nn.ModuleList()
        for t, s in self.pairs:
            try:
                self.fits.append(make(seen[t].shape[1], felt[s].shape[1]))
            except DistillationError as e:
                raise DistillationError(f"the teacher's layer {t!r}: {e}") from e
        self._felt: dict[str, torch.Tensor] | None = None

    @contextmanager
    def watching(self, student: nn.Module) -> Iterator[None]:
        """While the block runs the student's layers are watched by the same hooks, so that it can be compiled."""
        with capture(student, [s for _, s in self.pairs]) as self._felt:
            try:
                yield
            finally:
                self._felt = None

    def forward(self, network: nn.Module, x: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        teacher = self._teacher[0]
        with torch.no_grad(), capture(teacher, [t for t, _ in self.pairs]) as seen:
            teacher(x * self._gain + self._offset if (self._gain, self._offset) != (1.0, 0.0) else x)
        with self.watching(network) if self._felt is None else nullcontext():
            try:
                outputs, felt = network(x), dict(self._felt)
            finally:
                self._felt.clear()  # features of a step that failed would keep its memory
        task = self.supervised.measure(outputs, target)
        with torch.autocast(x.device.type, enabled=False):
            distillation = torch.stack([
                fit(as_map(seen[t], t).float(), as_map(felt[s], s).float())
                for fit, (t, s) in zip(self.fits, self.pairs, strict=True)]).sum()
        if torch.is_grad_enabled():
            if self.calls % BALANCE_EVERY == 0:
                self._balance(network, task, distillation)
            self.calls += 1
        return {"loss": task + self.beta * distillation, "task": task, "distillation": distillation}

    def _balance(self, network: nn.Module, task: torch.Tensor, distillation: torch.Tensor) -> None:
        parameters = [p for p in network.parameters() if p.requires_grad]

        def norm(loss: torch.Tensor) -> float:
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            return math.sqrt(sum(float(g.double().square().sum()) for g in grads if g is not None))

        norms = mean_over_ranks({"task": norm(task), "distillation": norm(distillation)}, str(task.device))
        if not all(math.isfinite(v) and v > 0 for v in norms.values()) or self.weight == 0:
            self.beta = self.beta if self.calls else self.weight
            return
        wanted = self.weight * norms["task"] / norms["distillation"]
        self.beta = wanted if not self.calls else self.beta ** (1 - BALANCE_SHARE) * wanted ** BALANCE_SHARE

    def get_extra_state(self) -> dict:
        return {"beta": self.beta, "calls": self.calls}

    def set_extra_state(self, state: dict) -> None:
        self.beta, self.calls = state["beta"], state["calls"]

    def _apply(self, fn, recurse=True):
        self._teacher[0]._apply(fn)
        return super()._apply(fn, recurse)

    @staticmethod
    @torch.no_grad()
    def _probe(role: str, network: nn.Module, names: list[str], x: torch.Tensor, *, training: bool
               ) -> dict[str, torch.Tensor]:
        """The named features as maps, of a copy of the network."""
        known = [name for name, _ in network.named_modules() if name]
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, _NEAREST, 0.3) or known[:_NEAREST]
                raise DistillationError(f"the {role} has no layer {name!r}; nearest: {', '.join(near)}")
        network = copy.deepcopy(network).train(training)
        with torch.random.fork_rng(devices=[]), capture(network, names) as found:
            run_network(network, x, name=f"the {role}", way_out="choose another crop in the recipe")
        if absent := [name for name in names if name not in found]:
            inner = ", ".join([f"{absent[0]}.{name}" for name, _ in network.get_submodule(absent[0]).named_children()])
            raise DistillationError(f"the {role}'s layer {absent[0]!r} is not called itself: name "
                                    + (f"one of {inner}" if inner else "another, which is"))
        return {name: as_map(found[name], f"{role} layer {name}") for name in names}


@contextmanager
def capture(network: nn.Module, names: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collects, while the block runs, what the named layers of a network return (the first of several tensors).

    Of a layer that runs several times the last output stays.
    """
    found: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(module, inputs, output) -> None:
            found[name] = tree_leaves(output)[0]
        return hook

    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in dict.fromkeys(names)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def as_map(feature: torch.Tensor, name: str) -> torch.Tensor:
    """A feature as ``[N, C, H, W]``: it is one, or tokens ``[N, L, C]`` of a square map, a class token first or not.

    Raises :class:`DistillationError`.
    """
    if isinstance(feature, torch.Tensor) and feature.ndim == 4:
        return feature
    if isinstance(feature, torch.Tensor) and feature.ndim == 3:
        for skipped in (0, 1):
            side = math.isqrt(feature.shape[1] - skipped)
            if side > 0 and side * side == feature.shape[1] - skipped:
                return feature[:, skipped:].transpose(1, 2).unflatten(2, (side, side))
    shape = list(feature.shape) if isinstance(feature, torch.Tensor) else type(feature).__name__
    raise DistillationError(f"{name} gives {shape}; features are maps [N, C, H, W] or the tokens [N, L, C] of a square "
                            "map")


def load_teacher(settings: Distill, normalisation: Normalisation, allow_pickle: bool = False) -> LoadedNetwork:
    """The teacher with its weights; normalised as the student where its run, the zoo or the layout says nothing else.

    Raises :class:`DistillationError`, and what :func:`~irstd_edge.checkpoints.load_network` raises.
    """
    own = ":" in settings.teacher
    if not own:
        get_model(network_of(settings.teacher))
    if not settings.checkpoint and (own or zoo_weights(settings.teacher) is None):
        raise DistillationError(f"the teacher {settings.teacher} has no trained weights here: give "
                                "--teacher-checkpoint FILE, or checkpoint in the recipe's [distill]")
    layout = LAYOUTS.get(settings.from_layout)
    known = (layout and layout.image) or not settings.checkpoint or recorded_normalisation(settings.checkpoint)
    constants = {} if known else {"mean": normalisation.mean, "std": normalisation.std}
    try:
        return load_network(None if own else settings.teacher, model=settings.teacher if own else None,
                            checkpoint=settings.checkpoint or None, allow_pickle=allow_pickle,
                            from_layout=settings.from_layout or None, **constants)
    except CheckpointError as e:
        # Where networks are distilled, --from-layout is of the weights that the student starts from.
        way_out = str(e).replace("--from-layout", "--teacher-layout (from_layout in [distill])")
        raise CheckpointError(f"the teacher: {way_out}") from e

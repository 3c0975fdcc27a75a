"""The training loop: seeded, resumable, one folder per run; alone, beside other runs, or over several devices."""

from __future__ import annotations

import copy
import csv
import importlib
import json
import math
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from irstd_edge.checkpoints import InitialWeights, build_network, padding_of, save_weights
from irstd_edge.data import (
    PAD_MULTIPLE,
    PROTOCOLS,
    Dataset,
    Normalisation,
    Sample,
    normalise,
    random_crop,
    resize,
    split_validation,
)
from irstd_edge.errors import UnsupportedError, first_line
from irstd_edge.files import replacing, write_csv, write_text
from irstd_edge.metrics import Accuracy, evaluate
from irstd_edge.nn.binary import BinaryConv2d
from irstd_edge.outputs import check_shape, check_values, probability_of, run_network
from irstd_edge.training.cpu import undilated
from irstd_edge.training.distillation import Distillation, load_teacher
from irstd_edge.training.losses import Supervised
from irstd_edge.training.parallel import agree, mean_over_ranks, rank_and_size
from irstd_edge.training.recipe import Recipe
from irstd_edge.training.seen import earlier_trainings, training_recipes

PRECISIONS = ("fp32", "bf16")
#: Fields of a recipe that every command which trains takes as an option, too.
_OPTIONS = {"seed", "epochs", "dataset"}
#: Columns of ``curves.csv``; those of :attr:`Epoch.parts` follow.
CURVE_FIELDS = ("epoch", "loss", "learning_rate", "iou", "niou", "pd", "fa", "seconds")
#: A state is saved at every validation, and after any epoch that ends later than this since the last state.
SAVE_SECONDS = 120.0


class TrainingError(ValueError):
    """A run cannot start or go on; the message names the way out."""


@dataclass
class Epoch:
    """What one epoch reports; accuracy is None where it was not validated, ``parts`` are the terms of the loss.

    ``seconds`` are the run's own, without those of runs beside it.
    """

    epoch: int
    loss: float
    learning_rate: float
    seconds: float
    accuracy: Accuracy | None
    parts: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, float | int | str]:
        values = {} if self.accuracy is None else self.accuracy.as_dict()
        row = {"epoch": self.epoch, "loss": f"{self.loss:.5f}", "learning_rate": f"{self.learning_rate:.3e}",
               "seconds": f"{self.seconds:.1f}"}
        return (row | {k: f"{values[k]:.6g}" if k in values else "" for k in ("iou", "niou", "pd", "fa")}
                | {k: f"{v:.5g}" for k, v in self.parts.items()})


def evaluate_network(network: nn.Module, samples: Iterable[Sample], normalisation: Normalisation, device: str = "cpu",
                     protocol: str = PROTOCOLS[0]) -> Accuracy:
    """Accuracy of a network, put into evaluation mode, by a protocol; see :func:`irstd_edge.metrics.evaluate`.

    Of several outputs the first counts. Raises :class:`~irstd_edge.errors.UnsupportedError` where it is no probability.
    """
    network.eval()

    @torch.no_grad()
    def predict(x: np.ndarray) -> np.ndarray:
        return probability_of(network, torch.from_numpy(x).to(device)).float().cpu().numpy()

    return evaluate(predict, samples, normalisation, protocol=protocol, size_multiple=padding_of(network))


def clip_latent_weights(network: nn.Module) -> None:
    """Keep the latent weights of binary convolutions in [-1, 1], where their gradient is."""
    weights = [m.weight for m in network.modules() if isinstance(m, BinaryConv2d)]
    if weights:
        with torch.no_grad():
            torch._foreach_clamp_min_(weights, -1.0)
            torch._foreach_clamp_max_(weights, 1.0)


def make_batch(samples: list[Sample], indices, recipe: Recipe, normalisation: Normalisation, rng: np.random.Generator
               ) -> tuple[torch.Tensor, torch.Tensor]:
    """Augmented crops of the samples at ``indices``: normalised images and masks in 0..1, ``[N, 1, crop, crop]``."""
    images, masks = [], []
    for i in indices:
        image = normalise(samples[i].image, normalisation)
        if recipe.contrast or recipe.brightness:
            gain = np.exp(rng.uniform(-recipe.contrast, recipe.contrast))
            image = (image * gain + rng.uniform(-recipe.brightness, recipe.brightness)).astype(np.float32)
        zoom = np.exp(rng.uniform(-recipe.scale, recipe.scale)) if recipe.scale else 1.0
        image, mask = random_crop(image, samples[i].mask, round(recipe.crop / zoom), rng, recipe.targets)
        image, mask = resize(image, recipe.crop), resize(mask, recipe.crop)
        images.append(image)
        masks.append(mask / np.float32(255))
    return (torch.from_numpy(np.stack(images)[:, None].astype(np.float32)),
            torch.from_numpy(np.stack(masks)[:, None].astype(np.float32)))


def _batch_norms(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


class _Step(nn.Module):
    """Network and objective as one module, so that data parallelism averages the gradients of both."""

    def __init__(self, network: nn.Module, objective: nn.Module, compile_network: bool):
        super().__init__()
        self.network, self.objective = network, objective
        if compile_network:
            # Distillation watches layers by hooks: code compiled for an equal network without them is not for it.
            importlib.import_module("torch._dynamo.config").skip_nnmodule_hook_guards = False
        if compile_network and isinstance(objective, Distillation):
            # It goes backward several times: buffers must outlive the first.
            importlib.import_module("torch._functorch.config").donated_buffer = False
        self._call = torch.compile(network) if compile_network else network

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.objective(self._call, x, target)


class Run:
    """One training run and its folder: ``{best,last}.safetensors``, ``curves.csv``, ``recipe.json``, ``resume.pt``.

    The saved weights are the running average; ``best`` has the highest IoU on the held-out images (absent where
    none are held out). Every validation saves all of it, each file under a temporary name, then renamed.

    Args:
        recipe: what to train, on what, how.
        root: the folder that holds the data set's folder.
        out: the folder of the run.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        precision: one of :data:`PRECISIONS`; with ``bf16`` the network runs in bfloat16 where autocast allows, the
            full-precision stream of binary networks and the loss in float32. Default that of the run that goes on, of a
            new one ``bf16`` on CUDA, else ``fp32``.
        compile_network: train through ``torch.compile``.
        resume: go on from the state last saved in ``out``; on the CPU, with the same number of threads, the result is
            that of an unbroken run, bit for bit.
        initial: weights to start from; their file is in the run's record.
        network: what to train, in place of what the recipe's ``network`` builds. Fresh: the same at every start, as
            :meth:`steps` loads the saved state into it.
        objective: called as ``objective(network, x, target)`` with normalised crops and masks in 0..1,
            ``[N, 1, crop, crop]``; returns named scalar tensors: ``loss`` is minimised, any others are logged. A
            module; its own parameters are trained along and its state is resumed, but neither is in the saved weights.
            Default: the recipe's loss, with its ``[distill]`` where it has one.
        allow_pickle: let a teacher's checkpoint be a pickle, which can run code.
        normalisation: of the images, where the weights that it starts from have their own; default that of the first
            data set.
        record: facts to add to ``recipe.json``; ``earlier`` are recipes that the weights were trained by before.
        cache: data sets already read, by folder and name; several runs may share one.

    Under ``torchrun`` each process takes its share of every batch, and the first one alone validates and writes.

    Raises :class:`TrainingError`, :class:`~irstd_edge.data.DataError`,
    :class:`~irstd_edge.checkpoints.CheckpointError`, :class:`~irstd_edge.training.distillation.DistillationError`, and
    :class:`~irstd_edge.errors.UnsupportedError` where the network does not run on a crop and a held-out image, or does
    not return probabilities; nothing is written then.
    """

    def __init__(
        self,
        recipe: Recipe,
        root: Path,
        out: Path,
        *,
        device: str = "cpu",
        precision: str | None = None,
        compile_network: bool = False,
        resume: bool = False,
        initial: InitialWeights | None = None,
        network: nn.Module | None = None,
        objective: nn.Module | None = None,
        allow_pickle: bool = False,
        normalisation: Normalisation | None = None,
        record: dict | None = None,
        cache: dict | None = None,
    ):
        out = Path(out)
        check_folder(out, resume)
        self.recipe, self.out, self.device = recipe, out, device
        self.rank, self.ranks = rank_and_size()
        if recipe.batch % self.ranks:
            raise TrainingError(f"batch {recipe.batch} cannot be shared by {self.ranks} processes: choose a multiple")
        self.cuda = torch.device(device).type == "cuda"
        there = _recorded(out) if resume else {}
        begun = there.get("precision")
        if begun and precision not in (None, begun):
            raise TrainingError(f"{out} was begun in {begun}: go on with --precision {begun}, or name another --out")
        if resume and initial is not None:
            _check_initial(out, there.get("initial"), initial)
        self.precision = precision or begun or ("bf16" if self.cuda else "fp32")
        sets = _read_sets(root, recipe.datasets, {} if cache is None else cache)
        self.normalisation = normalisation or sets[0][0]
        self.samples = [sample for _, samples, _ in sets for sample in samples]
        times = [count for _, samples, count in sets for _ in samples]
        kept, self.held = split_validation(len(self.samples), recipe.validation)
        self.indices = [i for i in kept for _ in range(times[i])]

        network = build_network(recipe.network, recipe.seed) if network is None else network
        if initial is not None and not resume:
            initial.load_into(network)
        self.network = network.to(device, memory_format=torch.channels_last)
        self.average = torch.optim.swa_utils.AveragedModel(
            network, use_buffers=True,
            # The count that it passes lies on the device: reading it would wait for the step to end.
            multi_avg_fn=lambda a, c, _: _averaging(recipe.average)(a, c, int(self.average.n_averaged)))
        self._probe(supervised=objective is None)
        #: The recipes that a teacher was trained by.
        self.taught_by: list[dict] = []
        objective = self._recipe_objective(allow_pickle) if objective is None else objective
        self.objective = objective.to(device)
        self._step = step = _Step(self.network, self.objective, compile_network)
        self._trained = [p for p in step.parameters() if p.requires_grad]
        self._optimizer = recipe.make_optimizer(self._trained, fused=self.cuda)
        if self.ranks > 1:
            self._step = DistributedDataParallel(step, device_ids=[torch.device(device)] if self.cuda else None)
        self.epoch, self.best = 0, -1.0
        #: The epoch after which the state in ``resume.pt`` was saved.
        self.saved_epoch = 0
        if resume:
            self._load()
        elif self.rank == 0:
            self._write_record(initial, {"compiled": compile_network} | (record or {}))
            self._save()  # so that a run that is stopped before its first validation can go on as it was begun
        # Epochs after the last saved state are trained again.
        self._curve = [row for row in read_curve(out / "curves.csv") if int(row["epoch"]) <= self.epoch]
        self._saved = time.monotonic()

    @property
    def finished(self) -> bool:
        return self.epoch >= self.recipe.epochs

    def steps(self, deadline: float | None = None) -> Iterator[Epoch | None]:
        """Train: yields None after every step and the report after every epoch, whose files are written by then.

        Args:
            deadline: of :func:`time.monotonic`; the run is saved and left where one more epoch would end after it.

        Raises :class:`TrainingError` where the loss is no longer finite, or a held-out image gives no probability.
        """
        with ExitStack() as stack:
            if torch.device(self.device).type == "cpu":
                stack.enter_context(undilated(self.network))
            if isinstance(self.objective, Distillation):
                stack.enter_context(self.objective.watching(self.network))
            yield from self._epochs(deadline)

    def _epochs(self, deadline: float | None) -> Iterator[Epoch | None]:
        for epoch in range(self.epoch + 1, self.recipe.epochs + 1):
            began, elsewhere = time.monotonic(), 0.0
            rate = self.recipe.learning_rate_at(epoch)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            if epoch == self.recipe.fixed_norm_from:
                self._take_averaged_statistics()
            losses: list[dict[str, torch.Tensor]] = []
            for number, (x, target) in enumerate(self._batches(epoch)):
                losses.append(self._train(epoch, number, x, target))
                left = time.monotonic()
                yield None
                elsewhere += time.monotonic() - left
            means = {k: float(torch.stack([part[k] for part in losses]).mean()) for k in losses[0]}
            means = mean_over_ranks(means, self.device)
            loss = means.pop("loss")
            if not math.isfinite(loss):
                raise TrainingError(f"the loss is {loss} in epoch {epoch}: lower learning_rate in the recipe")
            self.epoch = epoch
            validated = self.finished or epoch % self.recipe.validate_every == 0
            accuracy = self._validate() if validated and self.rank == 0 else None
            seconds = time.monotonic() - began
            out_of_time = agree(deadline is not None and time.monotonic() + seconds > deadline, self.device)
            report = Epoch(epoch, loss, rate, seconds - elsewhere, accuracy, means)
            if self.rank == 0:
                self._curve.append(report.row())
                parts = [k for k in self._curve[-1] if k not in CURVE_FIELDS]
                write_csv(self.out / "curves.csv", self._curve, (*CURVE_FIELDS, *parts))
                if validated or out_of_time or time.monotonic() - self._saved > SAVE_SECONDS:
                    self._save()
            yield report
            if out_of_time:
                return

    def _batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This process' share of the batches of an epoch, prepared two ahead."""
        recipe = self.recipe
        # Seeded by epoch, so that a resumed run sees the same crops as an unbroken one.
        rng = np.random.default_rng([recipe.seed, epoch])
        order = rng.permutation(self.indices)
        if self.rank:
            rng = np.random.default_rng([recipe.seed, epoch, self.rank])
        # A last batch that is not full is left out; which images it would hold changes from epoch to epoch.
        begins = list(range(0, len(order) - recipe.batch + 1, recipe.batch)) or [0]
        shares = [order[begin:begin + recipe.batch][self.rank::self.ranks] for begin in begins]

        def prepare(share) -> tuple[torch.Tensor, torch.Tensor]:
            batch = make_batch(self.samples, share, recipe, self.normalisation, rng)
            return tuple(t.pin_memory() for t in batch) if self.cuda else batch

        # One worker: the draws stay in order.
        with ThreadPoolExecutor(1) as worker:
            pending = [worker.submit(prepare, share) for share in shares[:2]]
            for share in [*shares[2:], None, None][:len(shares)]:
                x, target = pending.pop(0).result()
                if share is not None:
                    pending.append(worker.submit(prepare, share))
                yield (x.to(self.device, memory_format=torch.channels_last, non_blocking=True),
                       target.to(self.device, non_blocking=True))

    def _train(self, epoch: int, number: int, x: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        # Whatever draws inside the network (dropout) is seeded by the step: nothing depends on other runs beside.
        torch.manual_seed((((self.recipe.seed * 100_003 + epoch) * 100_003 + number) * 1_009 + self.rank) % 2**63)
        self.network.train()
        if epoch >= self.recipe.fixed_norm_from:
            for norm in _batch_norms(self.network):
                norm.eval()
        with self._autocast():
            losses = self._step(x, target)
        self._optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        self._optimizer.step()
        clip_latent_weights(self.network)
        self.average.update_parameters(self.network)
        return {k: v.detach() for k, v in losses.items()}

    def _take_averaged_statistics(self) -> None:
        """Before they are fixed: those of the last batches alone are far noisier."""
        for norm, average in zip(_batch_norms(self.network), _batch_norms(self.average.module), strict=True):
            for buffer, averaged in zip(norm.buffers(), average.buffers(), strict=True):
                buffer.copy_(averaged)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16")

    def _validate(self) -> Accuracy | None:
        accuracy = None
        if self.held:
            held = [self.samples[i] for i in self.held]
            try:
                accuracy = evaluate_network(self.average.module, held, self.normalisation, self.device)
            except UnsupportedError as e:
                # It was well at the start; that the last step spoilt the weights its loss does not show.
                raise TrainingError(f"{e}; if it diverged in epoch {self.epoch}, lower learning_rate in the recipe"
                                    ) from e
            if accuracy.iou > self.best:
                self.best = float(accuracy.iou)
                save_weights(self.average.module, self.out / "best.safetensors")
        save_weights(self.average.module, self.out / "last.safetensors")
        return accuracy

    @torch.no_grad()
    def _probe(self, supervised: bool) -> None:
        """Fail at the start where the network fits neither the crops nor the held-out images, or gives no probability.

        Its training form is judged only where the recipe's loss is to judge it.
        """
        recipe = self.recipe
        few = self.indices[:min(2, recipe.batch // self.ranks)]
        x, _ = make_batch(self.samples, few, recipe, self.normalisation, np.random.default_rng(recipe.seed))
        x = x.to(self.device, memory_format=torch.channels_last)
        way_out = f"choose another crop in the recipe than {recipe.crop}, such as a multiple of {PAD_MULTIPLE}"
        probability_of(self.average.module.eval(), x, way_out=way_out)
        if supervised:
            # A copy, as it changes statistics of batch normalisation. Losses take maps of any size.
            with torch.random.fork_rng(devices=[]), self._autocast():
                outputs = run_network(copy.deepcopy(self.network).train(), x, way_out=way_out)
            for y in outputs:
                check_shape(y, x, y.shape[2:])
                check_values(y)
        if self.held:
            evaluate_network(self.average.module, [self.samples[self.held[0]]], self.normalisation, self.device)

    def _recipe_objective(self, allow_pickle: bool) -> nn.Module:
        recipe = self.recipe
        if recipe.distill is None:
            return Supervised(recipe.loss)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            teacher = load_teacher(recipe.distill, self.normalisation, allow_pickle)
            checkpoint = recipe.distill.checkpoint
            self.taught_by = training_recipes(Path(checkpoint) if checkpoint else None, teacher.checkpoint_sha256)
            return Distillation(recipe.distill, teacher, self.network, self.normalisation, recipe.loss, recipe.crop)

    def _write_record(self, initial: InitialWeights | None, facts: dict) -> None:
        began = initial and initial.record
        earlier = [*(training_recipes(Path(initial.checkpoint), began["sha256"]) if initial else ()),
                   *facts.get("earlier", ()), *self.taught_by]
        record = self.recipe.as_dict() | {
            "normalisation": self.normalisation.__dict__, "held_out": self.held, "images": len(self.samples),
            "initial": began, "precision": self.precision, "processes": self.ranks,
            "threads": torch.get_num_threads(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"), "machine": describe_machine(self.device),
        } | getattr(self.objective, "record", {}) | facts | {"earlier": earlier_trainings(earlier)}
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            write_text(self.out / "recipe.json", json.dumps(record, indent=2) + "\n")
        except OSError as e:
            raise TrainingError(f"{self.out}: cannot be written ({e.strerror})") from e

    def _save(self) -> None:
        with replacing(self.out / "resume.pt") as temporary:
            torch.save({"recipe": self.recipe.as_dict(), "network": self.network.state_dict(), "epoch": self.epoch,
                        "average": self.average.state_dict(), "optimizer": self._optimizer.state_dict(),
                        "objective": self.objective.state_dict(), "best": self.best}, temporary)
        self._saved, self.saved_epoch = time.monotonic(), self.epoch

    def _load(self) -> None:
        path = self.out / "resume.pt"
        state = _load_state(path, self.device)
        # Fields that the recipe of an older state lacks have their defaults.
        there, here = Recipe.from_dict(state["recipe"]).as_dict(), self.recipe.as_dict()
        for recipe in (there, here):
            recipe |= {f"distill.{key}": value for key, value in (recipe.pop("distill", None) or {}).items()}
        if differ := [key for key in there | here if there.get(key) != here.get(key)]:
            what = "; ".join(f"{key} is {_shown(there.get(key))} there, {_shown(here.get(key))} here" for key in differ)
            given = " ".join(f"--{key} {there[key]}" for key in differ if key in _OPTIONS)
            way_out = f"give {given}" if _OPTIONS.issuperset(differ) else "use that recipe"
            raise TrainingError(f"{path} belongs to another recipe, {what}: {way_out}, or another --out")
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state.get("objective", {}))
        self.epoch, self.best = state["epoch"], float(state["best"])
        self.saved_epoch = self.epoch


def train(recipe: Recipe, root: Path, out: Path, *, on_epoch: Callable[[Epoch], None] = lambda epoch: None,
          minutes: float | None = None, **options) -> Path:
    """Make a :class:`Run` and train it to its end, or for some minutes; returns ``out``.

    Args:
        recipe, root, out, options: those of :class:`Run`, whose errors are raised.
        on_epoch: called after every epoch.
        minutes: stop, resumable, where one more epoch would end later than this from now.
    """
    train_side_by_side([Run(recipe, root, out, **options)], on_epoch=lambda run, epoch: on_epoch(epoch),
                       minutes=minutes)
    return Path(out)


def train_side_by_side(runs: list[Run], *, on_epoch: Callable[[Run, Epoch], None] = lambda run, epoch: None,
                       minutes: float | None = None) -> None:
    """Train several runs in one process, a step of each in turn; on CUDA each has a stream of its own.

    Each run's result is what it would be alone (on the CPU bit for bit).

    Args:
        runs: with folders of their own.
        on_epoch: called after every epoch of every run.
        minutes: each run stops, resumable, where one more of its epochs would end later than this from now.

    Whatever stops one run leaves the others alone; what ``on_epoch`` raises stops all. Raises :class:`TrainingError`
    that names every failed run, after the others have ended.
    """
    failed: dict[Path, Exception] = {}
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    streams = {id(run): torch.cuda.Stream(run.device) if run.cuda and len(runs) > 1 else None for run in runs}
    for run in runs:
        if stream := streams[id(run)]:
            stream.wait_stream(torch.cuda.current_stream(run.device))
    turns = [(run, run.steps(deadline)) for run in runs]
    while turns:
        for turn in list(turns):
            run, steps = turn
            with torch.cuda.stream(streams[id(run)]) if streams[id(run)] else nullcontext():
                try:
                    report = next(steps)
                except StopIteration:
                    turns.remove(turn)
                    continue
                except Exception as e:  # whatever it is, the others go on; it is told at the end
                    turns.remove(turn)
                    failed[run.out] = e
                    # Else the traceback keeps the run's tensors, which may be what another lacks memory for.
                    traceback.clear_frames(e.__traceback__)
                    continue
            if report is not None:
                on_epoch(run, report)
    if failed:
        count = f"{len(failed)} of {len(runs)} runs failed: " if len(runs) > 1 else ""
        raise TrainingError(count + "; ".join(f"{out}: {_reason(e)}" for out, e in failed.items())) from next(
            iter(failed.values()))


def _reason(error: Exception) -> str:
    """One line on what stopped a run; errors that are not ours with their class."""
    if isinstance(error, torch.OutOfMemoryError):
        return (f"out of memory ({first_line(error)}): lower batch or crop in the recipe, or train fewer runs side by "
                "side")
    return first_line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {first_line(error)}"


def describe_machine(device: str = "cpu") -> str:
    """Processor (or GPU) and torch version, as ``AMD EPYC, 2 cores, torch 2.6.0``."""
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = platform.processor() or platform.machine()
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
        except OSError:
            pass
        name = f"{name}, {os.cpu_count()} cores"
    return f"{name}, torch {torch.__version__}"


def holds_run(out: Path) -> bool:
    """Whether there is a run in a folder to go on with."""
    return (out / "resume.pt").exists()


def check_folder(out: Path, resume: bool) -> None:
    """Raise :class:`TrainingError` where a run cannot begin in a folder, or go on there."""
    if resume:
        if not holds_run(out):
            raise TrainingError(f"{out} holds no run to go on with: leave out --resume to begin one there")
    elif any((out / name).exists() for name in ("resume.pt", "curves.csv", "last.safetensors")):
        raise TrainingError(f"{out} holds a run already: go on with it by --resume, or name another --out")


def _recorded(out: Path) -> dict:
    """The record of the run in a folder."""
    try:
        return json.loads((out / "recipe.json").read_text())
    except (OSError, ValueError) as e:
        raise TrainingError(f"{out / 'recipe.json'}: cannot be read ({first_line(e)}); name another --out to start anew"
                            ) from e


def _check_initial(out: Path, there: dict | None, initial: InitialWeights) -> None:
    if not there or there["sha256"] != initial.record["sha256"]:
        begun = f"from other weights, {there['file']}" if there else "without --init"
        raise TrainingError(f"{out} was begun {begun}: leave out --init, which is for the start alone, "
                            "or name another --out")
    if (new := there.get("new", [])) != list(initial.new):
        raise TrainingError(f"{out} was begun {'with --new ' + ' '.join(new) if new else 'without --new'}: leave out "
                            "--init and --new, which are for the start alone, or name another --out")


def _shown(value) -> str:
    return "absent" if value is None else str(value)


def _read_sets(root: Path, datasets: dict[str, int], cache: dict) -> list[tuple[Normalisation, list[Sample], int]]:
    """Normalisation, training samples and times an epoch of each data set; what is read stays in ``cache``."""
    found = []
    for name, times in datasets.items():
        key = (Path(root).absolute(), name)
        if key not in cache:
            dataset = Dataset.named(root, name, "train")
            cache[key] = dataset.normalisation, list(dataset)
        found.append((*cache[key], times))
    return found


def _averaging(decay: float):
    """The update of the running average: the share of the old is ``decay``, less in the first steps.

    Until then it weighs step k by k^2: the last quarter of the steps counts for more than half.
    """
    @torch.no_grad()
    def update(averages, currents, count) -> None:
        share = max(1 - decay, 3 / (4 + float(count)))
        floating = [pair for pair in zip(averages, currents, strict=True) if pair[0].is_floating_point()]
        if floating:
            torch._foreach_lerp_(*(list(side) for side in zip(*floating, strict=True)), share)
        for average, current in zip(averages, currents, strict=True):
            if not average.is_floating_point():
                average.copy_(current)

    return update


def _load_state(path: Path, device: str) -> dict:
    """Read ``resume.pt``."""
    try:
        return torch.load(path, weights_only=True, map_location=device)
    except Exception as e:
        raise TrainingError(f"{path}: cannot be read ({type(e).__name__}); name another --out to start anew") from e


def read_curve(path: Path) -> list[dict[str, str]]:
    """The rows of a ``curves.csv``, empty where there is none; columns :data:`CURVE_FIELDS` and parts of the loss."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))

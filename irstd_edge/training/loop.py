"""The training loop: seeded, resumable, one folder per run."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from irstd_edge.checkpoints import load_weights
from irstd_edge.data import PROTOCOLS, Dataset, Normalisation, Sample, normalise, random_crop
from irstd_edge.files import replacing, write_text
from irstd_edge.metrics import Accuracy, evaluate
from irstd_edge.models.registry import get_model
from irstd_edge.nn.binary import BinaryConv2d
from irstd_edge.training.losses import soft_iou
from irstd_edge.training.recipe import Recipe

PRECISIONS = ("fp32", "bf16")
CURVE_FIELDS = ("epoch", "loss", "learning_rate", "iou", "niou", "pd", "fa", "seconds")


class TrainingError(ValueError):
    """A run cannot start or go on; the message names the way out."""


@dataclass
class Epoch:
    """What one epoch reports; accuracy is None where it was not validated."""

    epoch: int
    loss: float
    learning_rate: float
    seconds: float
    accuracy: Accuracy | None

    def row(self) -> dict[str, float | int | str]:
        values = {} if self.accuracy is None else self.accuracy.as_dict()
        row = {"epoch": self.epoch, "loss": f"{self.loss:.5f}", "learning_rate": f"{self.learning_rate:.3e}",
               "seconds": f"{self.seconds:.1f}"}
        return row | {k: f"{values[k]:.6g}" if k in values else "" for k in ("iou", "niou", "pd", "fa")}


def split_validation(count: int, fraction: float) -> tuple[list[int], list[int]]:
    """Indices to train on and to validate on: every n-th image is held out; all train where fraction is 0."""
    if fraction <= 0:
        return list(range(count)), []
    step = max(2, round(1 / fraction))
    held = list(range(step - 1, count, step))
    return sorted(set(range(count)) - set(held)), held


def evaluate_network(network: nn.Module, samples: list[Sample], normalisation: Normalisation, device: str = "cpu",
                     protocol: str = PROTOCOLS[0]) -> Accuracy:
    """Accuracy of a network, put into evaluation mode, by a protocol; see :func:`irstd_edge.metrics.evaluate`."""
    network.eval()

    @torch.no_grad()
    def predict(x: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(x).to(device)).float().cpu().numpy()

    return evaluate(predict, samples, normalisation, protocol=protocol)


def clip_latent_weights(network: nn.Module) -> None:
    """Keep the latent weights of binary convolutions in [-1, 1], where their gradient is."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, BinaryConv2d):
                module.weight.clamp_(-1, 1)


def _batch(samples: list[Sample], indices, recipe: Recipe, normalisation, rng) -> tuple[torch.Tensor, torch.Tensor]:
    images, masks = [], []
    for i in indices:
        image = normalise(samples[i].image, normalisation)
        if recipe.contrast or recipe.brightness:
            gain = np.exp(rng.uniform(-recipe.contrast, recipe.contrast))
            image = (image * gain + rng.uniform(-recipe.brightness, recipe.brightness)).astype(np.float32)
        image, mask = random_crop(image, samples[i].mask, recipe.crop, rng)
        images.append(image)
        masks.append(mask / np.float32(255))
    return (torch.from_numpy(np.stack(images)[:, None].astype(np.float32)),
            torch.from_numpy(np.stack(masks)[:, None].astype(np.float32)))


def train(
    recipe: Recipe,
    root: Path,
    out: Path,
    *,
    device: str = "cpu",
    precision: str | None = None,
    compile_network: bool = False,
    resume: bool = False,
    initial: dict[str, torch.Tensor] | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Path:
    """Train, and leave ``out/{best,last}.safetensors``, ``curves.csv``, ``recipe.json`` and ``resume.pt``.

    The saved weights are the running average; ``best`` has the highest IoU on the held-out images (absent where
    none are held out). Every validation saves all of it, each file under a temporary name, then renamed.

    Args:
        recipe: what to train, on what, how.
        root: the folder that holds the data set's folder.
        out: the folder of the run.
        device: ``cpu`` or ``cuda``.
        precision: one of :data:`PRECISIONS`; with ``bf16`` the network runs in bfloat16 where autocast allows, the
            full-precision stream of binary networks and the loss in float32. Default ``bf16`` on CUDA, else ``fp32``.
        compile_network: train through ``torch.compile``.
        resume: go on after the last validation of the run in ``out``; on the CPU, with the same number of threads,
            the result is that of an unbroken run, bit for bit.
        initial: weights to start from.
        on_epoch: called after every epoch.

    Raises :class:`TrainingError`, :class:`~irstd_edge.data.DataError`,
    :class:`~irstd_edge.checkpoints.CheckpointError`.
    """
    state_file = out / "resume.pt"
    if not resume and any((out / name).exists() for name in ("resume.pt", "curves.csv", "last.safetensors")):
        raise TrainingError(f"{out} holds a run already: go on with it by --resume, or name another --out")
    precision = precision or ("bf16" if torch.device(device).type == "cuda" else "fp32")
    torch.manual_seed(recipe.seed)
    sets = {Dataset(root, name, "train"): times for name, times in recipe.datasets.items()}
    normalisation = next(iter(sets)).normalisation
    samples = [sample for dataset in sets for sample in dataset]
    times = [count for dataset, count in sets.items() for _ in range(len(dataset))]
    train_indices, held = split_validation(len(samples), recipe.validation)
    train_indices = [i for i in train_indices for _ in range(times[i])]

    network = get_model(recipe.network).factory()
    if initial is not None:
        load_weights(network, initial)
    network = network.to(device, memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=_averaging(recipe.average), use_buffers=True)
    optimizer = torch.optim.Adam(network.parameters(), recipe.learning_rate)
    step = torch.compile(network) if compile_network else network
    first, best = 0, -1.0
    if resume and state_file.exists():
        state = _load_state(state_file, device)
        if state["recipe"] != recipe.as_dict():
            raise TrainingError(f"{state_file} belongs to another recipe: use that one, or another --out")
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first, best = state["epoch"], float(state["best"])
    try:
        out.mkdir(parents=True, exist_ok=True)
        if first == 0:
            record = recipe.as_dict() | {
                "normalisation": normalisation.__dict__, "held_out": held, "images": len(samples),
                "initial": initial is not None, "precision": precision,
                "started": datetime.now(UTC).isoformat(timespec="seconds"), "machine": describe_machine(device),
            }
            write_text(out / "recipe.json", json.dumps(record, indent=2) + "\n")
    except OSError as e:
        raise TrainingError(f"{out}: cannot be written ({e.strerror})") from e
    # Epochs after the last saved state are trained again.
    curve = [row for row in read_curve(out / "curves.csv") if int(row["epoch"]) <= first]

    for epoch in range(first + 1, recipe.epochs + 1):
        began = time.perf_counter()
        # Seeded by epoch, so that a resumed run sees the same crops as an unbroken one.
        rng = np.random.default_rng([recipe.seed, epoch])
        rate = recipe.final_learning_rate + (recipe.learning_rate - recipe.final_learning_rate) * 0.5 * (
            1 + math.cos(math.pi * (epoch - 1) / recipe.epochs)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        step.train()
        losses = []
        order = rng.permutation(train_indices)
        # A last batch that is not full is left out; which images it would hold changes from epoch to epoch.
        for begin in range(0, len(order) - recipe.batch + 1, recipe.batch) or [0]:
            x, target = _batch(samples, order[begin:begin + recipe.batch], recipe, normalisation, rng)
            x = x.to(device, memory_format=torch.channels_last)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
                probability = step(x)
            loss = soft_iou(probability.float(), target.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            clip_latent_weights(network)
            average.update_parameters(network)
            losses.append(float(loss.detach()))
        mean_loss = float(np.mean(losses))
        if not math.isfinite(mean_loss):
            raise TrainingError(f"the loss is {mean_loss} in epoch {epoch}: lower learning_rate in the recipe")
        accuracy = None
        validated = epoch == recipe.epochs or epoch % recipe.validate_every == 0
        if validated:
            if held:
                accuracy = evaluate_network(average.module, [samples[i] for i in held], normalisation, device)
                if accuracy.iou > best:
                    best = float(accuracy.iou)
                    _save_weights(average.module, out / "best.safetensors")
            _save_weights(average.module, out / "last.safetensors")
        report = Epoch(epoch, mean_loss, rate, time.perf_counter() - began, accuracy)
        curve.append(report.row())
        _write_curve(out / "curves.csv", curve)
        if validated:
            _save(state_file, {"recipe": recipe.as_dict(), "network": network.state_dict(), "epoch": epoch,
                               "average": average.state_dict(), "optimizer": optimizer.state_dict(), "best": best})
        on_epoch(report)
    return out


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


def _averaging(decay: float):
    """The update of the running average: the share of the old is ``decay``, less in the first steps."""
    @torch.no_grad()
    def update(averages, currents, count) -> None:
        share = max(1 - decay, 9 / (10 + float(count)))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, share)
            else:
                average.copy_(current)

    return update


def _load_state(path: Path, device: str) -> dict:
    """Read ``resume.pt``; the numpy scalars that runs of older code hold are let through, nothing else."""
    numpy_scalar = [np.dtype, np.dtypes.Float64DType, type(np.float64(0)).__reduce__(np.float64(0))[0]]
    try:
        with torch.serialization.safe_globals(numpy_scalar):
            return torch.load(path, weights_only=True, map_location=device)
    except Exception as e:
        raise TrainingError(f"{path}: cannot be read ({type(e).__name__}); name another --out to start anew") from e


def _save_weights(network: nn.Module, path: Path) -> None:
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()
               if not k.endswith("num_batches_tracked")}
    with replacing(path) as temporary:
        save_file(tensors, temporary)


def _save(path: Path, state: dict) -> None:
    with replacing(path) as temporary:
        torch.save(state, temporary)


def read_curve(path: Path) -> list[dict[str, str]]:
    """The rows of a ``curves.csv``, empty where there is none; columns :data:`CURVE_FIELDS`."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write_curve(path: Path, rows: list[dict]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, CURVE_FIELDS)
        writer.writeheader()
        writer.writerows(rows)

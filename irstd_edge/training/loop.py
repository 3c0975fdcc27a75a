"""The training loop: seeded, resumable, one folder per run."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from irstd_edge.data import Dataset, Sample, normalise, pad_to_multiple, random_crop
from irstd_edge.metrics import Accuracy, DetectionMetrics
from irstd_edge.models.registry import get_model
from irstd_edge.nn.binary import BinaryConv2d
from irstd_edge.training.losses import soft_iou
from irstd_edge.training.recipe import Recipe

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


@torch.no_grad()
def evaluate_network(network: nn.Module, samples: list[Sample], normalisation, device="cpu") -> Accuracy:
    """Accuracy of a network in evaluation mode by protocol ``basicirstd`` (native size, padded to x32)."""
    metrics = DetectionMetrics()
    network.eval()
    for sample in samples:
        x = torch.from_numpy(pad_to_multiple(normalise(sample.image, normalisation)))[None, None].to(device)
        height, width = sample.mask.shape
        metrics.update(network(x)[0, 0, :height, :width].float().cpu().numpy(), sample.mask)
    return metrics.result()


def clip_latent_weights(network: nn.Module) -> None:
    """Keep the latent weights of binary convolutions in [-1, 1], where their gradient is."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, BinaryConv2d):
                module.weight.clamp_(-1, 1)


def _batch(samples: list[Sample], indices, crop: int, normalisation, rng) -> tuple[torch.Tensor, torch.Tensor]:
    images, masks = [], []
    for i in indices:
        image, mask = random_crop(normalise(samples[i].image, normalisation), samples[i].mask, crop, rng)
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
    compile_network: bool = False,
    resume: bool = False,
    initial: dict[str, torch.Tensor] | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Path:
    """Train, and leave ``out/{best,last}.safetensors``, ``curves.csv``, ``recipe.json`` and ``resume.pt``.

    The saved weights are the running average. Every file is written under a temporary name, then renamed.
    Raises :class:`TrainingError`, :class:`~irstd_edge.data.DataError`.
    """
    out.mkdir(parents=True, exist_ok=True)
    state_file = out / "resume.pt"
    if state_file.exists() and not resume:
        raise TrainingError(f"{out} holds a run already: go on with it by --resume, or name another --out")
    torch.manual_seed(recipe.seed)
    dataset = Dataset(root, recipe.dataset, "train")
    normalisation = dataset.normalisation
    samples = [dataset[i] for i in range(len(dataset))]
    train_indices, held = split_validation(len(samples), recipe.validation)

    network = get_model(recipe.network).factory().to(device, memory_format=torch.channels_last)
    if initial is not None:
        network.load_state_dict(initial)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.average), use_buffers=True
    )
    optimizer = torch.optim.Adam(network.parameters(), recipe.learning_rate)
    step = torch.compile(network) if compile_network else network
    first, best = 0, -1.0
    if resume and state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=device)
        if state["recipe"] != recipe.as_dict():
            raise TrainingError(f"{state_file} belongs to another recipe: use that one, or another --out")
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first, best = state["epoch"], state["best"]
    _write_json(out / "recipe.json", recipe.as_dict() | {"normalisation": normalisation.__dict__, "held_out": held})

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
        for begin in range(0, len(order) - recipe.batch + 1, recipe.batch) or [0]:
            x, target = _batch(samples, order[begin:begin + recipe.batch], recipe.crop, normalisation, rng)
            x = x.to(device, memory_format=torch.channels_last)
            loss = soft_iou(step(x), target.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            clip_latent_weights(network)
            average.update_parameters(network)
            losses.append(float(loss))
        accuracy = None
        last = epoch == recipe.epochs
        if last or epoch % recipe.validate_every == 0:
            if held:
                accuracy = evaluate_network(average.module, [samples[i] for i in held], normalisation, device)
                if accuracy.iou > best:
                    best = accuracy.iou
                    _save_weights(average.module, out / "best.safetensors")
            _save_weights(average.module, out / "last.safetensors")
        report = Epoch(epoch, float(np.mean(losses)), rate, time.perf_counter() - began, accuracy)
        _append_curve(out / "curves.csv", report)
        if accuracy is not None or last or not held:
            _save(state_file, {"recipe": recipe.as_dict(), "network": network.state_dict(), "epoch": epoch,
                               "average": average.state_dict(), "optimizer": optimizer.state_dict(), "best": best})
        on_epoch(report)
    return out


def _save_weights(network: nn.Module, path: Path) -> None:
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()
               if not k.endswith("num_batches_tracked")}
    temporary = path.with_suffix(".part")
    save_file(tensors, temporary)
    os.replace(temporary, path)


def _save(path: Path, state: dict) -> None:
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _write_json(path: Path, value: dict) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def _append_curve(path: Path, epoch: Epoch) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, CURVE_FIELDS)
        if new:
            writer.writeheader()
        writer.writerow(epoch.row())

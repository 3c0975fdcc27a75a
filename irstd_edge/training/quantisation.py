"""Quantising a trained network: calibration, the loss of each block, layers kept precise, and the folder of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import nn

from irstd_edge import __version__
from irstd_edge.bundle import sha256
from irstd_edge.checkpoints import QUANTISED, LoadedNetwork, save_weights
from irstd_edge.complexity import REFERENCE_INPUT, count_layers, measure_precision
from irstd_edge.data import IMAGE_SUFFIXES, DataError, Sample, normalise, pad_to_multiple, read_image
from irstd_edge.files import replacing, write_csv, write_text
from irstd_edge.nn.convert import Bits, Conversion, Trace, assign, convert, trace
from irstd_edge.nn.functional import quantize
from irstd_edge.nn.quant import QuantConv2d
from irstd_edge.opspec import integer_range
from irstd_edge.outputs import probability_of
from irstd_edge.training.bits import Assignment, Block, table_text
from irstd_edge.training.loop import describe_machine

#: How steps are found. ``mse``: least squared error of the rounded values; ``minmax``: the whole range; ``percentile``:
#: all but the largest magnitudes (weights: the whole range).
METHODS = ("mse", "minmax", "percentile")
KINDS = ("weights", "activations")
#: Files of a folder of results; :data:`WEIGHTS` is also what training starts from.
WEIGHTS, MANIFEST, LAYERS, TABLE = QUANTISED, "quantisation.json", "layers.csv", "bits.toml"
#: Those that are there only where blocks were measured, or bits searched.
SENSITIVITY, SENSITIVITY_PLOT, ASSIGNMENTS = "sensitivity.csv", "sensitivity.png", "assignments.csv"
_BINS = 2048
_RATIOS = 120
_BATCH = 8


class QuantisationError(ValueError):
    """A network cannot be quantised as asked; the message names the layer or image and the way out."""


@dataclass(frozen=True)
class CalibrationImage:
    """An image file, its digest and its normalised, padded values ``[1, 1, H, W]``."""

    file: str
    sha256: str
    x: torch.Tensor


def load_images(paths: Sequence[Path], source: LoadedNetwork) -> list[CalibrationImage]:
    """Read image files as a network wants them. Raises :class:`~irstd_edge.data.DataError`."""
    p = source.preprocessing
    return [CalibrationImage(path.name, sha256(path), torch.from_numpy(
        pad_to_multiple(normalise(read_image(path), p), p.size_multiple)[None, None])) for path in paths]


def image_files(folder: Path, count: int) -> list[Path]:
    """At most ``count`` images of a folder, evenly over its names. Raises :class:`~irstd_edge.data.DataError`."""
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder; --calibrate takes a folder of images")
    found = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return evenly(found, count)


def evenly(items: Sequence, count: int) -> list:
    """At most ``count`` items at even distances."""
    return [items[i * len(items) // min(count, len(items))] for i in range(min(count, len(items)))]


@dataclass(frozen=True)
class InputRange:
    """What a layer's inputs were on the calibration images: least, largest, and a histogram between them."""

    low: float
    high: float
    counts: np.ndarray = field(repr=False)

    @property
    def signed(self) -> bool:
        return self.low < 0

    def step(self, bits: int, method: str = METHODS[0], percentile: float = 99.99) -> float:
        """The step of ``bits`` bits. A layer whose inputs are all zero gets a step all the same."""
        low, high = integer_range(bits, self.signed)
        whole = max(self.high / high, self.low / low if low else 0.0, 1e-6)
        if method == "minmax" or self.low == self.high:
            return whole
        width = (self.high - self.low) / _BINS
        centres = self.low + width * (np.arange(_BINS) + 0.5)
        if method == "percentile":
            magnitude = np.abs(centres)
            order = np.argsort(magnitude)
            share = np.cumsum(self.counts[order]) / self.counts.sum()
            reach = magnitude[order][min(np.searchsorted(share, percentile / 100), _BINS - 1)]
            return float(np.clip(reach / high, 1e-6, whole))
        steps = whole * np.geomspace(0.01, 1, _RATIOS)[:, None]
        rounded = np.clip(np.rint(centres / steps), low, high) * steps
        return float(steps[np.argmin(((rounded - centres) ** 2 * self.counts).sum(1)), 0])


def weight_step(weight: torch.Tensor, bits: int, method: str = METHODS[0]) -> torch.Tensor:
    """The step of every output channel of a weight ``[OC, ...]``, ``[OC]``; see :data:`METHODS`.

    One bit (-1 and +1) takes ``mean|w|``, which is also its least squared error.
    """
    low, high = integer_range(bits, True)
    rows = weight.detach().flatten(1)
    if bits == 1:
        return rows.abs().mean(1).clamp(min=1e-6)
    whole = (rows.abs().amax(1) / high).clamp(min=1e-6)
    if method != "mse":
        return whole
    best, least = whole, torch.full_like(whole, float("inf"))
    for ratio in np.geomspace(0.05, 1, _RATIOS):
        step = whole * ratio
        error = (torch.clamp(torch.round(rows / step[:, None]), low, high) * step[:, None] - rows).square().sum(1)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best


@torch.no_grad()
def observe_inputs(network: nn.Module, layers: Sequence[str], images: Sequence[CalibrationImage]
                   ) -> dict[str, InputRange]:
    """The range and the histogram of the inputs of layers over images, in two passes.

    Raises :class:`QuantisationError` where they are not finite, naming the layer and the image.
    """
    lows, highs = dict.fromkeys(layers, float("inf")), dict.fromkeys(layers, -float("inf"))
    counts = {name: np.zeros(_BINS) for name in layers}
    present = ""

    def extremes(name):
        def hook(module, inputs):
            low, high = (float(v) for v in inputs[0].aminmax())
            if not np.isfinite([low, high]).all():
                raise QuantisationError(f"{present}: the inputs of {name} are not finite; check the weights and the "
                                        "normalisation")
            lows[name], highs[name] = min(lows[name], low), max(highs[name], high)
        return hook

    def histogram(name):
        def hook(module, inputs):
            if highs[name] > lows[name]:
                counts[name] += torch.histc(inputs[0].float(), _BINS, lows[name], highs[name]).double().numpy()
        return hook

    network.eval()
    for make in (extremes, histogram):
        handles = [network.get_submodule(name).register_forward_pre_hook(make(name)) for name in layers]
        try:
            for image in images:
                present = image.file
                network(image.x)
        finally:
            for handle in handles:
                handle.remove()
    return {name: InputRange(lows[name], highs[name], counts[name]) for name in layers}


class Calibrated:
    """A float network that has seen calibration images, ready to be quantised by any table of bits.

    ``source`` is as it was; ``folded`` its copy with batch normalisation folded, in evaluation mode; ``ranges`` those
    of the inputs of every convolution.

    Raises :class:`QuantisationError`, :class:`~irstd_edge.nn.convert.ConversionError`, and
    :class:`~irstd_edge.errors.UnsupportedError` where the network gives no probability of the first image.
    """

    def __init__(self, source: nn.Module, images: Sequence[CalibrationImage], *, method: str = METHODS[0],
                 percentile: float = 99.99, size: tuple[int, int] = REFERENCE_INPUT):
        if not images:
            raise QuantisationError("calibration needs at least one image")
        self.source, self.images, self.method, self.percentile, self.size = source, images, method, percentile, size
        if any(isinstance(m, QuantConv2d) for m in source.modules()):
            raise QuantisationError("the network is quantised already: give the checkpoint of the float network")
        self.trace: Trace = trace(source, size)
        if not self.trace.convolutions:
            raise QuantisationError(f"{type(source).__name__} has no plain nn.Conv2d that could be quantised; its "
                                    f"layers with weights: {', '.join(sorted(set(self.trace.other.values()))) or '-'}")
        self.folded = convert(source, Conversion(self.trace.folded)).eval()
        with torch.no_grad():
            probability_of(self.folded, images[0].x)
        self.ranges = observe_inputs(self.folded, self.trace.convolutions, images)
        #: All layers with weights, the convolutions among them, in the order of first calls.
        self.counts = count_layers(self.folded, size)

    def quantise(self, table: Mapping[str, Bits]) -> nn.Module:
        """The quantised network, in evaluation mode; layers that the table does not name stay float.

        Raises :class:`~irstd_edge.nn.convert.ConversionError` naming the layer.
        """
        signed = {name: r.signed for name, r in self.ranges.items()}
        network = convert(self.source, assign(table, signed, self.trace.folded)).eval()
        with torch.no_grad():
            for name, layer in network.named_modules():
                if isinstance(layer, QuantConv2d):
                    layer.activation_step.fill_(self.activation_step(name, layer.activation_bits))
                    layer.weight_step.copy_(weight_step(layer.weight, layer.weight_bits, self.method))
        return network

    def activation_step(self, name: str, bits: int) -> float:
        return self.ranges[name].step(bits, self.method, self.percentile)


@dataclass(frozen=True)
class Score:
    """Loss (1 - soft IoU over all pixels of the set) and IoU at the threshold."""

    loss: float
    iou: float


class HeldOut:
    """Images with masks that networks are compared on: normalised, padded, in batches of one size."""

    def __init__(self, samples: Iterable[Sample], source: LoadedNetwork):
        p = source.preprocessing
        self.threshold = source.threshold
        groups: dict[tuple[int, int], list] = {}
        for s in samples:
            x = pad_to_multiple(normalise(s.image, p), p.size_multiple)
            padded = pad_to_multiple(s.mask.astype(np.float32) / 255, p.size_multiple)
            inside = pad_to_multiple(np.ones_like(s.mask, np.float32), p.size_multiple)
            groups.setdefault(x.shape, []).append((x, padded, inside))
        self.images = sum(map(len, groups.values()))
        self._batches = [tuple(torch.from_numpy(np.stack(part)[:, None]) for part in zip(*group[i:i + _BATCH],
                                                                                          strict=True))
                         for group in groups.values() for i in range(0, len(group), _BATCH)]

    @torch.no_grad()
    def measure(self, network: nn.Module) -> Score:
        """Run a network, in evaluation mode, over all images.

        Raises :class:`~irstd_edge.errors.UnsupportedError` where it does not run or gives no probability.
        """
        network.eval()
        overlap = total = intersection = union = 0.0
        for x, target, inside in self._batches:
            probability = probability_of(network, x).float() * inside
            predicted, truth = (probability > self.threshold), target >= 128 / 255
            overlap += float((probability * target).sum(dtype=torch.float64))
            total += float((probability + target).sum(dtype=torch.float64))
            intersection += int((predicted & truth).sum())
            union += int((predicted | truth).sum())
        return Score(1 - (overlap + 1) / (total - overlap + 1), intersection / max(union, 1))


@dataclass(frozen=True)
class Sensitivity:
    """What the held-out images lose when one block alone has its weights, or its activations, rounded to some bits."""

    block: Block
    kind: str
    bits: int
    score: Score
    full: Score

    @property
    def loss_rise(self) -> float:
        return self.score.loss - self.full.loss

    @property
    def iou_drop(self) -> float:
        return self.full.iou - self.score.iou

    def row(self) -> dict:
        return {"block": self.block.name, "side": self.block.side, "level": self.block.level, "kind": self.kind,
                "bits": self.bits, "loss": round(self.score.loss, 6), "iou": round(self.score.iou, 6),
                "loss_rise": round(self.loss_rise, 6), "iou_drop": round(self.iou_drop, 6)}


def measure_sensitivity(calibrated: Calibrated, blocks: Sequence[Block], held: HeldOut, bits: Sequence[int],
                        on_step: Callable[[], None] = lambda: None) -> list[Sensitivity]:
    """Round the weights, then the activations, of one block at a time; all else stays float.

    ``on_step`` is called after each of the ``len(blocks) * len(bits) * 2`` measurements.
    """
    full = held.measure(calibrated.folded)
    found = []
    for block in blocks:
        for kind in KINDS:
            for b in bits:
                with _Rounded(calibrated, block.layers, b if kind == "weights" else None,
                              b if kind == "activations" else None):
                    found.append(Sensitivity(block, kind, b, held.measure(calibrated.folded), full))
                on_step()
    return found


def losses_of(found: Iterable[Sensitivity]) -> dict[tuple[str, str, int], float]:
    """The rises of the loss as :func:`irstd_edge.training.bits.search_assignments` takes them."""
    return {(s.block.name, s.kind, s.bits): s.loss_rise for s in found}


class _Rounded:
    """While active, some layers of the folded float network have rounded weights or inputs (None: as they are)."""

    def __init__(self, calibrated: Calibrated, layers: Sequence[str], weight_bits: int | None,
                 activation_bits: int | None):
        self.calibrated, self.layers = calibrated, layers
        self.weight_bits, self.activation_bits = weight_bits, activation_bits

    def __enter__(self):
        self._weights, self._handles = [], []
        for name in self.layers:
            layer = self.calibrated.folded.get_submodule(name)
            if self.weight_bits:
                self._weights.append((layer.weight, layer.weight.data))
                step = weight_step(layer.weight, self.weight_bits, self.calibrated.method).view(-1, 1, 1, 1)
                low, high = integer_range(self.weight_bits, True)
                t = layer.weight.data / step
                q = torch.where(t >= 0, 1.0, -1.0) if self.weight_bits == 1 else torch.clamp(torch.round(t), low, high)
                layer.weight.data = q * step
            if self.activation_bits:
                self._handles.append(layer.register_forward_pre_hook(self._round(name)))

    def _round(self, name: str):
        low, high = integer_range(self.activation_bits, self.calibrated.ranges[name].signed)
        step = self.calibrated.activation_step(name, self.activation_bits)
        return lambda module, inputs: (quantize(inputs[0], 1 / step, low, high) * step,)

    def __exit__(self, *exception):
        for weight, data in self._weights:
            weight.data = data
        for handle in self._handles:
            handle.remove()


@dataclass(frozen=True)
class Kept:
    """One layer that a search kept precise: what it loses alone, and the IoU of the network once it is kept."""

    layer: str
    loss_rise: float
    iou: float


def keep_sensitive(calibrated: Calibrated, table: Mapping[str, Bits], held: HeldOut, max_drop: float,
                   keep: Bits = None) -> tuple[dict[str, Bits], list[Kept]]:
    """Keep the most sensitive layers at ``keep`` (None: float) until the IoU is at most ``max_drop`` below float's.

    Layers are taken in the order of what each loses when it alone is quantised. Returns the new table and what was
    kept, in order. Raises :class:`QuantisationError` where even all layers kept do not reach it.
    """
    table = dict(table)
    full = held.measure(calibrated.folded)
    score = held.measure(calibrated.quantise(table))
    kept: list[Kept] = []
    if full.iou - score.iou <= max_drop:
        return table, kept
    rises = {}
    for name, bits in table.items():
        if bits and bits != keep:
            with _Rounded(calibrated, (name,), *bits):
                rises[name] = held.measure(calibrated.folded).loss - full.loss
    for name in sorted(rises, key=rises.get, reverse=True):
        table[name] = keep
        score = held.measure(calibrated.quantise(table))
        kept.append(Kept(name, rises[name], score.iou))
        if full.iou - score.iou <= max_drop:
            return table, kept
    raise QuantisationError(f"with every layer kept at {'float' if keep is None else keep} the IoU is {score.iou:.4f}, "
                            f"more than {max_drop:g} below float's {full.iou:.4f}: keep layers in float, or allow more")


def layer_rows(calibrated: Calibrated, table: Mapping[str, Bits]) -> list[dict]:
    """The table of layers: name, bits, sign of the inputs, weights, MACs at the reference size, why it is float."""
    rows = []
    for layer in calibrated.counts:
        bits = table.get(layer.name)
        name = layer.name
        reason = "" if bits else ("as the table says" if name in calibrated.ranges
                                  else f"{calibrated.trace.other.get(name, 'this layer')} has no quantised form")
        rows.append({"layer": name, "weight_bits": bits[0] if bits else layer.weight_bits,
                     "activation_bits": bits[1] if bits else layer.activation_bits,
                     "inputs": "" if name not in calibrated.ranges else
                     "signed" if calibrated.ranges[name].signed else "unsigned",
                     "weights": layer.weights, "macs": layer.macs, "reason": reason})
    return rows


def precision_facts(calibrated: Calibrated, table: Mapping[str, Bits]) -> dict[str, float]:
    """Mean bits and the three ratios of a table, over all layers with weights."""
    p = measure_precision(calibrated.counts, table)
    return {"weight_bits_mean": p.weight_bits_mean, "activation_bits_mean": p.activation_bits_mean,
            "size_ratio": p.size_ratio, "memory_ratio": p.memory_ratio, "compute_ratio": p.compute_ratio}


def write_result(out: Path, source: LoadedNetwork, calibrated: Calibrated, table: Mapping[str, Bits], facts: dict,
                 found: Sequence[Sensitivity] = (), assignments: Sequence[Assignment] = ()) -> nn.Module:
    """Quantise by a table and write all files of a folder of results into ``out``, in place of those that lie there.

    ``facts`` are added to the manifest; ``found`` and ``assignments`` are what led to the table. Returns the network.
    Raises :class:`~irstd_edge.data.DataError`, :class:`~irstd_edge.nn.convert.ConversionError`.
    """
    network = calibrated.quantise(table)
    layers = {}
    for name, layer in network.named_modules():
        if isinstance(layer, QuantConv2d):
            r = calibrated.ranges[name]
            layers[name] = {"weight_bits": layer.weight_bits, "activation_bits": layer.activation_bits,
                            "minimum": r.low, "maximum": r.high, "signed": r.signed,
                            "activation_step": float(layer.activation_step.detach()),
                            "weight_step_minimum": float(layer.weight_step.detach().min()),
                            "weight_step_maximum": float(layer.weight_step.detach().max())}
    manifest = {
        "schema_version": 1, "network": source.name, "factory": source.factory,
        "checkpoint_sha256": source.checkpoint_sha256,
        "normalisation": {"mean": source.preprocessing.mean, "std": source.preprocessing.std},
        "method": calibrated.method, "percentile": calibrated.percentile if calibrated.method == "percentile" else None,
        "images": [{"file": i.file, "sha256": i.sha256} for i in calibrated.images],
        "layers": layers, "folded": calibrated.trace.folded, "not_folded": calibrated.trace.left,
        "counted_at": list(calibrated.size), "precision": precision_facts(calibrated, table), **facts,
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": describe_machine(),
        "versions": {"irstd_edge": __version__, "torch": torch.__version__},
    }
    save_weights(network, out / WEIGHTS)
    write_text(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    write_text(out / TABLE, table_text(table))
    write_csv(out / LAYERS, layer_rows(calibrated, table))
    if found:
        write_csv(out / SENSITIVITY, [s.row() for s in found])
        plot_sensitivity(found, out / SENSITIVITY_PLOT)
    if assignments:
        write_csv(out / ASSIGNMENTS, [
            {"weights": " ".join(map(str, a.weight_bits)), "activations": " ".join(map(str, a.activation_bits)),
             **precision_facts(calibrated, a.table), "loss": a.loss} for a in assignments])
    for name, made in ((SENSITIVITY, found), (SENSITIVITY_PLOT, found), (ASSIGNMENTS, assignments)):
        if not made:  # what lies there led to another table
            (out / name).unlink(missing_ok=True)
    return network


def plot_sensitivity(found: Sequence[Sensitivity], path: Path) -> None:
    """Draw the drop of IoU by block and bits, weights and activations side by side; written whole or not at all."""
    from matplotlib.figure import Figure

    blocks = list(dict.fromkeys(s.block for s in found))
    bits = sorted({s.bits for s in found})
    values = {(s.block, s.kind, s.bits): 100 * s.iou_drop for s in found}
    most = max(1.0, *values.values())
    figure = Figure(figsize=(3 + 1.5 * len(bits), 1.5 + 0.35 * len(blocks)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, kind in zip(axes, KINDS, strict=True):
        grid = np.array([[values[b, kind, n] for n in bits] for b in blocks])
        shown = axis.imshow(grid, cmap="viridis_r", vmin=0, vmax=most, aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            axis.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8,
                      color="white" if value > most / 2 else "black")
        axis.set(title=kind, xlabel="bits", xticks=range(len(bits)), xticklabels=bits)
    axes[0].set(yticks=range(len(blocks)), yticklabels=[f"{b.name} ({b.side}, level {b.level})" for b in blocks])
    figure.colorbar(shown, ax=axes, label="IoU lost, points")
    figure.suptitle("One block at a time rounded, all else float")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)



"""Detection metrics of the field, accumulated over a test set.

IoU is the foreground IoU summed over the set, nIoU the mean of the per-image IoU. Pd is the share of ground-truth
components (8-connected) that an unused predicted component matches: the first, in label order, whose centroid lies
less than 3 px away. Fa is the pixels of unmatched predicted components over all pixels (BasicIRSTD since
January 2024). Older code lists "unmatched" by comparing areas, so that an unmatched component of the same area as a
matched one vanishes; :attr:`Accuracy.fa_by_area` is that under-reporting variant, for comparison only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from skimage.measure import label

from irstd_edge.data import PAD_MULTIPLE, PROTOCOLS, Normalisation, Sample, normalise, pad_to_multiple, to_protocol

MATCH_DISTANCE = 3.0
THRESHOLD = 0.5
#: Thresholds of :class:`ThresholdSweep`: dense where networks that are sure of themselves still change.
ROC_THRESHOLDS = (0.001, 0.01, 0.02, *(round(0.05 * i, 2) for i in range(1, 20)), 0.98, 0.99, 0.999)
_EPS = float(np.spacing(1))


@dataclass(frozen=True)
class Accuracy:
    """IoU, nIoU, Pd in 0..1, Fa as a ratio of pixels (the field prints it times 10^6)."""

    iou: float
    niou: float
    pd: float
    fa: float
    fa_by_area: float
    images: int
    targets: int

    def as_dict(self) -> dict[str, float | int]:
        return self.__dict__.copy()


@dataclass
class DetectionMetrics:
    """Accumulates images; read :meth:`result` at the end."""

    intersection: int = 0
    union: int = 0
    image_ious: list[float] = field(default_factory=list)
    targets: int = 0
    matched: int = 0
    false_pixels: int = 0
    false_pixels_by_area: int = 0
    pixels: int = 0

    def update(self, probability: np.ndarray, mask: np.ndarray, threshold: float = THRESHOLD) -> None:
        """Add one image.

        Args:
            probability: float ``[H, W]`` in 0..1; predicted where > threshold.
            mask: uint8 ``[H, W]``, 0..255; >= 128 is target for IoU, 255 alone for Pd and Fa (BasicIRSTD).

        Raises ``ValueError`` when the shapes differ.
        """
        if probability.shape != mask.shape:
            raise ValueError(f"probability {probability.shape} and mask {mask.shape} differ in shape")
        predicted, truth = probability > threshold, mask >= 128
        intersection = int((predicted & truth).sum())
        union = int((predicted | truth).sum())
        self.intersection += intersection
        self.union += union
        self.image_ious.append(intersection / (union + _EPS))
        self.pixels += predicted.size
        self._match(label(predicted, connectivity=2), label(mask == 255, connectivity=2))

    def _match(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        areas, centres = _components(predicted)
        free = np.ones(len(areas), bool)
        for centre in _components(truth)[1]:
            self.targets += 1
            near = np.flatnonzero(free & (np.sqrt(((centres - centre) ** 2).sum(1)) < MATCH_DISTANCE))
            if len(near):
                self.matched += 1
                free[near[0]] = False
        self.false_pixels += int(areas[free].sum())
        self.false_pixels_by_area += int(areas[~np.isin(areas, areas[~free])].sum())

    def result(self) -> Accuracy:
        return Accuracy(
            iou=self.intersection / (self.union + _EPS),
            niou=float(np.mean(self.image_ious)) if self.image_ious else 0.0,
            pd=self.matched / max(self.targets, 1),
            fa=self.false_pixels / max(self.pixels, 1),
            fa_by_area=self.false_pixels_by_area / max(self.pixels, 1),
            images=len(self.image_ious),
            targets=self.targets,
        )


class ThresholdSweep:
    """Accuracy at several thresholds at once: call it with every image and its probability, as ``on_map``.

    ``thresholds`` in 0..1, rising; default :data:`ROC_THRESHOLDS`.
    """

    def __init__(self, thresholds: Iterable[float] = ROC_THRESHOLDS):
        self._metrics = {float(t): DetectionMetrics() for t in sorted(set(thresholds))}

    def __call__(self, sample: Sample, probability: np.ndarray) -> None:
        for threshold, metrics in self._metrics.items():
            metrics.update(probability, sample.mask, threshold)

    def rows(self) -> list[dict[str, float | int]]:
        """One dictionary a threshold: ``threshold``, then the fields of :class:`Accuracy`."""
        return [{"threshold": t, **m.result().as_dict()} for t, m in self._metrics.items()]


class UnionShares:
    """Where IoU is won and lost: call it with every image and its probability, as ``on_map``.

    Each pixel of the union of prediction and truth, summed over the set, is one of: ``hit``; of a target or a predicted
    component (8-connected) that shares a pixel with the other, ``missed_partly`` or ``false_partly``; of one without,
    ``missed_wholly`` or ``false_wholly``. This is not the matching of Pd and Fa, which goes by centroids.
    """

    def __init__(self, threshold: float = THRESHOLD):
        self.threshold = threshold
        self._pixels = dict.fromkeys(("hit", "missed_partly", "missed_wholly", "false_partly", "false_wholly"), 0)

    def __call__(self, sample: Sample, probability: np.ndarray) -> None:
        predicted, truth = probability > self.threshold, sample.mask >= 128
        self._pixels["hit"] += int((predicted & truth).sum())
        for name, own, other in (("missed", truth, predicted), ("false", predicted, truth)):
            labels = label(own, connectivity=2)
            shared = np.isin(labels, labels[own & other])
            self._pixels[f"{name}_partly"] += int((own & ~other & shared).sum())
            self._pixels[f"{name}_wholly"] += int((own & ~shared).sum())

    def as_dict(self) -> dict[str, float]:
        """Shares of the union, which add up to 1; all 0 where it is empty. ``hit`` is the IoU."""
        return {k: n / max(sum(self._pixels.values()), 1) for k, n in self._pixels.items()}


def _components(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas ``[K]`` and centroids ``[K, 2]`` (row, column) of the labels 1..K, in label order."""
    rows, columns = np.nonzero(labels)
    ids = labels[rows, columns] - 1
    areas = np.bincount(ids)
    sums = np.stack([np.bincount(ids, rows), np.bincount(ids, columns)], 1)
    return areas, sums / areas[:, None]


def evaluate(
    predict: Callable[[np.ndarray], np.ndarray],
    samples: Iterable[Sample],
    normalisation: Normalisation,
    *,
    protocol: str = PROTOCOLS[0],
    threshold: float = THRESHOLD,
    size_multiple: int = PAD_MULTIPLE,
    on_map: Callable[[Sample, np.ndarray], None] = lambda sample, probability: None,
) -> Accuracy:
    """Accuracy of anything that maps images to probabilities, by one protocol.

    Args:
        predict: normalised, padded float32 ``[1, 1, H, W]`` to the probability ``[1, 1, H, W]``.
        samples: images with masks of their own size, e.g. a :class:`~irstd_edge.data.Dataset`.
        normalisation: anything with ``mean`` and ``std`` on the 0..255 scale.
        protocol: ``basicirstd`` (native size) or ``resize256``, see :func:`~irstd_edge.data.to_protocol`.
            Numbers of different protocols are not comparable.
        size_multiple: images are zero-padded at the bottom and right to multiples of this, and cropped back.
        on_map: called with each image as the protocol compares it, and its probability ``[H, W]``.

    Raises :class:`~irstd_edge.data.DataError`.
    """
    metrics = DetectionMetrics()
    for sample in samples:
        sample = to_protocol(sample, protocol)
        height, width = sample.mask.shape
        x = pad_to_multiple(normalise(sample.image, normalisation), size_multiple)[None, None]
        probability = np.asarray(predict(x))[0, 0, :height, :width]
        metrics.update(probability, sample.mask, threshold)
        on_map(sample, probability)
    return metrics.result()

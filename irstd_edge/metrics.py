"""Detection metrics of the field, accumulated over a test set.

IoU is the foreground IoU summed over the set, nIoU the mean of the per-image IoU. Pd is the share of ground-truth
components (8-connected) that an unused predicted component matches: the first, in label order, whose centroid lies
less than 3 px away. Fa is the pixels of unmatched predicted components over all pixels (BasicIRSTD since
January 2024). Older code lists "unmatched" by comparing areas, so that an unmatched component of the same area as a
matched one vanishes; :attr:`Accuracy.fa_by_area` is that under-reporting variant, for comparison only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from skimage.measure import label, regionprops

MATCH_DISTANCE = 3.0
THRESHOLD = 0.5
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
        candidates = regionprops(predicted)
        free = list(candidates)
        for target in regionprops(truth):
            self.targets += 1
            centre = np.array(target.centroid)
            for candidate in free:
                if np.linalg.norm(np.array(candidate.centroid) - centre) < MATCH_DISTANCE:
                    self.matched += 1
                    free.remove(candidate)
                    break
        self.false_pixels += int(sum(c.area for c in free))
        matched_areas = {c.area for c in candidates if c not in free}
        self.false_pixels_by_area += int(sum(c.area for c in candidates if c.area not in matched_areas))

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

"""Accuracy of an open session: IoU, nIoU, Pd and Fa on a data set, and targets found in annotated clips."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from irstd_edge import metrics
from irstd_edge.bundle import Preprocessing
from irstd_edge.data import PROTOCOLS, DataError, Dataset, Sample
from irstd_edge.metrics import THRESHOLD, Accuracy
from irstd_edge.runtimes.detection import find_targets, predict
from irstd_edge.runtimes.session import Session
from irstd_edge.runtimes.video import read_frames

#: Name of the matching rule in reports: 8-connected components, first free one with its centroid < 3 px away.
METRIC = "basicirstd-2024-01"


def evaluate(
    session: Session,
    dataset: Dataset,
    preprocessing: Preprocessing,
    *,
    protocol: str = PROTOCOLS[0],
    threshold: float = THRESHOLD,
    on_image: Callable[[str], None] = lambda name: None,
    on_map: Callable[[Sample, np.ndarray], None] = lambda sample, probability: None,
) -> Accuracy:
    """Accuracy of a session on every image of a data set.

    Args:
        session: an open artefact, or the PyTorch network.
        dataset: one split.
        preprocessing: the network's own constants, also on another data set than the one it was trained on.
        protocol: one of :data:`irstd_edge.data.PROTOCOLS`; figures of different protocols are not comparable.
        threshold: of the probability.
        on_image: called after each image with its name.
        on_map: called with each image as the protocol compares it, and its probability ``[H, W]``.

    Raises :class:`~irstd_edge.data.DataError`.
    """

    def samples() -> Iterator[Sample]:
        for i in range(len(dataset)):
            sample = dataset[i]
            yield sample
            on_image(sample.name)

    return metrics.evaluate(session.run, samples(), preprocessing, protocol=protocol, threshold=threshold,
                            size_multiple=preprocessing.size_multiple, on_map=on_map)


@dataclass(frozen=True)
class ClipAccuracy:
    """Targets found in one annotated clip.

    ``found``: frames with a detected target whose centroid lies within the annotated box, of ``frames`` annotated
    ones that were looked at; ``false_targets``: all other detected targets in those frames.
    """

    clip: str
    frames: int
    found: int
    false_targets: int

    @property
    def share(self) -> float:
        return self.found / self.frames

    def as_dict(self) -> dict:
        return asdict(self) | {"share": self.share, "false_targets_per_frame": self.false_targets / self.frames}


def read_boxes(path: Path) -> dict[int, tuple[float, float, float, float]]:
    """Boxes ``(x, y, width, height)`` in pixels by zero-based frame, from a CSV ``frame,x,y,width,height``.

    Raises :class:`~irstd_edge.data.DataError`.
    """
    try:
        with path.open(newline="") as file:
            return {
                int(row["frame"]): (float(row["x"]), float(row["y"]), float(row["width"]), float(row["height"]))
                for row in csv.DictReader(file)
            }
    except (OSError, KeyError, TypeError, ValueError) as e:
        raise DataError(f"{path}: cannot be read as boxes, one row frame,x,y,width,height a frame ({e})") from e


def list_clips(folder: Path) -> list[Path]:
    """The clips ``X.mp4`` of a folder that have boxes ``X.csv`` beside them, sorted. Raises ``DataError``."""
    folder = Path(folder)
    clips = sorted(p for p in folder.glob("*.mp4") if p.with_suffix(".csv").is_file())
    if not clips:
        raise DataError(f"{folder}: holds no clip X.mp4 with its boxes X.csv")
    return clips


def evaluate_clip(
    session: Session,
    clip: Path,
    preprocessing: Preprocessing,
    *,
    threshold: float = THRESHOLD,
    every: int = 1,
    on_image: Callable[[str], None] = lambda name: None,
) -> ClipAccuracy:
    """Count the annotated frames of ``clip`` in which the target is found, and the false targets.

    Args:
        session, preprocessing, threshold, on_image: as in :func:`evaluate`.
        clip: a video; its boxes lie beside it in a ``.csv``.
        every: look at each ``every``-th frame only.

    Raises :class:`~irstd_edge.data.DataError`.
    """
    boxes = read_boxes(clip.with_suffix(".csv"))
    frames = found = false_targets = 0
    for frame in read_frames(clip, every):
        if frame.number not in boxes:
            continue
        x, y, width, height = boxes[frame.number]
        targets = find_targets(predict(session, frame.image, preprocessing), threshold)
        # Boxes are measured from the image's corner, centroids from the middle of the corner pixel.
        hits = sum(x <= t.x + 0.5 <= x + width and y <= t.y + 0.5 <= y + height for t in targets)
        frames += 1
        found += hits > 0
        false_targets += len(targets) - hits
        on_image(frame.name)
    if not frames:
        raise DataError(f"{clip}: none of its frames has a box in {clip.with_suffix('.csv').name}")
    return ClipAccuracy(clip.name, frames, found, false_targets)

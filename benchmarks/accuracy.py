"""Detection accuracy of an open session on the test split of a data set."""

from __future__ import annotations

from pathlib import Path

from irstd_edge.bundle import Preprocessing
from irstd_edge.data import Dataset, Sample
from irstd_edge.runtimes.accuracy import evaluate
from irstd_edge.runtimes.session import Session

#: The figures that a report keeps; Fa is a ratio of pixels.
FIGURES = ("iou", "niou", "pd", "fa", "images", "targets")


class FirstImages:
    """The first ``count`` images of a data set."""

    def __init__(self, dataset: Dataset, count: int):
        self.dataset, self.count = dataset, min(count, len(dataset))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.dataset[index]


def measure_accuracy(
    session: Session,
    root: str,
    name: str,
    preprocessing: Preprocessing,
    threshold: float,
    protocol: str = "basicirstd",
    limit: int | None = None,
) -> dict:
    """``{iou, niou, pd, fa, images, targets}``; ``limit`` takes the first images alone.

    Raises :class:`~irstd_edge.data.DataError` when the data set is not there.
    """
    dataset = Dataset(Path(root), name, "test")
    images = dataset if limit is None else FirstImages(dataset, limit)
    found = evaluate(session, images, preprocessing, protocol=protocol, threshold=threshold).as_dict()
    return {key: found[key] for key in FIGURES}

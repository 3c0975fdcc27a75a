"""Training curves as a picture."""

from __future__ import annotations

from pathlib import Path

from irstd_edge.plots import plotting
from irstd_edge.training.loop import CURVE_FIELDS, read_curve


def plot_curves(csv_file: Path, png_file: Path) -> None:
    """Draw loss, and IoU, nIoU and Pd of the held-out images, over the epochs; written whole or not at all.

    Raises :class:`~irstd_edge.errors.MissingError`, :class:`~irstd_edge.data.DataError`.
    """
    rows = read_curve(csv_file)
    parts = [k for k in rows[-1] if k not in CURVE_FIELDS] if rows else []
    with plotting(png_file) as (left, right):
        for key in ("loss", *parts):
            left.plot([int(r["epoch"]) for r in rows], [float(r[key]) for r in rows], label=key)
        left.set(xlabel="epoch", ylim=(0, None), title="Training loss")
        if parts:
            left.legend(loc="upper right")
        validated = [r for r in rows if r["iou"]]
        for key, name in (("iou", "IoU"), ("niou", "nIoU"), ("pd", "Pd")):
            right.plot([int(r["epoch"]) for r in validated], [float(r[key]) for r in validated], label=name)
        right.set(xlabel="epoch", ylim=(0, 1), title="Held-out images, averaged weights")
        right.legend(loc="lower right")
        for axis in (left, right):
            axis.margins(x=0)

"""Pictures of an evaluation: figures over the threshold, and the images that went worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.measure import label, regionprops

from irstd_edge.data import Sample
from irstd_edge.metrics import DetectionMetrics
from irstd_edge.plots import plotting
from irstd_edge.runtimes.detection import CAPTION, MARK, PAPER

#: Outlines, RGB: what is there, and what the network says.
TRUTH, PREDICTION = MARK, (255, 140, 40)
_CELL, _CAPTION, _GAP, _COLUMNS = 480, 34, 8, 4
#: The magnified part, in pixels of the image, and its share of the picture's side.
_PATCH, _INSET = 33, 0.4


def plot_sweep(rows: Sequence[dict], threshold: float, title: str, path: Path) -> None:
    """Pd against Fa, and IoU and nIoU over the threshold, as a PNG; written whole or not at all.

    Args:
        rows: of :meth:`irstd_edge.metrics.ThresholdSweep.rows`.
        threshold: the one in use, marked.
        title: above both.
        path: of the PNG.

    Raises :class:`~irstd_edge.errors.MissingError`, :class:`~irstd_edge.data.DataError`.
    """
    used = [r for r in rows if r["threshold"] == threshold]
    with plotting(path, title) as (left, right):
        left.plot([r["fa"] * 1e6 for r in rows], [r["pd"] for r in rows], marker=".")
        left.plot([r["fa"] * 1e6 for r in used], [r["pd"] for r in used], "o", label=f"threshold {threshold:g}")
        # Linear up to 1e-6, as Fa may be 0.
        left.set_xscale("symlog", linthresh=1)
        left.set(xlabel="Fa (1e-6)", ylabel="Pd", xlim=(0, None), ylim=(0, 1.02))
        left.legend(loc="lower right")
        for key, name in (("iou", "IoU"), ("niou", "nIoU")):
            right.plot([r["threshold"] for r in rows], [r[key] for r in rows], marker=".", label=name)
        right.axvline(threshold, color="grey", linewidth=0.8)
        right.set(xlabel="threshold", xlim=(0, 1), ylim=(0, 1))
        right.legend(loc="lower center")


@dataclass(frozen=True)
class Case:
    """One judged image: float32 ``[H, W]`` on 0..255, truth and prediction as masks of bool, their IoU in 0..1."""

    name: str
    image: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    iou: float


class WorstImages:
    """Keeps the ``count`` images of the lowest IoU, worst first; call it with every image, as ``on_map``.

    Images with neither target nor prediction, whose IoU is 0 by definition, are left out.
    """

    def __init__(self, count: int, threshold: float):
        self.count, self.threshold = count, threshold
        self.cases: list[Case] = []

    def __call__(self, sample: Sample, probability: np.ndarray) -> None:
        metrics = DetectionMetrics()
        metrics.update(probability, sample.mask, self.threshold)
        predicted, truth = probability > self.threshold, sample.mask >= 128
        if predicted.any() or truth.any():
            case = Case(sample.name, sample.image, truth, predicted, metrics.image_ious[0])
            self.cases = sorted([*self.cases, case], key=lambda c: c.iou)[:self.count]


def worst_sheet(cases: Sequence[Case]) -> Image.Image:
    """A grid of judged images, truth outlined outside its pixels and prediction inside, errors magnified; RGB.

    The caption tells name, IoU, and how many pixels were missed and false. An empty sheet says so.
    """
    columns = max(1, min(_COLUMNS, len(cases)))
    cells = [_draw_case(case) for case in cases]
    rows = [cells[i:i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + _GAP for row in rows]
    sheet = Image.new("RGB", (columns * (_CELL + _GAP) + _GAP, _CAPTION + sum(heights) + _GAP), PAPER)
    draw, font, x = ImageDraw.Draw(sheet), ImageFont.load_default(19), _GAP
    words = ((("truth", TRUTH), ("prediction", PREDICTION)) if cells
             else (("no image with a target or a prediction", CAPTION),))
    for word, colour in words:
        draw.text((x, _CAPTION / 2), word, fill=colour, font=font, anchor="lm")
        x += draw.textlength(word, font) + 3 * _GAP
    for i, row in enumerate(rows):
        for column, cell in enumerate(row):
            sheet.paste(cell, (_GAP + column * (_CELL + _GAP), _CAPTION + sum(heights[:i])))
    return sheet


def _draw_case(case: Case) -> Image.Image:
    height, width = case.image.shape
    scale = _CELL / max(height, width)
    picture = _outlined(case, (slice(None), slice(None)), (max(1, round(width * scale)), max(1, round(height * scale))))
    row, column = _largest_error(case)
    corner = [min(max(0, centre - _PATCH // 2), max(0, size - _PATCH))
              for centre, size in ((row, height), (column, width))]
    side = round(min(picture.size) * _INSET)
    inset = _outlined(case, tuple(slice(c, c + _PATCH) for c in corner), (side, side))
    # In the corner across from what it magnifies.
    x = _GAP if column * 2 > width else picture.width - side - _GAP
    y = _GAP if row * 2 > height else picture.height - side - _GAP
    ImageDraw.Draw(picture).rectangle((x - 2, y - 2, x + side + 1, y + side + 1), fill=CAPTION)
    picture.paste(inset, (x, y))
    cell = Image.new("RGB", (_CELL, picture.height + _CAPTION), PAPER)
    cell.paste(picture, ((_CELL - picture.width) // 2, 0))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(17)
    middle = picture.height + _CAPTION / 2
    missed, false = int((case.truth & ~case.predicted).sum()), int((case.predicted & ~case.truth).sum())
    draw.text((2, middle), case.name, fill=CAPTION, font=font, anchor="lm")
    draw.text((_CELL - 2, middle), f"IoU {case.iou:.3f}, {missed} px missed, {false} false", fill=CAPTION, font=font,
              anchor="rm")
    return cell


def _largest_error(case: Case) -> tuple[int, int]:
    """Row and column of the middle of the largest group of wrong pixels; of the target where there is none."""
    wrong = case.truth ^ case.predicted
    regions = regionprops(label(wrong if wrong.any() else case.truth, connectivity=2))
    row, column = max(regions, key=lambda region: region.area).centroid
    return round(row), round(column)


def _outlined(case: Case, window: tuple[slice, slice], size: tuple[int, int]) -> Image.Image:
    """A window of the image at a size, its contrast stretched, with both outlines."""
    part = case.image[window]
    low, high = np.percentile(part, 1), part.max()
    grey = np.clip((part - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(grey).convert("RGB").resize(size, Image.Resampling.NEAREST)).copy()
    truth, predicted = (np.asarray(Image.fromarray(m[window]).resize(size, Image.Resampling.NEAREST))
                        for m in (case.truth, case.predicted))
    pixels[_grown(truth) & ~truth] = TRUTH
    pixels[predicted & _grown(~predicted)] = PREDICTION
    return Image.fromarray(pixels)


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its eight neighbours."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    return np.logical_or.reduce([padded[i:i + height, j:j + width] for i in range(3) for j in range(3)])

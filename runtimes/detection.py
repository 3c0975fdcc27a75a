"""From an image to its targets: preprocessing, connected components, and pictures of the result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.measure import label, regionprops

from irstd_edge.bundle import Preprocessing
from irstd_edge.data import normalise, pad_to_multiple
from irstd_edge.runtimes.session import Session
from irstd_edge.runtimes.video import Frame

#: Colours of overlays, RGB.
MARK, SHADOW, INK, CAPTION, PAPER = (64, 255, 160), (0, 0, 0), (8, 24, 18), (225, 232, 230), (16, 20, 22)
CAPTION_HEIGHT = 30
#: Left, top, right, bottom in pixels of a picture.
Rectangle = tuple[int, int, int, int]
#: CSV columns of ``irstd-edge detect``: one row a target, pixels of the original frame.
CSV_FIELDS = ("file", "frame", "target", "x", "y", "box_x", "box_y", "box_width", "box_height", "area", "score")


@dataclass(frozen=True)
class Target:
    """One 8-connected component of probability > threshold, in pixels of the original frame.

    ``x``, ``y``: centroid, the centre of the top left pixel being (0, 0). ``box``: left, top, width, height.
    ``area``: pixels. ``score``: the largest probability in it.
    """

    x: float
    y: float
    box: tuple[int, int, int, int]
    area: int
    score: float

    def as_dict(self) -> dict:
        return {"x": round(self.x, 2), "y": round(self.y, 2), "box": list(self.box), "area": self.area,
                "score": round(self.score, 4)}


@dataclass(frozen=True)
class Detection:
    """The targets of one frame, best score first."""

    frame: Frame
    targets: tuple[Target, ...]

    def as_dict(self) -> dict:
        """``file``, ``frame`` (null for a picture), ``width``, ``height``, ``targets``; ready for JSON."""
        height, width = self.frame.image.shape
        return {"file": self.frame.file.name, "frame": self.frame.number, "width": width, "height": height,
                "targets": [t.as_dict() for t in self.targets]}

    def rows(self) -> list[dict]:
        """One dictionary a target, keys :data:`CSV_FIELDS`."""
        number = "" if self.frame.number is None else self.frame.number
        return [
            {"file": self.frame.file.name, "frame": number, "target": i, "x": f"{t.x:.2f}", "y": f"{t.y:.2f}",
             **dict(zip(CSV_FIELDS[5:9], t.box, strict=True)), "area": t.area, "score": f"{t.score:.4f}"}
            for i, t in enumerate(self.targets)
        ]


def predict(session: Session, image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """The probability map of one image of any size.

    Args:
        session: an open artefact.
        image: float32 ``[H, W]`` on the 0..255 scale.
        preprocessing: the network's constants, from the bundle's manifest.

    Returns float32 ``[H, W]`` in 0..1: the padding to ``size_multiple`` is cropped off again.
    """
    height, width = image.shape
    x = pad_to_multiple(normalise(image, preprocessing), preprocessing.size_multiple)
    return session.run(x[None, None])[0, 0, :height, :width]


def find_targets(probability: np.ndarray, threshold: float) -> tuple[Target, ...]:
    """The targets of a probability map, float ``[H, W]``, best score first."""
    mask = probability > threshold
    if not mask.any():
        return ()
    targets = []
    for region in regionprops(label(mask, connectivity=2), intensity_image=probability):
        top, left, bottom, right = region.bbox
        y, x = region.centroid
        targets.append(Target(float(x), float(y), (left, top, right - left, bottom - top), int(region.area),
                              float(region.intensity_max)))
    return tuple(sorted(targets, key=lambda t: -t.score))


def draw_overlay(detection: Detection, scale: float | None = None, unit: int | None = None) -> Image.Image:
    """The frame with its targets marked, RGB.

    Corner marks stand clear of the target, which stays visible; the label is its score, left out where there is no
    room beside better targets.

    Args:
        detection: a frame and its targets.
        scale: enlargement; by default the whole factor that makes the long side about 960 pixels, at least 1.
        unit: line width in pixels, which sizes the label too; by default one 480th of the long side.
    """
    height, width = detection.frame.image.shape
    scale = max(1, round(960 / max(height, width))) if scale is None else scale
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = _grey(detection.frame.image).resize(size, Image.Resampling.BICUBIC)
    unit = max(1, round(max(size) / 480)) if unit is None else unit
    draw = ImageDraw.Draw(picture)
    frames = [_frame_around(target, scale, unit) for target in detection.targets]
    for frame in frames:
        _draw_corners(draw, frame, unit)
    taken = list(frames)
    for target, frame in zip(detection.targets, frames, strict=True):
        _draw_score(draw, target.score, frame, unit, size, taken)
    return picture


def _grey(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8)).convert("RGB")


def _frame_around(target: Target, scale: float, unit: int) -> Rectangle:
    """The rectangle of the corner marks, in pixels of the picture: a few pixels away from the target on every side."""
    left, top, width, height = (value * scale for value in target.box)
    margin, least = max(4 * unit, 2 * scale), 9 * unit
    half_width, half_height = max(width / 2 + margin, least), max(height / 2 + margin, least)
    x, y = left + width / 2, top + height / 2
    return round(x - half_width), round(y - half_height), round(x + half_width), round(y + half_height)


def _draw_corners(draw: ImageDraw.ImageDraw, frame: Rectangle, unit: int) -> None:
    left, top, right, bottom = frame
    arm = round(min(right - left, bottom - top) * 0.3)
    for colour, width in ((SHADOW, 2 * unit), (MARK, unit)):
        for x, along_x in ((left, arm), (right, -arm)):
            for y, along_y in ((top, arm), (bottom, -arm)):
                _bar(draw, (x, y), (x + along_x, y), width, colour)
                _bar(draw, (x, y), (x, y + along_y), width, colour)


def _draw_score(draw, score: float, frame: Rectangle, unit: int, size: tuple[int, int], taken: list[Rectangle]) -> None:
    """Write the score beside its frame, where it covers nothing in ``taken``; its place is taken then."""
    left, top, right, bottom = frame
    text, font, pad, gap = f"{score:.2f}", _font(max(10, 8 * unit)), 2 * unit, 3 * unit
    width, height = (extent + 2 * pad for extent in _extent(text, font))
    for x, y in ((right + gap, top - unit), (left - gap - width, top - unit), (left, top - gap - height),
                 (left, bottom + gap), (right + gap, bottom - height), (left - gap - width, bottom - height)):
        place = (x, y, x + width, y + height)
        if x >= 0 and y >= 0 and place[2] <= size[0] and place[3] <= size[1] and not any(
                place[0] < o[2] and o[0] < place[2] and place[1] < o[3] and o[1] < place[3] for o in taken):
            draw.rounded_rectangle(place, 2 * unit, fill=MARK)
            draw.text((x + pad, y + pad), text, fill=INK, font=font, anchor="lt")
            taken.append(place)
            return


def _bar(draw, start, end, width: int, colour) -> None:
    """A horizontal or vertical line with square ends, ``width`` pixels to either side of its half."""
    (x0, y0), (x1, y1) = start, end
    before, after = width // 2, (width - 1) // 2
    draw.rectangle((min(x0, x1) - before, min(y0, y1) - before, max(x0, x1) + after, max(y0, y1) + after), fill=colour)


def draw_cell(detection: Detection, width: int, height: int) -> Image.Image:
    """One cell of a contact sheet: the overlay, a magnified inset of the best target, a caption; RGB.

    The picture is fitted into ``width`` x ``height`` pixels, the caption stands below it.
    """
    rows, columns = detection.frame.image.shape
    scale = min(width / columns, height / rows)
    picture = draw_overlay(detection, scale, unit=2)
    if detection.targets:
        _inset(picture, detection, scale)
    cell = Image.new("RGB", (width, height + CAPTION_HEIGHT), PAPER)
    cell.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    draw = ImageDraw.Draw(cell)
    count = len(detection.targets)
    middle = height + CAPTION_HEIGHT / 2
    draw.text((2, middle), detection.frame.name, fill=CAPTION, font=_font(19), anchor="lm")
    draw.text((width - 2, middle), f"{count} target{'' if count == 1 else 's'}",
              fill=MARK if count else CAPTION, font=_font(19), anchor="rm")
    return cell


def _inset(picture: Image.Image, detection: Detection, scale: float) -> None:
    """Magnify the best target, its contrast stretched, in the corner farthest from every target."""
    image, best = detection.frame.image, detection.targets[0]
    reach = max(9, max(best.box[2:]))
    x, y = round(best.x), round(best.y)
    patch = np.pad(image, reach, mode="edge")[y:y + 2 * reach + 1, x:x + 2 * reach + 1]
    inner = patch[reach // 2:-(reach // 2), reach // 2:-(reach // 2)]
    low, high = float(np.percentile(inner, 5)), float(inner.max())
    stretched = (patch - low) * (235 / max(high - low, 8)) + 20
    side = round(min(picture.size) * 0.34)
    gap = max(4, side // 16)
    corners = [(left, top) for top in (gap, picture.height - side - gap) for left in (picture.width - side - gap, gap)]

    def clearance(corner: tuple[int, int]) -> float:
        return min(np.hypot(corner[0] + side / 2 - t.x * scale, corner[1] + side / 2 - t.y * scale)
                   for t in detection.targets)

    left, top = max(corners, key=clearance)
    ImageDraw.Draw(picture).rectangle((left - 2, top - 2, left + side + 1, top + side + 1), fill=MARK)
    picture.paste(_grey(stretched).resize((side, side), Image.Resampling.NEAREST), (left, top))


def contact_sheet(detections: Sequence[Detection], columns: int = 4, width: int = 480) -> Image.Image:
    """A grid of overlays with magnified targets: one picture that shows a whole run; RGB.

    Args:
        detections: frames in reading order; the first one's shape gives the cells' shape.
        columns: cells a row.
        width: pixels of a cell.

    Raises ``ValueError`` for no detections.
    """
    if not detections:
        raise ValueError("a contact sheet needs at least one frame")
    rows, cols = detections[0].frame.image.shape
    height = round(width * min(max(rows / cols, 0.4), 1.5))
    columns = min(columns, len(detections))
    gap, step_x, step_y = 8, width + 8, height + CAPTION_HEIGHT + 2
    sheet = Image.new("RGB", (columns * step_x + gap, -(-len(detections) // columns) * step_y + gap), PAPER)
    for i, detection in enumerate(detections):
        row, column = divmod(i, columns)
        sheet.paste(draw_cell(detection, width, height), (gap + column * step_x, gap + row * step_y))
    return sheet


def spread(items: Iterable, count: int) -> list:
    """At most ``count`` items, evenly spread over all of them, first and last included."""
    items = list(items)
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _extent(text: str, font) -> tuple[int, int]:
    left, top, right, bottom = font.getbbox(text, anchor="lt")
    return round(right - left), round(bottom - top)

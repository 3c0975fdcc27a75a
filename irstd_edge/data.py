"""Infrared images, data sets in the BasicIRSTD folder layout, normalisation and augmentation.

Layout: ``ROOT/<name>/images/X.png``, ``ROOT/<name>/masks/X.png``, ``ROOT/<name>/img_idx/{train,test}_<name>.txt``.
The public sets and where to get them: ``irstd-edge data``.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")
#: Masks of NUAA-SIRST are called X_pixels0.png where its authors publish it, X.png elsewhere.
OFFICIAL_MASK = "_pixels0"
#: Networks see sizes that are multiples of this (protocol ``basicirstd``).
PAD_MULTIPLE = 32
#: Evaluation protocols, the default first; see :func:`to_protocol`.
PROTOCOLS = ("basicirstd", "resize256")
#: What Pillow raises on files that are no image, damaged, or of absurd size.
_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class DataError(ValueError):
    """An image or data set cannot be used; the message names the file and the way out."""


@dataclass(frozen=True)
class Normalisation:
    """``(grey - mean) / std`` on the 0..255 scale."""

    mean: float
    std: float


@dataclass(frozen=True)
class DatasetInfo:
    name: str
    normalisation: Normalisation
    train: int
    test: int
    source: str


#: Constants of XinyiYing/BasicIRSTD, per training set.
DATASETS: dict[str, DatasetInfo] = {
    d.name: d
    for d in (
        DatasetInfo("NUAA-SIRST", Normalisation(101.06385040283203, 34.619606018066406), 213, 214,
                    "https://github.com/YimianDai/sirst"),
        DatasetInfo("NUDT-SIRST", Normalisation(107.80905151367188, 33.02274703979492), 663, 664,
                    "https://github.com/YeRen123455/Infrared-Small-Target-Detection"),
        DatasetInfo("IRSTD-1K", Normalisation(87.4661865234375, 39.71953201293945), 800, 201,
                    "https://github.com/RuiZhang97/ISNet"),
    )
}


def read_image(path: Path) -> np.ndarray:
    """Read an infrared image as float32 ``[H, W]`` on the 0..255 scale.

    8-bit grey as it is, colour by luma, 16-bit scaled from its own minimum and maximum
    (raw sensors use a small part of the range). Raises :class:`DataError`.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
                values = np.asarray(image).astype(np.float32)
                if not np.isfinite(values).all():
                    raise ValueError("holds NaN or infinity")
                return scale_16bit(values)
            return np.asarray(image.convert("L"), dtype=np.float32)
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such file") from e
    except _UNREADABLE as e:
        raise DataError(f"{path}: cannot be read as an image ({e}); expected {', '.join(IMAGE_SUFFIXES)}") from e


def scale_16bit(image: np.ndarray) -> np.ndarray:
    """Stretch values above 8 bits linearly from their minimum and maximum to 0..255; float32."""
    low, high = float(image.min()), float(image.max())
    if high <= 255 and low >= 0:
        return image.astype(np.float32)
    return ((image - low) * (255.0 / max(high - low, 1.0))).astype(np.float32)


def read_mask(path: Path) -> np.ndarray:
    """Read a mask as uint8 ``[H, W]``, 0..255. Raises :class:`DataError`."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"))
    except _UNREADABLE as e:
        raise DataError(f"{path}: cannot be read as a mask ({e})") from e


def normalise(image: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    """float32 ``(image - mean) / std``."""
    return ((image - np.float32(normalisation.mean)) / np.float32(normalisation.std)).astype(np.float32)


def pad_to_multiple(image: np.ndarray, multiple: int = PAD_MULTIPLE) -> np.ndarray:
    """Zero-pad ``[..., H, W]`` at the bottom and right to multiples."""
    pads = [(0, 0)] * (image.ndim - 2) + [(0, -size % multiple) for size in image.shape[-2:]]
    return np.pad(image, pads)


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of ``256`` (both) or ``256x320``. Raises :class:`DataError`."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise DataError(f"size {text!r}: give one number, or height and width as 256x320")
    return int(parts[0]), int(parts[-1])


@dataclass(frozen=True)
class Sample:
    """One image of a data set: name, float32 image ``[H, W]`` on 0..255, uint8 mask ``[H, W]``."""

    name: str
    image: np.ndarray
    mask: np.ndarray


class Dataset:
    """One split of a data set in the BasicIRSTD layout.

    Args:
        root: the folder that holds the data set's folder.
        name: a name of :data:`DATASETS`, or any other folder of the same layout.
        split: ``train`` or ``test``; or a split file of one name a line: its path below ``img_idx`` without ``.txt``,
            as ``idx_427/test``, or any path.

    Raises :class:`DataError` naming what is missing.
    """

    def __init__(self, root: Path, name: str, split: str):
        self.folder = Path(root) / name
        self.name, self.split = name, split
        own = self.folder / "img_idx" / (f"{split}_{name}.txt" if split in ("train", "test") else f"{split}.txt")
        index = own if own.is_file() or split in ("train", "test") else Path(split)
        if not index.is_file():
            hint = f"; get it from {DATASETS[name].source}" if name in DATASETS else ""
            if not hint and not self.folder.is_dir():
                there = sorted(p.parent.name for p in Path(root).glob("*/img_idx"))
                near = difflib.get_close_matches(name, there, 1, 0.4)
                hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{own}: no such file; expected {root}/{name}/{{images,masks,img_idx}}{hint}")
        try:
            self.names = [name for line in index.read_text().splitlines() if (name := line.strip())]
        except (OSError, UnicodeDecodeError) as e:
            raise DataError(f"{index}: cannot be read as names of images, one a line ({e})") from e
        if not self.names:
            raise DataError(f"{index}: names no image")

    @classmethod
    def named(cls, root: Path, reference: str, split: str) -> Dataset:
        """The data set of ``NAME``, its ``split``; or of ``NAME:SPLIT``. Raises :class:`DataError`."""
        name, _, own = reference.partition(":")
        return cls(root, name, own or split)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        image = read_image(self._find("images", name))
        mask = read_mask(self._find("masks", name))
        if image.shape != mask.shape:
            raise DataError(f"{self.folder}/masks/{name}: mask is {mask.shape}, its image {image.shape}")
        return Sample(name, image, mask)

    def image_path(self, index: int) -> Path:
        """The file of an image. Raises :class:`DataError` where it is not there."""
        return self._find("images", self.names[index])

    def _find(self, kind: str, name: str) -> Path:
        for ending in ("", OFFICIAL_MASK) if kind == "masks" else ("",):
            for suffix in IMAGE_SUFFIXES:
                path = self.folder / kind / (name + ending + suffix)
                if path.is_file():
                    return path
        raise DataError(f"{self.folder}/{kind}/{name}.png: no such file, but the index names it")

    @property
    def normalisation(self) -> Normalisation:
        """The published constants, or for other sets the mean of the images' means and deviations."""
        if self.name in DATASETS:
            return DATASETS[self.name].normalisation
        images = [self[i].image for i in range(len(self))]
        return Normalisation(float(np.mean([i.mean() for i in images])), float(np.mean([i.std() for i in images])))


def split_validation(count: int, share: float) -> tuple[list[int], list[int]]:
    """Indices to train on and to validate on, evenly over the images: ``share`` of them, one at least of several.

    All train where the share is 0.
    """
    part = Fraction(share).limit_denominator(10_000)
    held = [i for i in range(count) if (i + 1) * part // 1 > i * part // 1]
    if part and not held and count > 1:
        held = [count - 1]
    return sorted(set(range(count)) - set(held)), held


def to_protocol(sample: Sample, protocol: str) -> Sample:
    """The image and mask that a protocol compares. Raises :class:`DataError` for an unknown one.

    ``basicirstd``: native size (BasicIRSTD, SCTransNet). ``resize256``: the image bilinearly and the mask by nearest
    neighbour resized to 256 x 256 in 8 bits (DNANet, MSHNet), before normalisation.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    if protocol == "basicirstd":
        return sample
    size = (256, 256)
    image = Image.fromarray(np.clip(np.rint(sample.image), 0, 255).astype(np.uint8))
    image = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32)
    return Sample(sample.name, image, np.asarray(Image.fromarray(sample.mask).resize(size, Image.Resampling.NEAREST)))


@dataclass(frozen=True)
class DatasetCheck:
    """What a local copy of a data set holds; ``problems`` are one line each, empty where all is well."""

    name: str
    train: int
    test: int
    problems: tuple[str, ...]


def check_dataset(root: Path, name: str) -> DatasetCheck:
    """Look at every file that the split files of ``root/name`` name: there, readable, image and mask of one size.

    Counts are compared with those of the public split where the set is a public one.
    """
    counts, problems = {"train": 0, "test": 0}, []
    for split in counts:
        try:
            dataset = Dataset(root, name, split)
        except DataError as e:
            problems.append(str(e))
            continue
        counts[split] = len(dataset)
        if name in DATASETS and len(dataset) != (expected := getattr(DATASETS[name], split)):
            problems.append(f"{name}: {split} split names {len(dataset)} images, the public one {expected}")
        for image_name in dataset.names:
            try:
                image, mask = (_image_size(dataset._find(kind, image_name)) for kind in ("images", "masks"))
            except DataError as e:
                problems.append(str(e))
                continue
            if image != mask:
                problems.append(f"{dataset.folder}/masks/{image_name}: mask is {mask}, its image {image}")
    return DatasetCheck(name, counts["train"], counts["test"], tuple(problems))


def _image_size(path: Path) -> tuple[int, int]:
    """Height and width; the file's checksums are read, its pixels are not."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            image.verify()
            return height, width
    except _UNREADABLE as e:
        raise DataError(f"{path}: cannot be read as an image ({e})") from e


def random_crop(
    image: np.ndarray, mask: np.ndarray, size: int, rng: np.random.Generator, target_probability: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """A ``size`` x ``size`` crop of the image, zero-padded as for the test, then random flips and transposition.

    Padded is to multiples of :data:`PAD_MULTIPLE`, by a quarter of the crop at most, and at least to ``size``. With
    ``target_probability`` the crop holds a random target pixel (BasicIRSTD). Any other crop may be drawn up to half
    outside, and is then moved to the border: else the outermost rows, where sensors leave bright lines, would hardly
    ever be seen in training.
    """
    pads = [(0, max(size - s, min(-s % PAD_MULTIPLE, size // 4))) for s in image.shape]
    image, mask = np.pad(image, pads), np.pad(mask, pads)
    room = [s - size for s in image.shape]
    targets = np.argwhere(mask > 127)
    if len(targets) and rng.random() < target_probability:
        pixel = targets[rng.integers(len(targets))]
        corner = [int(rng.integers(max(0, p - size + 1), min(r, p) + 1)) for p, r in zip(pixel, room, strict=True)]
    else:
        outside = size // 2
        corner = [int(rng.integers(-outside, r + outside + 1).clip(0, r)) for r in room]
    window = tuple(slice(c, c + size) for c in corner)
    image, mask = image[window], mask[window]
    if rng.random() < 0.5:
        image, mask = image[::-1], mask[::-1]
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if rng.random() < 0.5:
        image, mask = image.T, mask.T
    return image, mask


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """A square image or mask, bilinear, as float32 ``[side, side]``; where it shrinks, over all pixels that fall into
    one. Of the same size it is returned as it is."""
    if image.shape == (side, side):
        return image
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR))

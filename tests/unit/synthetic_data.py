"""A small data set of noise with targets, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_dataset(root: Path, name: str = "Synthetic", count: int = 10, seed: int = 0) -> Path:
    """Noise with one bright 3 x 3 target an image, in the BasicIRSTD layout: ``count`` to train, as many to test."""
    rng = np.random.default_rng(seed)
    folder = root / name
    for kind in ("images", "masks", "img_idx"):
        (folder / kind).mkdir(parents=True)
    for i in range(2 * count):
        image = rng.integers(60, 110, (40, 56)).astype(np.uint8)
        mask = np.zeros_like(image)
        row, column = rng.integers(2, 36), rng.integers(2, 50)
        mask[row:row + 3, column:column + 3] = 255
        image[mask > 0] = 240
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    for split, first in (("train", 0), ("test", count)):
        names = "".join(f"{i}\n" for i in range(first, first + count))
        (folder / "img_idx" / f"{split}_{name}.txt").write_text(names)
    return root

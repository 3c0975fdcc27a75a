"""Makes ``frames/*.png``, ``boxes.csv`` and ``clips/`` from the six clips; see README.md for where they come from.

    python samples/make_samples.py CLIPS_FOLDER
"""

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from irstd_edge.runtimes.video import read_frames

HERE = Path(__file__).resolve().parent
#: Two frames of each clip, far apart, in which the target stands out from its surroundings.
FRAMES = {
    "IR_AIRPLANE_027": (12, 302),
    "IR_AIRPLANE_058": (31, 155),
    "IR_BIRD_073": (63, 207),
    "IR_DRONE_142": (100, 158),
    "IR_DRONE_153": (58, 294),
    "IR_HELICOPTER_049": (60, 170),
}
#: The one clip that is kept whole, with its annotations.
CLIP = "IR_DRONE_142"


def main(source: Path) -> None:
    """Read ``source/X.mp4`` and ``source/X.csv`` (``frame,x,y,width,height``); write beside this file."""
    (HERE / "frames").mkdir(exist_ok=True)
    (HERE / "clips").mkdir(exist_ok=True)
    rows = []
    for clip, numbers in FRAMES.items():
        with (source / f"{clip}.csv").open(newline="") as file:
            boxes = {int(row["frame"]): row for row in csv.DictReader(file)}
        for frame in read_frames(source / f"{clip}.mp4"):
            if frame.number in numbers:
                name = f"{clip.removeprefix('IR_').lower()}_{frame.number:03}.png"
                Image.fromarray(frame.image.astype(np.uint8)).save(HERE / "frames" / name, optimize=True)
                rows.append([name, *(boxes[frame.number][key] for key in ("x", "y", "width", "height"))])
    with (HERE / "boxes.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "x", "y", "width", "height"])
        writer.writerows(rows)
    for suffix in (".mp4", ".csv"):
        shutil.copyfile(source / (CLIP + suffix), HERE / "clips" / (CLIP + suffix))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

import numpy as np
import pytest
from PIL import Image

from irstd_edge.bundle import Preprocessing
from irstd_edge.data import DataError, Dataset
from irstd_edge.runtimes import accuracy
from irstd_edge.runtimes.session import Session
from irstd_edge.runtimes.video import writing

PREPROCESSING = Preprocessing(0.0, 255.0, 32)


class Brightness(Session):
    """Probability = grey / 255."""

    artefact, runtime = "torch", "fake 1"

    def __init__(self):
        self.shapes = []

    def run(self, x):
        self.shapes.append(x.shape)
        return x.copy()

    def prepare(self, x):
        return lambda: None


@pytest.fixture
def dataset(tmp_path):
    """Two images, 50 x 70: a found blob; a missed one and 4 false pixels far from it."""
    root = tmp_path / "SET"
    for folder in ("images", "masks", "img_idx"):
        (root / folder).mkdir(parents=True)
    for name, bright in (("a", (slice(10, 13), slice(20, 23))), ("b", (slice(40, 42), slice(60, 62)))):
        image, mask = np.zeros((50, 70), np.uint8), np.zeros((50, 70), np.uint8)
        image[bright], mask[10:13, 20:23] = 250, 255
        Image.fromarray(image).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    (root / "img_idx" / "test_SET.txt").write_text("a\nb\n")
    return Dataset(tmp_path, "SET", "test")


def test_native_size_padded_and_cropped(dataset):
    session, seen = Brightness(), []
    found = accuracy.evaluate(session, dataset, PREPROCESSING, on_image=seen.append)
    assert session.shapes == [(1, 1, 64, 96)] * 2 and seen == ["a", "b"]
    # a: 9 of 9 pixels; b: 0 of 9 with 4 false. IoU = 9 / (9 + 13), nIoU = (1 + 0) / 2, Fa = 4 / (2 * 3500).
    assert found.iou == pytest.approx(9 / 22) and found.niou == pytest.approx(0.5)
    assert found.pd == 0.5 and found.fa == pytest.approx(4 / 7000) and (found.images, found.targets) == (2, 2)


def test_the_other_protocol_resizes_to_256(dataset):
    session = Brightness()
    found = accuracy.evaluate(session, dataset, PREPROCESSING, protocol="resize256")
    assert session.shapes == [(1, 1, 256, 256)] * 2
    assert found.pd == 0.5 and found.fa > 0


def test_threshold_is_used(dataset):
    assert accuracy.evaluate(Brightness(), dataset, PREPROCESSING, threshold=0.99).pd == 0.0


def test_unknown_protocol_names_the_known_ones(dataset):
    with pytest.raises(ValueError, match="basicirstd, resize256"):
        accuracy.evaluate(Brightness(), dataset, PREPROCESSING, protocol="crop")


@pytest.fixture
def clip(tmp_path):
    """Ten frames, 64 x 64, a blob that moves right; the boxes of frames 0 to 7 lie on it but for frame 0."""
    path = tmp_path / "CLIP.mp4"
    rows = ["frame,x,y,width,height"]
    with writing(path, 10) as write:
        for i in range(10):
            image = np.zeros((64, 64, 3), np.uint8)
            image[30:34, 10 + 2 * i:14 + 2 * i] = 255
            if i == 5:
                image[50:54, 4:8] = 255  # a false target
            write(image)
            if i < 8:
                rows.append(f"{i},{(8 + 2 * i) if i else 50},28,8,8")
    path.with_suffix(".csv").write_text("\n".join(rows) + "\n")
    return path


def test_clip_counts_found_and_false(clip):
    found = accuracy.evaluate_clip(Brightness(), clip, PREPROCESSING)
    # Frame 0: its target lies outside the box, so it is false; frame 5 has one more.
    assert (found.frames, found.found, found.false_targets) == (8, 7, 2)
    assert found.as_dict() == {"clip": "CLIP.mp4", "frames": 8, "found": 7, "false_targets": 2, "share": 7 / 8,
                               "false_targets_per_frame": 0.25}
    assert accuracy.evaluate_clip(Brightness(), clip, PREPROCESSING, every=4).frames == 2


def test_clips_without_boxes_are_named(clip, tmp_path):
    assert accuracy.list_clips(clip.parent) == [clip]
    with pytest.raises(DataError, match=r"holds no clip X\.mp4"):
        accuracy.list_clips(tmp_path / "nowhere")
    clip.with_suffix(".csv").write_text("frame,x\n0,1\n")
    with pytest.raises(DataError, match="frame,x,y,width,height"):
        accuracy.evaluate_clip(Brightness(), clip, PREPROCESSING)
    clip.with_suffix(".csv").write_text("frame,x,y,width,height\n99,1,1,1,1\n")
    with pytest.raises(DataError, match="none of its frames has a box"):
        accuracy.evaluate_clip(Brightness(), clip, PREPROCESSING)

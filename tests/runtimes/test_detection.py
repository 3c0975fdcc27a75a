from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from irstd_edge.bundle import Preprocessing
from irstd_edge.data import DataError
from irstd_edge.runtimes import detection, video
from irstd_edge.runtimes.detection import MARK, Detection, Target, find_targets
from irstd_edge.runtimes.video import Frame


def frame(image, name="f.png", number=None):
    return Frame(Path(name), number, np.asarray(image, np.float32))


def test_components_by_hand():
    p = np.zeros((10, 12), np.float32)
    p[2:4, 3:6] = 0.7
    p[2, 4] = 0.9
    p[7, 8], p[8, 9] = 0.6, 0.8  # touch at a corner: one component
    first, second = find_targets(p, 0.5)
    assert first == Target(4.0, 2.5, (3, 2, 3, 2), 6, pytest.approx(0.9))
    assert second == Target(8.5, 7.5, (8, 7, 2, 2), 2, pytest.approx(0.8))


def test_on_the_threshold_is_no_target():
    assert find_targets(np.full((4, 4), 0.5, np.float32), 0.5) == ()
    assert find_targets(np.full((4, 4), np.nan, np.float32), 0.5) == ()
    assert find_targets(np.full((4, 4), 0.51, np.float32), 0.5)[0].area == 16


@pytest.mark.parametrize("shape", [(1, 1), (33, 65), (31, 32), (100, 7)])
def test_odd_sizes_are_padded_and_cropped(shape):
    class Echo:
        def run(self, x):
            self.shape = x.shape
            return x

    image = np.random.default_rng(1).random(shape).astype(np.float32) * 255
    session = Echo()
    found = detection.predict(session, image, Preprocessing(10.0, 5.0, 32))
    assert session.shape[2] % 32 == session.shape[3] % 32 == 0
    np.testing.assert_allclose(found, (image - 10) / 5, rtol=1e-5, atol=1e-5)


def test_records_and_rows():
    target = Target(1.234567, 2.0, (0, 1, 2, 3), 5, 0.98765)
    found = Detection(frame(np.zeros((4, 6)), "c.mp4", 7), (target,))
    assert found.as_dict() == {
        "file": "c.mp4", "frame": 7, "width": 6, "height": 4,
        "targets": [{"x": 1.23, "y": 2.0, "box": [0, 1, 2, 3], "area": 5, "score": 0.9877}]}
    assert list(found.rows()[0]) == list(detection.CSV_FIELDS)
    assert found.frame.name == "c.mp4#7"


def marked(picture):
    return (np.asarray(picture) == MARK).all(-1)


@pytest.mark.parametrize("box", [(100, 60, 3, 3), (0, 0, 2, 2), (317, 253, 3, 3), (60, 100, 40, 12)])
def test_overlay_marks_the_target_and_leaves_it_visible(box):
    image = np.full((256, 320), 40.0)
    x, y, w, h = box
    image[y:y + h, x:x + w] = 255
    target = Target(x + w / 2, y + h / 2, box, w * h, 0.97)
    picture = detection.draw_overlay(Detection(frame(image), (target,)))
    assert picture.size == (960, 768)
    marks = marked(picture)
    assert marks.sum() > 200
    assert not marks[3 * y:3 * (y + h), 3 * x:3 * (x + w)].any()
    bright = np.asarray(picture)[3 * y:3 * (y + h), 3 * x:3 * (x + w)]
    assert bright.min() > 100  # the pixels of the target itself are as they were


def test_labels_never_cover_another_target():
    image = np.full((256, 320), 40.0)
    rng = np.random.default_rng(3)
    corners = rng.integers(0, (300, 240), (40, 2))
    targets = []
    for x, y in corners:
        image[y:y + 3, x:x + 3] = 255
        targets.append(Target(x + 1.0, y + 1.0, (int(x), int(y), 3, 3), 9, 0.9))
    pixels = np.asarray(detection.draw_overlay(Detection(frame(image), tuple(targets))))
    for x, y in corners:
        centre = pixels[3 * y + 4, 3 * x + 4]
        assert not (centre == MARK).all()


def test_overlay_without_targets_is_the_frame():
    image = np.random.default_rng(0).integers(0, 256, (40, 1000)).astype(np.float32)
    picture = np.asarray(detection.draw_overlay(Detection(frame(image), ())))
    np.testing.assert_array_equal(picture, np.repeat(image.astype(np.uint8)[..., None], 3, 2))


def test_contact_sheet_is_a_grid_with_insets():
    image = np.full((256, 320), 40.0)
    image[200, 300] = 255
    hit = Detection(frame(image, "hit.png"), (Target(300.0, 200.0, (300, 200, 1, 1), 1, 0.9),))
    miss = Detection(frame(np.zeros((64, 512)), "miss.png"), ())
    sheet = detection.contact_sheet([hit, miss, hit, hit, miss], columns=3, width=240)
    assert sheet.size == (3 * 248 + 8, 2 * (192 + detection.CAPTION_HEIGHT + 2) + 8)
    cell = detection.draw_cell(hit, 320, 256)
    inset = np.asarray(cell)[6:80, 6:80].mean(-1)  # far from the target: top left
    assert inset.max() > 200 and marked(cell)[:100, :100].sum() > 200
    with pytest.raises(ValueError, match="at least one"):
        detection.contact_sheet([])


def test_spread_keeps_the_ends():
    assert detection.spread(range(5), 12) == [0, 1, 2, 3, 4]
    assert detection.spread(range(100), 4) == [0, 33, 66, 99]


def test_16_bit_images_use_their_own_range(tmp_path):
    raw = np.full((20, 20), 8000, np.uint16)
    raw[5, 5] = 9000
    Image.fromarray(raw).save(tmp_path / "raw.png")
    (read,) = video.read_frames(tmp_path / "raw.png")
    assert read.image.dtype == np.float32 and read.number is None
    assert read.image[5, 5] == 255 and read.image[0, 0] == 0


def write_video(path, count=6, shape=(48, 64)):
    with video.writing(path, 12) as write:
        for i in range(count):
            write(np.full((*shape, 3), 40 * i, np.uint8))


@pytest.mark.parametrize("name", ["v.mp4", "v.avi", "v.mkv"])
def test_videos_are_read_frame_by_frame(tmp_path, name):
    write_video(tmp_path / name)
    frames = list(video.read_frames(tmp_path / name))
    assert [f.number for f in frames] == list(range(6)) and frames[0].image.shape == (48, 64)
    for f in frames:
        assert f.image.mean() == pytest.approx(40 * f.number, abs=3)
    info = video.video_info(tmp_path / name)
    assert (info.width, info.height, info.fps, info.frames) == (64, 48, 12, 6)
    assert [f.number for f in video.read_frames(tmp_path / name, every=4)] == [0, 4]
    assert video.count_frames(tmp_path / name, every=4) == 2


def test_animated_gif(tmp_path):
    pictures = [Image.fromarray(np.full((32, 32), v, np.uint8)) for v in (0, 100, 200)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=100)
    assert [round(f.image.mean(), -1) for f in video.read_frames(tmp_path / "a.gif")] == [0, 100, 200]


def test_odd_video_sizes_lose_a_row(tmp_path):
    write_video(tmp_path / "odd.mp4", shape=(49, 65))
    assert next(iter(video.read_frames(tmp_path / "odd.mp4"))).image.shape == (48, 64)


def test_a_video_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), video.writing(tmp_path / "v.mp4", 12) as write:
        write(np.zeros((32, 32, 3), np.uint8))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_no_video_in_the_file(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"not a video")
    with pytest.raises(DataError, match=r"v\.mp4: cannot be read as a video"):
        list(video.read_frames(tmp_path / "v.mp4"))
    with pytest.raises(DataError, match="no such file"):
        list(video.read_frames(tmp_path / "w.mp4"))


def test_videos_without_the_extra_say_how_to_get_it(tmp_path, monkeypatch):
    import sys

    from irstd_edge.errors import MissingError

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingError, match=r"pip install irstd-edge\[video\]"):
        video.video_info(tmp_path / "v.mp4")


def test_folders_list_images_and_videos(tmp_path):
    for name in ("b.png", "a.mp4", "c.PNG", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in video.list_inputs(tmp_path)] == ["a.mp4", "b.png", "c.PNG"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image or video"):
        video.list_inputs(tmp_path / "empty")
    with pytest.raises(DataError, match="no such file or folder"):
        video.list_inputs(tmp_path / "nothing")


def test_unreadable_files_of_a_folder_are_passed_on(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG broken")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "b.png")
    bad = []
    frames = list(video.read_all(tmp_path, on_error=lambda path, error: bad.append(path.name)))
    assert [f.name for f in frames] == ["b.png"] and bad == ["a.png"]
    with pytest.raises(DataError, match=r"a\.png"):
        list(video.read_all(tmp_path))

import numpy as np
import pytest
import torch
from PIL import Image

from irstd_edge.data import (
    DATASETS,
    DataError,
    Dataset,
    Normalisation,
    Sample,
    check_dataset,
    normalise,
    pad_to_multiple,
    parse_size,
    random_crop,
    read_image,
    read_mask,
    resize,
    to_protocol,
)


def save(path, array, **options):
    Image.fromarray(array, **options).save(path)
    return path


def test_8_bit_grey_is_read_as_it_is(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    image = read_image(save(tmp_path / "a.png", pixels))
    assert image.dtype == np.float32 and np.array_equal(image, pixels)


def test_16_bit_is_stretched_from_its_own_range(tmp_path):
    pixels = np.array([[1000, 2000], [3000, 1500]], np.uint16)
    np.testing.assert_allclose(read_image(save(tmp_path / "a.png", pixels)), [[0, 127.5], [255, 63.75]], rtol=1e-6)
    # 16-bit files that hold 8-bit values, and flat ones.
    low = np.array([[0, 17], [255, 3]], np.uint16)
    assert np.array_equal(read_image(save(tmp_path / "b.png", low)), low)
    assert np.array_equal(read_image(save(tmp_path / "c.tif", np.full((2, 2), 5000, np.uint16))), np.zeros((2, 2)))


def test_colour_is_read_by_luma_and_palettes_by_their_colours(tmp_path):
    pixels = np.zeros((1, 3, 3), np.uint8)
    pixels[0, [0, 1, 2], [0, 1, 2]] = 255
    colour = Image.fromarray(pixels)
    colour.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[76, 150, 29]]
    colour.convert("RGBA").save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png").tolist() == [[76, 150, 29]]


def test_unusable_images_are_named(tmp_path):
    good = save(tmp_path / "good.png", np.full((40, 40), 7, np.uint8)).read_bytes()
    cut = tmp_path / "cut.png"
    cut.write_bytes(good[: len(good) // 2])
    text = tmp_path / "text.png"
    text.write_text("no image")
    nan = tmp_path / "nan.tif"
    Image.fromarray(np.array([[np.nan, 1.0]], np.float32)).save(nan)
    for path in (cut, text, nan, tmp_path / "absent.png"):
        with pytest.raises(DataError, match=path.name):
            read_image(path)
    for path in (cut, text, tmp_path / "absent.png"):
        with pytest.raises(DataError, match=path.name):
            read_mask(path)


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("error", [ValueError, Image.DecompressionBombError, SyntaxError, OSError])
def test_whatever_pillow_raises_names_the_file(tmp_path, monkeypatch, read, error):
    path = save(tmp_path / "a.png", np.zeros((4, 4), np.uint8))

    def fail(*args, **kwargs):
        raise error("absurd")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(DataError, match=r"a\.png: cannot be read .*absurd"):
        read(path)


def test_sizes_are_parsed():
    assert parse_size("256") == (256, 256) and parse_size("256X320") == (256, 320)
    for text in ("", "x", "0", "-3", "12y", "1x2x3", "64x", "6.5"):
        with pytest.raises(DataError, match="256x320"):
            parse_size(text)


def test_padding_is_zeros_at_the_bottom_and_right():
    image = np.ones((2, 33, 64), np.float32)
    padded = pad_to_multiple(image)
    assert padded.shape == (2, 64, 64)
    assert padded[:, :33].min() == 1 and padded[:, 33:].max() == 0
    assert pad_to_multiple(image, 1).shape == image.shape


def test_normalise_is_float32():
    x = normalise(np.array([[10.0, 30.0]], np.float32), Normalisation(10.0, 20.0))
    assert x.dtype == np.float32 and x.tolist() == [[0.0, 1.0]]


def test_crops_keep_image_and_mask_aligned_and_flip_both():
    rng = np.random.default_rng(0)
    image = np.arange(1, 41 * 53 + 1, dtype=np.float32).reshape(41, 53)
    mask = np.zeros((41, 53), np.uint8)
    mask[7:10, 40:42] = 255
    targets = set(image[mask > 0])
    orientations, holds = set(), 0
    for _ in range(200):
        crop, crop_mask = random_crop(image, mask, 24, rng)
        assert crop.shape == crop_mask.shape == (24, 24)
        assert set(crop[crop_mask > 0]) == targets & set(crop.ravel())
        inside = np.argwhere(crop[:-1, :-1] * crop[1:, :-1] * crop[:-1, 1:])[0]
        here, right, below = (crop[tuple(inside + step)] for step in ((0, 0), (0, 1), (1, 0)))
        orientations.add((np.sign(right - here), abs(right - here), np.sign(below - here)))
        holds += bool(crop_mask.any())
    assert len(orientations) == 8
    assert holds > 100
    assert all(random_crop(image, mask, 24, rng, 1.0)[1].any() for _ in range(100))


def test_crops_hold_each_border_of_the_image_and_its_padding_often():
    rng = np.random.default_rng(0)
    image, inside = np.mgrid[1:251, 1:301][0].astype(np.float32), np.ones((250, 300), np.uint8)
    crops = [random_crop(image, inside, 128, rng, 0.0) for _ in range(400)]
    # A crop begins at one of 257 rows, of which 65 are the first or outside; without that it were 1 of 129.
    assert np.mean([(rows == 1).any() for rows, _ in crops]) == pytest.approx(65 / 257, abs=0.07)
    assert np.mean([(rows == 250).any() for rows, _ in crops]) > 0.2
    assert np.mean([(mask == 0).any() for _, mask in crops]) > 0.25, "zeros, as images are padded for the test"
    assert all(((rows == 0) == (mask == 0)).all() for rows, mask in crops)


def test_small_images_are_padded_to_the_crop():
    rng = np.random.default_rng(0)
    crop, mask = random_crop(np.ones((5, 40), np.float32), np.full((5, 40), 255, np.uint8), 32, rng)
    assert crop.shape == (32, 32) and crop.sum() == 5 * 32 and (mask > 0).sum() == 5 * 32


@pytest.mark.parametrize("side", [8, 17, 24, 31, 40])
def test_crops_are_resized_as_torch_does(side):
    image = np.random.default_rng(0).random((24, 24), np.float32).T
    truth = torch.nn.functional.interpolate(
        torch.from_numpy(image.copy())[None, None], (side, side), mode="bilinear", antialias=True)[0, 0]
    assert resize(image, side) == pytest.approx(truth.numpy(), abs=1e-5)
    assert (resize(image, side) is image) == (side == 24)


def test_protocols():
    image = np.zeros((128, 512), np.float32)
    image[64:, :] = 200
    mask = np.zeros((128, 512), np.uint8)
    mask[10:12, 20:24] = 255
    sample = Sample("a", image, mask)
    assert to_protocol(sample, "basicirstd") is sample
    resized = to_protocol(sample, "resize256")
    assert resized.image.shape == resized.mask.shape == (256, 256)
    assert resized.image.dtype == np.float32 and resized.image[0, 0] == 0 and resized.image[-1, -1] == 200
    assert set(np.unique(resized.mask)) == {0, 255} and (resized.mask > 0).sum() == 4 * 2
    with pytest.raises(DataError, match="basicirstd, resize256"):
        to_protocol(sample, "native")


def test_dataset_reads_its_split(synthetic):
    dataset = Dataset(synthetic, "Synthetic", "train")
    assert len(dataset) == 10 and [s.name for s in dataset] == [str(i) for i in range(10)]
    images = [s.image for s in dataset]
    assert dataset.normalisation.mean == pytest.approx(np.mean(images), rel=1e-5)
    assert check_dataset(synthetic, "Synthetic").problems == ()


def test_masks_may_have_the_names_of_their_publisher_and_names_may_hold_spaces(synthetic):
    folder = synthetic / "Synthetic"
    (folder / "masks" / "0.png").rename(folder / "masks" / "0_pixels0.png")
    for kind in ("images", "masks"):
        (folder / kind / "1.png").rename(folder / kind / "one of many.png")
    (folder / "img_idx" / "own.txt").write_text("0\n one of many \n\n2\n")
    dataset = Dataset(synthetic, "Synthetic", "own")
    assert dataset.names == ["0", "one of many", "2"] and all(sample.mask.any() for sample in dataset)
    (folder / "images" / "2.png").rename(folder / "images" / "2_pixels0.png")
    with pytest.raises(DataError, match=r"images/2\.png: no such file"):
        dataset[2]


def test_a_data_set_that_is_not_there_names_its_neighbour(synthetic):
    with pytest.raises(DataError, match=r"img_idx/test_Synthetik\.txt: no such file.*; did you mean 'Synthetic'\?$"):
        Dataset(synthetic, "Synthetik", "test")
    (synthetic / "NUAA-SIRST" / "img_idx").mkdir(parents=True)  # whose name is near that of another public set
    with pytest.raises(DataError, match=r"test_NUDT-SIRST\.txt: no such file.*; get it from https://[^;]*$"):
        Dataset(synthetic, "NUDT-SIRST", "test")


def test_public_constants():
    info = DATASETS["NUAA-SIRST"]
    assert (info.train, info.test) == (213, 214)
    assert (info.normalisation.mean, info.normalisation.std) == (101.06385040283203, 34.619606018066406)


def test_a_broken_copy_is_described(synthetic):
    folder = synthetic / "Synthetic"
    (folder / "images" / "0.png").unlink()
    (folder / "masks" / "1.png").write_bytes(b"no image")
    save(folder / "masks" / "2.png", np.zeros((8, 8), np.uint8))
    (folder / "img_idx" / "test_Synthetic.txt").unlink()
    dataset = Dataset(synthetic, "Synthetic", "train")
    for index, message in ((0, "no such file, but the index names it"), (1, "mask"), (2, r"\(8, 8\)")):
        with pytest.raises(DataError, match=message):
            dataset[index]
    check = check_dataset(synthetic, "Synthetic")
    assert (check.train, check.test, len(check.problems)) == (10, 0, 4)
    with pytest.raises(DataError, match=r"get it from https://github\.com/YimianDai/sirst"):
        Dataset(synthetic, "NUAA-SIRST", "train")
    (folder / "img_idx" / "train_Synthetic.txt").write_text("\n")
    with pytest.raises(DataError, match="names no image"):
        Dataset(synthetic, "Synthetic", "train")


@pytest.mark.external
def test_the_public_sets_hold_the_published_counts(public_data):
    for name in DATASETS:
        assert check_dataset(public_data, name).problems == ()


def test_split_files_of_ones_own(synthetic, tmp_path):
    own = synthetic / "Synthetic" / "img_idx" / "official"
    own.mkdir()
    (own / "test.txt").write_text("3\n1\n")
    assert Dataset(synthetic, "Synthetic", "official/test").names == ["3", "1"]
    assert Dataset.named(synthetic, "Synthetic:official/test", "train").names == ["3", "1"]
    assert len(Dataset.named(synthetic, "Synthetic", "train")) == 10
    assert Dataset(synthetic, "Synthetic", str(own / "test.txt"))[0].name == "3"
    with pytest.raises(DataError, match=r"img_idx/official/val.txt: no such file"):
        Dataset(synthetic, "Synthetic", "official/val")
    (own / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as names of images"):
        Dataset(synthetic, "Synthetic", "official/bad")


def test_the_official_split_of_the_public_set(public_data):
    if not (public_data / "NUAA-SIRST" / "img_idx" / "idx_427").is_dir():
        pytest.skip("needs idx_427 of YimianDai/sirst in NUAA-SIRST/img_idx")
    kept, test = (set(Dataset(public_data, "NUAA-SIRST", f"idx_427/{s}").names) for s in ("trainval", "test"))
    assert (len(kept), len(test)) == (341, 86) and not kept & test

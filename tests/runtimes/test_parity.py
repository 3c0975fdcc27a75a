import numpy as np
import pytest

from irstd_edge import bundle as b
from irstd_edge.errors import ParityError
from irstd_edge.runtimes import parity
from irstd_edge.runtimes.parity import Parity, ParitySummary, compare
from irstd_edge.runtimes.session import OPENERS, Session


class Shifted(Session):
    """The identity, its output moved by a constant and at one pixel to a value."""

    runtime = "fake 1"

    def __init__(self, artefact="onnx", shift=0.0, pixel=None):
        self.artefact, self.shift, self.pixel = artefact, np.float32(shift), pixel

    def run(self, x):
        y = x + self.shift
        if self.pixel is not None:
            y[..., 0, 0] = self.pixel
        return y

    def prepare(self, x):
        return lambda: None


@pytest.fixture
def bundle(tmp_path):
    """A bundle of two 4 x 4 test vectors around 0.5 whose network is the identity."""
    rng = np.random.default_rng(0)
    vectors = (rng.random((2, 1, 4, 4)) * 0.4).astype(np.float32)
    np.savez(tmp_path / "v.npz", input=vectors, probability=vectors)
    (tmp_path / "w").write_bytes(b"w")

    def make(requested="W1A1", realised=None):
        operator = "irstd.BinaryConv2d" if requested == "W1A1" else "Conv"
        layer = b.LayerPrecision("c", operator, requested, realised or requested, 8, 9)
        artefacts = tuple(b.Artefact(k, "w", b.sha256(tmp_path / "w"), 1, "NCHW", None, (layer,))
                          for k in ("onnx", "portable"))
        b.write_manifest(tmp_path, b.Manifest(
            "identity", "0", 1, 1, None, "w", b.sha256(tmp_path / "w"), "identity", b.Preprocessing(0.0, 1.0, 4), 0.5,
            (4, 4), artefacts, b.TestVectors("v.npz", b.sha256(tmp_path / "v.npz"), 2)))
        return b.Bundle.open(tmp_path)

    return make


@pytest.fixture
def sessions(monkeypatch):
    """Artefact kind -> the session that opening it gives; PyTorch is the exact identity."""
    table = {"torch": Shifted("torch"), "onnx": Shifted(), "portable": Shifted("portable")}
    monkeypatch.setattr(parity, "open_session", lambda bundle, kind, threads: table[kind])
    return table


def test_figures_computed_by_hand():
    reference = np.array([[0.0, 0.6], [0.8, 0.0]], np.float32)
    other = np.array([[0.0, 0.4], [0.8, 0.0]], np.float32)
    found = compare(reference, other, 0.5)
    assert found.max_abs == pytest.approx(0.2, abs=1e-6)
    # (0.6 * 0.4 + 0.64) / (1.0 * sqrt(0.8)) = 0.88 / 0.894427
    assert found.cosine == pytest.approx(0.983870, abs=1e-5)
    assert found.flipped_pixels == 1


def test_a_value_on_the_threshold_is_background():
    at, above = np.array([0.5], np.float32), np.array([0.5 + 1e-6], np.float32)
    assert compare(at, at, 0.5).flipped_pixels == 0
    assert compare(at, above, 0.5).flipped_pixels == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("both", [True, False])
def test_values_that_are_not_finite_never_pass(value, both):
    reference, other = np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)
    other[0, 0] = value
    if both:
        reference[0, 0] = value
    with np.errstate(invalid="ignore"):
        found = compare(reference, other, 0.5)
    assert found.max_abs == float("inf")
    summary = ParitySummary()
    summary.add(found, "x")
    assert summary.judge("onnx", parity.TOLERANCES["onnx"])
    assert summary.as_dict()["max_abs"] is None


def test_two_empty_maps_are_equal_and_one_is_not():
    zero, one = np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)
    assert compare(zero, zero, 0.5) == Parity(0.0, 1.0, 0)
    assert compare(zero, one, 0.5).cosine == 0.0


def test_shapes_that_differ_are_an_error():
    with pytest.raises(ParityError, match=r"\(2, 2\).*\(2, 3\)"):
        compare(np.zeros((2, 3)), np.zeros((2, 2)), 0.5)


def test_summary_keeps_the_worst_image_and_sums_flips():
    summary = ParitySummary()
    for name, p in (("a", Parity(1e-6, 1.0, 0)), ("b", Parity(3e-5, 0.9, 4)), ("c", Parity(2e-5, 0.99, 1))):
        summary.add(p, name)
    assert (summary.images, summary.max_abs, summary.worst) == (3, 3e-5, "b")
    assert (summary.cosine, summary.flipped_pixels, summary.images_with_flips) == (0.9, 5, 2)


@pytest.mark.parametrize(("images", "flipped", "ok"), [(99, 1, False), (100, 1, True), (214, 2, True), (214, 3, False)])
def test_one_image_in_a_hundred_may_hold_flipped_pixels(images, flipped, ok):
    summary = ParitySummary()
    for i in range(images):
        summary.add(Parity(1e-6, 1.0, int(i < flipped)), str(i))
    assert (summary.judge("onnx", parity.TOLERANCES["onnx"]) == []) is ok
    assert summary.flipped_pixels == flipped


def test_every_runtime_has_a_tolerance_with_a_reason():
    assert set(OPENERS) <= set(parity.TOLERANCES)
    assert all(t.reason and t.max_abs <= 1e-4 and t.flipped_images <= 0.01 for t in parity.TOLERANCES.values())


@pytest.mark.parametrize(("requested", "realised", "max_abs", "flipped"), [
    ("W1A1", "W1A1", 1e-4, 0.01), ("W1A1", "float32", 1e-4, 0.01), ("float32", "float32", 1e-4, 1.0),
    ("float16", "float16", 1e-2, 1.0), ("float16", "float32", 1e-4, 1.0), ("W4A4", "W4A4", 1e-2, 0.01),
    ("W8A8", "int8", 1e-2, 0.01)])
def test_flips_bind_compressed_networks_and_roundings_have_a_wider_limit(bundle, requested, realised, max_abs, flipped):
    found = parity.tolerance(bundle(requested, realised), "onnx")
    assert (found.max_abs, found.flipped_images) == (max_abs, flipped) and found.reason
    of_torch = parity.tolerance(bundle(requested, realised), "torch")
    assert of_torch.max_abs == 1e-5


def test_vectors_of_an_equal_artefact_pass(bundle, sessions):
    found = parity.check_vectors(bundle())
    assert list(found) == ["onnx", "portable"]
    assert all((s.images, s.max_abs, s.flipped_pixels) == (2, 0.0, 0) for s in found.values())


def test_vectors_name_artefact_figure_and_limit(bundle, sessions):
    sessions["portable"].shift = np.float32(2e-3)
    with pytest.raises(ParityError, match=r"^portable: max-abs 0.002 on test vector \d exceeds 0.0001$"):
        parity.check_vectors(bundle())
    assert list(parity.check_vectors(bundle(), ["onnx"])) == ["onnx"]


def test_flips_within_the_numeric_limit_fail_compressed_networks_alone(bundle, sessions):
    images = [("edge", np.full((4, 4), 0.5, np.float32))]
    sessions["onnx"].pixel = np.float32(0.50002)
    for requested, fails in (("W1A1", True), ("float32", False)):
        opened = bundle(requested)
        found = parity.verify(opened, images, ["onnx"])
        summary = found.images["onnx"]
        assert (summary.flipped_pixels, summary.images_with_flips) == (1, 1)
        assert bool(summary.violations) is fails


def test_verify_compares_images_of_any_size_and_reports_all(bundle, sessions):
    sessions["onnx"].shift = np.float32(1e-3)
    images = [("small", np.full((3, 5), 0.1, np.float32)), ("large", np.full((9, 4), 0.9, np.float32))]
    seen = []
    found = parity.verify(bundle(), images, on_image=seen.append)
    assert seen == ["small", "large"]
    assert found.images["onnx"].images == 2 and found.images["portable"].violations == []
    assert len(found.violations) == 2  # onnx: on the vectors and on the images
    report = found.as_dict()
    assert not report["ok"] and [r["artefact"] for r in report["results"]] == ["torch", "onnx", "portable"]
    assert report["results"][0]["parity"] is None and report["results"][1]["parity"]["images"] == 2
    with pytest.raises(ParityError, match=r"onnx: max-abs 0\.001"):
        found.check()


class OneImage:
    """A data set of one image: a blob of 3 x 3 at (2, 2) on 8 x 8."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        from irstd_edge.data import Sample

        image = np.full((8, 8), 0.1, np.float32)
        image[1:4, 1:4] = 0.9
        return Sample("blob", image, (image > 0.5).astype(np.uint8) * 255)


def test_verify_demands_the_same_pd(bundle, sessions):
    found = parity.verify(bundle(), kinds=["onnx"], dataset=OneImage())
    assert found.violations == [] and found.accuracy["onnx"] == found.accuracy["torch"]
    assert found.accuracy["torch"].pd == 1.0 and found.images["onnx"].images == 1
    sessions["onnx"].shift = np.float32(-0.5)
    found = parity.verify(bundle(), kinds=["onnx"], dataset=OneImage())
    assert found.accuracy["onnx"].pd == 0.0
    assert "onnx: Pd 0.000000 differs from PyTorch's 1.000000" in found.violations


def test_the_cosine_of_maps_without_any_probability_is_not_rounding_noise():
    noise = np.random.default_rng(0).random((2, 8, 8)).astype(np.float32) * 1e-8
    assert compare(noise[0], noise[1], 0.5).cosine == 1.0
    assert compare(noise[0], np.full((8, 8), 0.5, np.float32), 0.5).cosine == 0.0

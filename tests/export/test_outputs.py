"""Networks that return several tensors: the probability alone is exported, or all of them on request."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from irstd_edge import cli
from irstd_edge.bundle import Bundle, BundleError, Preprocessing
from irstd_edge.checkpoints import LoadedNetwork
from irstd_edge.errors import OK, USAGE, ParityError, UnsupportedError
from irstd_edge.export import pipeline
from irstd_edge.runtimes.parity import check_vectors, compare_outputs
from irstd_edge.runtimes.session import open_session

KINDS = ["onnx", "tflite", "native", "portable"]


class Supervised(nn.Module):
    """As public code returns them: logits at two scales, and the probability last."""

    size_multiple = 4

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.stem, self.deep = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1)
        self.small, self.large = nn.Conv2d(8, 2, 1), nn.Conv2d(4, 1, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        small = self.small(torch.relu(self.deep(x)))
        large = self.large(x)
        up = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=True)
        return {"scales": [20 * small, large], "mask": torch.sigmoid(large + up[:, :1])}


def make():
    return Supervised()


def loaded(network):
    return LoadedNetwork("supervised", "test_outputs:make", network.eval(), Preprocessing(100.0, 30.0, 4), 0.5, None)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, native_library):
    folder, notes = tmp_path_factory.mktemp("outputs") / "b", []
    pipeline.export_bundle(loaded(Supervised()), KINDS, folder, (16, 24), output=-1, all_outputs=True,
                           note=notes.append)
    assert not any("all-outputs" in note for note in notes)
    return Bundle.open(folder)


def test_all_outputs_at_another_size(bundle):
    assert bundle.manifest.outputs == (2, 0, 1)
    x = torch.randn(1, 1, 32, 20)
    with torch.no_grad():
        found = Supervised().eval()(x)
    want = [y.numpy() for y in (found["mask"], *found["scales"])]
    for kind in ("torch", *KINDS):
        session = open_session(bundle, kind)
        results = session.run_all(x.numpy())
        for y, truth in zip(results, want, strict=True):
            np.testing.assert_allclose(y, truth, atol=1e-5, err_msg=kind)
        np.testing.assert_array_equal(session.run(x.numpy()), results[0])


def test_batches_of_all_outputs(bundle):
    x = np.random.default_rng(0).standard_normal((2, 1, 16, 24)).astype(np.float32)
    for kind in ("tflite", "native"):
        session = open_session(bundle, kind)
        single = [session.run_all(image[None]) for image in x]
        for y, *parts in zip(session.run_all(x), *single, strict=True):
            np.testing.assert_array_equal(y, np.concatenate(parts))


def test_vectors_hold_all_outputs_and_a_difference_in_any_fails(bundle, tmp_path):
    outputs = bundle.expected_outputs()
    assert [y.shape for y in outputs] == [(4, 1, 16, 24), (4, 2, 8, 12), (4, 1, 16, 24)]
    np.testing.assert_array_equal(outputs[0], bundle.test_vectors()[1])
    check_vectors(bundle)
    outputs[1][2, 0, 3, 3] += 0.1
    with pytest.raises(ParityError, match=r"onnx: max-abs .* on test vector 2"):
        bundle.expected_outputs = lambda: outputs
        try:
            check_vectors(bundle, ["onnx"])
        finally:
            del bundle.expected_outputs


def test_the_others_count_against_their_largest_value():
    one, many = np.full((1, 1, 2, 2), 0.4, np.float32), np.full((1, 2, 1, 1), 50, np.float32)
    assert compare_outputs([one, many], [one, many + 1], 0.5).max_abs == pytest.approx(0.02)
    assert compare_outputs([one, one], [one, one + 0.2], 0.5).flipped_pixels == 0
    with pytest.raises(ParityError, match=r"shapes \[\(1, 1, 2, 2\)\]"):
        compare_outputs([one, many], [one], 0.5)


def test_one_is_exported_by_default_with_a_note(tmp_path):
    notes = []
    pipeline.export_bundle(loaded(Supervised()), ["onnx"], tmp_path / "b", (16, 24), output=2, note=notes.append)
    assert any("of 3 tensors that the network returns, number 2 is exported" in note for note in notes)
    opened = Bundle.open(tmp_path / "b")
    assert opened.manifest.outputs == (2,)
    assert len(open_session(opened, "onnx").run_all(opened.test_vectors()[0][:1])) == 1


def test_the_command(project, capsys, native_library):
    (project / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Conv2d):\n    def forward(self, x):\n"
        "        y = super().forward(x)\n        return y, torch.sigmoid(y)\n\n\n"
        "def make():\n    return Net(1, 1, 3, padding=1)\n")
    arguments = ["export", "--model", "mine:make", "--untrained", "--mean", "1", "--std", "1", "--input-size", "16",
                 "--to", "onnx", "--out", "b", "--output"]
    assert cli.main([*arguments, "-1", "--all-outputs", "--json", "b.json"]) == OK
    assert json.loads((project / "b.json").read_text())["outputs"] == [1, 0]
    assert cli.main([*arguments, "5"]) == USAGE
    assert "returns 2 tensors, none at place 5" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("past", [1e-3, -1e-3])
def test_a_probability_a_little_out_of_range_is_refused(tmp_path, past):
    """PyTorch's own runs allow it; a file is for any runtime."""
    class Past(nn.Module):
        def forward(self, x):
            return torch.full_like(x, past if past < 0 else 1 + past)

    with pytest.raises(UnsupportedError, match=r"no probabilities; .*torch\.sigmoid; --output names another"):
        pipeline.export_bundle(loaded(Past()), ["onnx"], tmp_path / "b", (16, 24))


def test_a_network_that_returns_nothing_is_refused(tmp_path):
    class Nothing(nn.Module):
        def forward(self, x):
            return None

    with pytest.raises(UnsupportedError, match="returns NoneType"):
        pipeline.export_bundle(loaded(Nothing()), ["onnx"], tmp_path / "b", (16, 24))


@pytest.mark.parametrize("outputs", [[], [1, 1], [-1]])
def test_a_manifest_with_wrong_outputs_is_refused(bundle, tmp_path, outputs):
    raw = json.loads((bundle.path / "manifest.json").read_text()) | {"outputs": outputs}
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="outputs must be different places"):
        Bundle.open(tmp_path)

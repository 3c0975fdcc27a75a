"""The bundle and the command: what is written is verified, what fails leaves nothing."""

import json
import os
import textwrap

import numpy as np
import onnx_ir as ir
import pytest
import torch

from irstd_edge import cli
from irstd_edge.bundle import Bundle, Preprocessing
from irstd_edge.checkpoints import LoadedNetwork, open_bundle_network
from irstd_edge.errors import ParityError, UnsupportedError
from irstd_edge.export import pipeline
from irstd_edge.nn.convert import Conversion, convert

FLOAT_NETWORK = textwrap.dedent("""
    import torch
    from torch import nn

    class Net(nn.Module):
        size_multiple = 2

        def __init__(self, last=nn.Sigmoid):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
                                      nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 1, 1), last())

        def forward(self, x):
            return self.body(x)

    def logits():
        return Net(nn.Identity)

    class Colour(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 1)

        def forward(self, x):
            return torch.sigmoid(self.conv(x))
""")


def loaded(network, name="net"):
    return LoadedNetwork(name, "mynet:Net", network.eval(), Preprocessing(100.0, 30.0), 0.5, None)


@pytest.fixture
def float_network(project):
    (project / "mynet.py").write_text(FLOAT_NETWORK)
    from irstd_edge.checkpoints import build_network

    return build_network("mynet:Net")


@pytest.fixture
def source(biisnet, biisnet_capture, monkeypatch):
    """The BiisNet to export, captured once for all tests."""
    copy = biisnet_capture.model
    monkeypatch.setattr(pipeline, "capture", lambda network, size, places: pipeline.Capture(copy.clone(), ""))
    return LoadedNetwork("biisnet", "biisnet", biisnet, Preprocessing(100.0, 30.0), 0.5, "ab" * 32)


def export(*arguments):
    return cli.main(["export", *map(str, arguments)])


def test_bundle_of_a_network_of_ones_own(project, capsys):
    (project / "mynet.py").write_text(FLOAT_NETWORK)
    code = export("--model", "mynet:Net", "--mean", 100, "--std", 30, "--out", "out", "--input-size", "32x48",
                  "--json", "out.json")
    assert code == 0
    bundle = Bundle.open(project / "out")
    assert bundle.kinds == ["onnx", "tflite", "portable"]
    manifest = bundle.manifest
    assert (manifest.factory, manifest.network, manifest.reference_input) == ("mynet:Net", "Net", (32, 48))
    assert manifest.preprocessing.size_multiple == 32
    assert [a.input for a in manifest.artefacts] == [None, (32, 48), None]
    assert all(a.resizable for a in manifest.artefacts)
    assert [layer.name for layer in manifest.artefacts[0].layers] == ["body.0", "body.5"]
    x, y = bundle.test_vectors()
    assert x.shape == y.shape == (4, 1, 32, 48) and x.dtype == np.float32 and np.abs(x[0]).min() == 0
    assert sorted(os.listdir(project / "out")) == ["manifest.json", "model.onnx", "model.tflite",
                                                   "model_portable.onnx", "test_vectors.npz", "weights.safetensors"]
    printed = capsys.readouterr().out
    assert "body.0" in printed and "model.tflite: " in printed and "verified" in printed
    assert json.loads((project / "out.json").read_text())["network"] == "Net"


def test_a_bundle_keeps_how_its_network_was_converted(float_network, project):
    folded = convert(float_network, Conversion({"body.1": "body.0"}))
    pipeline.export_bundle(loaded(folded), ["onnx"], project / "bundle", (32, 32))
    opened = open_bundle_network(Bundle.open(project / "bundle"))
    assert opened.conversion == folded.conversion
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(opened(x), folded(x))


def test_biisnet_bundle_records_what_was_lowered(biisnet, source, tmp_path):
    manifest = pipeline.export_bundle(source, ["portable"], tmp_path / "b", (64, 64))
    layers = {layer.name: layer for layer in manifest.artefacts[0].layers}
    assert len(layers) == 18 and sum(layer.downgraded for layer in layers.values()) == 16
    assert layers["encoder1.0"].reason == "standard operators only" and manifest.checkpoint_sha256 == "ab" * 32
    from safetensors.torch import load_file

    weights = load_file(Bundle.open(tmp_path / "b").weights())
    assert weights.keys() == biisnet.state_dict().keys()


def test_strict_refuses_what_is_lowered(source, tmp_path):
    with pytest.raises(UnsupportedError, match=r"--strict: 16 layers .*portable: encoder1\.0 W1A1 -> int8"):
        pipeline.export_bundle(source, ["portable"], tmp_path / "s", (64, 64), strict=True)
    assert not (tmp_path / "s").exists()


def test_biisnet_with_our_operators(source, tmp_path, native_library):
    manifest = pipeline.export_bundle(source, ["tflite", "onnx"], tmp_path / "b", (64, 64), strict=True)
    for artefact in manifest.artefacts:
        assert sum(layer.realised == "W1A1" for layer in artefact.layers) == 16
        assert artefact.bytes < 70_000


def test_a_difference_fails_and_leaves_nothing(float_network, project, monkeypatch):
    real = pipeline.to_onnx

    def wrong(model):
        value = next(v for v in model.graph.initializers.values() if v.name.endswith("weight"))
        value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(1.5), name=value.name)
        return real(model)

    monkeypatch.setattr(pipeline, "to_onnx", wrong)
    with pytest.raises(ParityError, match="max-abs"):
        pipeline.export_bundle(loaded(float_network), ["portable"], project / "out", (32, 32))
    assert not (project / "out").exists() and not [p for p in project.iterdir() if p.name.startswith(".")]


def test_exit_code_of_a_difference(project, monkeypatch, capsys):
    (project / "mynet.py").write_text(FLOAT_NETWORK)

    def fail(folder):
        raise ParityError("portable: max-abs 1 exceeds 1e-4")

    monkeypatch.setattr(pipeline, "_verify", fail)
    assert export("--model", "mynet:Net", "--mean", 1, "--std", 1, "--out", "out", "--to", "portable",
                  "--input-size", 8) == 4
    assert not (project / "out").exists() and "max-abs" in capsys.readouterr().err


def test_targets_may_be_repeated(project):
    (project / "mynet.py").write_text(FLOAT_NETWORK)
    assert export("--model", "mynet:Net", "--mean", 1, "--std", 1, "--out", "out", "--to", "portable, onnx", "--to",
                  "native", "--to", "onnx", "--input-size", 8) == 0
    assert sorted(p.name for p in (project / "out").glob("model*")) == ["model.irstd", "model.onnx",
                                                                      "model_portable.onnx"]


@pytest.mark.parametrize("arguments, code, message", [
    (["biisnet", "--untrained", "--to", "onx"], 3, "did you mean 'onnx'"),
    (["biisnet", "--untrained", "--to", "tensorflow"], 3, "known: onnx, tflite, native, portable"),
    (["biisnet", "--untrained", "--to", ","], 2, "no target is named"),
    (["biisnet", "--untrained", "--input-size", "30"], 2, "multiples of 4"),
    (["biisnet", "--untrained", "--input-size", "30x"], 2, "height and width"),
    (["biisnet", "--untrained", "--input-size", "0"], 2, "height and width"),
    (["biisnit", "--untrained"], 2, "did you mean"),
    (["--model", "mynet:logits", "--mean", "1", "--std", "1", "--input-size", "8"], 3, "torch.sigmoid"),
    (["--model", "mynet:Colour", "--mean", "1", "--std", "1", "--input-size", "8"], 3, "one grey channel"),
    (["--model", "mynet:Net", "--input-size", "8"], 2, "--mean"),
])
def test_refusals(project, capsys, arguments, code, message):
    (project / "mynet.py").write_text(FLOAT_NETWORK)
    assert export(*arguments, "--out", "out") == code
    error = capsys.readouterr().err
    assert message in " ".join(error.split()) and "Traceback" not in error and not (project / "out").exists()


def test_a_folder_that_is_no_bundle_is_not_replaced(float_network, project):
    (project / "precious").mkdir()
    (project / "precious" / "file").write_text("x")
    with pytest.raises(ValueError, match="no bundle"):
        pipeline.export_bundle(loaded(float_network), ["portable"], project / "precious", (8, 8))
    assert (project / "precious" / "file").read_text() == "x"


def test_outputs_that_are_no_probability_map_are_refused():
    from torch import nn

    def reference(network):
        return pipeline.reference_outputs(network, pipeline.make_test_inputs((8, 8)))

    with pytest.raises(UnsupportedError, match="one probability map"):
        reference(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sigmoid()))
    nan = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sigmoid())
    nn.init.constant_(nan[0].bias, float("nan"))
    with pytest.raises(UnsupportedError, match="NaN"):
        reference(nan)


def test_notes_name_fixed_sizes_and_unused_layers():
    captured = pipeline.Capture(None, "because", ("aux",))
    files = [pipeline._File(kind, b"", "NCHW", None, (), reason)
             for kind, reason in (("onnx", "because"), ("tflite", "since"), ("portable", "because"))]
    notes = list(pipeline._notes(captured, files, (8, 9)))
    assert notes == ["onnx, portable: runs 8x9 images alone: because", "tflite: runs 8x9 images alone: since",
                     "left out, as no exported output depends on them: aux"]


class Sized(torch.nn.Module):
    """A network around ``middle``, whose result is brought back to the size of the image."""

    size_multiple = 8

    def __init__(self, middle):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.middle, self.head = torch.nn.Conv2d(1, 2, 3, padding=1), middle, torch.nn.Conv2d(2, 1, 1)

    def forward(self, x):
        y = torch.nn.functional.interpolate(self.middle(self.stem(x)), size=x.shape[2:], mode="bilinear")
        return torch.sigmoid(self.head(y))


class Interpolate(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.interpolate(x, size=(16, 16), mode="bilinear")


class Flatten(torch.nn.Module):
    def forward(self, x):
        return torch.softmax(x.flatten(2), 2).view(x.shape)


def sized(middle, folder, note=lambda text: None):
    network = Sized(middle).eval()
    pipeline.export_bundle(loaded(network), ["tflite", "portable"], folder, (32, 32), note=note)
    return network, Bundle.open(folder)


def session_output(bundle, kind, size, network):
    from irstd_edge.runtimes.session import open_session

    x = torch.randn(1, 1, *size)
    with torch.no_grad():
        return open_session(bundle, kind).run(x.numpy()), network(x).numpy()


#: What an export without a checkpoint says first.
OWN_WEIGHTS = "no checkpoint was given: the weights are those that mynet:Net made"


def test_a_graph_that_is_wrong_at_other_sizes_becomes_a_fixed_one(tmp_path):
    notes = []
    network, bundle = sized(torch.nn.AdaptiveAvgPool2d(4), tmp_path / "b", notes.append)
    assert [(a.kind, a.input, a.resizable) for a in bundle.manifest.artefacts] == [
        ("tflite", (32, 32), False), ("portable", (32, 32), False)]
    assert notes[0] == OWN_WEIGHTS and len(notes) == 2 and "\n" not in notes[1]
    assert notes[1].startswith("tflite, portable: runs 32x32 images alone: ")
    for kind in bundle.kinds:
        np.testing.assert_allclose(*session_output(bundle, kind, (32, 32), network), atol=1e-5)
        with pytest.raises(UnsupportedError, match=r"cannot run 64x40.*export again with"):
            session_output(bundle, kind, (64, 40), network)


class Spectrum(torch.nn.Module):
    def forward(self, x):
        return torch.fft.fft2(x, norm="ortho").real


def test_behind_an_operator_without_a_known_shape_the_operations_are_unknown(tmp_path):
    network = Sized(Spectrum()).eval()
    pipeline.export_bundle(loaded(network), ["onnx", "portable"], tmp_path / "b", (32, 32))
    bundle = Bundle.open(tmp_path / "b")
    for artefact in bundle.manifest.artefacts:
        first, last = artefact.layers[0], artefact.layers[-1]
        assert first.macs > 0 and last.macs is None
        np.testing.assert_allclose(*session_output(bundle, artefact.kind, (32, 32), network), atol=1e-5)


def test_a_fixed_size_inside_stays_fixed_in_tflite(tmp_path):
    network, bundle = sized(Interpolate(), tmp_path / "b")
    assert all(a.resizable for a in bundle.manifest.artefacts)
    for kind in bundle.kinds:
        for size in ((32, 32), (64, 40), (48, 120)):
            np.testing.assert_allclose(*session_output(bundle, kind, size, network), atol=1e-5)


def test_a_tflite_file_alone_may_be_of_one_size(tmp_path):
    notes = []
    network, bundle = sized(Flatten(), tmp_path / "b", notes.append)
    assert [(a.kind, a.input, a.resizable) for a in bundle.manifest.artefacts] == [
        ("tflite", (32, 32), False), ("portable", None, True)]
    assert notes == [
        OWN_WEIGHTS, "tflite: runs 32x32 images alone: a map of TRANSPOSE does not grow evenly with the image size"]
    with pytest.raises(UnsupportedError, match="--input-size 64x40"):
        session_output(bundle, "tflite", (64, 40), network)
    np.testing.assert_allclose(*session_output(bundle, "portable", (64, 40), network), atol=1e-5)


def test_a_tflite_file_that_differs_at_another_size_is_fixed(float_network, project, monkeypatch):
    """Whatever the writer thinks of it."""
    from irstd_edge.runtimes import tflite

    monkeypatch.setattr(tflite, "at_size", lambda model, written, wanted: model)
    manifest = pipeline.export_bundle(loaded(float_network), ["tflite"], project / "out", (32, 32))
    assert not manifest.artefacts[0].resizable and not Bundle.open(project / "out").artefact("tflite")[0].resizable


@pytest.mark.parametrize("size, multiple, expected", [
    ((256, 256), 4, (68, 72)), ((256, 256), 32, (96, 128)), ((16, 16), 4, (20, 24)), ((96, 32), 32, (128, 96)),
    ((256, 256), 1, (65, 66)),
])
def test_the_second_size(size, multiple, expected):
    network = torch.nn.Sigmoid()
    network.size_multiple = multiple
    assert pipeline._another_size(network, size).size == expected


@pytest.mark.parametrize("target", ["folder", "file/below"])
def test_a_json_file_that_cannot_be_written_is_refused_first(project, capsys, monkeypatch, target):
    (project / "folder").mkdir()
    (project / "file").touch()
    monkeypatch.setattr(pipeline, "export_bundle", lambda *a, **k: pytest.fail("exported first"))
    assert export("biisnet", "--untrained", "--out", "out", "--json", target) == 2
    assert target in capsys.readouterr().err

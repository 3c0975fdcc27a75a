"""Weights in 16 bits: the same network on every target, stored in half the bytes."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_truth import kinds, operator_names, run_ort, run_tflite, tflite_model
from torch import nn

from irstd_edge import program
from irstd_edge.bundle import Bundle, Preprocessing
from irstd_edge.checkpoints import LoadedNetwork
from irstd_edge.cli import main
from irstd_edge.errors import OK, USAGE
from irstd_edge.export import pipeline
from irstd_edge.export.capture import capture
from irstd_edge.export.inspect import inspect_path
from irstd_edge.export.passes import compress
from irstd_edge.export.passes.graph import REASON, STORED
from irstd_edge.export.passes.halve_weights import HalveWeights, misfit
from irstd_edge.export.targets.native import to_native
from irstd_edge.export.targets.onnx import to_onnx
from irstd_edge.export.targets.tflite import to_tflite
from irstd_edge.nn.binary import BinaryConv2d
from irstd_edge.runtimes.session import open_session

SIZE, OTHER = (16, 24), (32, 40)


class Layers(nn.Module):
    """Every layer with weights that a target has, one of them twice."""

    size_multiple = 4

    def __init__(self, linear=True):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.deep = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.linear = nn.Linear(4, 4) if linear else None
        self.up, self.head = nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.Conv2d(4, 1, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = self.twice(torch.relu(self.twice(x)))
        x = self.deep(x)
        if self.linear is not None:
            x = x * torch.sigmoid(self.linear(x.mean((2, 3))))[:, :, None, None]
        return torch.sigmoid(self.head(self.up(x)))


def made(linear=True):
    torch.manual_seed(2)
    return Layers(linear).eval()


def halved(network):
    model = compress(capture(network, SIZE).model)
    HalveWeights()(model)
    return model


@torch.no_grad()
def rounded(network):
    """The truth: PyTorch with its weights rounded to float16."""
    network = made(network.linear is not None)
    for name, parameter in network.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1:
            parameter.copy_(parameter.half().float())
    return network


@pytest.mark.parametrize("size", [SIZE, OTHER])
def test_onnx_and_tflite_equal_pytorch_with_rounded_weights(size):
    network = made()
    model, truth = halved(network), rounded(network)
    x = torch.randn(1, 1, *size)
    with torch.no_grad():
        want, full = truth(x).numpy(), network(x).numpy()
    assert 1e-6 < np.abs(want - full).max() < 1e-2
    for optimised in (True, False):
        np.testing.assert_allclose(run_ort(to_onnx(model), x.numpy(), optimised), want, atol=2e-7)
    np.testing.assert_allclose(run_tflite(to_tflite(model, size).data, x.numpy()), want, atol=1e-6)


def test_native_equals_pytorch_with_rounded_weights(tmp_path, native_library):
    from irstd_edge.runtimes.native import NativeSession

    network = made(linear=False)
    written = to_native(halved(network), SIZE, OTHER)
    (tmp_path / "m.irstd").write_bytes(written.data)
    x = torch.randn(1, 1, *OTHER)
    with torch.no_grad():
        want = rounded(network)(x).numpy()
    np.testing.assert_allclose(NativeSession(tmp_path / "m.irstd", SIZE).run(x.numpy()), want, atol=1e-6)
    weights = [n.constants["weight"] for n in program.read(written.data).nodes if "Conv" in n.operator]
    assert [w.dtype for w in weights] == [np.float16] * 6


def test_files_hold_two_bytes_a_weight():
    model = halved(made())
    proto = onnx.load_from_string(to_onnx(model))
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}
    assert sum(a.dtype == np.float16 for a in arrays.values()) == 6  # the layer that is used twice has one
    assert all(a.dtype == np.float16 for a in arrays.values() if a.ndim == 4 and a.shape[2] > 1)
    assert [n.op_type for n in proto.graph.node].count("Cast") == 6
    data = to_tflite(model, SIZE).data
    assert operator_names(data).count("DEQUANTIZE") == 6
    tensors = tflite_model(data).subgraphs[0].tensors
    assert sum(t.type == 1 for t in tensors) == 6
    assert "Cast" not in kinds(model), "the model itself is left as it is"


@pytest.mark.parametrize(("weight", "reason"), [
    ([1.0, -0.3], ""), ([0.0, 0.0], ""), ([], ""), ([65504.0], ""), ([70000.0, 1.0], "a weight of 7e.04 is beyond"),
    ([np.inf], "beyond"), ([np.nan], "beyond"), ([1e-7, 2e-7], "too small"), ([1e-7, 2.0], ""), ([6.1e-5], ""),
])
def test_what_float16_cannot_hold(weight, reason):
    found = misfit(np.array(weight, np.float32))
    assert bool(found) == bool(reason) and re.search(reason, found)


def test_what_a_compressed_layer_depends_on_stays():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.b = nn.Conv2d(1, 8, 3, padding=1), BinaryConv2d(8, 8, 3, padding=1)
            self.side, self.head = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 1, 1)

        def forward(self, x):
            return torch.sigmoid(self.head(self.b(self.stem(x)) * self.side(x)))

    model = halved(Mixed().eval())
    marks = {n.name: (n.metadata_props.get(STORED), n.metadata_props.get(REASON)) for n in model.graph}
    assert marks["stem"] == (None, "a compressed layer depends on it")
    assert marks["head"] == marks["side"] == ("float16", None) and marks["b"] == (None, None)


def loaded(network):
    return LoadedNetwork("layers", "m:make", network, Preprocessing(100.0, 30.0, 4), 0.5, None)


def test_bundle_and_its_tables(project, native_library):
    (project / "mine.py").write_text(
        "import sys\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_halve_weights import made as _made\n\ndef make():\n    return _made(False)\n")
    arguments = ["export", "--model", "mine:make", "--untrained", "--mean", "100", "--std", "30",
                 "--input-size", "16x24", "--to", "onnx,tflite,native,portable", "--weights", "fp16"]
    assert main([*arguments, "--out", "b", "--json", "b.json"]) == OK
    bundle = Bundle.open(project / "b")
    x, _ = bundle.test_vectors()
    results = {kind: open_session(bundle, kind).run(x[:1]) for kind in bundle.kinds}
    for kind, y in results.items():
        np.testing.assert_allclose(y, results["portable"], atol=1e-6, err_msg=kind)
    for artefact in json.loads((project / "b.json").read_text())["artefacts"]:
        layers = {x["name"]: x for x in artefact["layers"]}
        assert {x["requested"] for x in layers.values()} == {x["realised"] for x in layers.values()} == {"float16"}
        assert layers["up"]["bytes"] - 4 * 4 < 4 * 4 * 16 * 2 + 64
    for kind in bundle.kinds:
        path = bundle.artefact(kind)[1]
        (found,) = inspect_path(path, SIZE)
        assert [x.precision for x in found.layers if x.precision] == ["float16"] * 6, kind
    assert main([*arguments[:-1], "fp8", "--out", "c"]) == USAGE


def test_unknown_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="weights is 'fp8'; choose from fp32, fp16"):
        pipeline.export_bundle(loaded(made()), ["onnx"], tmp_path / "b", SIZE, weights="fp8")

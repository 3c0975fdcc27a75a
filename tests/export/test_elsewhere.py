"""Our files in runtimes and beside a converter that are not ours, each in an environment of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from export_truth import nhwc, operator_names, tflite_model
from float_networks import first, make
from test_layer_proof import SIZE, quantised
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from environments import environment, tflite214

from irstd_edge.export.capture import capture
from irstd_edge.export.passes import compress
from irstd_edge.export.passes.halve_weights import HalveWeights
from irstd_edge.export.targets.fused import find_parts
from irstd_edge.export.targets.onnx import to_onnx
from irstd_edge.export.targets.portable import lowered
from irstd_edge.export.targets.tflite import to_tflite

pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).parent / "elsewhere"
#: None: the fixture.
NETWORKS = {"binary": None, "int8": lambda: quantised((8, 8)), "mixed": lambda: quantised((2, 4)),
            "dnanet": lambda: make("dnanet"), "uiunet": lambda: make("uiunet-like")}
FLOAT = ("dnanet", "uiunet")


@pytest.fixture(scope="module")
def captured(biisnet):
    """Name -> compressed model, input, PyTorch's output."""
    found = {}
    for name, made in NETWORKS.items():
        torch.manual_seed(0)
        network, x = biisnet if made is None else made(), torch.randn(1, 1, *SIZE)
        with torch.no_grad():
            want = first(network(x)).numpy()
        found[name] = compress(capture(network, SIZE, dynamic=False).model), x.numpy(), want
    return found


def run(python, script, *arguments):
    done = subprocess.run([python, SCRIPTS / script, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def check(got, want, atol):
    np.testing.assert_allclose(got, want, atol=atol)
    assert not np.any(((got > 0.5) != (want > 0.5)) & (np.abs(want - 0.5) > 1e-3))


def halved(model):
    model = model.clone()
    HalveWeights()(model)
    return model


@pytest.mark.parametrize("module", ["tensorflow", "tflite_runtime.interpreter"])
def test_tflite_files_in_the_other_interpreters(module, captured, tmp_path, native_library):
    """With our operators by the delegate, in standard operators, and with weights in 16 bits."""
    python = tflite214() if module.startswith("tflite") else environment("venv-tf", "tensorflow-cpu==2.21.0")
    wanted = {}
    for name, (model, x, want) in captured.items():
        files = {"plain": to_tflite(lowered(model), SIZE).data}
        if name in FLOAT:
            files["half"] = to_tflite(halved(model), SIZE).data
        else:
            files["ours"] = to_tflite(model, SIZE, parts=find_parts(model, SIZE)).data
            assert b"irstd.Program" in files["ours"] and b"irstd." not in files["plain"]
        for form, data in files.items():
            (tmp_path / f"{name}-{form}.tflite").write_bytes(data)
            np.save(tmp_path / f"{name}-{form}-x.npy", nhwc(x))
            wanted[f"{name}-{form}"] = want, 5e-3 if form == "half" else 2e-6
    run(python, "tflite_files.py", tmp_path, module, native_library[1])
    assert len(wanted) == 10
    for name, (want, atol) in wanted.items():
        check(np.load(tmp_path / f"{name}-y.npy").transpose(0, 3, 1, 2), want, atol)


def test_portable_files_in_openvino(captured, tmp_path):
    """Int8 behind Q/DQ, unchanged: binary and quantised networks to the last float operators, and float ones."""
    python = environment("venv-openvino", "openvino==2026.4.1", "numpy==2.4.6")
    for name, (model, x, _) in captured.items():
        (tmp_path / f"{name}.onnx").write_bytes(to_onnx(lowered(model)))
        np.save(tmp_path / f"{name}-x.npy", x)
    run(python, "openvino_files.py", tmp_path)
    for name, (_, _, want) in captured.items():
        check(np.load(tmp_path / f"{name}-y.npy"), want, 2e-6)


class Converted(nn.Module):
    """What elsewhere/tensorflow_converter.py builds in TensorFlow."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.stem, self.deep = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=2, dilation=2)
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, x):
        first = torch.relu(self.stem(x))
        deep = torch.relu(self.deep(F.max_pool2d(first, 2)))
        up = [F.interpolate(deep, size=x.shape[2:], mode="bilinear", align_corners=c) for c in (True, False)]
        return torch.sigmoid(self.head(torch.cat([first, *up], 1)))


def test_files_are_those_of_tensorflows_converter(tmp_path):
    """The same operators, and the same results, at an odd size; activations are fused into convolutions there."""
    size = (21, 27)
    network = Converted().eval()
    weights = {name: layer.weight.detach().numpy().transpose(2, 3, 1, 0) for name, layer in network.named_children()}
    biases = {f"{name}_bias": layer.bias.detach().numpy() for name, layer in network.named_children()}
    np.savez(tmp_path / "w.npz", **weights, **biases)
    python = environment("venv-tf", "tensorflow-cpu==2.21.0")
    run(python, "tensorflow_converter.py", tmp_path / "w.npz", tmp_path / "theirs.tflite", *size)
    model = compress(capture(network, size, dynamic=False).model)
    (tmp_path / "ours.tflite").write_bytes(to_tflite(model, size).data)
    (tmp_path / "ours-half.tflite").write_bytes(to_tflite(halved(model), size).data)
    x = np.random.default_rng(0).standard_normal((1, 1, *size)).astype(np.float32)
    with torch.no_grad():
        want = network(torch.from_numpy(x)).numpy()
    for file in tmp_path.glob("*.tflite"):
        np.save(tmp_path / f"{file.stem}-x.npy", nhwc(x))
    run(python, "tflite_files.py", tmp_path, "tensorflow")
    for form, atol in (("", 1e-6), ("-half", 2e-3)):
        results = {who: np.load(tmp_path / f"{who}{form}-y.npy").transpose(0, 3, 1, 2) for who in ("ours", "theirs")}
        for y in results.values():
            check(y, want, atol)
        ours, theirs = (set(operator_names((tmp_path / f"{who}{form}.tflite").read_bytes())) for who in results)
        assert ours - {"RELU"} == theirs
    stored = {who: [t.shape.tolist() for t in tflite_model((tmp_path / f"{who}-half.tflite").read_bytes()
                                                            ).subgraphs[0].tensors if t.type == 1 and len(t.shape) == 4]
              for who in ("ours", "theirs")}
    assert sorted(stored["ours"]) == sorted(stored["theirs"]) and len(stored["ours"]) == 3

"""`irstd-edge inspect --compare`: what two files share is compared, on one input."""

import json

import numpy as np
import onnx
import pytest
import torch
from inspected_files import SIZE, Float, write_files
from onnx import numpy_helper
from torch import nn

from irstd_edge import cli
from irstd_edge.checkpoints import load_network
from irstd_edge.export.compare import compare_files
from irstd_edge.export.tensors import inner_tensors

pytestmark = pytest.mark.usefixtures("native_library")


@pytest.fixture(scope="module")
def float_files(tmp_path_factory):
    return write_files(Float().eval(), tmp_path_factory.mktemp("float"))


def module_outputs(network, x):
    """What PyTorch's modules give, by their path; of one that is called twice the last."""
    found = {}
    for name, module in network.named_modules():
        if name and not list(module.children()):
            module.register_forward_hook(lambda m, i, y, name=name: found.update({name: y}))
    with torch.no_grad():
        network(torch.from_numpy(x))
    return {name: y.numpy() for name, y in found.items()}


def test_inner_tensors_are_those_of_pytorch(float_files):
    x = np.random.default_rng(1).standard_normal((1, 1, *SIZE)).astype(np.float32)
    truth = module_outputs(Float().eval(), x)
    for path, kind in zip(float_files, ("onnx", "tflite", "native"), strict=True):
        found = inner_tensors(path, kind, x)
        # The engine's convolutions hold their activation, so that values before it are not there.
        names = ["stem", "group", "up"] + (["depth"] if kind != "native" else [])
        for name in names:
            np.testing.assert_allclose(found[name], truth[name], atol=2e-5, err_msg=f"{kind} {name}")


def test_a_compressed_network_is_the_same_in_every_file(tmp_path):
    files = write_files(load_network("biisnet").network, tmp_path)
    for other in files[:2]:
        found = compare_files((other, files[2]), size=SIZE)
        assert len(found.tensors) >= 23 and found.only == (0, 0)
        inner = [t for t in found.tensors if t.name not in ("head", "probability")]
        assert all(t.max_abs == 0 and t.cosine > 1 - 1e-9 for t in inner)
        assert found.output.max_abs < 1e-6 and found.output.flipped_pixels == 0


def test_a_changed_weight_shows_from_its_layer_on(float_files, tmp_path):
    model = onnx.load(float_files[0])
    weight = next(t for t in model.graph.initializer if list(t.dims) == [8, 4, 3, 3])  # of "group"
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name))
    onnx.save(model, tmp_path / "changed.onnx")
    found = {t.name: t for t in compare_files((float_files[0], tmp_path / "changed.onnx")).tensors}
    assert found["stem"].max_abs == found["depth"].max_abs == 0 and found["stem"].shape == (8, 31, 47)
    assert found["group"].max_abs > 0.01 and found["up"].max_abs > 0


def test_the_command(float_files, tmp_path, capsys):
    from PIL import Image

    pair = [str(float_files[0]), str(float_files[2])]
    assert cli.main(["inspect", "--compare", *pair, "--seed", "4", "--json", str(tmp_path / "c.json")]) == 0
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["output"]["flipped_pixels"] == 0 and found["output"]["max_abs"] < 1e-5
    assert len(found["files"]) == 2 and found["files"][0]["mac_bits"] == found["files"][1]["mac_bits"]
    printed = capsys.readouterr().out
    for text in ("stem", "noise of seed 4, 64x96", "inner tensors that the other has not"):
        assert text in printed
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, SIZE, np.uint8)).save(tmp_path / "a.png")
    assert cli.main(["inspect", "--compare", *pair, "--input", str(tmp_path / "a.png")]) == 0
    assert "a.png by its own mean and deviation, 64x96" in capsys.readouterr().out


@pytest.mark.parametrize("options, code, message", [
    (["--input", "missing.png"], 2, "is no image"),
    (["--input", "a.png", "--input-size", "64"], 2, "--input has its own"),
    (["--input-size", "32"], 3, "32"),
])
def test_inputs_that_do_not_fit(float_files, capsys, options, code, message):
    assert cli.main(["inspect", "--compare", str(float_files[0]), str(float_files[1]), *options]) == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_outputs_of_different_shapes(float_files, tmp_path, capsys):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 2, stride=2)

        def forward(self, x):
            return torch.sigmoid(self.conv(x))

    other = write_files(Half().eval(), tmp_path)[0]
    assert cli.main(["inspect", "--compare", str(float_files[0]), str(other)]) == 3
    assert "different shapes" in capsys.readouterr().err

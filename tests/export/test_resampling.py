"""Up- and down-sampling, adaptive pooling and odd sizes on every target: equal to PyTorch, or refused by name."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from export_truth import run_engine, run_ort, run_tflite
from onnx_ir.passes.common import RemoveUnusedNodesPass
from program_truth import run_program
from torch import nn

from irstd_edge import program
from irstd_edge.bundle import Bundle, Preprocessing
from irstd_edge.checkpoints import LoadedNetwork
from irstd_edge.errors import UnsupportedError
from irstd_edge.export import pipeline
from irstd_edge.export.capture import capture
from irstd_edge.export.passes import compress
from irstd_edge.export.targets.native import to_native
from irstd_edge.export.targets.onnx import to_onnx
from irstd_edge.export.targets.portable import lowered
from irstd_edge.export.targets.tflite import to_tflite
from irstd_edge.runtimes.session import open_session

SIZE, OTHER = (21, 27), (30, 19)
up = F.interpolate
#: Middle of a network -> what TFLite refuses it with ("" where it is equal to PyTorch).
MIDDLES = {
    "corners x2": (lambda x: up(x, scale_factor=2, mode="bilinear", align_corners=True), ""),
    "corners x0.5": (lambda x: up(x, scale_factor=0.5, mode="bilinear", align_corners=True), ""),
    "corners to a skip": (lambda x: x + up(F.max_pool2d(x, 2), x.shape[2:], mode="bilinear", align_corners=True),
                          ""),
    "bilinear to a skip": (lambda x: x + up(F.max_pool2d(x, 2), x.shape[2:], mode="bilinear"), ""),
    "nearest to a skip": (lambda x: x + up(F.max_pool2d(x, 2), x.shape[2:]), ""),
    "bilinear to a size": (lambda x: up(x, (16, 40), mode="bilinear"), ""),
    "bilinear x2": (lambda x: up(x, scale_factor=2, mode="bilinear"), ""),
    "bilinear x(2, 3)": (lambda x: up(x, scale_factor=(2, 3), mode="bilinear"), ""),
    "nearest x3": (lambda x: up(x, scale_factor=3), ""),
    "bilinear x0.5": (lambda x: up(x, scale_factor=0.5, mode="bilinear"), "fraction of a pixel"),
    "bilinear x1.5": (lambda x: up(x, scale_factor=1.5, mode="bilinear"), "fraction of a pixel"),
    "bilinear x1.5, recomputed": (lambda x: up(x, scale_factor=1.5, mode="bilinear", recompute_scale_factor=True),
                                  ""),
    "mean": (lambda x: x * F.adaptive_avg_pool2d(x, 1), ""),
    "maximum": (lambda x: x * F.adaptive_max_pool2d(x, 1), ""),
    "pool with ceil_mode": (lambda x: F.max_pool2d(x, 2, ceil_mode=True), ""),
    "padded pool": (lambda x: F.max_pool2d(x, 3, 2, 1), ""),
    "padded pool with ceil_mode": (lambda x: F.max_pool2d(x, (3, 4), 2, (1, 2), ceil_mode=True), ""),
    "window behind the image with ceil_mode": (lambda x: F.max_pool2d(x, 3, 3, 1, ceil_mode=True), ""),
    "padded average": (lambda x: F.avg_pool2d(x, 3, 2, 1), ""),
    "padded average of the image": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), ""),
    "average with ceil_mode": (lambda x: F.avg_pool2d(x, 4, 3, ceil_mode=True), ""),
    "pool that leaves a row": (lambda x: F.avg_pool2d(x, 2), ""),
    "attention by pixel": (lambda x: x * (x.mean(1, keepdim=True) - x.amax(1, keepdim=True)), ""),
    "one added": (lambda x: x + x.mean(1, keepdim=True) + x.mean((2, 3), keepdim=True), ""),
    "nearest x0.5": (lambda x: up(x, scale_factor=0.5), "fraction of a pixel"),
    "nearest to a size": (lambda x: up(x, (50, 11)), ""),
    "many joined": (lambda x: torch.cat([x * k for k in range(1, 12)], 1)[:, 36:40], ""),
    "stride": (lambda x: F.conv2d(x, torch.ones(4, 4, 3, 3) / 36, stride=2, padding=1), ""),
}


class Middles(nn.Module):
    """All of them behind one convolution; one output each."""

    size_multiple = 1

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x):
        x = self.stem(x)
        return [torch.sigmoid(self.head(make(x))) for make, *_ in MIDDLES.values()]


@pytest.fixture(scope="module")
def captured():
    network = Middles().eval()
    found = capture(network, SIZE, range(len(MIDDLES)))
    assert found.dynamic, found.static_reason
    return network, compress(found.model)


def alone(model, name):
    """The model with one output, and its place among them."""
    model, place = model.clone(), list(MIDDLES).index(name)
    kept = model.graph.outputs[place]
    model.graph.outputs[:] = [kept]
    RemoveUnusedNodesPass()(model)
    return model, place


@pytest.mark.parametrize("size", [SIZE, OTHER])
@pytest.mark.parametrize("name", MIDDLES)
def test_every_target(name, size, captured, tmp_path, native_library):
    network, model = captured
    model, place = alone(model, name)
    _, tflite = MIDDLES[name]
    x = np.random.default_rng(3).standard_normal((1, 1, *size)).astype(np.float32)
    with torch.no_grad():
        want = network(torch.from_numpy(x))[place].numpy()
    ways = {"onnx": (lambda: run_ort(to_onnx(model), x), ""),
            "portable": (lambda: run_ort(to_onnx(lowered(model)), x), ""),
            "tflite": (lambda: run_tflite(to_tflite(model, size).data, x), tflite),
            "program": (lambda: run_program(program.read(to_native(model, size).data), x[0])[0][None], ""),
            "native": (lambda: run_engine(to_native(model, size).data, x, tmp_path), "")}
    for kind, (run, refusal) in ways.items():
        if refusal:
            with pytest.raises(UnsupportedError, match=refusal):
                run()
        else:
            y = run()
            assert y.shape == want.shape, kind
            np.testing.assert_allclose(y, want, atol=2e-6, err_msg=kind)


#: A size that no other tensor of the network has, and that is no fixed ratio of one.
ONE_SIZE = ("bilinear x1.5, recomputed",)


@pytest.mark.parametrize("name", MIDDLES)
def test_native_files_serve_any_size(name, captured, tmp_path, native_library):
    network, model = captured
    model, place = alone(model, name)
    written = to_native(model, SIZE, OTHER)
    if name in ONE_SIZE:
        assert written.static_reason == "another image size needs another program"
        return
    assert written.static_reason == ""
    for size in ((8, 8), (9, 14), (33, 70)):
        x = np.random.default_rng(3).standard_normal((1, 1, *size)).astype(np.float32)
        with torch.no_grad():
            want = network(torch.from_numpy(x))[place].numpy()
        np.testing.assert_allclose(run_engine(written.data, x, tmp_path), want, atol=5e-6, err_msg=str(size))


HALVES = """
<ir_version: 8, opset_import: ["" : 18]> g (float[1, 1, h, w] x) => (float[1, 2, h, w] y)
<int64[2] ones = {1, 1}, float[1, 1, h_down, w_down] low, float[1, 1, h_up, w_up] high,
 float[1, 1, h_down, w_down] a, float[1, 1, h_up, w_up] b, float[1, 1, h, w] first, float[1, 1, h, w] second> {
    low = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
    high = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)
    deep = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (low)
    size_a = Shape <start = 2> (low)
    size_b = Shape <start = 2> (high)
    whole = Shape (x)
    all_a = Concat <axis = 0> (ones, size_a)
    all_b = Concat <axis = 0> (ones, size_b)
    a = Resize <mode = "linear"> (deep, , , all_a)
    b = Resize <mode = "linear"> (deep, , , all_b)
    first = Resize <mode = "linear"> (a, , , whole)
    sum = Add (b, high)
    second = Resize <mode = "linear"> (sum, , , whole)
    y = Concat <axis = 1> (first, second)
}"""


def test_the_sizes_of_two_halves_are_told_apart(tmp_path, native_library):
    """Rounded down and up they agree for even images, and a resize is to follow the one that it was given."""
    model = onnx.parser.parse_model(HALVES)
    written = to_native(ir.from_proto(model), (15, 21), (18, 23))
    assert written.static_reason == ""
    for size in ((16, 20), (15, 21), (9, 34)):
        x = np.random.default_rng(3).standard_normal((1, 1, *size)).astype(np.float32)
        want = run_ort(model.SerializeToString(), x)
        np.testing.assert_allclose(run_engine(written.data, x, tmp_path), want, atol=5e-6, err_msg=str(size))


class Windows(nn.Module):
    """An adaptive pool of several windows, whose sizes PyTorch's exporter makes constants."""

    size_multiple = 1

    def __init__(self, windows):
        super().__init__()
        torch.manual_seed(0)
        self.windows, self.stem, self.head = windows, nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x):
        x = self.stem(x)
        return torch.sigmoid(self.head(up(F.adaptive_avg_pool2d(x, self.windows), x.shape[2:])))


def exported(network, kinds, folder, notes):
    source = LoadedNetwork("n", "m:f", network.eval(), Preprocessing(100.0, 30.0, 1), 0.5, None)
    pipeline.export_bundle(source, kinds, folder, SIZE, note=notes.append)
    return Bundle.open(folder)


def test_adaptive_pools_that_do_not_divide_the_image_are_refused():
    """PyTorch's exporter leaves index arithmetic of them."""
    with pytest.raises(UnsupportedError, match=r"Transpose .*adaptive_avg_pool2d.* has no native form"):
        to_native(compress(capture(Windows(4).eval(), SIZE).model), SIZE)


@pytest.mark.parametrize("windows", [3, (7, 9)])
def test_adaptive_pools_of_several_windows_serve_one_size(windows, tmp_path, native_library):
    notes = []
    network = Windows(windows)
    bundle = exported(network, ["onnx", "tflite", "native", "portable"], tmp_path / "b", notes)
    x = torch.randn(1, 1, *SIZE)
    with torch.no_grad():
        want = network(x).numpy()
    for kind in bundle.kinds:
        session = open_session(bundle, kind)
        np.testing.assert_allclose(session.run(x.numpy()), want, atol=2e-6, err_msg=kind)
        with pytest.raises(UnsupportedError, match="written for 21x27 images"):
            session.run(np.zeros((1, 1, *OTHER), np.float32))
    assert any("runs 21x27 images alone" in note for note in notes)

"""The .tflite file: layout, alignment, sharing, our custom operator, and equality with PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from export_truth import Graph, evaluate, operator_names, run_tflite, tflite_model
from torch import nn

pytest.importorskip("ai_edge_litert")
from irstd_edge.export.capture import capture
from irstd_edge.export.passes import compress
from irstd_edge.export.targets.portable import lowered
from irstd_edge.export.targets.tflite import to_tflite
from irstd_edge.opspec import BINARY_CONV2D_ATTRIBUTES, BinaryConv2dSpec


@pytest.fixture(scope="module")
def biisnet_file(biisnet_compressed):
    return to_tflite(biisnet_compressed, (36, 100)).data


def test_biisnet_lowered_equals_pytorch(biisnet, biisnet_compressed):
    data = to_tflite(lowered(biisnet_compressed), (36, 100)).data
    x = torch.randn(1, 1, 36, 100)
    with torch.no_grad():
        np.testing.assert_allclose(run_tflite(data, x.numpy()), biisnet(x).numpy(), atol=1e-6, rtol=0)
    assert "TRANSPOSE" not in operator_names(data)


def test_biisnet_with_our_operators_equals_pytorch(biisnet, biisnet_file, native_library):
    from ai_edge_litert.interpreter import load_delegate

    x = torch.randn(1, 1, 36, 100)
    got = run_tflite(biisnet_file, x.numpy(), [load_delegate(str(native_library[1]))])
    with torch.no_grad():
        np.testing.assert_allclose(got, biisnet(x).numpy(), atol=1e-6, rtol=0)


def test_operators_inputs_and_layout(biisnet_file):
    names = operator_names(biisnet_file)
    assert names.count("irstd.BinaryConv2d") == 16 and "TRANSPOSE" not in names
    graph = tflite_model(biisnet_file).subgraphs[0]
    shapes = [list(graph.tensors[i].shape) for i in (*graph.inputs, *graph.outputs)]
    assert shapes == [[1, 36, 100, 1], [1, 36, 100, 1]]


def test_buffers_are_aligned_and_shared(biisnet_file):
    from ai_edge_litert.schema_py_generated import Model

    model = Model.GetRootAs(biisnet_file, 0)
    start, seen = np.frombuffer(biisnet_file, np.uint8).__array_interface__["data"][0], set()
    for i in range(1, model.BuffersLength()):
        data = model.Buffers(i).DataAsNumpy()
        offset = data.__array_interface__["data"][0] - start
        assert offset % 16 == 0
        assert data.tobytes() not in seen
        seen.add(data.tobytes())


def test_options_are_a_flat_map_of_the_attributes():
    from flatbuffers import flexbuffers

    g = Graph(40)
    model = g.model(g.binary(g.x, 40, 6, pad_value=-1, pads=(0, 1, 2, 1), stride_w=2, activation=2, clamp_max=1.5))
    subgraph = tflite_model(to_tflite(model, g.size).data).subgraphs[0]
    node = subgraph.operators[0]
    options = flexbuffers.Loads(bytes(node.customOptions))
    assert set(options) == {a.name for a in BINARY_CONV2D_ATTRIBUTES}
    assert {a.name: type(options[a.name]) for a in BINARY_CONV2D_ATTRIBUTES} == {
        a.name: a.kind for a in BINARY_CONV2D_ATTRIBUTES}
    spec = BinaryConv2dSpec.from_attributes(options)
    assert (spec.pad_value, spec.pad_bottom, spec.stride_w, spec.clamp_min, spec.clamp_max) == (-1, 2, 2, -np.inf, 1.5)
    assert list(node.inputs[5:]) == [-1, -1]
    weight = subgraph.tensors[node.inputs[1]]
    assert list(weight.shape) == [6, 3, 3, 2] and weight.type == 2  # int32, as packed


@pytest.mark.parametrize("seed", range(6))
def test_custom_operator_computes_the_specification(seed, native_library):
    from ai_edge_litert.interpreter import load_delegate

    g = Graph(33 + seed, 7, 6, seed=seed)
    oc = 8
    residual = g.op("Relu", g.op("Conv", g.x, g.rng.integers(-2, 3, (oc, 33 + seed, 1, 1)).astype(np.float32)))
    y = g.binary(g.x, 33 + seed, oc, pad_value=seed % 3 - 1, residual_input=residual, residual=1, activation=1,
                 parameters=g.rng.normal(size=(3, oc)), activation_first=seed % 2, fraction_bits=[-1, 8][seed // 3])
    model = g.model(y)
    x = np.round(g.input() * 4) / 4
    got = run_tflite(to_tflite(model, g.size).data, x, [load_delegate(str(native_library[1]))])
    np.testing.assert_allclose(got, evaluate(model, x), atol=2e-6 if seed < 3 else 0, rtol=0)


def test_fixed_point_is_built_in_operators_bit_for_bit():
    g = Graph(3, 16, 16)
    model = g.model(g.op("Neg", g.fixed_point(g.op("Add", g.fixed_point(g.x, 8, 16), np.float32(100)), 7, 11)))
    data = to_tflite(model, g.size).data
    assert not {n for n in operator_names(data) if n.startswith("irstd")}
    rng = np.random.default_rng(0)
    halves = ((rng.integers(-60000, 60000, (1, 3, 16, 16)) + 0.5) / 256).astype(np.float32)
    halves[..., 0] = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, -0.0, 0.49999997, -128] * 2, np.float32)
    assert np.array_equal(run_tflite(data, halves), evaluate(model, halves))


class Everything(nn.Module):
    """What IRSTD networks are made of, in PyTorch's own spelling."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8))
        self.deep = nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(8, 16, 3, padding=2, dilation=2),
                                  nn.Hardswish(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16),
                                  nn.LeakyReLU(0.1))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1),
                                  nn.Hardsigmoid())
        self.squeeze = nn.Linear(16, 16)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)
        self.up = nn.ConvTranspose2d(16, 8, 4, 2, 1)
        self.last = nn.ConvTranspose2d(24, 8, 3, 2, 1, output_padding=1)
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        s = self.stem(x)
        d = self.deep(s)
        d = d * self.gate(d)
        d = d * torch.sigmoid(self.squeeze(d.mean((2, 3))))[:, :, None, None]
        both = torch.cat([d.mean(1, keepdim=True), d.amax(1, keepdim=True)], 1)
        d = d * torch.sigmoid(self.spatial(both)) + F.avg_pool2d(F.pad(d, (1, 1, 1, 1)), 3, 1)
        u = self.up(d)
        b = F.interpolate(d[:, ::2], size=u.shape[2:], mode="bilinear", align_corners=True)
        n = F.interpolate(torch.chunk(d, 2, 1)[1], scale_factor=2, mode="nearest")
        y = self.last(torch.cat([u + s, torch.clamp(b, -1, 1), torch.softmax(n, 1)], 1))
        return torch.sigmoid(self.head(torch.maximum(y, torch.tanh(y) - 0.5)))


def test_a_network_of_everything_equals_pytorch_and_stays_dynamic_in_onnx():
    from export_truth import run_ort

    torch.manual_seed(0)
    network = Everything().eval()
    network.size_multiple = 4
    captured = capture(network, (36, 44))
    assert captured.dynamic, captured.static_reason
    model = compress(captured.model)
    for size in ((36, 44), (64, 32)):
        x = torch.randn(1, 1, *size)
        with torch.no_grad():
            want = network(x).numpy()
        np.testing.assert_allclose(run_ort(model, x.numpy()), want, atol=2e-6)
        data = to_tflite(model, size).data
        assert "TRANSPOSE" not in operator_names(data)
        np.testing.assert_allclose(run_tflite(data, x.numpy()), want, atol=1e-5)


def test_missing_packages_are_named_with_the_way_to_get_them(monkeypatch):
    import sys

    from irstd_edge.errors import MissingError

    for name in ("tflite_graph", "tflite_ops"):
        monkeypatch.delitem(sys.modules, f"irstd_edge.export.targets.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    g = Graph(2)
    with pytest.raises(MissingError, match=r"pip install .*irstd-edge\[tflite\]"):
        to_tflite(g.model(g.op("Relu", g.x)), g.size)


def image_sizes(data):
    """Values and number of users of every constant that follows the image size."""
    model = tflite_model(data)
    tensors = model.subgraphs[0].tensors
    uses = [t.buffer for t in tensors]
    return [(np.frombuffer(bytes(model.buffers[t.buffer].data), np.int32).tolist(), uses.count(t.buffer))
            for t in tensors if t.name.endswith(b":image_size")]


def test_sizes_that_follow_the_image_have_a_name_and_a_buffer_of_their_own(biisnet_compressed):
    from irstd_edge.runtimes.tflite import at_size

    first = to_tflite(biisnet_compressed, (32, 64), (44, 72), 4)
    second = to_tflite(biisnet_compressed, (44, 72), (32, 64), 4)
    sizes = image_sizes(first.data)
    assert sizes == [([16, 32], 1), ([32, 64], 1)] and first.static_reason == second.static_reason == ""
    assert image_sizes(at_size(first.data, (32, 64), (44, 72))) == image_sizes(second.data)
    with pytest.raises(ValueError, match="multiples"):
        at_size(at_size(first.data, (32, 64), (44, 72)), (44, 72), (33, 64 + 1))
    assert image_sizes(to_tflite(biisnet_compressed, (32, 64)).data) == []


SCALED = [1.0, 1.0, 2.0, 2.0]
UP = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


@pytest.mark.parametrize("name, make, reason", [
    ("scaled", lambda g: g.op("Resize", g.x, None, np.array(SCALED, np.float32), **UP), ""),
    ("scaled twice", lambda g: g.op("Concat", *[g.op("Resize", v, None, np.array(SCALED, np.float32), **UP)
                                               for v in (g.x, g.op("Relu", g.x))], axis=1), ""),
    ("fixed", lambda g: g.op("Resize", g.x, None, None, np.array([1, 2, 16, 16]), **UP), ""),
    ("channels", lambda g: g.op("Slice", g.x, np.array([0]), np.array([1]), np.array([1])), ""),
    ("cropped", lambda g: g.op("Slice", g.x, np.array([0]), np.array([-1]), np.array([3])), "SLICE"),
    ("step", lambda g: g.op("Slice", g.x, np.array([0]), np.array([99]), np.array([3]), np.array([2])),
     "constant of STRIDED_SLICE"),
    ("transposed", lambda g: g.op("ConvTranspose", g.x, np.ones((2, 1, 4, 4), np.float32), strides=[2, 2],
                                  pads=[1, 1, 1, 1]), ""),
    ("transposed to one more", lambda g: g.op("ConvTranspose", g.x, np.ones((2, 1, 3, 3), np.float32), strides=[2, 2]),
     "a size of TRANSPOSE_CONV"),
    ("parity", lambda g: g.op("Conv", g.x, np.ones((1, 2, 3, 3), np.float32), pads=[1, 1, 1, 1], strides=[8, 8]),
     "map of"),
    ("padded", lambda g: g.op("Conv", g.x, np.ones((1, 2, 3, 3), np.float32), pads=[1, 1, 1, 1], strides=[2, 2]), ""),
    ("correction", lambda g: g.op("AveragePool", g.x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), "constant of MUL"),
])
def test_what_can_follow_another_size(name, make, reason):
    g = Graph(2, 16, 24)
    written = to_tflite(g.model(make(g), dynamic=True), (16, 24), (20, 32), 4)
    assert bool(written.static_reason) == bool(reason) and reason in written.static_reason
    marked = {"scaled": 1, "scaled twice": 2, "channels": 1, "transposed": 1}
    assert len(image_sizes(written.data)) == marked.get(name, 0)
    assert all(users == 1 for _, users in image_sizes(written.data))

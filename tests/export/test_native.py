"""The native target: programs that compute what PyTorch computes, and errors that name the layer."""

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from irstd_edge import program
from irstd_edge.bundle import Bundle, Preprocessing
from irstd_edge.checkpoints import LoadedNetwork
from irstd_edge.errors import UnsupportedError
from irstd_edge.export import pipeline
from irstd_edge.export.capture import capture
from irstd_edge.export.passes import compress
from irstd_edge.export.passes.graph import LAYER
from irstd_edge.export.targets.native import to_native
from irstd_edge.models.biisnet import biisnet_float
from irstd_edge.nn.binary import BinaryConv2d, DotBinaryConv2d
from irstd_edge.nn.blocks import ExactConv2d, FixedPoint
from irstd_edge.nn.inference import freeze
from irstd_edge.runtimes.session import open_session

sys.path.insert(0, str(Path(__file__).parents[1] / "runtimes"))
from program_truth import run_program

SIZE, OTHER = (32, 48), (64, 32)


def exported(network, other=OTHER, dynamic=True):
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    network.eval()
    written = to_native(compress(capture(network, SIZE, dynamic=dynamic).model), SIZE, other)
    return written, program.read(written.data)


def check(network, found, size=SIZE, atol=2e-6):
    x = np.random.default_rng(1).standard_normal((1, *size)).astype(np.float32)
    with torch.inference_mode():
        expected = freeze(network)(torch.from_numpy(x[None]))[0].numpy()
    np.testing.assert_allclose(run_program(found, x)[0], expected, atol=atol)


def operators(found):
    return [node.operator for node in found.nodes]


class Ends(nn.Module):
    """``middle`` on four channels between two convolutions."""

    size_multiple = 8

    def __init__(self, middle, channels=4):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.middle, self.head = nn.Conv2d(1, 4, 3, padding=1), middle, nn.Conv2d(channels, 1, 1)

    def forward(self, x):
        return torch.sigmoid(self.head(self.middle(self.stem(x))))


class Lambda(nn.Module):
    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x):
        return self.function(self, x)


def test_biisnet_is_the_same_to_the_last_bit_before_the_head(biisnet, biisnet_compressed):
    written = to_native(biisnet_compressed, (64, 96), (96, 128))
    found = program.read(written.data)
    assert written.static_reason == ""
    for size in ((64, 96), (32, 40)):
        check(biisnet, found, size)
    # Every map but input and probability is int16; sums and roundings have no nodes of their own.
    assert [t.fraction_bits < 0 for t in found.tensors] == [i in (0, len(found.tensors) - 1)
                                                            for i in range(len(found.tensors))]
    names = operators(found)
    assert names[:2] == ["FixedPoint", "Conv2d"] and names[-1] == "Conv2d" and "Add" not in names
    assert names.count("BinaryConv2d") == 16 and names.count("Resize") == names.count("AveragePool") == 2
    assert all(len(node.inputs) == 2 for node in found.nodes if node.operator == "Resize")
    by_name = {node.name: node for node in found.nodes}
    assert by_name["head"].attributes["activation"] == program.FloatActivation.SIGMOID
    assert {"stem", "encoder1.0", "bottleneck.3", "up2/Resize"} <= by_name.keys()
    assert written.layer_bytes["stem"] == 16 * 9 * 4 + 16 * 4
    assert written.layer_bytes["encoder1.0"] == 16 * 9 * 4 + 3 * 64 + 3 * 64


def test_the_float_twin():
    """The halves of its shortcuts are slices of the channels."""
    network = biisnet_float()
    written, found = exported(network, (64, 96))
    assert written.static_reason == "" and operators(found).count("Slice") == 4
    check(network, found)
    check(network, found, (64, 96))


@pytest.mark.usefixtures("native_library")
def test_the_float_twin_in_the_engine(tmp_path):
    torch.manual_seed(0)
    network = biisnet_float().eval()
    pipeline.export_bundle(loaded(network), ["native"], tmp_path / "b", (32, 48))
    x = np.random.default_rng(0).standard_normal((1, 1, 40, 64)).astype(np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(x))
    np.testing.assert_allclose(open_session(Bundle.open(tmp_path / "b"), "native").run(x), expected, atol=1e-6)


def test_slices_of_channels():
    network = Ends(Lambda(lambda m, x: torch.cat([x[:, 1:], x[:, -3:-1], m.grid(x)[:, :3]], 1), grid=FixedPoint(8)), 8)
    _, found = exported(network)
    slices = [(n.attributes["first"], found.tensors[n.output].channels, found.tensors[n.output].fraction_bits)
              for n in found.nodes if n.operator == "Slice"]
    assert sorted(slices) == [(0, 3, 8), (1, 2, -1), (1, 3, -1)]
    check(network, found)


def test_parts_of_channels():
    def parts(m, x):
        first, _, last = x.split([1, 1, 2], dim=1)
        return torch.cat([last, first, *m.grid(x).chunk(2, dim=1)], 1)

    network = Ends(Lambda(parts, grid=FixedPoint(8)), 7)
    written, found = exported(network)
    assert written.static_reason == ""
    slices = [(n.attributes["first"], found.tensors[n.output].channels, found.tensors[n.output].fraction_bits)
              for n in found.nodes if n.operator == "Slice"]
    assert sorted(slices) == [(0, 1, -1), (0, 2, 8), (2, 2, -1), (2, 2, 8)]  # what nothing reads is not there
    check(network, found)


def test_the_model_is_left_as_it_is(biisnet_compressed):
    before = [node.name for node in biisnet_compressed.graph]
    assert to_native(biisnet_compressed, (64, 96)).data == to_native(biisnet_compressed, (64, 96)).data
    assert [node.name for node in biisnet_compressed.graph] == before


def conv(*arguments, **options):
    return nn.Conv2d(4, 4, *arguments, **options)


class Sums(nn.Module):
    """Sums, products and joins; attention by one value per channel; the size of a skip."""

    def __init__(self):
        super().__init__()
        self.gate, self.join = nn.Conv2d(4, 4, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x):
        x = F.relu(x + torch.tanh(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = torch.sigmoid(F.adaptive_avg_pool2d(x, 1)) * x
        x = x * F.interpolate(F.max_pool2d(x, 2), x.shape[2:], mode="bilinear")
        x = 3 * (1 - x) / 4 + 0.5
        return self.join(torch.cat([x, torch.relu(x), x], 1))


#: Middle -> what it becomes: an activation goes into the convolution before it, a constant per channel is one.
MIDDLES = {
    "activations": (nn.Sequential(
        nn.ReLU(), conv(1), nn.LeakyReLU(0.2), conv(1), nn.PReLU(4, init=0.3), conv(1), nn.ReLU6(), conv(1), nn.Tanh(),
        nn.Tanh(), conv(1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.PReLU(init=0.1)),
        ["Conv2d"] * 6 + ["Activation"] + ["Conv2d"] * 2),
    "windows": (nn.Sequential(
        conv(3, 2, 1, groups=2), nn.Upsample(scale_factor=2), conv((3, 5), padding=(2, 4), dilation=2, bias=False),
        nn.MaxPool2d(2), nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1, groups=2), nn.ReLU(), nn.AvgPool2d(4),
        nn.Upsample(scale_factor=4, mode="bilinear"), nn.AvgPool2d((2, 4)),
        nn.Upsample(scale_factor=(2, 4), mode="bilinear", align_corners=True)),
        ["Conv2d", "Conv2d", "Resize", "Conv2d", "MaxPool", "ConvTranspose2d", "AveragePool", "Resize", "AveragePool",
         "Resize", "Conv2d"]),
    "sums": (Sums(), ["Conv2d", "Activation", "Add", "GlobalAveragePool", "Conv2d", "Multiply", "GlobalAveragePool",
                      "Activation", "Multiply", "MaxPool", "Resize", "Multiply", *["Conv2d"] * 4, "Activation",
                      "Concat", "Conv2d", "Conv2d"]),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_operators(name):
    middle, expected = MIDDLES[name]
    network = Ends(middle)
    written, found = exported(network)
    assert written.static_reason == "" and sorted(operators(found)) == sorted(expected)
    check(network, found)
    check(network, found, OTHER)


def test_grids_go_through_what_keeps_them():
    def forward(m, x):
        x = m.grid(x)
        return m.b(torch.cat([x, F.max_pool2d(F.interpolate(x, scale_factor=2), 2)], 1))

    network = Ends(Lambda(forward, grid=FixedPoint(8), b=DotBinaryConv2d(8, 8, 3, padding=1)), channels=8)
    _, found = exported(network)
    bits = {node.operator: found.tensors[node.output].fraction_bits for node in found.nodes[:-1]}
    assert bits == {"Conv2d": 8, "Resize": 8, "MaxPool": 8, "Concat": 8, "BinaryConv2d": 8}
    check(network, found)


def test_mixed_grids_meet_as_floats():
    network = Ends(Lambda(lambda m, x: torch.cat([m.a(x), m.b(x), x], 1), a=FixedPoint(8), b=FixedPoint(4, 12)),
                   channels=12)
    _, found = exported(network)
    joined = next(node for node in found.nodes if node.operator == "Concat")
    assert all(found.tensors[i].fraction_bits < 0 for i in (*joined.inputs, joined.output))
    check(network, found)


def test_rounding_is_folded_where_it_can_be():
    middles = {
        "plain": FixedPoint(8),  # into the convolution before it
        "narrow": FixedPoint(8, 12),  # fewer bits than the tensor has
        "twice": nn.Sequential(FixedPoint(8), FixedPoint(8)),
        "between": nn.Sequential(FixedPoint(8), FixedPoint(6)),  # grids, by way of float32
        "after": nn.Sequential(nn.ReLU(), FixedPoint(8)),
        "before": nn.Sequential(FixedPoint(8), nn.ReLU()),
        "exact": ExactConv2d(4, 4, 1),
    }
    network = Ends(nn.Sequential(OrderedDict(
        (f"{part}_{name}", module) for name, middle in middles.items()
        for part, module in (("conv", conv(1)), ("middle", middle), ("unit", DotBinaryConv2d(4, 4, 3, padding=1))))))
    _, found = exported(network)
    rounded = [node.name for node in found.nodes if node.operator == "FixedPoint"]
    assert rounded == [f"middle.middle_{name}/FixedPoint" for name in ("narrow", "between.1", "exact")]
    check(network, found)


def test_a_value_that_is_used_unrounded_too():
    network = Ends(Lambda(lambda m, x: m.b(m.grid(x)) + x, grid=FixedPoint(8), b=DotBinaryConv2d(4, 4, 3, padding=1)))
    _, found = exported(network)
    assert operators(found).count("FixedPoint") == 1 and found.tensors[1].fraction_bits == -1
    check(network, found)


@pytest.mark.parametrize("turned", [False, True])
def test_a_resize_and_the_rounded_sum_after_it_are_one_node(turned):
    """Also where the other summand comes later in the graph."""
    def forward(m, x):
        up = m.grid(F.interpolate(m.b(m.grid(F.avg_pool2d(x, 2))), scale_factor=2, mode="bilinear"))
        other = m.c(x)
        return m.d(m.grid(other + up if turned else up + other))

    units = {k: DotBinaryConv2d(4, 4, 3, padding=1) for k in "bcd"}
    network = Ends(Lambda(forward, grid=FixedPoint(8), **units))
    _, found = exported(network)
    assert [len(n.inputs) for n in found.nodes if n.operator == "Resize"] == [2] and "Add" not in operators(found)
    check(network, found)


def test_a_resize_whose_sum_is_on_another_grid_stays_apart():
    def forward(m, x):
        up = m.grid(F.interpolate(m.b(m.grid(F.avg_pool2d(x, 2))), scale_factor=2, mode="bilinear"))
        return m.c(m.other(up + m.other(x)))

    units = {k: DotBinaryConv2d(4, 4, 3, padding=1) for k in "bc"}
    network = Ends(Lambda(forward, grid=FixedPoint(8), other=FixedPoint(6), **units))
    _, found = exported(network)
    assert "Add" in operators(found)
    check(network, found)


def test_outputs_are_float():
    class Net(nn.Module):
        size_multiple = 8

        def __init__(self):
            super().__init__()
            self.conv, self.grid = nn.Conv2d(1, 1, 1), FixedPoint(8)

        def forward(self, x):
            return self.grid(self.conv(x))

    network = Net()
    _, found = exported(network)
    assert operators(found) == ["Conv2d", "Activation"] and found.tensors[found.outputs[0]].fraction_bits == -1
    check(network, found)


def test_a_float_binary_layer():
    network = Ends(BinaryConv2d(4, 4, 3, padding=1, pad_value=1))
    _, found = exported(network)
    assert operators(found) == ["Conv2d", "BinaryConv2d", "Conv2d"] and found.tensors[2].fraction_bits == -1
    check(network, found)


UNSUPPORTED = {
    "softmax": ("y = Softmax <axis = 1> (x)", "Softmax .n. has no native form"),
    "padding of a window": ("y = MaxPool <kernel_shape = [3, 3], pads = [3, 1, 1, 1]> (x)",
                            "the network has no native form: node 0 'n/MaxPool': pad_top is 3, not below kernel_h, 3"),
    "dilated pool": ("y = MaxPool <kernel_shape = [3, 3], dilations = [2, 2]> (x)", "MaxPool .n. is dilated"),
    "mean over rows": ("y = ReduceMean <keepdims = 1> (x, two)", "ReduceMean .n. reduces neither height and width nor"),
    "flat maximum": ("y = ReduceMax <keepdims = 0> (x, axes)", "ReduceMax .n. reduces neither .* with keepdim=True"),
    "odd scale": ('y = Resize <mode = "linear"> (x, , odd)', "Resize .n. scales by .* no fractions of numbers up to"),
    "two factors": ("z = GlobalMaxPool (x) w = ReduceMax <keepdims = 1> (x, one) y = Mul (z, w)",
                    "Mul .* joins images of which none has the shape"),
    "bicubic": ('y = Resize <mode = "cubic"> (x, , twice)', "Resize .n. interpolates 'cubic'"),
    "other nearest": ('y = Resize <coordinate_transformation_mode = "asymmetric", nearest_mode = "ceil"> (x, , twice)',
                      "Resize .n. rounds places"),
    "other axis": ("y = Concat <axis = 2> (x, x)", "Concat .n. joins another axis"),
    "slice of rows": ("y = Slice (x, one, two, two)", "Slice .n. takes no range of channels"),
    "every other channel": ("y = Slice (x, one, two, one, two)", "Slice .n. takes no range of channels"),
    "slice of two axes": ("y = Slice (x, both, both, both)", "Slice .n. takes computed places, or several axes"),
    "rows divided": ("y, z = Split <axis = 2, num_outputs = 2> (x)", "Split .n. divides another axis"),
    "empty slice": ("y = Slice (x, two, one, one)", "Slice .n. takes nothing"),
    "constant summand": ("y = Concat <axis = 1> (x, plane)", "Concat .n. reads 'plane', which is no image"),
    "plane": ("y = Add (x, plane)", "Add .n. reads 'plane'"),
    "one divided": ("y = Div (gain, x)", "Div .n. has no native form but with one constant per channel"),
    "slope per pixel": ("y = PRelu (x, plane)", "PRelu .n. has computed or per-pixel parameters"),
    "computed weights": ("y = Conv (x, x)", "Conv .n. has computed weights"),
    "five axes": ("y = Unsqueeze (x, axes)", "Unsqueeze .n. has no native form"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_unsupported_names_the_node_and_the_way_out(name):
    body, message = UNSUPPORTED[name]
    model = ir.from_proto(onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]> g (float[1, 4, 8, 8] x) => (float[a, b, c, d] y)
        <int64[1] axes = {{1}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[2] both = {{1, 2}},
         float[4] odd = {{1, 1, 1.4142135, 1.4142135}}, float[4] twice = {{1, 1, 2, 2}},
         float[1, 4, 8, 8] plane = {{{', '.join(['2'] * 256)}}}, float gain = {{3}}> {{ {body} }}"""))
    model.graph.node(0).metadata_props[LAYER] = "n"
    expected = message.replace(" .n. ", " of layer n ")
    with pytest.raises(UnsupportedError, match=rf"{expected}.*leave native out of --to"):
        to_native(model, (8, 8))


def test_a_program_for_one_size():
    network = Ends(Lambda(lambda m, x: F.interpolate(F.avg_pool2d(x, (x.shape[2] // 4, x.shape[3] // 4)), x.shape[2:])))
    written, found = exported(network, dynamic=False, other=None)
    assert written.static_reason == "written for one size"
    check(network, found)


# In a bundle ---------------------------------------------------------------------------------------------------------


def loaded(network):
    return LoadedNetwork("net", "mynet:Net", network.eval(), Preprocessing(100.0, 30.0), 0.5, None)


@pytest.mark.usefixtures("native_library")
def test_a_bundle_with_a_native_file(biisnet, biisnet_capture, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "capture", lambda *_: pipeline.Capture(biisnet_capture.model.clone(), ""))
    manifest = pipeline.export_bundle(loaded(biisnet), ["native"], tmp_path / "b", (64, 96), strict=True)
    (entry,) = manifest.artefacts
    assert (entry.kind, entry.file, entry.layout, entry.input) == ("native", "model.irstd", "NCHW", None)
    assert entry.resizable and len(entry.layers) == 18 and not any(layer.downgraded for layer in entry.layers)
    layers = {layer.name: layer for layer in entry.layers}
    assert (layers["encoder1.0"].realised, layers["encoder1.0"].operator) == ("W1A1", "irstd.BinaryConv2d")
    assert layers["encoder1.0"].macs == 16 * 16 * 9 * 64 * 96 and layers["stem"].bytes == 16 * 9 * 4 + 16 * 4
    assert sum(layer.bytes for layer in entry.layers) <= entry.bytes < 80_000
    session = open_session(Bundle.open(tmp_path / "b"), "native")
    x = np.random.default_rng(0).standard_normal((1, 1, 96, 64)).astype(np.float32)
    with torch.inference_mode():
        np.testing.assert_allclose(session.run(x), freeze(biisnet)(torch.from_numpy(x)), atol=1e-6)


@pytest.mark.usefixtures("native_library")
def test_a_native_file_for_one_size(tmp_path):
    """The window of an adaptive pool is a constant of the exported graph."""
    network = Ends(Lambda(lambda m, x: F.interpolate(F.adaptive_avg_pool2d(x, 4), x.shape[2:], mode="bilinear")))
    notes = []
    manifest = pipeline.export_bundle(loaded(network), ["native"], tmp_path / "b", (32, 32), note=notes.append)
    assert (manifest.artefacts[0].input, manifest.artefacts[0].resizable) == ((32, 32), False)
    assert any(note.startswith("native: runs 32x32 images alone: ") for note in notes)
    with pytest.raises(UnsupportedError, match=r"written for 32x32 images.*--input-size 64x40"):
        open_session(Bundle.open(tmp_path / "b"), "native").run(np.zeros((1, 1, 64, 40), np.float32))


def test_what_is_unsupported_leaves_nothing(tmp_path):
    with pytest.raises(UnsupportedError, match=r"Softmax of layer middle .*leave native out of --to"):
        pipeline.export_bundle(loaded(Ends(nn.Softmax2d())), ["native"], tmp_path / "b", (32, 32))
    assert not list(tmp_path.iterdir())

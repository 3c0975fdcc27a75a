"""Capture: every compressed layer is one node under its PyTorch name, sizes stay dynamic, nothing is lost."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from export_truth import Graph, evaluate, kinds, run_ort
from torch import nn

from irstd_edge.errors import UnsupportedError
from irstd_edge.export.capture import capture
from irstd_edge.export.passes import compress, lower
from irstd_edge.export.passes.graph import LAYER, binary_nodes, spec_of
from irstd_edge.export.schema import register_schemas
from irstd_edge.nn.binary import BinaryConv2d, DotBinaryConv2d, DynamicSoftsign, RPReLU


def randomised(network, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.3, 2)
                module.weight.normal_(1, 0.3)
                module.bias.normal_(0, 0.3)
            if isinstance(module, RPReLU):
                for p in module.parameters():
                    p.normal_(0, 0.4)
    return network.eval()


def test_biisnet_has_one_named_node_a_layer(biisnet, biisnet_capture):
    layers = [name for name, m in biisnet.named_modules() if isinstance(m, DotBinaryConv2d)]
    assert biisnet_capture.dynamic and biisnet_capture.unused == ()
    assert sorted(n.metadata_props[LAYER] for n in binary_nodes(biisnet_capture.model)) == sorted(layers)
    assert len(layers) == 16
    grids = [n.metadata_props[LAYER] for n in biisnet_capture.model.graph if n.op_type == "FixedPoint"]
    assert grids == ["stem", "stem", "down1.grid", "down2.grid", "up2.grid", "grid", "up1.grid", "grid"]


@pytest.mark.parametrize("size", [(8, 8), (64, 96), (36, 100)])
def test_biisnet_is_dynamic_and_equal(biisnet, biisnet_compressed, size):
    model = biisnet_compressed
    assert [str(d) for d in model.graph.inputs[0].shape] == ["1", "1", "4*h", "4*w"]
    x = np.random.default_rng(0).standard_normal((1, 1, *size)).astype(np.float32)
    with torch.no_grad():
        want = biisnet(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run_ort(lower(model.clone()), x), want, atol=1e-6, rtol=0)
    if size == (36, 100):
        np.testing.assert_allclose(evaluate(model, x), want, atol=1e-6, rtol=0)


def test_files_hold_no_paths_and_pass_the_checker(biisnet_compressed):
    from irstd_edge.export.targets.onnx import to_onnx

    data = to_onnx(biisnet_compressed)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    assert b"/irstd_edge/" not in data and b"site-packages" not in data and b".py" not in data
    names = [n.name for n in biisnet_compressed.graph]
    assert len(set(names)) == len(names) and {"stem", "encoder1.0", "bottleneck.3", "head"} <= set(names)


class Plain(nn.Module):
    """A Bi-Real-like network of plain layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.norm0, self.act0 = nn.BatchNorm2d(12), nn.PReLU(12)
        self.conv1, self.norm1 = BinaryConv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.affine = nn.BatchNorm2d(12)
        self.conv2, self.norm2, self.act2 = BinaryConv2d(12, 24, 3, 2, 1), nn.BatchNorm2d(24), RPReLU(24)
        self.sign, self.conv3 = DynamicSoftsign(24), BinaryConv2d(24, 24, 3, padding=2, dilation=2,
                                                                  binarize_input=False)
        self.conv4 = BinaryConv2d(24, 8, 1, pad_value=1)
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        x = self.act0(self.norm0(self.stem(x)))
        x = F.hardtanh(self.norm1(self.conv1(x)) + x)
        x = self.act2(self.norm2(self.conv2(self.affine(x))))
        x = torch.relu(self.conv3(self.sign(x)) + x)
        x = F.leaky_relu(self.conv4(x - 0.5), 0.1)
        return torch.sigmoid(F.interpolate(self.head(x), scale_factor=2, mode="bilinear"))


def test_plain_layers_are_folded_into_their_nodes():
    network = randomised(Plain())
    captured = capture(network, (64, 96))
    assert captured.dynamic
    model = compress(captured.model)
    assert kinds(model) == ["Conv", "PRelu", *["BinaryConv2d"] * 4, "Conv", "Resize", "Sigmoid"]
    specs = {n.name: spec_of(n) for n in binary_nodes(model)}
    assert list(specs) == ["conv1", "conv2", "conv3", "conv4"]
    assert [(s.residual, s.activation, s.activation_first) for s in specs.values()] == [
        (1, 2, 0), (0, 1, 1), (1, 2, 0), (0, 1, 1)]
    x = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        want = network(x).numpy()
    # Scales here are no fixed-point numbers, so a sign at the very threshold may flip with the rounding.
    got = run_ort(lower(model), x.numpy())
    assert np.mean(np.abs(got - want) > 1e-5) < 1e-3


def test_a_layer_used_twice_is_two_nodes():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = BinaryConv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return torch.sigmoid(self.conv(self.conv(x) - 1))

    model = compress(capture(Twice(), (8, 8)).model)
    assert [n.name for n in binary_nodes(model)] == ["conv", "conv_2"]


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = BinaryConv2d(1, 1, 1), BinaryConv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return {"a": torch.sigmoid(self.a(x)), "rest": [torch.sigmoid(self.b(x))]}


def test_of_several_outputs_the_chosen_one_is_kept():
    first = capture(Heads(), (8, 8))
    assert first.unused == ("b",) and [n.metadata_props[LAYER] for n in binary_nodes(first.model)] == ["a"]
    last = capture(Heads(), (8, 8), [-1])
    assert last.unused == ("a",) and len(last.model.graph.outputs) == 1
    both = capture(Heads(), (8, 8), [1, 0])
    assert both.unused == () and [v.name for v in both.model.graph.outputs] == ["probability", "output_0"]
    with pytest.raises(ValueError, match="returns 2 tensors, none at place 2; choose from 0 to 1, or -1"):
        capture(Heads(), (8, 8), [2])


def test_a_tensor_that_is_returned_twice_is_kept_once():
    class Echo(nn.Conv2d):
        def forward(self, x):
            y = torch.sigmoid(super().forward(x))
            return y, y

    assert len(capture(Echo(1, 1, 1), (8, 8)).model.graph.outputs) == 1
    with pytest.raises(UnsupportedError, match="returns one tensor twice"):
        capture(Echo(1, 1, 1), (8, 8), [0, 1])


def test_fixed_size_networks_are_exported_static_with_the_reason():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("window", torch.rand(1, 1, 32, 32))

        def forward(self, x):
            return torch.sigmoid(x * self.window)

    captured = capture(Fixed(), (32, 32))
    assert not captured.dynamic and "dynamic size" in captured.static_reason and "\n" not in captured.static_reason
    assert captured.model.graph.inputs[0].shape.is_static()
    assert capture(Fixed(), (32, 32), dynamic=False).static_reason == "a fixed size was asked for"


def test_a_network_that_does_not_run_is_refused_in_one_line():
    with pytest.raises(UnsupportedError, match="does not run on an input") as e:
        capture(nn.Conv2d(3, 1, 1), (8, 8))
    assert "\n" not in str(e.value)


def test_a_network_that_cannot_be_exported_is_refused_in_one_line():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedError, match="PyTorch cannot export the network") as e:
        capture(Branch(), (8, 8))
    assert "\n" not in str(e.value)


def test_an_interrupt_that_the_exporter_wraps_stays_an_interrupt(monkeypatch):
    def interrupted(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as e:
            raise RuntimeError("export failed") from e

    monkeypatch.setattr(torch.onnx, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        capture(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sigmoid()), (32, 32))


def test_what_pytorch_prints_while_it_exports_is_kept_back(capfd):
    class Branching(nn.Module):
        def forward(self, x):
            return torch.sigmoid(x) if x.mean() > 0 else x

    with pytest.raises(UnsupportedError, match="data-dependent"):
        capture(Branching(), (32, 32))
    assert capfd.readouterr() == ("", "")


def test_a_lost_binary_layer_is_an_error(monkeypatch):
    from irstd_edge.export import capture as module

    real = module.onnx_export

    def lossy(*arguments):
        model = real(*arguments)
        node = binary_nodes(model)[0]
        node.outputs[0].replace_all_uses_with(node.inputs[0], replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        return model

    monkeypatch.setattr(module, "onnx_export", lossy)
    with pytest.raises(UnsupportedError, match=r"compressed layers changed .*conv"):
        capture(Conv(), (8, 8))


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = BinaryConv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return torch.sigmoid(self.conv(x))


def test_schema_checks_attributes_and_infers_shapes():
    register_schemas()
    register_schemas()
    g = Graph(5)
    same = g.binary(g.x, 5, 6)
    half = g.binary(same, 6, 4, stride_h=2, stride_w=3)
    proto = g.proto(half, dynamic=True)
    found = {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in proto.graph.value_info}
    assert found[same] == [1, 6, "H", "W"]
    shape = [d.dim_value for d in g.proto(half).graph.output[0].type.tensor_type.shape.dim]
    assert shape == [1, 4, 3, 3]
    del proto.graph.node[0].attribute[:]
    with pytest.raises(onnx.checker.ValidationError, match="Required attribute"):
        onnx.checker.check_model(proto)

"""Parts of a network as irstd.Program nodes: which nodes they take, and that nothing else changes."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from export_truth import Graph, evaluate, kinds, operator_names, run_tflite
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from irstd_edge import cli
from irstd_edge.bundle import Bundle, Preprocessing
from irstd_edge.checkpoints import LoadedNetwork
from irstd_edge.export import pipeline
from irstd_edge.export.capture import capture
from irstd_edge.export.passes import compress
from irstd_edge.export.passes.graph import binary_nodes, constant
from irstd_edge.export.targets import fused
from irstd_edge.export.targets.fused import find_parts, fuse
from irstd_edge.export.targets.onnx import to_onnx
from irstd_edge.export.targets.tflite import to_tflite
from irstd_edge.nn.binary import BinaryConv2d
from irstd_edge.nn.inference import freeze
from irstd_edge.program import read
from irstd_edge.runtimes.session import open_session

SIZE, OTHER = (32, 48), (64, 32)


class Net(nn.Module):
    """``middle(self, x)`` on eight channels, between two small convolutions."""

    size_multiple = 8

    def __init__(self, middle):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        self.units = nn.ModuleList(BinaryConv2d(8, 8, 3, padding=1, pad_value=0) for _ in range(3))
        self.middle = middle

    def forward(self, x):
        return torch.sigmoid(self.head(self.middle(self, self.stem(x))))


def compressed(network, dynamic=True):
    return compress(capture(network.eval(), SIZE, dynamic=dynamic).model)


def layers(part):
    return [node.name for node in read(part.data).nodes]


def same(network, model, size=SIZE):
    x = np.random.default_rng(1).standard_normal((1, 1, *size)).astype(np.float32)
    with torch.inference_mode():
        expected = freeze(network)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(evaluate(onnx.load_from_string(to_onnx(model)), x), expected, atol=2e-6)


def around_a_softmax(net, x):
    """The engine has no softmax."""
    return net.units[1](torch.softmax(net.units[0](x), 1))


def skips_around_a_softmax(net, x):
    small = net.units[0](F.avg_pool2d(x, 2))
    return net.units[2](F.interpolate(net.units[1](torch.softmax(small, 1)), scale_factor=2) + x)


# ---- which nodes ----


def test_biisnet_is_one_program(biisnet, biisnet_compressed, native_library):
    from ai_edge_litert.interpreter import load_delegate

    parts = find_parts(biisnet_compressed, (64, 96), (96, 128))
    assert [(p.inputs, p.outputs, p.size) for p in parts] == [(("input",), ("probability",), (64, 96))]
    model = fuse(biisnet_compressed, parts)
    assert kinds(model) == ["Program"] and len(biisnet_compressed.graph) > 30
    same(biisnet, model, (32, 40))
    proto = onnx.load_from_string(to_onnx(model))
    dims = proto.graph.output[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == [1, 1, "4*h", "4*w"]
    written = to_tflite(biisnet_compressed, (64, 96), (96, 128), 4, parts)
    assert operator_names(written.data) == ["irstd.Program"] and written.static_reason == ""
    x = np.random.default_rng(2).standard_normal((1, 1, 64, 96)).astype(np.float32)
    with torch.inference_mode():
        expected = freeze(biisnet)(torch.from_numpy(x)).numpy()
    y = run_tflite(written.data, x, [load_delegate(str(native_library[1]))])
    np.testing.assert_allclose(y, expected, atol=2e-6)


def test_a_network_without_compressed_layers_has_none(biisnet_compressed):
    network = Net(lambda net, x: torch.relu(x))
    assert find_parts(compressed(network), SIZE, OTHER) == ()


def test_a_map_of_the_size_of_a_skip_is_inside():
    """For every size of the image, where it is no whole multiple too."""
    def middle(net, x):
        deep = net.units[0](F.max_pool2d(x, 3, 2, 1))
        return net.units[1](x + F.interpolate(deep, x.shape[2:], mode="bilinear"))

    network = Net(middle)
    network.size_multiple = 1
    model = compressed(network)
    parts = find_parts(model, SIZE, (65, 66))
    assert [p.inputs for p in parts] == [("input",)]
    result = fuse(model, parts)
    assert kinds(result) == ["Program"]
    for size in (SIZE, (33, 50), (21, 27)):
        same(network, result, size)


def test_parts_of_channels_are_inside():
    """A network of two branches; also where one half leaves the program, through what the engine does not have."""
    def middle(net, x):
        a, b = net.units[0](x).chunk(2, 1)
        return net.units[1](torch.cat([b, a], 1))

    def leaving(net, x):
        a, b = net.units[0](x).chunk(2, 1)
        return net.units[1](torch.cat([torch.softmax(b, 1), a], 1))

    for network, expected in ((Net(middle), ["Program"]), (Net(leaving), ["Program", "Softmax", "Program"])):
        model = compressed(network)
        result = fuse(model, find_parts(model, SIZE, OTHER))
        assert kinds(result) == expected
        same(network, result)
        same(network, result, OTHER)


def test_an_operator_between_makes_two():
    network = Net(around_a_softmax)
    model = compressed(network)
    parts = find_parts(model, SIZE, OTHER)
    assert [layers(p)[0] for p in parts] == ["stem", "units.1"]
    result = fuse(model, parts)
    assert kinds(result) == ["Program", "Softmax", "Program"]
    same(network, result)
    same(network, result, OTHER)


def test_images_of_two_sizes_keep_their_nodes():
    network = Net(skips_around_a_softmax)
    model = compressed(network)
    parts = find_parts(model, SIZE, OTHER)
    assert [layers(p)[-1] for p in parts] == ["units.0"] and len(parts[0].outputs) == 2
    result = fuse(model, parts)
    assert kinds(result).count("Program") == 1 and kinds(result).count("BinaryConv2d") == 2
    same(network, result)


def test_branches_with_one_input_are_one():
    network = Net(lambda net, x: net.units[0](x) + net.units[1](x))
    model = compressed(network)
    assert kinds(fuse(model, find_parts(model, SIZE, OTHER))) == ["Program"]


@pytest.mark.parametrize("limit, first, last", [(10**9, "stem", "head"), (80_000, "units.0", "head"),
                                                (0, "units.0", "units.1")])
def test_large_float_layers_at_the_ends_stay_outside(monkeypatch, limit, first, last):
    monkeypatch.setattr(fused, "LARGE_MACS", limit)
    network = Net(lambda net, x: net.units[1](torch.relu(net.units[0](x))))
    model = compressed(network)
    part, = find_parts(model, SIZE, OTHER)
    assert (layers(part)[0], layers(part)[-1].removesuffix("/float")) == (first, last)
    same(network, fuse(model, [part]))


def test_large_float_layers_between_compressed_ones_stay_inside(monkeypatch):
    monkeypatch.setattr(fused, "LARGE_MACS", 0)
    network = Net(lambda net, x: net.units[1](net.middle_conv(net.units[0](x))))
    network.middle_conv = nn.Conv2d(8, 8, 3, padding=1)
    part, = find_parts(compressed(network), SIZE, OTHER)
    assert layers(part)[:3] == ["units.0", "middle_conv", "units.1"]


def test_a_part_for_one_size():
    network = Net(lambda net, x: net.units[0](F.interpolate(F.avg_pool2d(x, 4), size=(32, 48))))
    fixed = compressed(network, dynamic=False)
    assert kinds(fuse(fixed, find_parts(fixed, SIZE))) == ["Program"]


def test_a_part_that_differs_at_another_size_keeps_its_nodes(monkeypatch):
    network = Net(around_a_softmax)
    model = compressed(network)
    real, seen = fused.write_graph, []

    def differs(graph):
        data, sizes = real(graph)
        seen.append(data)
        return data + bytes(len(seen)), sizes

    monkeypatch.setattr(fused, "write_graph", differs)
    monkeypatch.setattr(fused, "_opens", lambda part: True)
    assert find_parts(model, SIZE, OTHER) == ()
    assert len(find_parts(model, SIZE)) == 2


def test_what_the_engine_refuses_keeps_its_nodes(native_library):
    """A map that is binarised in more ways than the engine keeps."""
    def middle(net, x):
        return sum(unit(x + i / 10) for i, unit in enumerate(net.many))

    network = Net(middle)
    network.many = nn.ModuleList(BinaryConv2d(8, 8, 3, padding=1, pad_value=0) for _ in range(6))
    model = compressed(network)
    assert len({constant(node.inputs[2]).tobytes() for node in binary_nodes(model)}) == 6
    assert find_parts(model, SIZE, OTHER) == ()


def test_without_an_engine_nothing_is_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("IRSTD_LIBRARY_DIR", str(tmp_path))
    assert len(find_parts(compressed(Net(around_a_softmax)), SIZE, OTHER)) == 2


def test_a_size_that_is_taken_from_within_keeps_its_nodes():
    """The graph of any size computes the shape of an inner map, which a Program does not give."""
    def middle(net, x):
        inner = net.units[0](F.avg_pool2d(x, 2))
        gate = F.interpolate(torch.softmax(x, 1)[:, :, ::4, ::4], size=inner.shape[2:])
        return F.interpolate(net.units[1](inner), scale_factor=2) + F.interpolate(gate, scale_factor=2)

    network = Net(middle)
    model, fixed = compressed(network), compressed(network, dynamic=False)
    assert "Shape" in kinds(model) and find_parts(model, SIZE, OTHER) == ()
    part, = find_parts(fixed, SIZE)
    assert {"units.0", "units.1"} <= set(layers(part))
    same(network, fuse(fixed, [part]))


def test_the_model_is_left_as_it_is(biisnet_compressed):
    before = to_onnx(biisnet_compressed)
    fuse(biisnet_compressed, find_parts(biisnet_compressed, (64, 96)))
    assert to_onnx(biisnet_compressed) == before


def test_parts_of_another_network(biisnet_compressed):
    with pytest.raises(ValueError, match="has no value"):
        fuse(biisnet_compressed, find_parts(compressed(Net(around_a_softmax)), SIZE))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["binary", "fixed", "Relu", "Add", "Softmax", "Softmax"]),
                          st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=14), st.integers(0, 30))
@example([("binary", 0, 0), ("fixed", 1, 0), ("Softmax", 1, 0)], 0)  # two outputs of the part are one tensor
def test_any_graph_computes_the_same(steps, second):
    g = Graph(8, 8, 8)
    values = [g.x]
    for kind, i, j in steps:
        a, b = values[i % len(values)], values[j % len(values)]
        if kind == "binary":
            values.append(g.binary(a, 8, 8, fraction_bits=8, activation=1, parameters=np.ones((3, 8))))
        elif kind == "fixed":
            values.append(g.fixed_point(a, 8, 16))
        elif kind == "Softmax":
            values.append(g.op("Softmax", a, axis=1))
        else:
            values.append(g.op(kind, *([a, b] if kind == "Add" else [a])))
    outputs = [values[second % len(values)]] if second % len(values) else []
    model = compress(g.model(g.op("Add", values[-1], values[-2]), outputs=outputs))
    parts = find_parts(model, (8, 8))
    result = fuse(model, parts)
    assert kinds(result).count("Program") == len(parts)
    assert bool(parts) == ("BinaryConv2d" in kinds(model)) and "BinaryConv2d" not in kinds(result)
    x = g.input()
    np.testing.assert_allclose(evaluate(result, x), evaluate(model, x), atol=1e-6)


# ---- shape inference ----


def inferred(part, shape, outputs=1):
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node("Program", ["p", "x"], names, domain="irstd", version=1, height=part.size[0],
                            width=part.size[1])
    graph = helper.make_graph([node], "g", [image], [helper.make_empty_tensor_value_info(n) for n in names],
                              [numpy_helper.from_array(np.frombuffer(part.data, np.uint8), "p")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("irstd", 1)])
    found = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.output
    return [[d.dim_value or d.dim_param.split("__")[0] for d in o.type.tensor_type.shape.dim] for o in found]


def test_shapes_are_inferred():
    network = Net(skips_around_a_softmax)
    part, = find_parts(compressed(network), SIZE, OTHER)
    assert inferred(part, ["n", 1, 16, 24], 2) == [["n", 8, 16, 24], ["n", 8, 8, 12]]
    assert inferred(part, [2, 1, "2*h", "w"], 2) == [[2, 8, "2*h", "w"], [2, 8, "unk", "unk"]]
    with pytest.raises(Exception, match="1 images and 1 outputs, its program 1 and 2"):
        inferred(part, [1, 1, 8, 8])


# ---- bundles ----


def loaded(network):
    return LoadedNetwork("net", "mynet:Net", network.eval(), Preprocessing(100.0, 30.0), 0.5, None)


@pytest.mark.parametrize("middle", [around_a_softmax, skips_around_a_softmax])
@pytest.mark.parametrize("per_layer", [False, True])
def test_a_bundle(tmp_path, native_library, middle, per_layer):
    network = Net(middle)
    manifest = pipeline.export_bundle(loaded(network), ["onnx", "tflite", "portable"], tmp_path / "b", SIZE,
                                      per_layer=per_layer)
    assert all(a.resizable for a in manifest.artefacts)
    bundle = Bundle.open(tmp_path / "b")
    names = kinds(ir.load(bundle.artefact("onnx")[1]))
    assert ("Program" in names) != per_layer
    assert ("irstd.Program" in operator_names(bundle.artefact("tflite")[1].read_bytes())) != per_layer
    x = np.random.default_rng(0).standard_normal((1, 1, *OTHER)).astype(np.float32)
    with torch.inference_mode():
        expected = freeze(network)(torch.from_numpy(x)).numpy()
    for kind in ("onnx", "tflite"):
        for threads in (1, 2):
            np.testing.assert_allclose(open_session(bundle, kind, threads).run(x), expected, atol=2e-6)


def test_the_layers_of_a_bundle_are_those_of_pytorch(tmp_path, native_library):
    network = Net(around_a_softmax)
    manifests = [pipeline.export_bundle(loaded(network), ["onnx", "tflite"], tmp_path / str(per_layer), SIZE,
                                        per_layer=per_layer) for per_layer in (False, True)]
    for whole, single in zip(*(m.artefacts for m in manifests), strict=True):
        assert [(x.name, x.operator, x.realised, x.macs) for x in whole.layers] == \
            [(x.name, x.operator, x.realised, x.macs) for x in single.layers]
        assert all(x.bytes > 0 for x in whole.layers)
        assert [x.name for x in whole.layers] == ["stem", "units.0", "units.1", "head"]


def test_the_option(project, native_library, capsys):
    (project / "mynet.py").write_text(
        "from torch import nn\nfrom irstd_edge.nn.binary import BinaryConv2d\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), BinaryConv2d(8, 1, 3, padding=1, pad_value=0),\n"
        "                         nn.Sigmoid())\n")
    arguments = ["export", "--model", "mynet:make", "--mean", "100", "--std", "30", "--to", "onnx,tflite",
                 "--input-size", "32"]
    for options, expected in (([], ["Program"]), (["--per-layer"], ["Conv", "BinaryConv2d", "Sigmoid"])):
        assert cli.main([*arguments, *options, "--out", "out", "--json", "out.json"]) == 0
        assert kinds(ir.load(project / "out" / "model.onnx")) == expected
        manifest = json.loads((project / "out.json").read_text())
        assert [[x["name"] for x in a["layers"]] for a in manifest["artefacts"]] == [["0", "1"]] * 2
        for file in ("model.onnx", "model.tflite"):
            assert cli.main(["inspect", str(project / "out" / file), "--input-size", "32", "--json", "i.json"]) == 0
            inside = [x for x in json.loads((project / "i.json").read_text())["layers"] if "Program" in x["op"]]
            assert [(x["name"], x["op"], x["precision"], x["macs"]) for x in inside if x["bytes"]] == ([
                ("0", "irstd.Program/Conv2d", "float32", 72 * 32 * 32),
                ("1", "irstd.Program/BinaryConv2d", "W1A1", 72 * 32 * 32)] if expected == ["Program"] else [])

"""`irstd-edge inspect`: one network counts alike in every file, and as PyTorch's own calls say."""

import json
from itertools import pairwise
from math import prod

import numpy as np
import onnx
import pytest
import torch
from inspected_files import SIZE, Float, write_files
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from irstd_edge import cli
from irstd_edge.checkpoints import load_network
from irstd_edge.complexity import count_layers, measure_precision
from irstd_edge.export.capture import capture
from irstd_edge.export.inspect import inspect_path
from irstd_edge.export.passes import compress
from irstd_edge.export.targets.onnx import to_onnx

pytestmark = pytest.mark.usefixtures("native_library")
#: Full precision over SPMix-Q in multiply-accumulates times bits, as its paper has it.
PUBLISHED_RATIO = 29


@pytest.mark.parametrize("name", ["biisnet", "resunet-spmix", None])
def test_every_file_counts_what_pytorch_calls(name, tmp_path):
    network = Float().eval() if name is None else load_network(name).network
    truth = measure_precision(count_layers(network, SIZE))
    found = [inspect_path(path, SIZE)[0] for path in write_files(network, tmp_path)]
    for inspection in found:
        assert inspection.precision == truth, inspection.file
        told = inspection.as_dict()
        assert (told["macs"], told["mac_bits"]) == (truth.macs, truth.mac_bits)
        assert sum(x["mac_bits"] for x in told["layers"]) == truth.mac_bits
    if name is None:
        assert truth.mac_bits == 1024 * truth.macs and truth.weight_bits_mean == 32
    else:
        # The Programs inside ONNX and TFLite are those of the engine's own file.
        assert len({x.arena_bytes for x in found}) == 1 and len({tuple(y.kernel for y in x.layers) for x in found}) == 1


def test_searched_bits_save_what_the_paper_says():
    floats, searched = (measure_precision(count_layers(load_network(name).network)) for name in ("resunet",
                                                                                                "resunet-spmix"))
    assert searched.mac_bits * PUBLISHED_RATIO <= floats.mac_bits


def test_files_of_a_float_network_by_hand(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 1), nn.Sigmoid()).eval()
    network.size_multiple = 1
    for path in write_files(network, tmp_path, (8, 10)):
        inspection = inspect_path(path, (8, 10))[0]
        layers = {x.name: x for x in inspection.layers if x.macs}
        assert [x.macs for x in layers.values()] == [8 * 10 * 18, 8 * 10 * 2], path
        assert [(x.weights, x.inputs) for x in layers.values()] == [(18, 80), (2, 160)]
        assert {x.precision for x in layers.values()} == {"float32"}
        assert [x.mac_bits for x in layers.values()] == [1440 * 1024, 160 * 1024]
        assert list(layers) == ["0", "2"]
        shapes = [x.shape for x in layers.values()]
        assert shapes == [(2, 8, 10), (1, 8, 10)]


def test_halves_and_integers_are_counted_as_stored(tmp_path):
    """Weights of 16 bits behind a Cast, and of 8 behind Q/DQ; a product of computed matrices has no weights."""
    half = numpy_helper.from_array(np.ones((2, 1, 3, 3), np.float16), "half")
    whole = numpy_helper.from_array(np.ones((1, 2, 1, 1), np.int8), "whole")
    one, zero = numpy_helper.from_array(np.float32(1), "one"), numpy_helper.from_array(np.int8(0), "zero")
    nodes = [helper.make_node("Cast", ["half"], ["w0"], to=TensorProto.FLOAT),
             helper.make_node("Conv", ["x", "w0"], ["a"], "a", pads=[1] * 4),
             helper.make_node("QuantizeLinear", ["a", "one", "zero"], ["q"], "q"),
             helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"], "d"),
             helper.make_node("DequantizeLinear", ["whole", "one", "zero"], ["w1"], "w1"),
             helper.make_node("Conv", ["d", "w1"], ["c"], "c"),
             helper.make_node("MatMul", ["c", "c"], ["y"], "y")]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 8, 8]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [half, whole, one, zero])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx")
    layers = [x for x in inspect_path(tmp_path / "m.onnx", (8, 8))[0].layers if x.precision]
    assert [x.precision for x in layers] == ["float16", "W8A8", "float32"]
    assert [x.macs for x in layers] == [18 * 64, 2 * 64, 8 * 64]
    assert [x.mac_bits for x in layers] == [18 * 64 * 16 * 32, 2 * 64 * 64, 8 * 64 * 1024]
    assert [(x.weights, x.inputs) for x in layers] == [(18, 64), (2, 128), (0, 128)]
    assert layers[0].bytes == 36


def test_the_plan_of_a_file(tmp_path):
    """No two buffers share memory at one time, nothing lies outside the arena, every row is computed once."""
    network = load_network("biisnet").network
    path = write_files(network, tmp_path)[2]
    inspection = inspect_path(path, SIZE)[0]
    plan, = inspection.plans
    assert inspection.arena_bytes == plan.arena_bytes >= plan.arena_lower_bound_bytes > 0
    rows = dict.fromkeys(range(len(plan.layers)), 0)
    for node, first, last in plan.steps:
        assert rows[node] == first < last
        rows[node] = last
    assert all(rows[i] == x.shape[1] for i, x in enumerate(inspection.layers))
    for step, (node, _, _) in enumerate(plan.steps):
        live = sorted((b["offset"], b["offset"] + b["bytes"]) for b in plan.buffers
                      if b["first_step"] <= step <= b["last_step"] and b["first_layer"] <= node <= b["last_layer"])
        live.append((plan.scratch_offset, plan.scratch_offset + plan.scratch_bytes))
        assert all(end <= start for (_, end), (start, _) in pairwise(live))
        assert live[-1][1] <= plan.arena_bytes
    # Each layer's memory is that of the buffer of its values.
    values = {b["name"]: b["bytes"] for b in plan.buffers if b["holds"] == "values"}
    assert all(x.output_bytes == values.get(x.writes, 0) for x in inspection.layers)


def test_the_arena_as_a_picture(tmp_path, capsys):
    from PIL import Image

    from irstd_edge.export.arena import in_use

    path = write_files(load_network("biisnet").network, tmp_path)[0]
    png, svg = tmp_path / "map.png", tmp_path / "map.svg"
    for file in (png, svg):
        assert cli.main(["inspect", str(path), "--input-size", "64x96", "--arena-map", str(file)]) == 0
    assert Image.open(png).size == (1800, 600) and len(np.unique(np.asarray(Image.open(png)))) > 50
    assert svg.read_text().count("<path") > 50
    assert "MAC bits" in capsys.readouterr().out
    plan, = inspect_path(path, SIZE)[0].plans
    buffer = next(b for b in plan.buffers if (b["first_layer"], b["last_layer"]) != (0, len(plan.layers) - 1))
    steps = {s for start, count in in_use(plan, buffer, 0, len(plan.steps)) for s in range(start, start + count)}
    assert steps == {s for s, (layer, _, _) in enumerate(plan.steps) if buffer["first_step"] <= s <= buffer["last_step"]
                     and buffer["first_layer"] <= layer <= buffer["last_layer"]}


@pytest.mark.parametrize("options, code, message", [
    (["model.onnx", "--arena-map", "a.png"], 3, "no part of it runs in our engine"),
    (["model.onnx", "--arena-map", "a.jpg"], 2, "use .png or .svg"),
    ([".", "--arena-map", "a.png"], 2, "draws one file"),
    ([], 2, "name a file or bundle"),
    (["model.onnx", "--compare", "model.onnx", "model.onnx"], 2, "name a file or bundle"),
    (["model.onnx", "--input", "x.png"], 2, "goes with --compare"),
])
def test_what_cannot_be_asked(project, capsys, options, code, message):
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sigmoid())
    (project / "model.onnx").write_bytes(to_onnx(compress(capture(network, (8, 8), dynamic=False).model)))
    assert cli.main(["inspect", *options]) == code
    assert message in " ".join(capsys.readouterr().err.split()) and not list(project.glob("a.*"))


def test_json_on_standard_output_is_alone_there(project, capsys):
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sigmoid())
    (project / "model.onnx").write_bytes(to_onnx(compress(capture(network, (8, 8), dynamic=False).model)))
    assert cli.main(["inspect", "model.onnx", "--input-size", "8", "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["macs"] == prod((8, 8)) and "MAC bits" in printed.err

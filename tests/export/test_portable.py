"""The portable and onnx files."""

from functools import partial

import numpy as np
import onnx
import pytest
import torch
from export_truth import run_ort, run_tflite
from torch import nn

from irstd_edge.export.capture import capture
from irstd_edge.export.layers import describe_layers
from irstd_edge.export.passes import compress
from irstd_edge.export.passes.specialize import Specialize
from irstd_edge.export.targets.onnx import to_onnx
from irstd_edge.export.targets.portable import lowered
from irstd_edge.export.targets.tflite import to_tflite
from irstd_edge.nn.binary import DotBinaryConv2d, RPReLU
from irstd_edge.nn.blocks import Down, ExactConv2d, Up, grid_of


@pytest.fixture(scope="module")
def portable(biisnet_compressed):
    return to_onnx(lowered(biisnet_compressed))


def test_default_domain_only_and_old_enough_versions(portable):
    model = onnx.load_from_string(portable)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)] and model.ir_version == 8
    assert {n.domain for n in model.graph.node} == {""} and b"irstd" not in portable.replace(b"irstd-edge", b"")
    weights = [onnx.numpy_helper.to_array(i) for i in model.graph.initializer if i.name.endswith(".weight")]
    signs = [w for w in weights if w.dtype == np.int8]
    assert len(signs) == 16 and all(np.isin(w, (-1, 1)).all() for w in signs)
    # Every convolution of a compressed layer is int8 on both sides, at the scale 1.
    made = {output: n for n in model.graph.node for output in n.output}
    ones = {i.name for i in model.graph.initializer if np.array_equal(onnx.numpy_helper.to_array(i), 1)}
    convs = [n for n in model.graph.node if n.op_type == "Conv" and made.get(n.input[1])]
    assert len(convs) == 16
    for conv in convs:
        inputs = [made[name] for name in conv.input]
        assert [n.op_type for n in inputs] == ["DequantizeLinear"] * 2 and {n.input[1] for n in inputs} <= ones
        assert made[inputs[0].input[0]].op_type == "QuantizeLinear" and made[inputs[0].input[0]].input[1] in ones


def test_near_zero_stress_is_equal_to_pytorch(biisnet, portable):
    rng = np.random.default_rng(0)
    x = (rng.integers(-2, 3, (1, 1, 64, 64)) * rng.choice([2.0**-8, 2.0**-7, 1e-7, 1e-38], (1, 1, 64, 64))).astype("f4")
    with torch.no_grad():
        want = biisnet(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run_ort(portable, x), want, atol=1e-6, rtol=0)


def test_the_compressed_model_is_not_changed_by_lowering(biisnet_compressed):
    before = to_onnx(biisnet_compressed)
    lowered(biisnet_compressed)
    assert to_onnx(biisnet_compressed) == before


def test_onnx_file_with_our_operators(biisnet, biisnet_compressed, native_library):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.register_custom_ops_library(str(native_library[0]))
    session = ort.InferenceSession(to_onnx(biisnet_compressed), options, providers=["CPUExecutionProvider"])
    x = torch.randn(1, 1, 40, 64)
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], biisnet(x).numpy(), atol=1e-6, rtol=0)


def test_layer_table(biisnet, biisnet_compressed):
    from irstd_edge.complexity import measure_complexity

    static = biisnet_compressed.clone()
    Specialize((64, 64))(static)
    rows = {r.name: r for r in describe_layers(biisnet_compressed, static)}
    assert len(rows) == 18 and not any(r.downgraded for r in rows.values())
    unit = rows["encoder1.0"]
    assert (unit.operator, unit.realised) == ("irstd.BinaryConv2d", "W1A1")
    assert unit.bytes == 16 * 9 * 4 + 16 * 4 * 3 + 3 * 16 * 4
    counted = measure_complexity(biisnet, (64, 64))
    assert sum(r.macs for r in rows.values() if r.realised == "W1A1") == counted.bops
    assert sum(r.macs for r in rows.values() if r.realised == "float32") == counted.macs
    plain = {r.name: r for r in describe_layers(lowered(biisnet_compressed), static, "standard operators only")}
    assert plain["encoder1.0"].downgraded and plain["encoder1.0"].reason == "standard operators only"
    assert plain["encoder1.0"].macs == unit.macs and not plain["stem"].downgraded


class Saturating(nn.Module):
    """Every building block on the grid, features that reach the ends of 16 bits, and no head: all of it is exact."""

    size_multiple = 2

    def __init__(self, reading="add"):
        super().__init__()
        unit = partial(DotBinaryConv2d, reading=reading)
        self.stem = ExactConv2d(1, 4, 3, padding=1)
        self.first, self.down, self.up = unit(4, 4), Down(unit, 4), Up(unit, 8)
        self.grid = grid_of(self.first)
        with torch.no_grad():
            for norm in (m for m in self.modules() if isinstance(m, nn.BatchNorm2d)):
                norm.weight.normal_(0, 60)
                norm.bias.normal_(0, 10)
            for p in (p for m in self.modules() if isinstance(m, RPReLU) for p in m.parameters()):
                p.uniform_(0.5, 2)

    def forward(self, x):
        x = self.first(self.stem(x))
        return self.grid(self.up(self.down(x)) + x)


@pytest.mark.parametrize("reading", ["add", "pointwise"])
def test_every_target_gives_the_same_bits_also_where_values_saturate(reading, native_library):
    import onnxruntime as ort
    from ai_edge_litert.interpreter import load_delegate

    torch.manual_seed(5)
    network = Saturating(reading).eval()
    model = compress(capture(network, (24, 32)).model)
    x = (4 * torch.randn(1, 1, 24, 32)).round(decimals=1)
    x[0, 0, 0, :5] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -0.0])
    with torch.no_grad():
        want = network(x).numpy()
    assert (want == 32767 / 256).any() and (want == -128).any()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(str(native_library[0]))
    session = ort.InferenceSession(to_onnx(model), options, providers=["CPUExecutionProvider"])
    delegates = [load_delegate(str(native_library[1]))]
    for name, y in {
        "onnx": session.run(None, {"input": x.numpy()})[0],
        "portable": run_ort(lowered(model), x.numpy()),
        "tflite": run_tflite(to_tflite(model, (24, 32)).data, x.numpy(), delegates),
        "tflite, lowered": run_tflite(to_tflite(lowered(model), (24, 32)).data, x.numpy()),
    }.items():
        np.testing.assert_array_equal(y, want, err_msg=name)

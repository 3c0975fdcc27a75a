"""Quantised convolutions from PyTorch to every target, bit for bit."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from export_truth import Graph, evaluate, kinds, operator_names, run_engine, run_ort, run_tflite
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from irstd_edge.export.capture import capture
from irstd_edge.export.layers import describe_layers
from irstd_edge.export.passes import compress, fold
from irstd_edge.export.passes.fold_quant import FoldQuant
from irstd_edge.export.passes.graph import LAYER, is_quant, quant_nodes, quant_spec_of
from irstd_edge.export.passes.lower_quant import LowerQuant
from irstd_edge.export.targets.fused import find_parts, fuse
from irstd_edge.export.targets.native import to_native
from irstd_edge.export.targets.onnx import to_onnx
from irstd_edge.export.targets.portable import lowered
from irstd_edge.export.targets.tflite import to_tflite
from irstd_edge.nn.quant import QuantConv2d
from irstd_edge.program import read

SIZE, OTHER = (24, 32), (40, 16)


class Exact(nn.Module):
    """Quantised layers with what is exact between them, and no head: equal bits are possible, and wanted."""

    size_multiple = 2

    def __init__(self, bits=(4, 4), signed=False):
        super().__init__()
        torch.manual_seed(sum(bits))
        quant = {"weight_bits": bits[0], "activation_bits": bits[1], "activation_signed": signed and bits[1] > 1}
        self.first = QuantConv2d(1, 6, 3, padding=1, **quant)
        self.down = QuantConv2d(6, 10, 3, 2, 1, **quant)
        self.depthwise = QuantConv2d(10, 10, 5, 1, 2, groups=10, **quant)
        self.join = QuantConv2d(16, 8, 3, 1, 2, 2, **quant)
        self.last = QuantConv2d(8, 2, 1, bias=False, **quant)
        for layer in self.children():
            nn.init.normal_(layer.weight, 0, 0.5)
            layer.weight_step.data.uniform_(0.1, 0.4)
            layer.activation_step.data.fill_(4.0 / 2 ** bits[1])

    def forward(self, x):
        skip = torch.relu(self.first(x))
        x = F.relu6(self.depthwise(torch.relu(self.down(F.max_pool2d(skip, 1)))))
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.last(torch.relu(self.join(torch.cat([skip, x], 1))))


def image(seed=0, size=SIZE):
    x = np.random.default_rng(seed).normal(0, 1.5, (1, 1, *size)).astype(np.float32)
    x[0, 0, 0, :4] = [np.nan, np.inf, -np.inf, 1e30]
    return x


def compressed(network):
    return compress(capture(network.eval(), SIZE).model)


@pytest.mark.parametrize(("bits", "signed"), [((1, 1), False), ((2, 3), True), ((4, 4), False), ((8, 8), True),
                                              ((8, 8), False), ((3, 7), False)])
def test_every_target_gives_the_same_bits(bits, signed, native_library, tmp_path):
    from ai_edge_litert.interpreter import load_delegate

    network = Exact(bits, signed)
    model, x = compressed(network), image()
    with torch.no_grad():
        want = network(torch.from_numpy(x)).numpy()
    assert np.isfinite(want).all() and len(np.unique(want)) > 8
    parts = find_parts(model, SIZE, OTHER)
    assert kinds(fuse(model, parts)) == ["Program"]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(str(native_library[0]))
    session = ort.InferenceSession(to_onnx(fuse(model, parts)), options, providers=["CPUExecutionProvider"])
    tflite = to_tflite(model, SIZE, OTHER, 2, parts).data
    assert operator_names(tflite) == ["irstd.Program"]
    for name, y in {
        "torch's graph": evaluate(model, x),
        "native": run_engine(to_native(model, SIZE, OTHER).data, x, tmp_path),
        "onnx": session.run(None, {"input": x})[0],
        "tflite": run_tflite(tflite, x, [load_delegate(str(native_library[1]))]),
        "portable": run_ort(lowered(model), x),
        "portable, as it is written": run_ort(lowered(model), x, optimised=False),
    }.items():
        np.testing.assert_array_equal(y, want, err_msg=name)


def test_captured_as_single_nodes_named_by_layer():
    network = Exact()
    model = capture(network.eval(), SIZE).model
    assert [n.metadata_props[LAYER] for n in quant_nodes(model)] == [n for n, _ in network.named_children()]
    assert quant_spec_of(quant_nodes(model)[3]) == network.join.spec


def test_native_file_reads_both_inputs_of_a_concatenation_and_packs_weights():
    network = Exact((3, 4))
    written = to_native(compressed(network), SIZE, OTHER)
    program = read(written.data)
    assert not written.static_reason and "Concat" not in [n.operator for n in program.nodes]
    join = next(n for n in program.nodes if n.name == "join")
    assert len(join.inputs) == 2
    assert join.constants["weight"].nbytes == 8 * 16 * 9 * 3 // 8
    assert written.layer_bytes["join"] == 8 * 16 * 9 * 3 // 8 + 2 * 8 * 4


def test_a_concatenation_that_others_read_stays():
    g = Graph(3)
    joined = g.op("Concat", g.x, g.op("Relu", g.x), axis=1)
    model = g.model(g.op("Add", g.quant(joined, 6, 6), joined))
    program = read(to_native(model, (6, 7)).data)
    assert [n.operator for n in program.nodes] == ["Activation", "Concat", "QuantConv2d", "Add"]


def test_one_program_for_each_layer_on_request():
    network = Exact()
    parts = find_parts(compressed(network), SIZE, OTHER, per_layer=True)
    assert [[n.name for n in read(p.data).nodes if n.operator == "QuantConv2d"] for p in parts] == [
        [name] for name, _ in network.named_children()]


def test_onnx_file_without_programs_holds_standard_operators():
    x = np.nan_to_num(image())
    network = Exact().eval()
    with torch.no_grad():
        want = network(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(run_ort(to_onnx(compressed(network)), x), want)


def test_layer_table():
    model = compressed(Exact((2, 5)))
    static = compress(capture(Exact((2, 5)).eval(), SIZE, dynamic=False).model)
    rows = {r.name: r for r in describe_layers(model, static)}
    join = rows["join"]
    assert (join.operator, join.requested, join.realised) == ("irstd.QuantConv2d", "W2A5", "W2A5")
    assert join.macs == 8 * 16 * 9 * 24 * 32
    plain = {r.name: r for r in describe_layers(lowered(model), static, "standard operators only")}
    assert plain["join"].downgraded and plain["join"].realised == "int8" and plain["join"].macs == join.macs


# Folds ---------------------------------------------------------------------------------------------------------------


def batch_norm(g, y, channels):
    parts = [g.rng.uniform(0.5, 1.5, channels).astype(np.float32) for _ in range(4)]
    return g.op("BatchNormalization", y, *parts, epsilon=1e-5)


def test_batch_norm_and_clamps_fold():
    g = Graph(5)
    y = batch_norm(g, g.quant(g.x, 5, 6), 6)
    y = g.op("Clip", g.op("Relu", y), None, np.array(0.75, np.float32))
    model, x = g.model(y), g.input()
    want = evaluate(model, x)
    fold(model)
    assert kinds(model) == ["QuantConv2d"]
    spec = quant_spec_of(model.graph[0])
    assert (spec.clamp_min, spec.clamp_max) == (0.0, 0.75)
    np.testing.assert_allclose(evaluate(model, x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [
    lambda g, y: batch_norm(g, g.op("Relu", y), 6),  # behind the clamp
    lambda g, y: g.op("Add", g.op("Relu", y), y),  # used twice
    lambda g, y: g.op("Tanh", y),
])
def test_what_is_left(make):
    g = Graph(5)
    y = g.quant(g.x, 5, 6)
    model, x = g.model(make(g, y)), g.input()
    want = evaluate(model, x)
    before = len(kinds(model))
    FoldQuant()(model)
    assert len(kinds(model)) >= before - 1 and sum(map(is_quant, model.graph)) == 1
    np.testing.assert_array_equal(evaluate(model, x), want)


# Portable ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(bits=st.tuples(st.integers(1, 8), st.integers(1, 8)), signed=st.booleans(), groups=st.sampled_from([1, 3]),
       stride=st.integers(1, 2), dilation=st.integers(1, 2), zero=st.floats(0, 1), clamp=st.booleans(),
       seed=st.integers(0, 99))
def test_portable_is_exact(bits, signed, groups, stride, dilation, zero, clamp, seed):
    signed = signed and bits[1] > 1
    low, high = (-(2 ** (bits[1] - 1)), 2 ** (bits[1] - 1) - 1) if signed else (0, 2 ** bits[1] - 1)
    g = Graph(6, 9, 11, seed)
    a = {"clamp_min": -0.25, "clamp_max": 0.5} if clamp else {}
    y = g.quant(g.x, 6, 6, bits=bits, inverse_step=2.0 ** bits[1] / 5, activation_signed=int(signed), groups=groups,
                zero_point=round(low + zero * (high - low)), stride_h=stride, stride_w=stride, dilation_h=dilation,
                dilation_w=dilation, **a)
    y = g.op("MaxPool", y, kernel_shape=[1, 1])
    model, x = g.model(g.quant(y, 6, 4, bits=bits)), g.input(seed)
    want = evaluate(model, x)
    assert LowerQuant()(model).modified and not quant_nodes(model)
    np.testing.assert_array_equal(run_ort(model, x), want)
    np.testing.assert_array_equal(run_ort(model, x, optimised=False), want)


def test_sums_beyond_24_bits_take_an_integer_convolution():
    g = Graph(64)
    model, x = g.model(g.quant(g.x, 64, 3, bits=(8, 8), inverse_step=100.0)), abs(g.input(scale=3))
    assert quant_spec_of(model.graph[0]).largest_sum >= 2**24
    want = evaluate(model, x)
    LowerQuant()(model)
    assert "ConvInteger" in kinds(model)
    np.testing.assert_array_equal(run_ort(model, x), want)

"""libirstd_ort.so in ONNX Runtime: random nodes against two truths, threads, dynamic sizes, and every error."""

from __future__ import annotations

import json
import subprocess
import threading
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper
from runtime_cases import (
    OLD_ONNXRUNTIME,
    at_size,
    feeds,
    load_onnx,
    make_case,
    onnx_model,
    onnx_node,
    single_onnx,
)
from runtime_cases import open_onnx as open_model

from irstd_edge.opspec import BINARY_CONV2D_ATTRIBUTES
from irstd_edge.runtimes import library

pytestmark = pytest.mark.usefixtures("libraries")


MANDATORY = [a.name for a in BINARY_CONV2D_ATTRIBUTES if a.default is None]
PLAIN = {"groups": 1, "in_channels": 8, "out_channels": 8, "kernel_h": 3, "kernel_w": 3, "stride_h": 1, "stride_w": 1,
         "dilation_h": 1, "dilation_w": 1, "pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1,
         "residual": 0, "activation": 0, "fraction_bits": -1, "pad_value": 0}


@pytest.mark.parametrize("seed", range(60))
def test_random_nodes_are_exact(seed):
    case = make_case(seed)
    for threads in (1, 2):
        y = open_model(single_onnx(case), threads, str(threads)).run(None, feeds(case))[0]
        case.check(y, f"{threads} threads, {case.spec}")


@pytest.mark.parametrize("threads, operator_threads", [(1, None), (2, None), (1, "7"), (2, "64")])
def test_thread_counts_need_not_agree(threads, operator_threads):
    case = make_case(3, size=(40, 40))
    case.check(open_model(single_onnx(case), threads, operator_threads).run(None, feeds(case))[0])


def test_one_session_takes_many_sizes():
    case = make_case(11)
    session = open_model(single_onnx(case), 2, "2")
    for height, width in ((9, 9), (64, 33), (9, 10), (17, 128)):
        other = at_size(case, height, width)
        other.check(session.run(None, feeds(other))[0])


def test_a_chain_of_nodes():
    """Two nodes; the second adds the first's input and its result leaves through a standard operator."""
    first = make_case(1, **PLAIN)
    second = make_case(2, **PLAIN | {"residual": 1})
    middle = first.truth()
    second = replace(second, x=middle, residual=first.x)
    a, weights_a = onnx_node(first, "x", "m", None, "first")
    b, weights_b = onnx_node(second, "m", "s", "x", "second")
    shape = ("n", 8, "h", "w")
    relu = helper.make_node("Relu", ["s"], ["y"])
    model = onnx_model([a, b, relu], weights_a + weights_b, {"x": shape}, {"y": shape})
    y = open_model(model).run(None, {"x": first.x})[0]
    np.testing.assert_array_equal(y, np.maximum(second.truth(), 0))


def test_an_absent_optional_input_before_a_present_one():
    case = make_case(5, **PLAIN | {"residual": 1})
    assert case.constants["activation_parameters"] is None
    case.check(open_model(single_onnx(case)).run(None, feeds(case))[0])


def test_concurrent_runs_of_one_session():
    case = make_case(7, size=(33, 47))
    session = open_model(single_onnx(case), 2, "2")
    sizes = [at_size(case, 20 + 5 * i, 31, seed=i) for i in range(8)]
    expected = [c.truth() for c in sizes]
    wrong = []

    def run(index):
        for _ in range(20):
            y = session.run(None, feeds(sizes[index]))[0]
            if not np.allclose(y, expected[index], rtol=2e-6, atol=1e-2):
                wrong.append(index)

    workers = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_sessions_come_and_go():
    case = make_case(0)
    for i in range(30):
        case.check(open_model(single_onnx(case), 1, str(1 + i % 3)).run(None, feeds(case))[0])


# ---- errors: each names the node and what is wrong ----


@pytest.mark.parametrize("attribute, value, message", [
    ("version", 2, "version must be in 1..1, got 2"),
    ("bit_order", 0, "bit_order must be in 1..1, got 0"),
    ("stride_h", 0, "stride_h must be in"),
    ("groups", 3, "groups must divide"),
    ("pad_value", 2, "pad_value must be in -1..1, got 2"),
    ("in_channels", -4, "in_channels must be in"),
    ("out_channels", 2**40, "attribute out_channels is out of range"),
    ("kernel_w", 3.5, "attribute kernel_w must be an INT"),
    ("kernel_w", "3", "attribute kernel_w must be an INT"),
    ("clamp_min", 1, "attribute clamp_min must be a FLOAT"),
    ("stride_w", 1.0, "attribute stride_w must be an INT"),
    ("clamp_max", float("nan"), "clamp_max"),
    ("in_channels", 9, "threshold must have 36 bytes, got 32"),
    ("out_channels", 9, "weight must have 324 bytes, got 288"),
])
def test_a_wrong_attribute(attribute, value, message):
    case = make_case(5, **PLAIN)
    with pytest.raises(Exception, match=message) as e:
        open_model(single_onnx(case, **{attribute: value}))
    assert "irstd.BinaryConv2d node 'conv'" in str(e.value)


@pytest.mark.parametrize("name", MANDATORY)
def test_a_missing_attribute(name):
    with pytest.raises(Exception, match=f"node 'conv': attribute {name} is missing"):
        open_model(single_onnx(make_case(5, **PLAIN), drop=(name,)))


def test_defaults_of_absent_attributes():
    case = make_case(5, **PLAIN | {"pad_top": 0, "pad_left": 0, "pad_bottom": 0, "pad_right": 0})
    optional = set(case.spec.attributes()) - set(MANDATORY)
    case.check(open_model(single_onnx(case, drop=optional)).run(None, feeds(case))[0])


@pytest.mark.parametrize("name, change, message", [
    ("weight", lambda w: w[:, :, :2], "weight must have 288 bytes, got 192"),
    ("weight", lambda w: w | 256, "tail bits"),
    ("threshold", lambda t: t[:3], "threshold must have 32 bytes, got 12"),
    ("bias", lambda b: np.concatenate([b, b]), "bias must have 32 bytes, got 64"),
])
def test_a_wrong_constant(name, change, message):
    case = make_case(5, **PLAIN)
    case.constants[name] = np.ascontiguousarray(change(case.constants[name]))
    with pytest.raises(Exception, match=message):
        open_model(single_onnx(case))


def test_a_node_name_beyond_the_buffer():
    case = make_case(5, **PLAIN)
    node, weights = onnx_node(case, "x", "y", None, "n" * 500, version=3)
    shape = ("n", 8, "h", "w")
    with pytest.raises(Exception, match=r"node 'n{100}\.\.\.': version must be"):
        open_model(onnx_model([node], weights, {"x": shape}, {"y": shape}))


def test_rprelu_without_its_parameters():
    case = make_case(5, **PLAIN)
    with pytest.raises(Exception, match="activation_parameters must be given"):
        open_model(single_onnx(case, activation=1))


def test_a_weight_that_is_no_constant():
    case = make_case(5, **PLAIN)
    model = load_onnx(single_onnx(case))
    kept = [i for i in model.graph.initializer if i.name != "conv.weight"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.input.append(helper.make_tensor_value_info("conv.weight", TensorProto.INT32, case.spec.weight_shape))
    with pytest.raises(Exception, match="input weight must be a constant"):
        open_model(model.SerializeToString())


def test_a_weight_of_another_type():
    case = make_case(5, **PLAIN)
    case.constants["weight"] = case.constants["weight"].astype(np.float32)
    with pytest.raises(Exception, match="weight"):
        open_model(single_onnx(case))


@pytest.mark.parametrize("shape, message", [
    ((1, 7, 9, 9), r"input x must be \[1, 8, 9, 9\], got \[1, 7, 9, 9\]"),
    ((1, 8, 9), "input x must be \\[N, C, H, W\\], got 3 dimensions"),
    ((1, 8, 0, 9), "height and width must be in 1..32768, got 0 and 9"),
])
def test_a_wrong_run_time_input(shape, message):
    case = make_case(5, **PLAIN)
    model = load_onnx(single_onnx(case))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    session = open_model(model.SerializeToString())
    with pytest.raises(Exception, match=message):
        session.run(None, {"x": np.zeros(shape, np.float32)})
    case.check(session.run(None, feeds(case))[0])  # and the session lives on


def test_a_batch_of_none():
    case = make_case(5, **PLAIN)
    y = open_model(single_onnx(case)).run(None, {"x": np.zeros((0, 8, 9, 9), np.float32)})[0]
    assert y.shape == (0, 8, 9, 9)


def test_an_image_smaller_than_the_kernel():
    case = make_case(5, **PLAIN | {"kernel_h": 5, "pad_top": 0, "pad_bottom": 0})
    with pytest.raises(Exception, match="input of 3 x 9 plus padding is smaller than the dilated kernel of 5 x 3"):
        open_model(single_onnx(case)).run(None, {"x": np.zeros((1, 8, 3, 9), np.float32)})


@pytest.mark.parametrize("shape, message", [
    ((1, 8, 9, 10), r"residual_input must be \[1, 8, 9, 9\], got \[1, 8, 9, 10\]"),
    ((2, 8, 9, 9), r"residual_input must be \[1, 8, 9, 9\], got \[2, 8, 9, 9\]"),
    ((1, 3, 9, 9), r"residual channels \(3\)"),
])
def test_a_wrong_residual(shape, message):
    case = make_case(5, size=(9, 9), batch=1, **PLAIN | {"residual": 1})
    model = load_onnx(single_onnx(case))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    with pytest.raises(Exception, match=message):
        open_model(model.SerializeToString()).run(None, {"x": case.x, "r": np.zeros(shape, np.float32)})


def test_a_residual_that_is_missing_or_too_many():
    case = make_case(5, **PLAIN | {"residual": 1})
    shape = ("n", 8, "h", "w")
    node, weights = onnx_node(case, "x", "y", None, "conv")
    with pytest.raises(Exception, match="residual_input must be given where residual is 1"):
        open_model(onnx_model([node], weights, {"x": shape}, {"y": shape})).run(None, {"x": case.x})
    node, weights = onnx_node(case, "x", "y", "x", "conv", residual=0)
    with pytest.raises(Exception, match="residual_input must be absent where residual is 0"):
        open_model(onnx_model([node], weights, {"x": shape}, {"y": shape})).run(None, {"x": case.x})


@pytest.mark.parametrize("value", ["0", "65", "two", "", "1" * 40])
def test_a_wrong_thread_count(value):
    with pytest.raises(Exception, match=r"irstd\.threads must be a number in 1\.\.64"):
        open_model(single_onnx(make_case(0)), 1, value)


def test_an_isa_that_cannot_be_had(monkeypatch):
    monkeypatch.setenv("IRSTD_ISA", "abacus")
    with pytest.raises(Exception, match="IRSTD_ISA=abacus: not in this build"):
        open_model(single_onnx(make_case(0)))


def test_every_isa_is_exact(monkeypatch):
    for isa in library.available_isas():
        monkeypatch.setenv("IRSTD_ISA", isa)
        for seed in range(8):
            case = make_case(seed)
            case.check(open_model(single_onnx(case)).run(None, feeds(case))[0], isa)


# ---- the oldest supported ONNX Runtime ----


@pytest.mark.slow
def test_onnxruntime_118(ort118, tmp_path):
    cases = [make_case(seed) for seed in range(25)]
    for i, case in enumerate(cases):
        np.savez(tmp_path / f"{i}.npz", model=np.frombuffer(single_onnx(case), np.uint8), **feeds(case))
    (tmp_path / "bad.onnx").write_bytes(single_onnx(cases[0], version=2))
    jobs = [(i, threads) for i in range(len(cases)) for threads in (1, 2)]
    (tmp_path / "cases.json").write_text(json.dumps(jobs))
    done = subprocess.run([ort118, "-c", OLD_ONNXRUNTIME, tmp_path, library.find("ort")],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("1.18.1") and "version must be in 1..1, got 2" in done.stdout
    for i, threads in jobs:
        cases[i].check(np.load(tmp_path / f"{i}-{threads}.npy"))

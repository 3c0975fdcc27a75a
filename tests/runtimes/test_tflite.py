"""libirstd_tflite.so in LiteRT: random nodes against two truths, chains, resizing, and every error."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from runtime_cases import (
    OLD_TFLITE,
    TfliteBuilder,
    at_size,
    delegate,
    make_case,
    nchw,
    nhwc,
    nhwc_shape,
    single_tflite,
)
from runtime_cases import open_tflite as open_model
from runtime_cases import run_tflite as run

from irstd_edge.opspec import BINARY_CONV2D_ATTRIBUTES
from irstd_edge.runtimes import library

pytestmark = pytest.mark.usefixtures("libraries")

interpreters = pytest.importorskip("ai_edge_litert.interpreter")

PLAIN = {"groups": 1, "in_channels": 8, "out_channels": 8, "kernel_h": 3, "kernel_w": 3, "stride_h": 1, "stride_w": 1,
         "dilation_h": 1, "dilation_w": 1, "pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1,
         "residual": 0, "activation": 0, "fraction_bits": -1, "pad_value": 0}
ADD, RELU, RESHAPE = 0, 19, 22  # of the schema's BuiltinOperator


def run_case(interpreter, case) -> np.ndarray:
    return run(interpreter, case.x, *([] if case.residual is None else [case.residual]))[0]


@pytest.mark.parametrize("seed", range(60))
def test_random_nodes_are_exact(seed):
    case = make_case(seed)
    for threads in (1, 2):
        case.check(run_case(open_model(single_tflite(case), threads), case), f"{threads} threads, {case.spec}")


@pytest.mark.parametrize("threads, options", [(None, {}), (1, {"num_threads": 2}), (2, {"num_threads": 1}),
                                              (4, {"num_threads": 3}), (1, {"num_threads": 64})])
def test_thread_counts(threads, options):
    case = make_case(3, size=(40, 40))
    interpreter = open_model(single_tflite(case), threads, **options)
    for _ in range(50):
        y = run_case(interpreter, case)
    case.check(y)


def test_threads_after_they_fell_asleep():
    import time

    case = make_case(3, size=(40, 40))
    interpreter = open_model(single_tflite(case), 2)
    for _ in range(10):
        case.check(run_case(interpreter, case))
        time.sleep(0.002)


def test_resizing_prepares_again():
    case = make_case(11)
    interpreter = open_model(single_tflite(case), 2)
    for height, width in ((9, 9), (64, 33), (9, 10), (17, 128), (9, 9)):
        other = at_size(case, height, width)
        other.check(run_case(interpreter, other), f"{height} x {width}")


def chain(length: int, expose: int | None = None, relu_after: int | None = None):
    """``length`` nodes in a row, every third adding the output two nodes back; returns the model and its truth.

    ``expose``: that inner tensor is a graph output too. ``relu_after``: a standard operator splits the chain there.
    """
    b = TfliteBuilder()
    first = make_case(100, size=(12, 10), batch=1, **PLAIN)
    shape = nhwc_shape(first.x.shape)
    tensors, values = [b.tensor("x", shape)], [first.x]
    for i in range(length):
        residual = i >= 2 and i % 3 == 2
        case = make_case(100 + i, size=(12, 10), batch=1, **PLAIN | {"residual": int(residual)})
        case = replace(case, x=values[-1], residual=values[-2] if residual else None)
        tensors.append(b.tensor(f"t{i}", shape))
        b.conv(case, tensors[-2], tensors[-1], tensors[-3] if residual else None, name=f"conv{i}")
        values.append(case.truth())
        if relu_after == i:
            tensors.append(b.tensor("relu", shape))
            b.operator([tensors[-2]], [tensors[-1]], RELU)
            values.append(np.maximum(values[-1], 0))
    outputs = [tensors[-1]] + ([] if expose is None else [tensors[expose + 1]])
    truths = [values[-1]] + ([] if expose is None else [values[expose + 1]])
    return b.finish([tensors[0]], outputs), first.x, truths


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("options", [
    {"length": 2}, {"length": 7}, {"length": 7, "expose": 1}, {"length": 7, "expose": 4},
    {"length": 6, "relu_after": 2}, {"length": 9, "expose": 3, "relu_after": 5},
])
def test_chains(options, threads):
    model, x, truths = chain(**options)
    interpreter = open_model(model, threads)
    for _ in range(3):
        for y, truth in zip(run(interpreter, x), truths, strict=True):
            np.testing.assert_array_equal(y, truth)


def test_every_node_is_claimed():
    """TFLite's own list: the five nodes of the file, and those that replace them."""
    model, _, _ = chain(5)
    interpreter = open_model(model)
    interpreter.allocate_tensors()
    names = [op["op_name"] for op in interpreter._get_ops_details()]
    assert names == ["irstd.BinaryConv2d"] * 5 + ["DELEGATE"] * 5


def test_a_resized_chain():
    model, x, _ = chain(7)
    interpreter = open_model(model, 2)
    large = np.random.default_rng(0).standard_normal((2, 8, 31, 17)).astype(np.float32)
    first = run(interpreter, x)[0]
    grown = run(interpreter, large)[0]
    assert grown.shape == (2, 8, 31, 17)
    np.testing.assert_array_equal(run(interpreter, x)[0], first)
    np.testing.assert_array_equal(run(open_model(model), large)[0], grown)


def test_an_input_whose_size_comes_at_invoke():
    """A RESHAPE by a run-time shape makes its output dynamic, and so ours and what follows."""
    case = make_case(5, size=(12, 10), batch=1, **PLAIN)
    b = TfliteBuilder()
    flat, y = b.tensor("flat", (12 * 10 * 8,)), b.tensor("y", (1, 1, 1, 8))
    shape = b.tensor("shape", (4,))
    b.tensors[shape].type = 2
    x, m, e = b.tensor("x", (1, 1, 1, 8)), b.tensor("m", (1, 1, 1, 8)), b.tensor("e", (1, 1, 1, 8))
    b.operator([flat, shape], [x], RESHAPE, b.schema.ReshapeOptionsT(), b.schema.BuiltinOptions.ReshapeOptions)
    second = replace(make_case(6, size=(12, 10), batch=1, **PLAIN), x=case.truth())
    b.conv(case, x, m, name="a")
    b.conv(second, m, e, name="b")
    b.operator([e], [y], RELU)
    interpreter = open_model(b.finish([flat, shape], [y]), 2)
    interpreter.allocate_tensors()
    details = interpreter.get_input_details()
    for _ in range(2):
        interpreter.set_tensor(details[0]["index"], nhwc(case.x).reshape(-1))
        interpreter.set_tensor(details[1]["index"], np.array([1, 12, 10, 8], np.int32))
        interpreter.invoke()
        found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        np.testing.assert_array_equal(nchw(found), np.maximum(second.truth(), 0))


def test_interpreters_come_and_go():
    model, x, truths = chain(3)
    for i in range(30):
        np.testing.assert_array_equal(run(open_model(model, 1 + i % 3), x)[0], truths[0])


def test_a_model_without_our_operators():
    b = TfliteBuilder()
    x, y = b.tensor("x", (1, 4, 4, 2)), b.tensor("y", (1, 4, 4, 2))
    b.operator([x], [y], RELU)
    data = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(open_model(b.finish([x], [y])), data)[0], np.maximum(data, 0))


# ---- errors: each names the node (by its output) and what is wrong ----


def refuse(model: bytes, message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        open_model(model).allocate_tensors()


@pytest.mark.parametrize("attribute, value, message", [
    ("version", 2, "version must be in 1..1, got 2"),
    ("bit_order", 0, "bit_order must be in 1..1, got 0"),
    ("stride_h", 0, "stride_h must be in"),
    ("groups", 3, "groups must divide"),
    ("pad_value", 2, "pad_value must be in -1..1, got 2"),
    ("in_channels", -4, "in_channels must be in"),
    ("out_channels", 2**40, "option out_channels is out of range"),
    ("kernel_w", 3.5, "option kernel_w must be an integer"),
    ("kernel_w", "3", "malformed options: a value is no scalar"),
    ("colour", 1, "unknown option colour"),
    ("clamp_max", float("nan"), "clamp_max"),
    ("in_channels", 9, "threshold must have 36 bytes, got 32"),
    ("out_channels", 9, "weight must have 324 bytes, got 288"),
    ("activation", 1, "activation_parameters must be given"),
    ("residual", 1, "residual_input must be given where residual is 1"),
])
def test_a_wrong_option(attribute, value, message):
    refuse(single_tflite(make_case(5, **PLAIN), **{attribute: value}), f"irstd.BinaryConv2d node 'y': {message}")


@pytest.mark.parametrize("name", [a.name for a in BINARY_CONV2D_ATTRIBUTES if a.default is None])
def test_a_missing_option(name):
    refuse(single_tflite(make_case(5, **PLAIN), drop=(name,)), f"node 'y': option {name} is missing")


def test_integers_serve_as_floats():
    case = make_case(5, **PLAIN | {"activation": 2, "clamp_min": -2.0, "clamp_max": 3.0})
    case.check(run_case(open_model(single_tflite(case, clamp_min=-2, clamp_max=3)), case))


@pytest.mark.parametrize("options", [b"", b"\0", b"\1\2\3\4\5\6\7"])
def test_malformed_options(options):
    b = TfliteBuilder()
    case = make_case(5, **PLAIN)
    x, y = b.tensor("x", nhwc_shape(case.x.shape)), b.tensor("y", nhwc_shape(case.output_shape))
    b.conv(case, x, y, options=options)
    refuse(b.finish([x], [y]), "node 'y': malformed options")


@pytest.mark.parametrize("name, change, message", [
    ("weight", lambda w: w[:, :, :2], "weight must have 288 bytes, got 192"),
    ("weight", lambda w: w | 256, "tail bits"),
    ("weight", lambda w: w.astype(np.float32), "input weight must be int32"),
    ("threshold", lambda t: t[:3], "threshold must have 32 bytes, got 12"),
    ("bias", lambda b: b.view(np.int32), "input bias must be float32"),
    ("scale", lambda s: None, "scale must have 32 bytes, got 0"),
])
def test_a_wrong_constant(name, change, message):
    case = make_case(5, **PLAIN)
    changed = change(case.constants[name])
    case.constants[name] = None if changed is None else np.ascontiguousarray(changed)
    refuse(single_tflite(case), message)


def test_a_weight_that_is_no_constant():
    b = TfliteBuilder()
    case = make_case(5, **PLAIN)
    x, y = b.tensor("x", nhwc_shape(case.x.shape)), b.tensor("y", nhwc_shape(case.output_shape))
    b.conv(case, x, y)
    weight = b.operators[0].inputs[1]
    b.tensors[weight].buffer = 0
    refuse(b.finish([x, weight], [y]), "input weight must be a constant")


def test_too_many_inputs():
    b = TfliteBuilder()
    case = make_case(5, **PLAIN)
    x, y = b.tensor("x", nhwc_shape(case.x.shape)), b.tensor("y", nhwc_shape(case.output_shape))
    b.conv(case, x, y)
    b.operators[0].inputs.append(x)
    refuse(b.finish([x], [y]), "at most 7 inputs, got 8")


def test_sizes_that_do_not_fit():
    case = make_case(5, size=(9, 9), batch=1, **PLAIN | {"kernel_h": 5, "pad_top": 0, "pad_bottom": 0, "residual": 1})
    model = single_tflite(case)
    for shapes, message in (
        ([(1, 3, 9, 8), (1, 5, 9, 8)], "input of 3 x 9 plus padding is smaller"),
        ([(1, 9, 9, 7), (1, 5, 9, 8)], r"input x must be \[1, 9, 9, 8\], got \[1, 9, 9, 7\]"),
        ([(1, 9, 9, 8), (1, 5, 8, 8)], r"residual_input must be \[1, 5, 9, 8\], got \[1, 5, 8, 8\]"),
        ([(1, 9, 8), (1, 5, 9, 8)], "got 3 dimensions"),
    ):
        interpreter = open_model(model)
        for detail, shape in zip(interpreter.get_input_details(), shapes, strict=True):
            interpreter.resize_tensor_input(detail["index"], shape)
        with pytest.raises(RuntimeError, match=message):
            interpreter.allocate_tensors()


def test_a_residual_of_wrong_channels():
    b = TfliteBuilder()
    case = make_case(5, size=(9, 9), batch=1, **PLAIN | {"residual": 1})
    x, y, r = b.tensor("x", (1, 9, 9, 8)), b.tensor("y", (1, 9, 9, 8)), b.tensor("r", (1, 9, 9, 3))
    b.conv(case, x, y, r)
    refuse(b.finish([x, r], [y]), r"residual channels \(3\)")


@pytest.mark.parametrize("options, message", [
    ({"colour": "red"}, "unknown option colour; it knows num_threads"),
    ({"num_threads": 0}, "num_threads must be in 1..64, got 0"),
    ({"num_threads": "two"}, "num_threads must be in 1..64, got two"),
])
def test_wrong_delegate_options(options, message):
    with pytest.raises(ValueError, match=message):
        delegate(**options)


def test_an_isa_that_cannot_be_had(monkeypatch):
    monkeypatch.setenv("IRSTD_ISA", "abacus")
    refuse(single_tflite(make_case(0)), "IRSTD_ISA=abacus: not in this build")


def test_every_isa_is_exact(monkeypatch):
    for isa in library.available_isas("tflite"):
        monkeypatch.setenv("IRSTD_ISA", isa)
        for seed in range(8):
            case = make_case(seed)
            case.check(run_case(open_model(single_tflite(case)), case), isa)


# ---- the legacy interpreter ----


@pytest.mark.slow
def test_tflite_runtime_214(tflite214, tmp_path):
    models, inputs, checks = [], [], []
    for seed in range(25):
        case = make_case(seed)
        models.append(single_tflite(case))
        inputs.append([case.x] if case.residual is None else [case.x, case.residual])
        checks.append(case.check)
    for options in ({"length": 7}, {"length": 9, "expose": 3, "relu_after": 5}):
        model, x, truths = chain(**options)
        models.append(model)
        inputs.append([x])
        checks.append(lambda y, truth=truths[0]: np.testing.assert_array_equal(y, truth))
    for i, (model, arrays) in enumerate(zip(models, inputs, strict=True)):
        (tmp_path / f"{i}.tflite").write_bytes(model)
        for j, array in enumerate(arrays):
            np.save(tmp_path / f"{i}-{j}.npy", nhwc(array))
    (tmp_path / "bad.tflite").write_bytes(single_tflite(make_case(0), version=2))
    jobs = [(i, threads, len(inputs[i])) for i in range(len(models)) for threads in (1, 2)]
    (tmp_path / "cases.json").write_text(json.dumps(jobs))
    done = subprocess.run([tflite214, "-c", OLD_TFLITE, tmp_path, library.find("tflite")],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "version must be in 1..1, got 2" in done.stdout
    for i, threads, _ in jobs:
        checks[i](nchw(np.load(tmp_path / f"{i}-{threads}-out.npy")))

"""The lowering to standard operators is exact in ONNX Runtime with every optimisation on."""

import numpy as np
import pytest
import torch
from export_truth import Graph, binary_conv2d, evaluate, kinds, run_ort
from hypothesis import given, settings
from hypothesis import strategies as st

from irstd_edge.export.passes import lower, lower_fixed_point
from irstd_edge.export.passes.lower_binary import LowerBinary, exact_in_any_order
from irstd_edge.nn.functional import fixed_point
from irstd_edge.opspec import BinaryConv2dSpec


@st.composite
def cases(draw):
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    ic = groups * draw(st.sampled_from([1, 3, 5, 16, 31, 33, 40]))
    oc = groups * draw(st.sampled_from([1, 2, 4]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    attributes = {
        "groups": groups, "pad_value": draw(st.sampled_from([-1, 0, 1])),
        "stride_h": draw(st.integers(1, 2)), "stride_w": draw(st.integers(1, 3)),
        "dilation_h": draw(st.integers(1, 2)), "dilation_w": draw(st.integers(1, 2)),
        "activation": draw(st.integers(0, 2)), "activation_first": draw(st.integers(0, 1)),
        "fraction_bits": draw(st.sampled_from([-1, 0, 5, 8, 8, 15])), "residual": draw(st.sampled_from([0, 0, 1])),
    }
    if attributes["activation"] == 2:
        attributes |= {"clamp_min": -0.3, "clamp_max": draw(st.sampled_from([0.4, float("inf")]))}
    return {"ic": ic, "oc": oc, "kernel": kernel, "pads": draw(st.tuples(*[st.integers(0, 2)] * 4)),
            "grid": draw(st.booleans()), "seed": draw(st.integers(0, 999)),
            "rc": draw(st.sampled_from([1, oc, 2 * oc, 3 * oc])), "reach": draw(st.sampled_from([1, 1, 100])),
            "fixed_residual": draw(st.booleans()), **attributes}


def graph_of(case):
    case = dict(case)
    g = Graph(case["ic"], 8, 9, seed=case.pop("seed"))
    ic, oc, rc, reach, on_grid = (case.pop(k) for k in ("ic", "oc", "rc", "reach", "fixed_residual"))
    f, parameters, residual = np.float32, None, None
    if case["activation"] == 1:
        parameters = (reach * g.rng.normal(size=(3, oc))).astype(f)
    if case["residual"]:
        spec = BinaryConv2dSpec(ic, oc, *case["kernel"], 0, case["stride_h"], case["stride_w"], case["dilation_h"],
                                case["dilation_w"], *case["pads"], case["groups"])
        h, w = spec.output_size(8, 9)
        pixel = g.op("Slice", g.x, np.array([0, 0, 0]), np.array([1, 1, 1]), np.array([1, 2, 3]))
        residual = g.op("Mul", pixel, (reach * g.rng.normal(size=(1, rc, h, w))).astype(f))
        if on_grid and case["fraction_bits"] >= 0:
            residual = g.fixed_point(residual, case["fraction_bits"], 16)
    return g, g.binary(g.x, ic, oc, residual_input=residual, parameters=parameters, **case)


@settings(max_examples=120, deadline=None)
@given(cases())
def test_lowered_graph_is_exact(case):
    g, y = graph_of(case)
    model, x = g.model(y), g.input()
    want = evaluate(model, x)
    lower(model)
    assert "BinaryConv2d" not in kinds(model) and "irstd" not in model.opset_imports
    assert np.array_equal(run_ort(model, x), want)


def test_modulation_agrees_to_the_last_bits_of_tanh():
    g = Graph(6)
    model, x = g.model(g.binary(g.x, 6, 6, residual_input=g.x, residual=2)), g.input()
    want = evaluate(model, x)
    np.testing.assert_allclose(run_ort(lower(model), x), want, atol=1e-6)


def test_nan_and_infinities_take_the_side_of_the_specification():
    g = Graph(3, 4, 4)
    model = g.model(g.binary(g.x, 3, 2, kernel=(1, 1), pads=(0, 0, 0, 0)))
    x = g.input()
    x[0, 0, 0, :3] = np.nan, np.inf, -np.inf
    want = evaluate(model, x)
    assert np.array_equal(run_ort(lower(model), x), want)


def grid_values(shape, seed=0):
    """Halves of a step on both sides of zero, values beyond 16 bits, specials and noise."""
    rng = np.random.default_rng(seed)
    x = rng.choice(np.array([np.nan, np.inf, -np.inf, -0.0, 1e30, -200, 127.998, 0.49999997], np.float32), shape)
    halves = ((rng.integers(-600, 600, shape) + 0.5) / 256).astype(np.float32)
    noise = (100 * rng.standard_normal(shape)).astype(np.float32)
    return np.where(rng.random(shape) < 0.3, x, np.where(rng.random(shape) < 0.5, halves, noise))


@pytest.mark.parametrize("fraction_bits, bits", [(8, 16), (7, 11), (0, 2), (15, 16)])
def test_fixed_point_is_exact(fraction_bits, bits):
    g = Graph(3, 16, 16)
    model = g.model(g.fixed_point(g.op("Neg", g.fixed_point(g.x, fraction_bits, bits)), fraction_bits, bits))
    x = grid_values((1, 3, 16, 16))
    want = evaluate(model, x)
    lowered = lower_fixed_point(model)
    assert "FixedPoint" not in kinds(lowered) and "irstd" not in lowered.opset_imports
    assert np.array_equal(run_ort(lowered, x), want)
    once = fixed_point(torch.from_numpy(x), fraction_bits, bits)
    assert np.array_equal(fixed_point(-once, fraction_bits, bits).numpy(), want)


def test_only_what_may_be_nan_is_guarded():
    g = Graph(1)
    y = g.fixed_point(g.op("Add", g.fixed_point(g.x, 8, 16), np.float32(1)), 8, 16)
    assert kinds(lower_fixed_point(g.model(y))).count("Where") == 1
    assert np.array_equal(run_ort(lower_fixed_point(g.model(y)), np.full((1, 1, 6, 7), np.nan, np.float32)),
                          np.full((1, 1, 6, 7), -127, np.float32))


def test_saturation_is_left_out_where_it_does_nothing():
    """A unit on the grids of DotBinaryConv2d: one Clip, of the sum with the residual."""
    g = Graph(16)
    r = g.fixed_point(g.x, 8, 16)
    y = g.binary(r, 16, 16, residual_input=r, residual=1, activation=1, fraction_bits=8,
                 parameters=np.round(g.rng.normal(size=(3, 16)) * 256) / 256)
    model = g.model(y)
    LowerBinary()(model)
    assert kinds(model).count("Clip") == 1 and kinds(model).count("Floor") == 2


def test_values_on_the_threshold_are_plus_one():
    g = Graph(2, 2, 2)
    model = g.model(g.binary(g.x, 2, 1, kernel=(1, 1), pads=(0, 0, 0, 0), threshold=np.array([0.0, 0.25])))
    x = np.zeros((1, 2, 2, 2), np.float32)
    x[0, 0, 0, 0], x[0, 1] = -0.0, 0.25
    want = evaluate(model, x)
    assert np.array_equal(run_ort(lower(model), x), want) and len(np.unique(want)) == 1


def test_guard_is_left_out_only_where_order_does_not_matter():
    spec = BinaryConv2dSpec(16, 2, 3, 3, 0)
    grid = np.array([3, 5], np.float32) / 2**14
    assert exact_in_any_order(spec, grid, grid)
    assert not exact_in_any_order(spec, grid, np.array([0, 0.1], np.float32))
    assert not exact_in_any_order(spec, grid, np.array([0, 5000], np.float32))
    g = Graph(16)
    assert "Clip" not in kinds(lower(g.model(g.binary(g.x, 16, 2))))
    g = Graph(16)
    assert "Clip" in kinds(lower(g.model(g.binary(g.x, 16, 2, grid=False))))


def test_names_of_outputs_survive():
    g = Graph(3)
    y = g.binary(g.x, 3, 2)
    model = g.model(y)
    LowerBinary()(model)
    assert [o.name for o in model.graph.outputs] == [y]


def test_residual_channels_that_do_not_fit_are_refused():
    from irstd_edge.opspec import OpSpecError

    g = Graph(4)
    model = g.model(g.binary(g.x, 4, 6, residual_input=g.x, residual=1))
    with pytest.raises(OpSpecError, match="residual channels"):
        LowerBinary()(model)


@pytest.mark.parametrize("fraction_bits", [-1, 8, 15])
def test_truth_is_the_reference_arithmetic(fraction_bits):
    """The independent truth of these tests and the PyTorch layer say the same."""
    from irstd_edge.nn.functional import binary_conv2d as reference

    spec = BinaryConv2dSpec(35, 4, 3, 2, -1, 2, 1, 1, 2, 1, 0, 2, 1, residual=1, activation=1,
                            fraction_bits=fraction_bits)
    rng = np.random.default_rng(0)
    f = np.float32
    x, r = rng.standard_normal((1, 35, 9, 8)).astype(f), None
    weight = rng.integers(0, 2**31, (4, 3, 2, 2)).astype(np.int32)
    weight[..., 1] &= 7
    t, s, b = (rng.standard_normal(n).astype(f) for n in (35, 4, 4))
    p = rng.standard_normal((3, 4)).astype(f)
    r = rng.standard_normal((1, 8, *spec.output_size(9, 8))).astype(f)
    a = {k: v for k, v in spec.attributes().items() if k not in ("version", "bit_order")}
    inputs = [torch.from_numpy(v) for v in (x, weight, t, s, b, p, r)]
    got = reference(*inputs[:5], spec, *inputs[5:])
    assert np.array_equal(binary_conv2d(x, weight, t, s, b, p, r, **a), got.numpy())

"""Thresholds: bit-exact folding of what precedes a sign."""

import numpy as np
import pytest
from export_truth import Graph, evaluate, kinds
from hypothesis import given, settings
from hypothesis import strategies as st

from irstd_edge.export.passes.fold_threshold import (
    FoldThreshold,
    flip_input_channels,
    folded_thresholds,
    smallest_float,
)
from irstd_edge.opspec import BinaryConv2dSpec

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def around(values):
    """Each value with its neighbours, and the awkward floats."""
    values = np.asarray(values, np.float32)
    special = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, 3.4e38, -3.4e38, 1, -1], np.float32)
    near = [np.nextafter(values, np.float32(d), dtype=np.float32) for d in (np.inf, -np.inf)]
    out = np.concatenate([values, *near, special])
    return out[np.isfinite(out)]


@settings(max_examples=400, deadline=None)
@given(gain=floats, offset=floats, threshold=floats, xs=st.lists(floats, max_size=20))
def test_folded_threshold_decides_as_the_two_rounded_operations(gain, offset, threshold, xs):
    k, b, t = (np.array([v], np.float32) for v in (gain, offset, threshold))
    found, flip = folded_thresholds([("BatchNormalization", k, b)], t)
    with np.errstate(all="ignore"):
        x = around([*xs, found[0] if np.isfinite(found[0]) else 0, -b[0] / k[0] if k[0] else 0])
        want = (k * x).astype(np.float32) + b >= t
    got = x >= found
    assert np.array_equal(~got if flip[0] else got, want)
    assert flip[0] == (k[0] < 0)


def test_smallest_float_where_the_predicate_never_or_always_holds():
    found = smallest_float(lambda x: np.array([False, True, x[2] >= 0]), 3)
    assert found[0] == np.inf and found[1] == -np.inf and found[2] == 0 and not np.signbit(found[2])


def test_flip_leaves_other_groups_and_tail_bits_alone():
    spec = BinaryConv2dSpec(70, 4, 1, 1, 0, groups=2)  # 35 channels a group: two words, 29 tail bits
    flip = np.zeros(70, bool)
    flip[[0, 34, 36]] = True
    words = flip_input_channels(np.zeros((4, 1, 1, 2), np.int32), flip, spec).view(np.uint32)
    assert words[:, 0, 0].tolist() == [[1, 4], [1, 4], [2, 0], [2, 0]]


def affine_graph(gain_sign, pad_value=0, pads=(1, 1, 1, 1), kind="bn", channels=35, groups=1, seed=0):
    g = Graph(channels, seed=seed)
    rng, f = g.rng, np.float32
    gain = np.abs(rng.normal(1, 0.4, channels)) * gain_sign
    if kind == "bn":
        y = g.op("BatchNormalization", g.x, gain.astype(f), rng.normal(size=channels).astype(f),
                 rng.normal(size=channels).astype(f), rng.uniform(0.1, 2, channels).astype(f))
    else:
        y = g.op("Mul", g.x, gain.astype(f).reshape(1, -1, 1, 1))
        y = g.op("Add", rng.normal(size=channels).astype(f).reshape(-1, 1, 1), y)
    return g, g.binary(y, channels, 6, pads=pads, pad_value=pad_value, groups=groups)


@pytest.mark.parametrize("kind", ["bn", "affine"])
@pytest.mark.parametrize("gain_sign", [1, -1])
def test_affine_before_the_sign_is_folded_exactly(kind, gain_sign):
    g, y = affine_graph(gain_sign, kind=kind)
    model = g.model(y)
    x = g.input()
    want = evaluate(model, x)
    assert FoldThreshold()(model).modified
    assert kinds(model) == ["BinaryConv2d"]
    if kind == "affine":  # the reference evaluator's own BatchNormalization rounds in another order
        assert np.array_equal(evaluate(model, x), want)
    else:
        assert np.mean(evaluate(model, x) != want) < 1e-3


def test_mixed_signs_and_groups():
    signs = np.where(np.arange(36) % 3, 1, -1)
    g, y = affine_graph(signs, kind="affine", channels=36, groups=3)
    model, x = g.model(y), g.input()
    want = evaluate(model, x)
    FoldThreshold()(model)
    assert kinds(model) == ["BinaryConv2d"] and np.array_equal(evaluate(model, x), want)


@pytest.mark.parametrize("pad_value", [1, -1])
def test_negative_gain_under_ones_padding_is_left(pad_value):
    model = (gy := affine_graph(-1, pad_value))[0].model(gy[1])
    assert not FoldThreshold()(model).modified


@pytest.mark.parametrize("pad_value", [1, -1])
def test_negative_gain_without_padding_and_positive_with_it_fold(pad_value):
    for sign, pads in ((-1, (0, 0, 0, 0)), (1, (1, 2, 0, 1))):
        g, y = affine_graph(sign, pad_value, pads, "affine")
        model, x = g.model(y), g.input()
        want = evaluate(model, x)
        assert FoldThreshold()(model).modified and np.array_equal(evaluate(model, x), want)


def test_zero_gain_is_a_constant_sign():
    g, y = affine_graph(0, kind="affine")
    model, x = g.model(y), g.input()
    want = evaluate(model, x)
    FoldThreshold()(model)
    assert np.array_equal(evaluate(model, x), want)


def test_shared_or_output_intermediate_is_left():
    g, y = affine_graph(1, kind="affine")
    assert not FoldThreshold()(g.model(y, outputs=[g.nodes[1].output[0]])).modified
    g, y = affine_graph(1, kind="affine")
    y = g.op("ReduceSum", g.op("Add", y, g.op("GlobalAveragePool", g.op("ReduceMean", g.nodes[1].output[0],
                                                                        np.array([1])))))
    assert not FoldThreshold()(g.model(y)).modified


def test_explicit_sign_is_folded():
    g = Graph(9)
    t = g.rng.normal(size=(9, 1, 1)).astype(np.float32)
    y = g.op("Where", g.op("GreaterOrEqual", g.x, t), np.float32(1), np.float32(-1))
    model, x = g.model(g.binary(y, 9, 4, threshold=np.zeros(9))), g.input()
    want = evaluate(model, x)
    assert FoldThreshold()(model).modified and kinds(model) == ["BinaryConv2d"]
    assert np.array_equal(evaluate(model, x), want)


@pytest.mark.parametrize("high, low, threshold", [(1, 0, 0), (2, -1, 0), (1, -1, 1.5), (1, -1, -1)])
def test_what_is_no_sign_is_left(high, low, threshold):
    g = Graph(9)
    y = g.op("Where", g.op("GreaterOrEqual", g.x, np.float32(0)), np.float32(high), np.float32(low))
    model = g.model(g.binary(y, 9, 4, threshold=np.full(9, threshold)))
    assert not FoldThreshold()(model).modified

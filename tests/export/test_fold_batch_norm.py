"""BatchNormalization and affine maps after a binary or a float convolution."""

import numpy as np
import pytest
from export_truth import Graph, evaluate, kinds, run_ort

from irstd_edge.export.passes.fold_batch_norm import FoldBatchNorm
from irstd_edge.export.passes.fold_conv_batch_norm import FoldConvBatchNorm

F = np.float32


def statistics(rng, channels):
    return [a.astype(F) for a in (rng.normal(size=channels), rng.normal(size=channels), rng.normal(size=channels),
                                  rng.uniform(0.1, 2, channels))]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["bn", "mul_add", "sub", "div"])
def test_affine_after_a_binary_convolution(kind, seed):
    g = Graph(13, seed=seed)
    y = g.binary(g.x, 13, 6, grid=False, stride_h=1 + seed % 2, dilation_w=1 + seed // 2)
    if kind == "bn":
        y = g.op("BatchNormalization", y, *statistics(g.rng, 6))
    elif kind == "mul_add":
        y = g.op("Add", g.op("Mul", y, g.rng.normal(size=(1, 6, 1, 1)).astype(F)), np.array(0.7, F))
    elif kind == "sub":
        y = g.op("Sub", y, g.rng.normal(size=(6, 1, 1)).astype(F))
    else:
        y = g.op("Div", y, np.array(4, F))
    model, x = g.model(y), g.input()
    want = evaluate(model, x)
    assert FoldBatchNorm()(model).modified and kinds(model) == ["BinaryConv2d"]
    np.testing.assert_allclose(evaluate(model, x), want, atol=3e-6)


def test_what_is_left():
    def graph(make, **attributes):
        g = Graph(8)
        return g.model(make(g, g.binary(g.x, 8, 8, **attributes)))

    scale = np.ones((8, 1, 1), F)
    assert not FoldBatchNorm()(graph(lambda g, y: g.op("Mul", y, scale), activation=2)).modified
    assert not FoldBatchNorm()(graph(lambda g, y: g.op("Mul", y, scale), fraction_bits=8)).modified
    assert not FoldBatchNorm()(graph(lambda g, y: g.op("Div", y, np.array(3, F)))).modified
    assert not FoldBatchNorm()(graph(lambda g, y: g.op("Sub", scale, y))).modified
    assert not FoldBatchNorm()(graph(lambda g, y: g.op("Mul", y, np.ones((1, 1, 6, 7), F)))).modified
    assert not FoldBatchNorm()(graph(lambda g, y: g.op("Mul", y, y))).modified
    # The shift of an RPReLU belongs to the activation, which keeps it exact.
    assert not FoldBatchNorm()(graph(lambda g, y: g.op("PRelu", g.op("Sub", y, scale), scale))).modified


def test_an_output_is_left():
    g = Graph(8)
    y = g.binary(g.x, 8, 8)
    assert not FoldBatchNorm()(g.model(g.op("Mul", y, np.array(2, F)), outputs=[y])).modified


@pytest.mark.parametrize("transpose, groups, bias",
                         [(False, 1, True), (False, 2, False), (True, 1, False), (True, 2, True)])
def test_batch_norm_after_a_float_convolution(transpose, groups, bias):
    g = Graph(4)
    shape = (4, 6 // groups, 3, 3) if transpose else (6, 4 // groups, 3, 3)
    inputs = [g.rng.normal(size=shape).astype(F)] + ([g.rng.normal(size=6).astype(F)] if bias else [])
    y = g.op("ConvTranspose" if transpose else "Conv", g.x, *inputs, group=groups)
    model, x = g.model(g.op("BatchNormalization", y, *statistics(g.rng, 6))), g.input()
    want = run_ort(model, x)
    assert FoldConvBatchNorm()(model).modified and len(kinds(model)) == 1
    np.testing.assert_allclose(run_ort(model, x), want, atol=1e-5)

"""Activations become attributes of the binary node; every fold is exact."""

import numpy as np
import pytest
from export_truth import Graph, evaluate, kinds

from irstd_edge.export.passes.fold_activation import FoldActivation
from irstd_edge.export.passes.graph import spec_of

F = np.float32
SLOPE = np.linspace(-0.5, 0.9, 6).astype(F).reshape(-1, 1, 1)
SHIFT = np.linspace(-1, 1, 6).astype(F).reshape(1, -1, 1, 1)
ACTIVATIONS = {
    "prelu": lambda g, y: g.op("PRelu", y, SLOPE),
    "prelu_shared": lambda g, y: g.op("PRelu", y, np.array([0.2], F)),
    "leaky": lambda g, y: g.op("LeakyRelu", y, alpha=0.1),
    "relu": lambda g, y: g.op("Relu", y),
    "relu6": lambda g, y: g.op("Clip", y, np.array(0, F), np.array(6, F)),
    "hardtanh": lambda g, y: g.op("Clip", y, np.array(-0.3, F), np.array(0.4, F)),
    "low_only": lambda g, y: g.op("Clip", y, np.array(-0.3, F)),
    "rprelu": lambda g, y: g.op("Add", g.op("PRelu", g.op("Sub", y, SHIFT), SLOPE), SHIFT),
    "rprelu_added": lambda g, y: g.op("PRelu", g.op("Add", SHIFT, y), SLOPE),
}


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_folds_exactly(name, with_residual):
    g = Graph(6)
    extra = {"residual_input": g.x, "residual": 1} if with_residual else {}
    y = g.binary(g.x, 6, 6, grid=False, **extra)
    model, x = g.model(ACTIVATIONS[name](g, y)), g.input()
    want = evaluate(model, x)
    assert FoldActivation()(model).modified and kinds(model) == ["BinaryConv2d"]
    assert np.array_equal(evaluate(model, x), want)
    assert spec_of(model.graph[0]).activation_first == (0 if with_residual else 1)


@pytest.mark.parametrize("name, make", {
    "computed slope": lambda g, y: g.op("PRelu", y, g.x),
    "computed bound": lambda g, y: g.op("Clip", y, g.op("ReduceMax", g.x, keepdims=0)),
    "crossed bounds": lambda g, y: g.op("Clip", y, np.array(1, F), np.array(0, F)),
    "other": lambda g, y: g.op("Tanh", y),
    "slope per pixel": lambda g, y: g.op("PRelu", y, np.ones((6, 6, 7), F)),
    "used twice": lambda g, y: g.op("Add", g.op("Relu", y), y),
}.items())
def test_what_is_left(name, make):
    g = Graph(6)
    assert not FoldActivation()(g.model(make(g, g.binary(g.x, 6, 6)))).modified


def test_a_second_activation_or_one_after_rounding_is_left():
    for attributes in ({"activation": 2, "clamp_max": 1.0}, {"fraction_bits": 4}):
        g = Graph(6)
        assert not FoldActivation()(g.model(g.op("Relu", g.binary(g.x, 6, 6, **attributes)))).modified


def test_an_activation_first_of_0_that_meant_nothing_becomes_1():
    g = Graph(6)
    model = g.model(g.op("Relu", g.binary(g.x, 6, 6, activation_first=0)))
    assert FoldActivation()(model).modified and spec_of(model.graph[0]).activation_first == 1

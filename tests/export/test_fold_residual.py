"""Shortcuts become the residual input of the binary node; exact."""

import numpy as np
import pytest
from export_truth import Graph, evaluate, kinds

from irstd_edge.export.passes import fold
from irstd_edge.export.passes.fold_residual import FoldResidual
from irstd_edge.export.passes.graph import spec_of


@pytest.mark.parametrize("swap", [False, True])
def test_shortcut_folds_exactly(swap):
    g = Graph(6)
    y = g.binary(g.x, 6, 6, grid=False)
    r = g.op("Sigmoid", g.x)  # computed after the binary node
    model, x = g.model(g.op("Add", *((r, y) if swap else (y, r)))), g.input()
    want = evaluate(model, x)
    assert FoldResidual()(model).modified and kinds(model) == ["Sigmoid", "BinaryConv2d"]
    assert np.array_equal(evaluate(model, x), want)


def test_two_binary_nodes_added_and_the_activation_after_them():
    g = Graph(6)
    y = g.op("Relu", g.op("Add", g.binary(g.x, 6, 6), g.binary(g.x, 6, 6)))
    model, x = g.model(y), g.input()
    want = evaluate(model, x)
    fold(model)
    assert kinds(model) == ["BinaryConv2d", "BinaryConv2d"] and np.array_equal(evaluate(model, x), want)
    last = spec_of(model.graph[1])
    assert (last.residual, last.activation, last.activation_first) == (1, 2, 0)


def test_what_is_left():
    def graph(make, outputs=(), **attributes):
        g = Graph(6)
        y = g.binary(g.x, 6, 6, **attributes)
        return g.model(make(g, y), outputs=[y] if outputs else ())

    f = np.float32
    assert not FoldResidual()(graph(lambda g, y: g.op("Add", y, np.ones((1, 6, 6, 7), f)))).modified
    assert not FoldResidual()(graph(lambda g, y: g.op("Add", y, g.op("GlobalAveragePool", g.x)))).modified
    assert not FoldResidual()(graph(lambda g, y: g.op("Add", y, y))).modified
    assert not FoldResidual()(graph(lambda g, y: g.op("Mul", y, g.x))).modified
    assert not FoldResidual()(graph(lambda g, y: g.op("Add", y, g.x), outputs=True)).modified
    assert not FoldResidual()(graph(lambda g, y: g.op("Add", y, g.x), fraction_bits=8)).modified

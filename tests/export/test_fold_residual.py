"""Shortcuts become the residual input of the binary node; exact."""

import numpy as np
import onnx_ir as ir
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


@pytest.mark.parametrize("activation", [True, False])
def test_an_activation_first_of_0_that_meant_nothing_without_a_residual(activation):
    g = Graph(6)
    parameters = g.rng.normal(size=(3, 6)) if activation else None
    y = g.binary(g.x, 6, 6, activation=int(activation), parameters=parameters, activation_first=0)
    model, x = g.model(g.op("Add", y, g.x)), g.input()
    want = evaluate(model, x)
    assert FoldResidual()(model).modified and spec_of(model.graph[0]).activation_first == 1
    assert np.array_equal(evaluate(model, x), want)


def test_a_pytorch_layer_of_activation_first_0_with_prelu_and_shortcut():
    import torch
    from torch import nn

    from irstd_edge.export.capture import capture
    from irstd_edge.export.passes import compress
    from irstd_edge.nn.binary import FoldedBinaryConv2d
    from irstd_edge.nn.functional import pack_bits
    from irstd_edge.opspec import BinaryConv2dSpec

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            spec = BinaryConv2dSpec(4, 4, 3, 3, 0, pad_top=1, pad_left=1, pad_bottom=1, pad_right=1, activation_first=0)
            self.unit = FoldedBinaryConv2d(spec, pack_bits(torch.randn(4, 4, 3, 3) >= 0), torch.zeros(4),
                                           torch.full((4,), 0.125), torch.zeros(4))
            self.stem, self.prelu = nn.Conv2d(1, 4, 1), nn.PReLU(4, 0.25)

        def forward(self, x):
            x = self.stem(x)
            return self.prelu(self.unit(x)) + x

    torch.manual_seed(0)
    network, x = Net().eval(), torch.randn(1, 1, 8, 8)
    model = compress(capture(network, (8, 8), dynamic=False).model)
    assert kinds(model) == ["Conv", "BinaryConv2d"]
    with torch.no_grad():
        np.testing.assert_allclose(evaluate(model, x.numpy()), network(x).numpy(), atol=1e-5)


def test_unknown_sizes_are_not_the_same_size():
    for size, folds in (("h", True), (None, False)):
        g = Graph(6)
        y = g.binary(g.x, 6, 6)
        model = g.model(g.op("Add", y, g.op("Relu", g.x)))
        for node in model.graph:
            node.outputs[0].shape = ir.Shape((1, 6, size, 7))
        assert FoldResidual()(model).modified is folds

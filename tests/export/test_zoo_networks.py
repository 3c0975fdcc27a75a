"""Every network of the registry leaves PyTorch: ONNX (two sizes) and TFLite equal it, weights away from the start."""

import numpy as np
import pytest
import torch
from export_truth import run_ort, run_tflite

pytest.importorskip("ai_edge_litert")
from irstd_edge.checkpoints import build_network
from irstd_edge.export.capture import capture
from irstd_edge.export.passes import compress
from irstd_edge.export.targets.portable import lowered
from irstd_edge.export.targets.tflite import to_tflite
from irstd_edge.models.registry import MODELS

QUICK = ("acm-fpn", "biisnet-xnor")


@torch.no_grad()
def awake(name):
    """The network with random statistics and shifts, and outputs spread around 1/2."""
    torch.manual_seed(1)
    network = build_network(name).eval()
    heads = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.out_channels == 1]
    for key, value in (*network.named_parameters(), *network.named_buffers()):
        if key.endswith(("running_mean", "shift", "shift_in", "shift_out", "norm.bias")):
            value.normal_(0, 0.2)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    for head in heads:
        if head.bias is not None:
            head.bias.zero_()
    return network


def check(name, got, want):
    if name == "biisnet-modulate":  # the runtime's own tanh: signs further on may flip (docs/arithmetic.md)
        assert np.abs(got - want).mean() < 0.02 * want.std()
    else:
        np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS])
def test_onnx_and_tflite_equal_pytorch(name):
    network = awake(name)
    captured = capture(network, (64, 96))
    assert captured.dynamic, captured.static_reason
    model = lowered(compress(captured.model))
    for size in ((64, 96), (96, 32)):
        x = torch.randn(1, 1, *size)
        with torch.no_grad():
            want = network(x).numpy()
        assert want.std() > 1e-4, "an output that says something"
        check(name, run_ort(model, x.numpy()), want)
    check(name, run_tflite(to_tflite(model, size).data, x.numpy()), want)

"""Float networks of the field on every target, as float32, with weights in 16 bits, and quantised to int8."""

import numpy as np
import pytest
import torch
from export_truth import run_engine, run_ort, run_tflite
from float_networks import NETWORKS, first, make

from irstd_edge.export.capture import capture
from irstd_edge.export.passes import compress
from irstd_edge.export.passes.halve_weights import HalveWeights
from irstd_edge.export.targets.native import to_native
from irstd_edge.export.targets.onnx import to_onnx
from irstd_edge.export.targets.portable import lowered
from irstd_edge.export.targets.tflite import to_tflite
from irstd_edge.training.quantisation import METHODS, Calibrated, CalibrationImage

QUICK = ("dnanet", "uiunet-like")
EVERY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NETWORKS]


def images(size, count=1):
    rng = np.random.default_rng(5)
    return [rng.standard_normal((1, 1, *size)).astype(np.float32) for _ in range(count)]


def run(kind, model, x):
    if kind == "tflite":
        return run_tflite(to_tflite(model, x.shape[2:]).data, x)
    return run_ort(to_onnx(lowered(model) if kind == "portable" else model), x)


def check(got, want, atol):
    """The largest difference, and the rule of the mask: no pixel changes sides unless it is at 1/2 within 1e-3."""
    np.testing.assert_allclose(got, want, atol=atol)
    flipped = (got > 0.5) != (want > 0.5)
    assert not np.any(flipped & (np.abs(want - 0.5) > max(atol, 1e-3)))


@pytest.mark.parametrize("name", EVERY)
def test_equal_on_every_target(name, tmp_path, native_library):
    network, size = make(name), NETWORKS[name][1]
    other = (size[0] + 3 * network.size_multiple, size[1] + 2 * network.size_multiple)
    captured = capture(network, size)
    assert captured.dynamic, captured.static_reason
    model = compress(captured.model)
    halves = model.clone()
    HalveWeights()(halves)
    written = {1e-2: to_native(halves, size, other), 2e-5: to_native(model, size, other)}
    assert not any(file.static_reason for file in written.values())
    for shape in (size, other):
        (x,) = images(shape)
        with torch.no_grad():
            want = first(network(torch.from_numpy(x))).numpy()
        assert want.std() > 1e-3
        for kind in ("onnx", "portable", "tflite"):
            check(run(kind, model, x), want, 2e-5)
            check(run(kind, halves, x), want, 1e-2)
        for atol, file in written.items():
            check(run_engine(file.data, x, tmp_path), want, atol)


@pytest.mark.parametrize("name, method", [
    pytest.param(name, method, marks=() if name == "uiunet-like" and method == "mse" else pytest.mark.slow)
    for name in NETWORKS for method in METHODS])
def test_int8_after_calibration(name, method):
    """Quantised in PyTorch, equal to that on each target that holds it in standard operators, and near to float."""
    network, size = make(name), NETWORKS[name][1]
    calibrated = Calibrated(network, [CalibrationImage(str(i), "", torch.from_numpy(x))
                                      for i, x in enumerate(images(size, 4))], method=method)
    quantised = calibrated.quantise(dict.fromkeys(calibrated.trace.convolutions, (8, 8)))
    assert len(calibrated.trace.convolutions) > 10
    (x,) = images(size)
    with torch.no_grad():
        full, want = (first(n(torch.from_numpy(x))).numpy() for n in (network, quantised))
    assert np.abs(want - full).max() < 0.08 and np.abs(want - full).mean() < 0.01
    captured = capture(quantised, size)
    assert captured.dynamic, captured.static_reason
    check(run_ort(to_onnx(lowered(compress(captured.model))), x), want, 2e-5)

"""The portable and onnx files."""

import numpy as np
import onnx
import pytest
import torch
from export_truth import run_ort

from irstd_edge.export.layers import describe_layers
from irstd_edge.export.passes.specialize import Specialize
from irstd_edge.export.targets.onnx import to_onnx
from irstd_edge.export.targets.portable import lowered


@pytest.fixture(scope="module")
def portable(biisnet_compressed):
    return to_onnx(lowered(biisnet_compressed))


def test_default_domain_only_and_old_enough_versions(portable):
    model = onnx.load_from_string(portable)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)] and model.ir_version == 8
    assert {n.domain for n in model.graph.node} == {""} and b"irstd" not in portable.replace(b"irstd-edge", b"")
    weights = [onnx.numpy_helper.to_array(i) for i in model.graph.initializer if i.name.endswith(".weight")]
    assert sum(bool(np.isin(w, (-1, 1)).all()) for w in weights) == 16  # no scale is folded into them


def test_near_zero_stress_is_equal_to_pytorch(biisnet, portable):
    rng = np.random.default_rng(0)
    x = (rng.integers(-2, 3, (1, 1, 64, 64)) * rng.choice([2.0**-8, 2.0**-7, 1e-7, 1e-38], (1, 1, 64, 64))).astype("f4")
    with torch.no_grad():
        want = biisnet(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run_ort(portable, x), want, atol=1e-6, rtol=0)


def test_the_compressed_model_is_not_changed_by_lowering(biisnet_compressed):
    before = to_onnx(biisnet_compressed)
    lowered(biisnet_compressed)
    assert to_onnx(biisnet_compressed) == before


def test_onnx_file_with_our_operators(biisnet, biisnet_compressed, native_library):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.register_custom_ops_library(str(native_library[0]))
    session = ort.InferenceSession(to_onnx(biisnet_compressed), options, providers=["CPUExecutionProvider"])
    x = torch.randn(1, 1, 40, 64)
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], biisnet(x).numpy(), atol=1e-6, rtol=0)


def test_layer_table(biisnet, biisnet_compressed):
    from irstd_edge.complexity import measure_complexity

    static = biisnet_compressed.clone()
    Specialize((64, 64))(static)
    rows = {r.name: r for r in describe_layers(biisnet_compressed, static)}
    assert len(rows) == 18 and not any(r.downgraded for r in rows.values())
    unit = rows["encoder1.0"]
    assert (unit.operator, unit.realised) == ("irstd.BinaryConv2d", "W1A1")
    assert unit.bytes == 16 * 9 * 4 + 16 * 4 * 3 + 3 * 16 * 4
    counted = measure_complexity(biisnet, (64, 64))
    assert sum(r.macs for r in rows.values() if r.realised == "W1A1") == counted.bops
    assert sum(r.macs for r in rows.values() if r.realised == "float32") == counted.macs
    plain = {r.name: r for r in describe_layers(lowered(biisnet_compressed), static, "standard operators only")}
    assert plain["encoder1.0"].downgraded and plain["encoder1.0"].reason == "standard operators only"
    assert plain["encoder1.0"].macs == unit.macs and not plain["stem"].downgraded

"""Layer by layer: what the portable file holds of a compressed layer gives PyTorch's bits on PyTorch's own inputs."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from irstd_edge.export.capture import capture
from irstd_edge.export.passes import compress, lower
from irstd_edge.export.passes.graph import LAYER, constant, is_compressed, is_quant, precision_of, quant_spec_of
from irstd_edge.export.passes.specialize import Specialize
from irstd_edge.models.resunet import ResUNet
from irstd_edge.nn.inference import freeze
from irstd_edge.training.quantisation import Calibrated, CalibrationImage

SIZE = (32, 48)


def quantised(bits, method="mse"):
    torch.manual_seed(8)
    images = [CalibrationImage(str(i), "", torch.randn(1, 1, *SIZE)) for i in range(2)]
    calibrated = Calibrated(ResUNet((4, 8, 8)).eval(), images, method=method)
    return calibrated.quantise(dict.fromkeys(calibrated.trace.convolutions, bits))


def seen(network, x):
    """Inputs and output of each layer that becomes one operator, as PyTorch computes them."""
    frozen, found = freeze(network), {}
    handles = [m.register_forward_hook(lambda m, i, o, name=name: found.update({name: ([*i], o)}))
               for name, m in frozen.named_modules() if type(m).__name__.startswith("Folded")]
    with torch.inference_mode():
        frozen(x)
    for handle in handles:
        handle.remove()
    return found


def layers(network):
    """Each compressed layer of a network: name, precision, a model of it alone, PyTorch's inputs by name and output."""
    model = compress(capture(network, SIZE, dynamic=False).model)
    Specialize(SIZE)(model)
    torch.manual_seed(1)
    truth = seen(network, torch.randn(1, 1, *SIZE))
    for node in model.graph:
        if is_compressed(node):
            layer = node.metadata_props[LAYER]
            name = next(n for n in truth if n == layer or n.startswith(f"{layer}."))
            inputs = [v.name for v in node.inputs if v is not None and constant(v) is None]
            graph = ir.convenience.extract(model.graph, list(dict.fromkeys(inputs)), [node.outputs[0].name])
            arguments, output = truth[name]
            feed = {name: x.numpy() for name, x in zip(inputs, arguments, strict=True)}
            want = output.numpy()
            if is_quant(node):  # the activation behind the layer is folded into the operator
                spec = quant_spec_of(node)
                want = np.clip(want, np.float32(spec.clamp_min), np.float32(spec.clamp_max))
            yield layer, precision_of(node), ir.Model(graph, ir_version=8), feed, want


#: Network (None: the fixture) and the number of its compressed layers.
CASES = {
    "binary": (None, 16), "8 bits": (lambda: quantised((8, 8)), 19), "4 bits": (lambda: quantised((4, 4)), 19),
    "2 and 3 bits": (lambda: quantised((2, 3)), 19), "1 and 4 bits": (lambda: quantised((1, 4)), 19),
    "min-max": (lambda: quantised((8, 8), "minmax"), 19), "percentile": (lambda: quantised((8, 8), "percentile"), 19),
}


@pytest.mark.parametrize("name", CASES)
def test_every_layer_is_exact(name, biisnet):
    make, count = CASES[name]
    proved = []
    for layer, precision, single, feed, want in layers(biisnet if make is None else make()):
        proto = ir.to_proto(lower(single.clone()))
        assert {n.domain for n in proto.graph.node} == {""}
        context = f"{layer} {precision}"
        for optimised in (True, False):
            np.testing.assert_array_equal(run_ort_all(proto, feed, optimised), want, err_msg=context)
        proto.opset_import[0].version = 19  # the evaluator has no DequantizeLinear of 18, which is the same
        np.testing.assert_array_equal(ReferenceEvaluator(proto).run(None, feed)[0], want, err_msg=context)
        proved.append(precision)
    assert len(proved) == count and len(set(proved)) == 1


def run_ort_all(proto, feed, optimised):
    import onnxruntime as ort

    options, level = ort.SessionOptions(), ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]

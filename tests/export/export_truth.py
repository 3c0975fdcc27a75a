"""Truth for the export tests that shares no code with the exporter, and a builder of small graphs."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from irstd_edge.export.schema import register_schemas
from irstd_edge.program import read
from irstd_edge.runtimes.native import Engine

sys.path.insert(0, str(Path(__file__).parents[1] / "runtimes"))
from program_truth import run_program

register_schemas()


def binary_conv2d(x, weight, threshold, scale, bias, parameters=None, residual_input=None, **a):
    """``irstd.BinaryConv2d`` by the text of the specification: integer loops over taps, float32 after them."""
    f = np.float32
    n, ic = x.shape[:2]
    oc, kh, kw, _ = weight.shape
    groups, per = a.get("groups", 1), ic // a.get("groups", 1)
    signs = np.empty((oc, per, kh, kw), np.int64)
    for c in range(per):
        word = weight[..., c // 32].astype(np.int64) & 0xFFFFFFFF
        signs[:, c] = ((word >> (c % 32)) & 1) * 2 - 1
    b = np.where(x >= threshold.reshape(1, -1, 1, 1), 1, -1)
    top, left, bottom, right = (a.get(f"pad_{side}", 0) for side in ("top", "left", "bottom", "right"))
    b = np.pad(b, [(0, 0), (0, 0), (top, bottom), (left, right)], constant_values=a["pad_value"])
    dh, dw, sh, sw = (a.get(k, 1) for k in ("dilation_h", "dilation_w", "stride_h", "stride_w"))
    oh, ow = (b.shape[2] - dh * (kh - 1) - 1) // sh + 1, (b.shape[3] - dw * (kw - 1) - 1) // sw + 1
    acc = np.zeros((n, oc, oh, ow), np.int64)
    for o in range(oc):
        first = o // (oc // groups) * per
        for i in range(kh):
            for j in range(kw):
                rows, columns = i * dh + sh * np.arange(oh), j * dw + sw * np.arange(ow)
                part = b[:, first:first + per][:, :, rows][:, :, :, columns]
                acc[:, o] += (part * signs[o, :, i, j].reshape(1, -1, 1, 1)).sum(1)
    # With fraction_bits every step rounds half up to integers and saturates; without, both are nothing.
    bits = a.get("fraction_bits", -1)
    unit = f(2.0 ** max(bits, 0))
    rnd = (lambda v: np.floor(v + f(0.5))) if bits >= 0 else lambda v: v
    sat = (lambda q: np.clip(q, f(-32768), f(32767))) if bits >= 0 else lambda q: q
    col = lambda v: v.reshape(1, -1, 1, 1)  # noqa: E731
    v = sat(sat(rnd(acc.astype(f) * col(scale) * unit)) + rnd(col(bias) * unit))

    def activate(u):
        if a.get("activation", 0) == 1:
            t = sat(u - rnd(col(parameters[0]) * unit))
            return sat(np.where(t >= 0, t, sat(rnd(t * col(parameters[1])))) + rnd(col(parameters[2]) * unit))
        if a.get("activation", 0) == 2:
            low, high = (sat(rnd(f(a.get(k, d)) * unit)) for k, d in (("clamp_min", -np.inf), ("clamp_max", np.inf)))
            return np.minimum(np.maximum(u, low), high)
        return u

    def combine(u):
        if not a.get("residual", 0):
            return u
        r, rc = sat(rnd(residual_input * unit)), residual_input.shape[1]
        if rc < oc:
            r = np.stack([r[:, o % rc] for o in range(oc)], 1)
        elif rc > oc:
            total = r[:, :oc]
            for k in range(1, rc // oc):
                total = total + r[:, k * oc:(k + 1) * oc]
            r = rnd(total / f(rc // oc))
        return sat(u + r) if a["residual"] == 1 else sat(rnd((r / unit + r / unit * np.tanh(u / unit)) * unit))

    y = combine(activate(v)) if a.get("activation_first", 1) else activate(combine(v))
    return (y / unit).astype(f)


def fixed_point(x, fraction_bits, bits):
    """``irstd.FixedPoint`` in float32, as specified: the sum with 1/2 is rounded too."""
    f = np.float32
    low, high = f(-(2.0 ** (bits - 1))), f(2.0 ** (bits - 1) - 1)
    with np.errstate(over="ignore"):
        q = np.floor(x * f(2.0**fraction_bits) + f(0.5))
    return np.clip(np.where(np.isnan(q), low, q), low, high) / f(2.0**fraction_bits)


def quant_conv2d(x, weight, scale, bias, **a):
    """``irstd.QuantConv2d`` by the text of the specification: integer loops over taps, float32 after them."""
    f, k, m = np.float32, a["weight_bits"], a["activation_bits"]
    groups, oc, kh, kw = a.get("groups", 1), a["out_channels"], a["kernel_h"], a["kernel_w"]
    per, zero = a["in_channels"] // groups, a.get("zero_point", 0)
    w = np.zeros((oc, kh * kw * per), np.int64)
    for o in range(oc):
        number = int.from_bytes(weight[o].tobytes(), "little")
        for i in range(kh * kw * per):
            digits = number >> (k * i) & (2**k - 1)
            w[o, i] = 2 * digits - 1 if k == 1 else digits - (digits >> (k - 1) << k)
    w = w.reshape(oc, kh, kw, per)
    low, high = (-(2 ** (m - 1)), 2 ** (m - 1) - 1) if a.get("activation_signed", 0) else (0, 2**m - 1)
    with np.errstate(over="ignore"):
        t = np.rint(x * f(a["inverse_step"])) + f(zero)
    q = np.clip(np.where(np.isnan(t), low, t), low, high).astype(np.int64) - zero
    top, left, bottom, right = (a.get(f"pad_{side}", 0) for side in ("top", "left", "bottom", "right"))
    q = np.pad(q, [(0, 0), (0, 0), (top, bottom), (left, right)])
    dh, dw, sh, sw = (a.get(name, 1) for name in ("dilation_h", "dilation_w", "stride_h", "stride_w"))
    oh, ow = (q.shape[2] - dh * (kh - 1) - 1) // sh + 1, (q.shape[3] - dw * (kw - 1) - 1) // sw + 1
    acc = np.zeros((len(x), oc, oh, ow), np.int64)
    for o in range(oc):
        first = o // (oc // groups) * per
        for i in range(kh):
            for j in range(kw):
                rows, columns = i * dh + sh * np.arange(oh), j * dw + sw * np.arange(ow)
                part = q[:, first:first + per][:, :, rows][:, :, :, columns]
                acc[:, o] += (part * w[o, i, j].reshape(1, -1, 1, 1)).sum(1)
    v = acc.astype(f) * scale.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)
    return np.minimum(np.maximum(v, f(a.get("clamp_min", -np.inf))), f(a.get("clamp_max", np.inf)))


class QuantConv2d(OpRun):
    op_domain = "irstd"

    def _run(self, x, weight, scale, bias, **attributes):
        return (quant_conv2d(x, weight, scale, bias, **{k: v for k, v in attributes.items() if v is not None}),)


class BinaryConv2d(OpRun):
    """The same for ONNX's own reference evaluator."""

    op_domain = "irstd"

    def _run(self, x, weight, threshold, scale, bias, activation_parameters=None, residual_input=None, **attributes):
        attributes = {k: v for k, v in attributes.items() if v is not None}
        return (binary_conv2d(x, weight, threshold, scale, bias, activation_parameters, residual_input, **attributes),)


class FixedPoint(OpRun):
    op_domain = "irstd"

    def _run(self, x, version, fraction_bits, bits):
        return (fixed_point(x, fraction_bits, bits),)


class Program(OpRun):
    op_domain = "irstd"

    def _run(self, program, *images, version, height, width):
        results = [run_program(read(program.tobytes()), *image) for image in zip(*images, strict=True)]
        return tuple(np.stack(y) for y in zip(*results, strict=True))


def evaluate(model, x):
    """Run an onnx-ir model by the reference evaluator."""
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    evaluator = ReferenceEvaluator(proto, new_ops=[BinaryConv2d, QuantConv2d, FixedPoint, Program])
    return evaluator.run(None, {proto.graph.input[0].name: x})[0]


def run_ort(model, x, optimised=True):
    """Run a model of standard operators in ONNX Runtime with every optimisation on, or off."""
    data = model if isinstance(model, bytes) else ir.to_proto(model).SerializeToString()
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def nhwc(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x


def run_tflite(data, x, delegates=None):
    """Run a .tflite file on an NCHW array; the result is NCHW where it has four axes."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1, experimental_delegates=delegates)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], nhwc(x))
    interpreter.invoke()
    y = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return y.transpose(0, 3, 1, 2) if y.ndim == 4 else y


def run_engine(data, x, folder):
    """The first output of a model.irstd in our engine."""
    (folder / "model.irstd").write_bytes(data)
    engine = Engine(folder / "model.irstd", x.shape[2:])
    results = [np.full(shape, np.nan, np.float32) for shape in engine.output_shapes]
    engine.bind([np.ascontiguousarray(x[0])], results)()
    return results[0][None]


def tflite_model(data):
    """The parsed flatbuffer."""
    from ai_edge_litert import schema_py_generated as tfl

    return tfl.ModelT.InitFromPackedBuf(bytearray(data), 0)


def operator_names(data):
    """Names of the operators of a .tflite file, in order; custom ones by their code."""
    from ai_edge_litert import schema_py_generated as tfl

    names = {v: k for k, v in vars(tfl.BuiltinOperator).items() if not k.startswith("_")}
    model = tflite_model(data)
    codes = [c.customCode.decode() if c.customCode else names[c.builtinCode] for c in model.operatorCodes]
    return [codes[o.opcodeIndex] for o in model.subgraphs[0].operators]


class Graph:
    """Builds a small ONNX graph: ``g = Graph(8, 5, 6); y = g.op("Relu", g.x); model = g.model(y)``."""

    def __init__(self, channels, height=6, width=7, seed=0):
        self.rng = np.random.default_rng(seed)
        self.channels, self.x = channels, "x"
        self.size = (height, width)
        self.nodes, self.constants, self.count = [], [], 0

    def const(self, array):
        self.count += 1
        name = f"k{self.count}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind, *inputs, domain="", **attributes):
        self.count += 1
        inputs = [i if isinstance(i, str) else "" if i is None else self.const(i) for i in inputs]
        name = f"v{self.count}"
        outputs = [f"{name}_{i}" for i in range(attributes.pop("outputs", 1))]
        self.nodes.append(helper.make_node(kind, inputs, outputs, f"{kind}{self.count}", domain=domain, **attributes))
        return outputs[0] if len(outputs) == 1 else outputs

    def binary(self, x, ic, oc, kernel=(3, 3), pads=(1, 1, 1, 1), grid=True, threshold=None, residual_input=None,
               parameters=None, **attributes):
        """A binary node of random weights; scale and bias on the 2^-14 grid unless ``grid`` is false."""
        rng, groups = self.rng, attributes.get("groups", 1)
        words, tail = -(-(ic // groups) // 32), (ic // groups) % 32
        weight = rng.integers(0, 2**32, (oc, *kernel, words), dtype=np.uint64).astype(np.uint32)
        if tail:
            weight[..., -1] &= (1 << tail) - 1
        scale, bias = rng.normal(0, 0.1, oc), rng.normal(0, 0.5, oc)
        if grid:
            scale, bias = np.round(scale * 2**14) / 2**14, np.round(bias * 2**14) / 2**14
        threshold = rng.normal(0, 0.5, ic) if threshold is None else threshold
        f = np.float32
        defaults = {"version": 1, "bit_order": 1, "in_channels": ic, "out_channels": oc, "kernel_h": kernel[0],
                    "kernel_w": kernel[1], "pad_value": 0, "pad_top": pads[0], "pad_left": pads[1],
                    "pad_bottom": pads[2], "pad_right": pads[3]}
        inputs = [x, weight.view(np.int32), threshold.astype(f), scale.astype(f), bias.astype(f),
                  None if parameters is None else parameters.astype(f), residual_input]
        while inputs[-1] is None:
            inputs.pop()
        return self.op("BinaryConv2d", *inputs, domain="irstd", **{**defaults, **attributes})

    def quant(self, x, ic, oc, kernel=(3, 3), pads=(1, 1, 1, 1), bits=(4, 4), inverse_step=2.5, **attributes):
        """A quantised node of random weights."""
        rng, per = self.rng, ic // attributes.get("groups", 1)
        size = kernel[0] * kernel[1] * per * bits[0]
        weight = np.packbits(rng.integers(0, 2, (oc, size)).astype(np.uint8), axis=1, bitorder="little")
        f = np.float32
        given = {"version": 1, "in_channels": ic, "out_channels": oc, "kernel_h": kernel[0], "kernel_w": kernel[1],
                 "pad_top": pads[0], "pad_left": pads[1], "pad_bottom": pads[2], "pad_right": pads[3],
                 "weight_bits": bits[0], "activation_bits": bits[1], "inverse_step": inverse_step}
        return self.op("QuantConv2d", x, weight, rng.normal(0, 0.02, oc).astype(f), rng.normal(0, 0.5, oc).astype(f),
                       domain="irstd", **given | attributes)

    def fixed_point(self, x, fraction_bits, bits):
        return self.op("FixedPoint", x, domain="irstd", version=1, fraction_bits=fraction_bits, bits=bits)

    def proto(self, output, dynamic=False, outputs=()):
        size = ["H", "W"] if dynamic else list(self.size)
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, self.channels, *size])]
        results = [helper.make_empty_tensor_value_info(o) for o in (output, *outputs)]
        graph = helper.make_graph(self.nodes, "g", inputs, results, self.constants)
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("irstd", 1)]
        return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=8),
                                                 strict_mode=True, data_prop=True)

    def model(self, output, dynamic=False, outputs=()):
        return ir.from_proto(self.proto(output, dynamic, outputs))

    def input(self, seed=1, scale=1.0):
        shape = (1, self.channels, *self.size)
        return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def kinds(model):
    return [node.op_type for node in model.graph]

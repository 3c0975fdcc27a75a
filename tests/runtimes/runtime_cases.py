"""Random ``irstd.BinaryConv2d`` nodes, small ONNX and TFLite files of them, and their true outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from irstd_edge.nn.functional import binary_conv2d, pack_bits
from irstd_edge.opspec import BINARY_CONV2D, DOMAIN, Activation, BinaryConv2dSpec, Residual
from irstd_edge.runtimes import library

INPUT_NAMES = [operand.name for operand in BINARY_CONV2D.inputs]


@dataclass
class Case:
    """One node: its attributes, its constants by input name (None: absent), its run-time inputs (NCHW)."""

    spec: BinaryConv2dSpec
    signs: np.ndarray  # +1/-1, [OC, IC/groups, KH, KW]
    constants: dict[str, np.ndarray | None]
    x: np.ndarray
    residual: np.ndarray | None

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return (self.x.shape[0], self.spec.out_channels, *self.spec.output_size(*self.x.shape[2:]))

    def reference(self) -> np.ndarray:
        """The output of :mod:`irstd_edge.nn.functional`."""
        c = {k: None if v is None else torch.from_numpy(v) for k, v in self.constants.items()}
        return binary_conv2d(
            torch.from_numpy(self.x), c["weight"], c["threshold"], c["scale"], c["bias"], self.spec,
            c["activation_parameters"], None if self.residual is None else torch.from_numpy(self.residual),
        ).numpy()

    def truth(self) -> np.ndarray:
        """The output by NumPy: a float64 convolution of +1/-1, each later step rounded to float32."""
        s, f = self.spec, np.float32
        b = np.where(self.x >= self.constants["threshold"][:, None, None], 1.0, -1.0)
        b = np.pad(b, ((0, 0), (0, 0), (s.pad_top, s.pad_bottom), (s.pad_left, s.pad_right)),
                   constant_values=s.pad_value)
        n, oc, oh, ow = self.output_shape
        acc = np.zeros((n, oc, oh, ow))
        ig, og = s.in_channels // s.groups, oc // s.groups
        for ky in range(s.kernel_h):
            for kx in range(s.kernel_w):
                tap = b[:, :, ky * s.dilation_h:, kx * s.dilation_w:][:, :, ::s.stride_h, ::s.stride_w][:, :, :oh, :ow]
                for g in range(s.groups):
                    acc[:, g * og:(g + 1) * og] += np.einsum(
                        "nihw,oi->nohw", tap[:, g * ig:(g + 1) * ig], self.signs[g * og:(g + 1) * og, :, ky, kx])
        column = {k: None if v is None else v[..., None, None] for k, v in self.constants.items()}
        # With fraction_bits every step rounds half up to integers and saturates; without, both are nothing.
        fixed, unit = s.fraction_bits >= 0, f(2.0 ** max(s.fraction_bits, 0))

        def rnd(v):
            return np.floor(v * unit + f(0.5)) if fixed else v

        def sat(q):
            return np.clip(q, f(-32768), f(32767)) if fixed else q

        v = sat(sat(rnd(acc.astype(f) * column["scale"])) + rnd(column["bias"]))

        def activate(u):
            if s.activation == Activation.RPRELU:
                shift_in, slope, shift_out = column["activation_parameters"]
                u = sat(u - rnd(shift_in))
                return sat(np.where(u >= 0, u, sat(rnd(u / unit * slope))) + rnd(shift_out))
            if s.activation == Activation.CLAMP:
                return np.minimum(np.maximum(u, sat(rnd(f(s.clamp_min)))), sat(rnd(f(s.clamp_max))))
            return u

        def combine(u):
            if s.residual == Residual.NONE:
                return u
            rc = self.residual.shape[1]
            given = sat(rnd(self.residual))
            if rc <= oc:
                r = np.tile(given, (1, oc // rc, 1, 1))
            else:
                r = given[:, :oc]
                for j in range(1, rc // oc):
                    r = r + given[:, j * oc:(j + 1) * oc]
                r = rnd(r / f(rc // oc) / unit)
            if s.residual == Residual.ADD:
                return sat(u + r)
            return sat(rnd(r / unit + r / unit * np.tanh((u / unit).astype(np.float64)).astype(f)))

        y = combine(activate(v)) if s.activation_first else activate(combine(v))
        return (y / unit).astype(f)

    def check(self, y: np.ndarray, message: str = "") -> None:
        """``y`` is bit-exact; where a tanh is in it, within its rounding (and of the fixed-point step)."""
        assert y.dtype == np.float32 and y.shape == self.output_shape, (y.dtype, y.shape, self.output_shape, message)
        if self.spec.residual == Residual.MODULATE:
            step = 0 if self.spec.fraction_bits < 0 else 2.0**-self.spec.fraction_bits
            tolerance = {"rtol": 2e-6, "atol": 2e-6 + step}
            np.testing.assert_allclose(y, self.truth(), **tolerance, err_msg=message)
            np.testing.assert_allclose(y, self.reference(), **tolerance, err_msg=message)
        else:
            np.testing.assert_array_equal(y, self.truth(), err_msg=message)
            np.testing.assert_array_equal(y, self.reference(), err_msg=message)


def make_case(seed: int, size: tuple[int, int] | None = None, batch: int | None = None, **attributes) -> Case:
    """A random node; ``attributes`` fix some of it."""
    r = np.random.default_rng(seed)
    pick = lambda *options: options[r.integers(len(options))]  # noqa: E731
    groups = int(pick(1, 1, 1, 2, 4))
    fixed = {
        "groups": groups,
        "in_channels": groups * int(pick(1, 3, 8, 16, 33)),
        "out_channels": groups * int(pick(1, 2, 5, 16)),
        "kernel_h": int(pick(1, 3, 3, 5)), "kernel_w": int(pick(1, 3, 3, 2)),
        "stride_h": int(pick(1, 1, 2)), "stride_w": int(pick(1, 1, 3)),
        "dilation_h": int(pick(1, 1, 2)), "dilation_w": int(pick(1, 1, 2)),
        "pad_top": int(r.integers(3)), "pad_left": int(r.integers(3)),
        "pad_bottom": int(r.integers(3)), "pad_right": int(r.integers(3)),
        "pad_value": int(pick(-1, 0, 0, 1)),
        "residual": int(r.integers(3)), "activation": int(r.integers(3)), "activation_first": int(r.integers(2)),
        "fraction_bits": int(pick(-1, -1, 8)),
    } | attributes
    if fixed["activation"] == Activation.CLAMP:
        fixed = {"clamp_min": -3.5, "clamp_max": 4.25} | fixed
    spec = BinaryConv2dSpec(**fixed)
    size = size or (int(r.integers(9, 20)), int(r.integers(9, 20)))
    ic, oc = spec.in_channels, spec.out_channels
    floats = lambda *shape: r.standard_normal(shape).astype(np.float32)  # noqa: E731
    signs = np.where(r.random((oc, ic // spec.groups, spec.kernel_h, spec.kernel_w)) < 0.5, -1.0, 1.0)
    constants = {
        "weight": pack_bits(torch.from_numpy(signs > 0)).numpy(),
        "threshold": floats(ic) * np.float32(0.3), "scale": floats(oc), "bias": floats(oc),
        "activation_parameters": floats(3, oc) if spec.activation == Activation.RPRELU else None,
    }
    x = floats(batch or int(pick(1, 1, 2)), ic, *size)
    x[..., 0, 0] = constants["threshold"]  # sign(0) = +1
    case = Case(spec, signs, constants, x, None)
    if spec.residual:
        counts = [oc, 2 * oc, 3 * oc, 1, *([oc // 2] if oc % 2 == 0 else [])]
        n, _, oh, ow = case.output_shape
        case.residual = floats(n, int(pick(*counts)), oh, ow)
    return case


def at_size(case: Case, height: int, width: int, seed: int = 0) -> Case:
    """The same node for another image size."""
    r = np.random.default_rng(seed)
    new = replace(case, x=r.standard_normal((*case.x.shape[:2], height, width)).astype(np.float32))
    if case.residual is not None:
        shape = (new.x.shape[0], case.residual.shape[1], *new.output_shape[2:])
        new.residual = r.standard_normal(shape).astype(np.float32)
    return new


# ---- ONNX ----


def onnx_node(case: Case, x: str, y: str, residual_name: str | None, name: str, drop=(), **attributes):
    """The node and its initializers; ``drop`` leaves attributes out, ``attributes`` overrides them."""
    inputs, initializers = [x], []
    for key, value in case.constants.items():
        inputs.append("" if value is None else f"{name}.{key}")
        if value is not None:
            initializers.append(numpy_helper.from_array(value, f"{name}.{key}"))
    inputs.append(residual_name or "")
    while not inputs[-1]:
        inputs.pop()
    values = {k: v for k, v in (case.spec.attributes() | attributes).items() if k not in drop}
    return helper.make_node(BINARY_CONV2D.name, inputs, [y], name, domain=DOMAIN, **values), initializers


def onnx_model(nodes, initializers, inputs: dict[str, tuple], outputs: dict[str, tuple]) -> bytes:
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)  # noqa: E731
    graph = helper.make_graph(
        nodes, "g", [value(*i) for i in inputs.items()], [value(*o) for o in outputs.items()], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)])
    model.ir_version = 9
    return model.SerializeToString()


def single_onnx(case: Case, **overrides) -> bytes:
    """A dynamic-shape model of one node: inputs ``x`` and, where it has one, ``r``."""
    node, initializers = onnx_node(case, "x", "y", "r" if case.residual is not None else None, "conv", **overrides)
    inputs = {"x": ("n", case.x.shape[1], "h", "w")}
    if case.residual is not None:
        inputs["r"] = ("n", case.residual.shape[1], "oh", "ow")
    return onnx_model([node], initializers, inputs, {"y": ("n", case.spec.out_channels, "oh", "ow")})


def feeds(case: Case) -> dict[str, np.ndarray]:
    return {"x": case.x} | ({} if case.residual is None else {"r": case.residual})


def load_onnx(model: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(model)


# ---- TFLite ----

#: Of the schema's TensorType.
TENSOR_TYPES = {np.dtype(np.float32): 0, np.dtype(np.int32): 2, np.dtype(np.uint8): 3}


class TfliteBuilder:
    """Writes a small .tflite file with the object API of the schema."""

    def __init__(self):
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.tensors, self.buffers, self.codes, self.operators = [], [schema.BufferT()], [], []
        self.buffers[0].data = []

    def tensor(self, name: str, shape, data: np.ndarray | None = None, signature=None) -> int:
        t = self.schema.TensorT()
        t.name, t.shape = name, [int(n) for n in shape]
        t.shapeSignature = signature
        t.type = TENSOR_TYPES[np.dtype(np.float32) if data is None else data.dtype]
        t.buffer = 0
        if data is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.buffers.append(buffer)
            t.buffer = len(self.buffers) - 1
        self.tensors.append(t)
        return len(self.tensors) - 1

    def operator(self, inputs, outputs, builtin: int | None = None, options=None, options_type: int = 0,
                 custom: str | None = None, custom_options: bytes = b"") -> None:
        code = self.schema.OperatorCodeT()
        code.builtinCode = 32 if builtin is None else builtin  # 32: CUSTOM
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.customCode, code.version = custom, 1
        self.codes.append(code)
        o = self.schema.OperatorT()
        o.opcodeIndex, o.inputs, o.outputs = len(self.codes) - 1, list(inputs), list(outputs)
        o.builtinOptions, o.builtinOptionsType = options, options_type
        if custom_options:
            o.customOptions = np.frombuffer(custom_options, np.uint8)
        self.operators.append(o)

    def conv(self, case: Case, x: int, y: int, residual_tensor: int | None = None, name: str = "conv",
             options: bytes | None = None, drop=(), **attributes) -> None:
        from flatbuffers import flexbuffers

        inputs = [x]
        for key, value in case.constants.items():
            inputs.append(-1 if value is None else self.tensor(f"{name}.{key}", value.shape, value))
        inputs.append(-1 if residual_tensor is None else residual_tensor)
        values = {k: v for k, v in (case.spec.attributes() | attributes).items() if k not in drop}
        self.operator(inputs, [y], custom=BINARY_CONV2D.tflite_name,
                      custom_options=flexbuffers.Dumps(values) if options is None else options)

    def finish(self, inputs, outputs) -> bytes:
        import flatbuffers

        graph = self.schema.SubGraphT()
        graph.tensors, graph.inputs, graph.outputs = self.tensors, list(inputs), list(outputs)
        graph.operators, graph.name = self.operators, "main"
        model = self.schema.ModelT()
        model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, self.codes, [graph], self.buffers
        model.description = ""
        builder = flatbuffers.Builder(4096)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def nhwc(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def nchw(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def nhwc_shape(shape) -> tuple[int, ...]:
    return (shape[0], shape[2], shape[3], shape[1])


def single_tflite(case: Case, **overrides) -> bytes:
    """A model of one node: inputs x and, where it has one, the residual."""
    b = TfliteBuilder()
    inputs = [b.tensor("x", nhwc_shape(case.x.shape))]
    if case.residual is not None:
        inputs.append(b.tensor("r", nhwc_shape(case.residual.shape)))
    y = b.tensor("y", nhwc_shape(case.output_shape))
    b.conv(case, inputs[0], y, inputs[1] if len(inputs) > 1 else None, **overrides)
    return b.finish(inputs, [y])


# ---- runtimes ----


def open_onnx(model: bytes, threads: int = 1, operator_threads: str | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if operator_threads is not None:
        options.add_session_config_entry("irstd.threads", operator_threads)
    options.register_custom_ops_library(str(library.find("ort")))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def delegate(**options):
    from ai_edge_litert import interpreter

    return interpreter.load_delegate(str(library.find("tflite")), options)


def open_tflite(model: bytes, threads: int | None = 1, **options):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(
        model_content=model, num_threads=threads, experimental_delegates=[delegate(**options)])


def run_tflite(interpreter, *inputs: np.ndarray) -> list[np.ndarray]:
    """NCHW in and out; the sizes are those of the inputs."""
    for detail, x in zip(interpreter.get_input_details(), inputs, strict=True):
        if tuple(detail["shape"]) != nhwc_shape(x.shape):
            interpreter.resize_tensor_input(detail["index"], nhwc_shape(x.shape))
    interpreter.allocate_tensors()
    for detail, x in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], nhwc(x))
    interpreter.invoke()
    return [nchw(interpreter.get_tensor(detail["index"])) for detail in interpreter.get_output_details()]


# What runs in the oldest supported runtimes, in an environment of its own.
OLD_ONNXRUNTIME = """
import json, sys
import numpy as np, onnxruntime
folder, library = sys.argv[1:]
for index, threads in json.load(open(folder + "/cases.json")):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("irstd.threads", str(threads))
    options.register_custom_ops_library(library)
    with np.load(f"{folder}/{index}.npz") as data:
        inputs = {k: data[k] for k in data if k != "model"}
        session = onnxruntime.InferenceSession(data["model"].tobytes(), options, providers=["CPUExecutionProvider"])
    np.save(f"{folder}/{index}-{threads}.npy", session.run(None, inputs)[0])
try:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(library)
    onnxruntime.InferenceSession(folder + "/bad.onnx", options, providers=["CPUExecutionProvider"])
except Exception as e:
    print(onnxruntime.__version__, e)
"""

OLD_TFLITE = """
import json, sys
import numpy as np
from tflite_runtime.interpreter import Interpreter, load_delegate
folder, library = sys.argv[1:]
for index, threads, inputs in json.load(open(folder + "/cases.json")):
    delegate = load_delegate(library)
    interpreter = Interpreter(f"{folder}/{index}.tflite", num_threads=threads, experimental_delegates=[delegate])
    for repeat in range(2):
        interpreter.allocate_tensors()
        for i, detail in enumerate(interpreter.get_input_details()):
            interpreter.set_tensor(detail["index"], np.load(f"{folder}/{index}-{i}.npy"))
        interpreter.invoke()
    np.save(f"{folder}/{index}-{threads}-out.npy", interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
try:
    Interpreter(folder + "/bad.tflite", experimental_delegates=[load_delegate(library)]).allocate_tensors()
except (RuntimeError, ValueError) as e:
    print(e)
"""

"""Every row of the TFLite operator table against ONNX Runtime, at odd sizes, and what is refused."""

import numpy as np
import pytest
from export_truth import Graph, operator_names, run_ort, run_tflite

from irstd_edge.errors import UnsupportedError

pytest.importorskip("ai_edge_litert")
from irstd_edge.export.targets.tflite import to_tflite
from irstd_edge.export.targets.tflite_ops import WRITERS

F = np.float32
rng = np.random.default_rng(3)


def normal(*shape):
    return rng.standard_normal(shape).astype(F)


def conv(oc, k, groups=1, bias=True, kind="Conv", **attributes):
    def make(g, x):
        shape = (g.channels, oc // groups, *k) if kind == "ConvTranspose" else (oc, g.channels // groups, *k)
        return g.op(kind, x, normal(*shape), *([normal(oc)] if bias else []), group=groups, **attributes)
    return make


def op(kind, *constants, **attributes):
    return lambda g, x: g.op(kind, x, *constants, **attributes)


def resize(size, **attributes):
    return lambda g, x: g.op("Resize", x, None, None, np.array([1, g.channels, *size]), **attributes)


def scaled(scales, **attributes):
    return lambda g, x: g.op("Resize", x, None, np.array([1, 1, *scales], F), **attributes)


I = lambda *v: np.array(v, np.int64)  # noqa: E731, E741
CASES = {
    "conv": conv(5, (3, 3)),
    "conv same": conv(5, (3, 3), pads=[1, 1, 1, 1]),
    "conv stride, pads of PyTorch": conv(5, (3, 3), pads=[1, 1, 1, 1], strides=[2, 2]),
    "conv asymmetric": conv(5, (2, 3), pads=[0, 1, 2, 0], strides=[1, 2], bias=False),
    "conv dilated": conv(5, (3, 3), pads=[2, 2, 2, 2], dilations=[2, 2]),
    "conv auto_pad upper": conv(5, (4, 3), auto_pad="SAME_UPPER", strides=[2, 1]),
    "conv auto_pad lower": conv(5, (4, 2), auto_pad="SAME_LOWER"),
    "conv grouped": conv(6, (3, 3), groups=3, pads=[1, 1, 1, 1]),
    "conv depthwise": conv(6, (3, 3), groups=6, pads=[1, 1, 1, 1]),
    "conv depthwise dilated": conv(6, (3, 3), groups=6, pads=[2, 2, 2, 2], dilations=[2, 2]),
    "conv depthwise multiplier": conv(12, (3, 2), groups=6, strides=[2, 2]),
    "conv transpose 2": conv(4, (2, 2), kind="ConvTranspose", strides=[2, 2]),
    "conv transpose 4": conv(4, (4, 4), kind="ConvTranspose", strides=[2, 2], pads=[1, 1, 1, 1]),
    "conv transpose output_padding": conv(4, (3, 3), kind="ConvTranspose", strides=[2, 2], pads=[1, 1, 1, 1],
                                          output_padding=[1, 1], bias=False),
    "conv transpose beyond the end": conv(4, (2, 2), kind="ConvTranspose", strides=[3, 3], output_padding=[2, 1]),
    "conv transpose dilated": conv(4, (2, 3), kind="ConvTranspose", dilations=[2, 2], pads=[1, 0, 0, 1]),
    "conv transpose grouped": conv(6, (4, 4), groups=6, kind="ConvTranspose", strides=[2, 2], pads=[1, 1, 1, 1]),
    "max pool": op("MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
    "max pool padded": op("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "max pool ceil": op("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "average pool": op("AveragePool", kernel_shape=[2, 3], strides=[2, 1]),
    "average pool padded, pads count": op("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1],
                                          count_include_pad=1),
    "average pool padded": op("AveragePool", kernel_shape=[3, 3], strides=[1, 2], pads=[1, 1, 1, 1]),
    "average pool ceil": op("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "global average": op("GlobalAveragePool"),
    "global max": op("GlobalMaxPool"),
    "mean over channels": op("ReduceMean", I(1), keepdims=1),
    "mean over channels, dropped": op("ReduceMean", I(1), keepdims=0),
    "mean over height and width, dropped": op("ReduceMean", I(-1, -2), keepdims=0),
    "mean over width": op("ReduceMean", I(3), keepdims=1),
    "max over channels": op("ReduceMax", I(1), keepdims=1),
    "min over height": op("ReduceMin", I(2), keepdims=1),
    "sum over all": op("ReduceSum", keepdims=1),
    "resize half pixel": resize((11, 17), mode="linear", coordinate_transformation_mode="half_pixel"),
    "resize pytorch half pixel": scaled((2, 2), mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    "resize down": resize((3, 4), mode="linear", coordinate_transformation_mode="half_pixel"),
    "resize align corners": resize((11, 17), mode="linear", coordinate_transformation_mode="align_corners"),
    "resize nearest": resize((10, 17), mode="nearest", coordinate_transformation_mode="asymmetric",
                             nearest_mode="floor"),
    "resize nearest x2": scaled((2, 2), mode="nearest", coordinate_transformation_mode="asymmetric",
                                nearest_mode="floor"),
    "resize nearest-exact": scaled((3, 2), mode="nearest", coordinate_transformation_mode="half_pixel",
                                   nearest_mode="round_prefer_ceil"),
    "pad": op("Pad", I(0, 0, 1, 2, 0, 0, 3, 0)),
    "pad value on axes": op("Pad", I(1, 2, 0, 1), np.array(0.5, F), I(1, 3)),
    "pad negative": op("Pad", I(0, 0, -1, 2, 0, 0, 1, -2)),
    "pad reflect": op("Pad", I(0, 0, 2, 1, 0, 0, 1, 2), mode="reflect"),
    "batch norm": op("BatchNormalization", normal(6), normal(6), normal(6), np.abs(normal(6)) + F(0.1)),
    "add channel constant": op("Add", normal(6, 1, 1)),
    "add map constant": op("Add", normal(1, 1, 5, 7)),
    "add scalar": op("Add", np.array(1.5, F)),
    "add row": op("Add", normal(7)),
    "constant minus": lambda g, x: g.op("Sub", normal(1, 6, 1, 1), x),
    "divide": op("Div", np.abs(normal(6, 1, 1)) + F(0.5)),
    "multiply by channel gate": lambda g, x: g.op("Mul", x, g.op("Sigmoid", g.op("GlobalAveragePool", x))),
    "multiply by pixel gate": lambda g, x: g.op("Mul", x, g.op("ReduceMax", x, I(1), keepdims=1)),
    "sum of three": lambda g, x: g.op("Sum", x, normal(6, 1, 1), x),
    "min": op("Min", normal(6, 1, 1)),
    "max of three": lambda g, x: g.op("Max", x, np.array(0.1, F), normal(1, 6, 1, 1)),
    "pow": lambda g, x: g.op("Pow", g.op("Abs", x), np.array(1.5, F)),
    "compare and choose": lambda g, x: g.op("Where", g.op("GreaterOrEqual", x, normal(6, 1, 1)), np.array(1, F), x),
    "less, as number": lambda g, x: g.op("Cast", g.op("Less", x, np.array(0.2, F)), to=1),
    "greater": lambda g, x: g.op("Where", g.op("Greater", x, np.array(0, F)), x, np.array(-1, F)),
    "less or equal": lambda g, x: g.op("Where", g.op("LessOrEqual", x, np.array(0, F)), x, np.array(2, F)),
    "relu": op("Relu"),
    "relu6": op("Clip", np.array(0, F), np.array(6, F)),
    "relu n1 to 1": op("Clip", np.array(-1, F), np.array(1, F)),
    "clip": op("Clip", np.array(-0.3, F), np.array(0.7, F)),
    "clip below": op("Clip", np.array(-0.3, F)),
    "clip above": lambda g, x: g.op("Clip", x, None, np.array(0.2, F)),
    "prelu": op("PRelu", normal(6, 1, 1)),
    "prelu shared": op("PRelu", np.array([0.2], F)),
    "leaky relu": op("LeakyRelu", alpha=0.07),
    "sigmoid": op("Sigmoid"),
    "tanh": op("Tanh"),
    "hard sigmoid": op("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard swish": op("HardSwish"),
    "elu": op("Elu"),
    "exp": op("Exp"),
    "log": lambda g, x: g.op("Log", g.op("Exp", x)),
    "sqrt": lambda g, x: g.op("Sqrt", g.op("Abs", x)),
    "neg": op("Neg"),
    "floor": op("Floor"),
    "ceil": op("Ceil"),
    "round half to even": lambda g, x: g.op("Round", g.op("Mul", g.op("Round", x), np.array(0.5, F))),
    "softmax over channels": op("Softmax", axis=1),
    "concat channels": lambda g, x: g.op("Concat", x, g.op("Relu", x), axis=1),
    "concat rows": lambda g, x: g.op("Concat", x, g.op("Neg", x), axis=2),
    "concat constant": lambda g, x: g.op("Concat", x, normal(1, 2, 5, 7), axis=-3),
    "slice channels": op("Slice", I(1), I(4), I(1)),
    "slice from the end": op("Slice", I(-3, 1), I(2**62, -1), I(1, 2)),
    "slice with a step": op("Slice", I(0, 1), I(5, 7), I(2, 3), I(2, 3)),
    "split": lambda g, x: g.op("Add", *g.op("Split", x, I(3, 3), axis=1, outputs=2)),
    "split rows": lambda g, x: g.op("Split", x, I(2, 3), axis=2, outputs=2)[1],
    "gather channels": op("Gather", I(5, 0, -2), axis=1),
    "gather one channel, dropped": op("Gather", np.array(2), axis=1),
    "tile": op("Tile", I(1, 2, 1, 3)),
    "expand": lambda g, x: g.op("Expand", g.op("ReduceMean", x, I(1), keepdims=1), I(1, 6, 5, 7)),
    "squeeze and excite": lambda g, x: g.op("Mul", x, g.op("Reshape", g.op("Sigmoid", g.op("Gemm", g.op("Relu", g.op(
        "Gemm", g.op("Flatten", g.op("GlobalAveragePool", x)), normal(3, 6), normal(3), transB=1)), normal(3, 6)),
        ), I(1, 6, 1, 1))),
    "bias of a row": lambda g, x: g.op("Gemm", g.op("Flatten", g.op("GlobalAveragePool", x)), normal(6, 3),
                                       normal(1, 3)),
    "bias of one number": lambda g, x: g.op("Gemm", g.op("Flatten", g.op("GlobalAveragePool", x)), normal(6, 3),
                                            np.array(0.5, F)),
    "matmul": lambda g, x: g.op("MatMul", g.op("Squeeze", g.op("GlobalMaxPool", x), I(2, 3)), normal(6, 4)),
    "unsqueeze": lambda g, x: g.op("Add", x, g.op("Unsqueeze", g.op("ReduceMean", x, I(2, 3), keepdims=0), I(2, 3))),
    "flatten one channel": lambda g, x: g.op("Flatten", g.op("ReduceMean", x, I(1), keepdims=1)),
    "depth to space": lambda g, x: g.op("DepthToSpace", g.op("Concat", x, x, axis=1), blocksize=2, mode="CRD"),
    "depth to space DCR": lambda g, x: g.op("DepthToSpace", g.op("Concat", x, x, axis=1), blocksize=2, mode="DCR"),
    "tokens of a map": op("Reshape", I(1, 6, 35)),
    "tokens to a map": lambda g, x: g.op("Reshape", g.op("Relu", g.op("Reshape", x, I(1, 6, 35))), I(1, 6, 5, 7)),
    "tokens to another map": lambda g, x: g.op("Reshape", g.op("Reshape", x, I(210)), I(1, 3, 14, 5)),
    "tokens flattened": op("Flatten"),
    "tokens transposed": lambda g, x: g.op("Transpose", g.op("Reshape", x, I(1, 6, 35)), perm=[0, 2, 1]),
    "tokens of a transposed map": op("Transpose", perm=[0, 3, 1, 2]),
    "tokens of a reversed map": op("Transpose"),
    "tokens in a linear layer": lambda g, x: g.op("Add", g.op("MatMul", g.op("Reshape", x, I(1, 35, 6)), normal(6, 4)),
                                                  normal(4)),
    "tokens by tokens": lambda g, x: g.op(
        "Softmax", g.op("MatMul", g.op("Reshape", x, I(1, 35, 6)), g.op("Reshape", x, I(1, 6, 35))), axis=-1),
    "tokens normalised": lambda g, x: g.op("LayerNormalization", g.op("Reshape", x, I(1, 35, 6)), normal(6), normal(6),
                                           axis=-1, epsilon=1e-3),
    "tokens normalised without offset": lambda g, x: g.op("LayerNormalization", g.op("Reshape", x, I(1, 35, 6)),
                                                          normal(6)),
    "integers as floats": lambda g, x: g.op(
        "DequantizeLinear", g.op("QuantizeLinear", g.op("Mul", x, F(100)), F(1), np.int8(3)), F(1), np.int8(3)),
    "integer weights": lambda g, x: g.op("Conv", x, g.op(
        "DequantizeLinear", np.arange(-27, 27, dtype=np.int8).reshape(3, 6, 3, 1), F(1), np.int8(2))),
    "identity and dropout": lambda g, x: g.op("Relu", g.op("Dropout", g.op("Identity", x))),
}


@pytest.mark.parametrize("name", CASES)
def test_operator(name):
    g = Graph(6, 5, 7)
    model = g.model(CASES[name](g, g.x))
    x = g.input(scale=2.0)
    data = to_tflite(model, (5, 7)).data
    assert ("TRANSPOSE" in operator_names(data)) == name.startswith("tokens")
    got, want = run_tflite(data, x), run_ort(model, x)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-5)


def test_the_whole_table_is_tested():
    """Every operator of the table occurs in a case above."""
    seen = set()
    for make in CASES.values():
        g = Graph(6, 5, 7)
        make(g, g.x)
        seen |= {node.op_type for node in g.nodes}
    assert {name for name in WRITERS if "::" not in name} <= seen


REFUSED = {
    "unknown operator": (op("Erf"), r"Erf .*has no TFLite form.*leave tflite out"),
    "another scale": (op("QuantizeLinear", F(0.5), np.int8(0)), "another scale than 1"),
    "cubic": (resize((9, 9), mode="cubic"), "cubic"),
    "antialias": (resize((3, 3), mode="linear", antialias=1), "antialias"),
    "nearest of another rounding": (resize((9, 9), mode="nearest"), "round_prefer_floor"),
    "tf crop": (resize((9, 9), mode="nearest", nearest_mode="floor"), "half_pixel"),
    "fractional scale": (scaled((1.3, 1.3), mode="linear"), "fraction of a pixel"),
    "edge padding": (op("Pad", I(0, 0, 1, 1, 0, 0, 1, 1), mode="edge"), "constant, reflect"),
    "dilated pool": (op("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]), "dilat"),
    "negative step": (op("Slice", I(-1), I(-100), I(1), I(-1)), "negative step"),
    "softmax over rows": (op("Softmax", axis=2), "over the channels"),
    "dropped axis across the layout": (op("ReduceMean", I(3), keepdims=0), "keepdim"),
    "dropped row": (op("Gather", np.array(1), axis=2), "layout"),
    "gather by a table": (op("Gather", I(1, 2).reshape(1, 2), axis=1), "multi-dimensional"),
    "layer norm of a map": (op("LayerNormalization", normal(7), normal(7)), r"last axis of \[N, T, C\]"),
    "maps by maps": (lambda g, x: g.op("MatMul", x, g.op("Transpose", x, perm=[0, 1, 3, 2])), "computed matrices"),
    "mixed ranks": (lambda g, x: g.op("Mul", x, g.op("ReduceMean", x, I(0, 1, 2), keepdims=0)), "mixes computed ranks"),
    "computed weights": (lambda g, x: g.op("Conv", x, g.op("Mul", g.op("ReduceMean", x), normal(4, 6, 1, 1))),
                         "computed weights"),
    "matrix product of maps": (op("MatMul", normal(7, 7)), "Linear"),
    "elu of another alpha": (op("Elu", alpha=0.5), r"Elu .*has alpha 0\.5"),
    "bias per row": (lambda g, x: g.op("Gemm", g.op("ReduceMean", g.op("ReduceMean", x, I(1), keepdims=1), I(0, 1),
                                                       keepdims=0), normal(7, 3), normal(5, 1)), "one per row"),
    "computed bias": (lambda g, x: g.op("Gemm", g.op("Flatten", g.op("GlobalAveragePool", x)), normal(6, 6),
                                        g.op("ReduceMean", x, I(0, 2, 3), keepdims=0)), "bias that is computed"),
    "computed clip": (lambda g, x: g.op("Clip", x, g.op("ReduceMin", x, keepdims=0)), "computed bounds"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name):
    make, message = REFUSED[name]
    g = Graph(6, 5, 7)
    with pytest.raises(UnsupportedError, match=message) as e:
        to_tflite(g.model(make(g, g.x)), (5, 7))
    assert "\n" not in str(e.value)


def test_another_size_of_a_fixed_model_is_refused():
    g = Graph(6, 5, 7)
    with pytest.raises(ValueError, match="choose that --input-size"):
        to_tflite(g.model(g.op("Relu", g.x)), (6, 7))


def test_shape_that_depends_on_data_is_refused():
    g = Graph(6, 5, 7)
    y = g.op("NonZero", g.x)
    with pytest.raises(UnsupportedError, match=r"depends on data|NonZero"):
        to_tflite(g.model(g.op("Cast", y, to=1)), (5, 7))

"""Every variant of irstd.BinaryConv2d, bit for bit, against numpy and against torch's float64 convolution."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import kernel_truth as truth
import numpy as np
import pytest
import torch
from kernel_library import NCHW, NHWC, RUN

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "binary_conv2d_fixed_point.json").read_text())
CHUNKS, CASES = 20, 25  # configurations per instruction set, each in both layouts


def attributes(**given) -> dict:
    defaults = {
        "version": 1, "bit_order": 1, "in_channels": 1, "out_channels": 1, "kernel_h": 1, "kernel_w": 1,
        "stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1, "pad_top": 0, "pad_left": 0, "pad_bottom": 0,
        "pad_right": 0, "groups": 1, "pad_value": 0, "residual": 0, "activation": 0, "activation_first": 1,
        "clamp_min": -np.inf, "clamp_max": np.inf, "fraction_bits": -1,
    }  # fmt: skip
    assert not set(given) - set(defaults)
    return defaults | given


def random_case(rng: np.random.Generator) -> dict:
    """A configuration and its tensors (NCHW)."""
    pick = rng.choice
    groups_kind = pick(["one", "some", "depthwise"], p=[0.7, 0.15, 0.15])
    if groups_kind == "one":
        groups, ic, oc = (
            1,
            int(pick([1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 31, 32, 33, 40, 64, 68])),
            int(rng.integers(1, 21)),
        )
    elif groups_kind == "some":
        groups = int(rng.integers(2, 5))
        ic, oc = groups * int(rng.integers(1, 14)), groups * int(rng.integers(1, 7))
    else:
        groups = ic = int(rng.integers(2, 20))
        oc = groups * int(pick([1, 1, 2]))
    kh, kw = (int(k) for k in pick([1, 2, 3, 3, 3, 4, 5], 2))
    a = attributes(
        in_channels=ic, out_channels=oc, groups=groups, kernel_h=kh, kernel_w=kw,
        stride_h=int(pick([1, 1, 2, 3])), stride_w=int(pick([1, 1, 1, 2, 3])),
        dilation_h=int(pick([1, 1, 2, 3])), dilation_w=int(pick([1, 1, 2, 3])),
        pad_value=int(pick([-1, 0, 0, 1])), residual=int(pick([0, 1, 1, 2])), activation=int(rng.integers(0, 3)),
        activation_first=int(rng.integers(0, 2)), fraction_bits=int(pick([-1, -1, 0, 4, 8, 15])),
    )  # fmt: skip
    if rng.random() < 0.5:
        same_h, same_w = a["dilation_h"] * (kh - 1) // 2, a["dilation_w"] * (kw - 1) // 2
        a |= {"pad_top": same_h, "pad_bottom": same_h, "pad_left": same_w, "pad_right": same_w}
    else:
        a |= {side: int(rng.integers(0, 6)) for side in ("pad_top", "pad_bottom", "pad_left", "pad_right")}
    if rng.random() < 0.3:  # the combination that the kernels specialise
        a |= {"residual": 1, "activation": 1, "activation_first": 1, "fraction_bits": int(pick([4, 8]))}
    if a["activation"] == 2:
        low, high = sorted(rng.normal(0, 3, 2).astype(np.float32).tolist())
        a |= {"clamp_min": pick([low, -np.inf]), "clamp_max": pick([high, np.inf])}
    extent_h, extent_w = a["dilation_h"] * (kh - 1) + 1, a["dilation_w"] * (kw - 1) + 1
    height = max(int(rng.integers(1, 14)), extent_h - a["pad_top"] - a["pad_bottom"])
    width = int(pick([rng.integers(1, 20), rng.integers(28, 36), rng.integers(60, 70), rng.integers(90, 135)],
                     p=[0.3, 0.35, 0.25, 0.1]))  # fmt: skip
    width = max(width, extent_w - a["pad_left"] - a["pad_right"])
    batch = int(pick([1, 1, 2]))
    oh = (height + a["pad_top"] + a["pad_bottom"] - extent_h) // a["stride_h"] + 1
    ow = (width + a["pad_left"] + a["pad_right"] - extent_w) // a["stride_w"] + 1

    def normal(*shape, scale=1.0):
        return rng.normal(0, scale, shape).astype(np.float32)

    threshold = normal(ic, scale=0.5)
    x = normal(batch, ic, height, width)
    exact = rng.random(x.shape) < 0.05  # values equal to the threshold, and the special ones
    x[exact] = np.broadcast_to(threshold[:, None, None], x.shape)[exact]
    special = rng.random(x.shape) < 0.02
    x[special] = pick(np.array([np.nan, np.inf, -np.inf, -0.0, 0.0], np.float32), int(special.sum()))
    threshold[rng.random(ic) < 0.1] = 0.0
    residual = None
    if a["residual"]:
        divisors = [d for d in range(1, oc + 1) if oc % d == 0]
        channels = int(pick([oc, int(pick(divisors)), oc * int(rng.integers(2, 5))], p=[0.5, 0.25, 0.25]))
        residual = normal(batch, channels, oh, ow, scale=float(pick([1, 1, 1000])))
        special = rng.random(residual.shape) < 0.02
        residual[special] = pick(np.array([np.nan, np.inf, -np.inf, -0.0, 1e30], np.float32), int(special.sum()))
    return {
        "a": a, "x": x, "w": np.where(rng.random((oc, ic // groups, kh, kw)) < 0.5, -1, 1), "threshold": threshold,
        "scale": normal(oc, scale=0.1), "bias": normal(oc),
        "parameters": normal(3, oc) if a["activation"] == 1 else None, "residual": residual,
        "threads": int(rng.integers(1, 4)),
    }  # fmt: skip


def expected(case: dict) -> np.ndarray:
    a = case["a"]
    b = truth.pad(truth.signs_of(case["x"], case["threshold"]), a)
    acc = truth.convolve(b, case["w"], a)
    with_torch = torch.nn.functional.conv2d(
        torch.from_numpy(b.astype(np.float64)), torch.from_numpy(case["w"].astype(np.float64)),
        stride=(a["stride_h"], a["stride_w"]), dilation=(a["dilation_h"], a["dilation_w"]), groups=a["groups"],
    )  # fmt: skip
    assert (with_torch.numpy() == acc).all()
    return truth.epilogue(acc, case["scale"], case["bias"], case["parameters"], case["residual"], a)


def run(core, case: dict, layout: int, **options) -> np.ndarray:
    """The kernel's output as NCHW."""
    op = core.bconv2d(case["a"], truth.pack(case["w"]), case["threshold"], case["scale"], case["bias"],
                      case["parameters"], layout=layout)  # fmt: skip
    x, residual = case["x"], case["residual"]
    if layout == NHWC:
        x = x.transpose(0, 2, 3, 1)
        residual = None if residual is None else residual.transpose(0, 2, 3, 1)
    y = op(x, residual, **({"threads": case["threads"]} | options))
    return np.ascontiguousarray(y.transpose(0, 3, 1, 2)) if layout == NHWC else y


_truths: dict = {}


def chunk_of(seed: int, cases: int = CASES):
    """Configurations and their truth; computed once for all instruction sets."""
    if (seed, cases) not in _truths:
        rng = np.random.default_rng(seed)
        made = [random_case(rng) for _ in range(cases)]
        _truths[seed, cases] = [(case, expected(case)) for case in made]
    return _truths[seed, cases]


@pytest.mark.parametrize("chunk", [0, 1, *(pytest.param(c, marks=pytest.mark.slow) for c in range(2, CHUNKS))])
def test_random_configurations(core, chunk):
    for number, (case, y) in enumerate(chunk_of(chunk)):
        for layout in (NCHW, NHWC):
            truth.assert_same_bits(run(core, case, layout), y, f"case {chunk}.{number} layout {layout}: {case['a']}")


def simple_case(x, w, **given) -> dict:
    """Threshold 0, scale 1, bias 0."""
    x, w = np.asarray(x, np.float32), np.asarray(w)
    oc, ic = w.shape[0], x.shape[1]
    a = attributes(in_channels=ic, out_channels=oc, kernel_h=w.shape[2], kernel_w=w.shape[3], **given)
    return {"a": a, "x": x, "w": w, "threshold": np.zeros(ic), "scale": np.ones(oc), "bias": np.zeros(oc),
            "parameters": None, "residual": None, "threads": 1}  # fmt: skip


@pytest.mark.parametrize("layout", [NCHW, NHWC])
class TestByHand:
    @pytest.mark.parametrize(
        "pad_value, golden",
        # all inputs +1, all weights +1, 3x3: the number of taps inside, plus the padding's sum
        [(0, [[4, 6, 4], [6, 9, 6], [4, 6, 4]]), (1, [[9] * 3] * 3), (-1, [[-1, 3, -1], [3, 9, 3], [-1, 3, -1]])],
    )
    def test_padding(self, core, layout, pad_value, golden):
        case = simple_case(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3), int), pad_value=pad_value, pad_top=1,
                           pad_left=1, pad_bottom=1, pad_right=1)  # fmt: skip
        assert run(core, case, layout)[0, 0].tolist() == golden

    def test_sign_of_special_values(self, core, layout):
        x = [[[[0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 0.5]]]]
        case = simple_case(x, np.ones((1, 1, 1, 1), int))
        # Denormal floats are zero.
        assert run(core, case, layout)[0, 0, 0].tolist() == [1, 1, -1, 1, -1, 1, 1, 1]
        case["threshold"] = np.array([0.5])
        assert run(core, case, layout)[0, 0, 0].tolist() == [-1, -1, -1, 1, -1, -1, -1, 1]
        case["threshold"] = np.array([np.nan])
        assert run(core, case, layout)[0, 0, 0].tolist() == [-1] * 8

    def test_bit_order(self, core, layout):
        """Channel 0 is the lowest bit; a set bit is +1."""
        x = np.array([1.0, -1, -1, -1, -1]).reshape(1, 5, 1, 1)
        op = core.bconv2d(attributes(in_channels=5, out_channels=3), np.array([0b00001, 0b10000, 0b11110]), np.zeros(5),
                          np.ones(3), np.zeros(3), layout=layout)  # fmt: skip
        y = op(x if layout == NCHW else x.transpose(0, 2, 3, 1))
        assert y.ravel().tolist() == [5, 1, -5]

    def test_taps_are_in_order(self, core, layout):
        """A correlation, not a convolution: the first weight meets the left pixel."""
        x = [[[[1.0, -1, -1, -1]]]]
        case = simple_case(x, np.array([[[[1, -1]]]]))
        assert run(core, case, layout)[0, 0, 0].tolist() == [2, 0, 0]

    @pytest.mark.parametrize("golden", GOLDEN["cases"], ids=lambda c: c["name"])
    def test_fixed_point_steps(self, core, layout, golden):
        oc, width = len(golden["scale"]), len(golden["x"])
        case = simple_case(np.reshape(golden["x"], (1, 1, 1, width)), np.ones((oc, 1, 1, 1), int),
                           **golden["attributes"])  # fmt: skip
        case |= {"scale": np.array(golden["scale"]), "bias": np.array(golden["bias"])}
        if "parameters" in golden:
            case["parameters"] = np.array(golden["parameters"])
        if "residual" in golden:
            case["residual"] = np.array(golden["residual"], np.float32).reshape(1, -1, 1, width)
        assert run(core, case, layout).reshape(oc, width).tolist() == golden["y"]

    def test_activation_and_residual_order(self, core, layout):
        x = np.array([1.0, -1.0]).reshape(1, 1, 1, 2)
        case = simple_case(x, np.ones((1, 1, 1, 1), int), residual=1, activation=1, activation_first=1)
        case |= {"parameters": np.array([[0.5], [2.0], [0.25]]), "residual": np.full((1, 1, 1, 2), -4.0)}
        assert run(core, case, layout).ravel().tolist() == [0.5 + 0.25 - 4, -3 + 0.25 - 4]
        case["a"] = case["a"] | {"activation_first": 0}
        assert run(core, case, layout).ravel().tolist() == [-7 + 0.25, -11 + 0.25]
        case["a"] = case["a"] | {"activation": 2, "clamp_min": -3.0, "clamp_max": 5.0}
        case["parameters"] = None
        assert run(core, case, layout).ravel().tolist() == [-3, -3]

    def test_residual_channels(self, core, layout):
        x = np.ones((1, 1, 1, 1))
        case = simple_case(x, np.ones((4, 1, 1, 1), int), residual=1)
        case["residual"] = np.array([10.0, 20.0]).reshape(1, 2, 1, 1)
        assert run(core, case, layout).ravel().tolist() == [11, 21, 11, 21]
        case = simple_case(x, np.ones((2, 1, 1, 1), int), residual=1)
        case["residual"] = np.array([1.0, 2, 3, 6]).reshape(1, 4, 1, 1)
        assert run(core, case, layout).ravel().tolist() == [3, 5]

    def test_many_channels_and_taps(self, core, layout):
        """Sums beyond int8 and int16 accumulators."""
        for channels, kernel in ((16, 3), (64, 3), (516, 5), (4096, 3), (1027, 6)):
            case = simple_case(np.ones((1, channels, kernel, kernel)), np.ones((1, channels, kernel, kernel), int))
            assert run(core, case, layout).ravel().tolist() == [channels * kernel * kernel]
            case["x"] = -case["x"]
            assert run(core, case, layout).ravel().tolist() == [-channels * kernel * kernel]

    @pytest.mark.parametrize("fraction_bits", [-1, 8])
    @pytest.mark.parametrize("scale", [3e38, 1e-37, np.inf, np.nan, 0.0])
    def test_extreme_scales(self, core, layout, scale, fraction_bits):
        rng = np.random.default_rng(0)
        case = simple_case(rng.normal(size=(1, 4, 3, 37)), np.where(rng.random((2, 4, 1, 1)) < 0.5, -1, 1),
                           fraction_bits=fraction_bits)  # fmt: skip
        case["scale"] = np.array([scale, 0.5], np.float32)
        truth.assert_same_bits(run(core, case, layout), expected(case))


@pytest.mark.parametrize("layout", [NCHW, NHWC])
@pytest.mark.parametrize(
    "given",
    [
        {"stride_w": 40, "pad_right": 100},  # stride beyond the kernel: unused phases
        {"dilation_w": 50, "pad_left": 60, "pad_right": 60},  # taps mostly outside
        {"dilation_h": 30, "pad_top": 40, "pad_bottom": 40, "pad_value": 1},
        {"pad_top": 20, "pad_bottom": 20, "pad_left": 200, "pad_right": 3},  # whole outputs outside the image
        {"stride_h": 7, "stride_w": 5, "dilation_w": 4, "pad_left": 11, "pad_right": 2, "pad_value": -1},
    ],
)
def test_far_geometry(core, layout, given):
    rng = np.random.default_rng(1)
    case = simple_case(rng.normal(size=(2, 6, 9, 33)), np.where(rng.random((5, 6, 3, 3)) < 0.5, -1, 1),
                       **({"pad_top": 30, "pad_bottom": 30, "pad_right": 100} | given))  # fmt: skip
    truth.assert_same_bits(run(core, case, layout), expected(case), given)


def test_large_kernel(core):
    rng = np.random.default_rng(2)
    case = simple_case(rng.normal(size=(1, 5, 31, 40)), np.where(rng.random((2, 5, 31, 31)) < 0.5, -1, 1), pad_top=3,
                       pad_right=30)  # fmt: skip
    for layout in (NCHW, NHWC):
        truth.assert_same_bits(run(core, case, layout), expected(case))


def test_concurrent_runs_share_one_operator(core):
    """run() on several threads with their own workspaces, and tasks of one run on several threads."""
    rng = np.random.default_rng(3)
    case = random_case(rng)
    while case["a"]["stride_h"] > 1 or case["x"].shape[2] < 8:
        case = random_case(rng)
    y = expected(case)
    op = core.bconv2d(case["a"], truth.pack(case["w"]), case["threshold"], case["scale"], case["bias"],
                      case["parameters"])  # fmt: skip
    failures = []

    @RUN
    def in_threads(_context, tasks, task, argument):
        threads = [threading.Thread(target=task, args=(argument, i)) for i in range(tasks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def work():
        try:
            for _ in range(5):
                truth.assert_same_bits(op(case["x"], case["residual"], threads=3, run=in_threads), y)
        except AssertionError as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_agrees_with_the_package(core):
    """The arithmetic that training and export use is the same one."""
    from irstd_edge.nn.functional import binary_conv2d, pack_bits
    from irstd_edge.opspec import BinaryConv2dSpec

    rng = np.random.default_rng(4)
    for _ in range(60):
        case = random_case(rng)
        a = case["a"]
        if a["residual"] == 2:
            continue  # torch has its own tanh

        def tensor(array):
            return None if array is None else torch.from_numpy(np.ascontiguousarray(array, np.float32))

        weight = pack_bits(torch.from_numpy(case["w"]) > 0)
        assert (weight.numpy() == truth.pack(case["w"])).all()
        y = binary_conv2d(tensor(case["x"]), weight, tensor(case["threshold"]), tensor(case["scale"]),
                          tensor(case["bias"]), BinaryConv2dSpec.from_attributes(a), tensor(case["parameters"]),
                          tensor(case["residual"]))  # fmt: skip
        np.testing.assert_array_equal(run(core, case, NCHW), y.numpy(), str(a))

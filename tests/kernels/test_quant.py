"""Quantised convolutions in the engine, bit for bit, against int64 sums and float32 steps of engine_truth.py."""

from __future__ import annotations

import numpy as np
import pytest
from engine_cases import SAME, SPECIAL, Builder, out_side
from engine_library import Engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_library import INVALID, UNSUPPORTED, KernelError
from program_files import node_place, patched
from test_engine import SOME_STRIPS, SOME_THREADS, available, check, image

from irstd_edge.program import OPERATORS, Program, write

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
WORK = 400_000  # multiply-accumulates of a layer, about


def geometry(draw, size) -> dict:
    some = st.sampled_from([1, 1, 1, 2, 3])
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (3, 3), (5, 5), (3, 1), (1, 5), (2, 3)]))
    g = {"kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": draw(some), "stride_w": draw(some),
         "dilation_h": draw(some), "dilation_w": draw(some)}
    if draw(st.booleans()):
        pads = [g["dilation_h"] * (kernel[0] - 1) // 2, g["dilation_w"] * (kernel[1] - 1) // 2] * 2
    else:
        pads = [draw(st.integers(0, 3)) for _ in range(4)]
    g |= dict(zip(("pad_top", "pad_left", "pad_bottom", "pad_right"), pads, strict=True))
    for axis, n in zip("hw", size, strict=True):
        if side(g, axis, n) < 1:
            g[f"kernel_{axis}"] = g[f"dilation_{axis}"] = 1
    return g


def side(g: dict, axis: str, n: int) -> int:
    pads = g["pad_top"] + g["pad_bottom"] if axis == "h" else g["pad_left"] + g["pad_right"]
    return out_side(n, g[f"kernel_{axis}"], g[f"stride_{axis}"], g[f"dilation_{axis}"], pads)


def quantiser(draw) -> tuple[tuple[int, int], dict]:
    bits = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    signed = bits[1] > 1 and draw(st.booleans())
    low, high = (-(2 ** (bits[1] - 1)), 2 ** (bits[1] - 1) - 1) if signed else (0, 2 ** bits[1] - 1)
    zero = draw(st.one_of(st.just(0), st.integers(low, high)))
    step = draw(st.sampled_from([2.0, 2.0 ** (bits[1] - 2), 0.37 * 2.0 ** bits[1], 2.0**-60, 2.0**60]))
    return bits, {"activation_signed": int(signed), "zero_point": zero, "inverse_step": float(np.float32(step))}


@st.composite
def quant_networks(draw) -> tuple[Program, list[np.ndarray]]:
    """Quantised layers behind each other, with readers of several kinds between them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = (draw(st.integers(1, 9)), draw(st.one_of(st.integers(1, 20), st.integers(30, 36), st.integers(60, 70))))
    b = Builder(draw(st.integers(1, 40)))
    x, outputs = 0, []
    images = [(rng.normal(0, 2, (b.tensors[0].channels, *size))).astype(np.float32)]
    for _ in range(draw(st.integers(1, 3))):
        before = draw(st.sampled_from(["", "", "copy", "fixed", "pool", "two", "three"]))
        inputs = x
        if before == "copy":
            inputs = b.add("Activation", x, b.tensors[x].channels, activation=1)
        elif before == "fixed" and b.tensors[x].fraction_bits < 0:
            inputs = b.fixed(x, 8)
        elif before == "pool" and min(size) > 1:
            inputs = b.add("MaxPool", x, b.tensors[x].channels, kernel_h=2, kernel_w=2, stride_h=1, stride_w=1)
            size = (size[0] - 1, size[1] - 1)
        elif before in ("two", "three"):
            inputs = tuple(b.add("Activation", x, b.tensors[x].channels, activation=1)
                           for _ in range(1 if before == "two" else 2)) + (x,)
        channels = sum(b.tensors[i].channels for i in (inputs if isinstance(inputs, tuple) else (inputs,)))
        g = geometry(draw, size)
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        groups = draw(st.sampled_from([1, 1, 1, *divisors])) if isinstance(inputs, int) else 1
        most = max(1, WORK // (channels // groups * g["kernel_h"] * g["kernel_w"] * size[0] * size[1]))
        out = groups * draw(st.integers(1, max(1, min(40, most) // groups)))
        bits, a = quantiser(draw)
        if draw(st.booleans()):
            a |= {"clamp_min": 0.0, "clamp_max": draw(st.sampled_from([float("inf"), 6.0]))}
        kernel = (g.pop("kernel_h"), g.pop("kernel_w"))
        x = b.quant(rng, inputs, out, kernel, bits, groups, **a, **g)
        size = (side({**g, "kernel_h": kernel[0], "kernel_w": kernel[1]}, "h", size[0]),
                side({**g, "kernel_h": kernel[0], "kernel_w": kernel[1]}, "w", size[1]))
        if draw(st.integers(0, 3)) == 0:
            outputs.append(x)
    if draw(st.booleans()) and {n.operator for n in b.nodes} <= {"QuantConv2d", "FixedPoint"}:
        some = rng.random(images[0].shape) < 0.05  # pools and activations of a NaN are another matter
        images[0][some] = rng.choice(SPECIAL, int(some.sum()))
    return b.finish(*dict.fromkeys([*outputs, x])), images


@QUICK
@given(case=quant_networks(), threads=SOME_THREADS, strip=SOME_STRIPS)
def test_quant_networks(library, case, threads, strip):
    check(library, available(library), *case, threads=threads, strip=strip, runs=2)


@pytest.mark.slow
@settings(QUICK, max_examples=2000)
@given(case=quant_networks(), threads=SOME_THREADS, strip=SOME_STRIPS)
def test_many_quant_networks(library, case, threads, strip):
    check(library, available(library), *case, threads=threads, strip=strip, runs=2)


@settings(QUICK, max_examples=60)
@given(case=quant_networks(), strip=SOME_STRIPS)
def test_quant_networks_emulated(emulated_library, case, strip):
    """The sources of AVX-512 and NEON on any x86 CPU."""
    check(emulated_library, ["avx512", "neon"], *case, strip=strip)

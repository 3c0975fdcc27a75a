"""Random networks on emulated cores: float layers against PyTorch in float64, quantised ones bit for bit."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from irstd_edge.benchmarks.arm.emulate import CORES, NATIVE, ROOT, compile_program, cross_build, emulate
from irstd_edge.program import Program, write

sys.path.insert(0, str(ROOT / "tests/kernels"))  # pytest's importlib mode does not
from engine_cases import SAME, Builder, float_networks, graphs, quant_networks
from engine_truth import run_program
from kernel_truth import assert_same_bits
from program_files import given_images, stream

SOURCE = ["-I", NATIVE / "include", ROOT / "tests/kernels/open_programs.c"]
CASES = 150
#: Of the largest value: float32 sums of some hundred products, and Winograd's.
FLOAT_TOLERANCE = 2e-5
#: Forms that must be among those that were computed.
FORMS = {"float": {"projection", "transposed", "depthwise", "winograd", "pointwise", "direct"},
         "graphs": {"int16", "cnt"}, "quantised": {"quantised"}}


def drawn(strategy) -> list[tuple]:
    cases = []

    @settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None,
              derandomize=True, phases=[Phase.generate])
    @given(strategy())
    def collect(case):
        cases.append(case)

    collect()
    return cases


def tolerances(kind: str, case: tuple) -> list[float | None]:
    """Of each output; 0: the same values, a zero of either sign; None: the same bits."""
    return case[2] if kind == "graphs" else [FLOAT_TOLERANCE if kind == "float" else None] * len(case[0].outputs)


def on_grids() -> tuple:
    """Convolutions from int16 to int16, which the strategies seldom draw."""
    rng, b = np.random.default_rng(7), Builder(2)
    x = b.conv(rng, b.fixed(0, 8), 12, grid=8, steps=16, **SAME)
    y = b.conv(rng, b.fixed(0, 4), 5, (5, 2), grid=4, steps=16, stride_h=2, pad_left=3)
    return b.finish(x, y), [np.zeros((2, 12, 45))], [0.0, 0.0]


def pooled() -> tuple:
    """A maximum pool of packed values, and a residual."""
    rng, b = np.random.default_rng(8), Builder(8)
    x = b.quant(rng, 0, 12, **SAME)
    pool = b.add("MaxPool", x, 12, kernel_h=2, kernel_w=2, stride_h=2, stride_w=2)
    y = b.quant(rng, pool, 9, **SAME)
    total = b.add("Add", (y, b.quant(rng, pool, 9, (1, 1))), 9, activation=1)
    return b.finish(b.quant(rng, total, 5, **SAME)), [rng.normal(0, 2, (8, 12, 46)).astype(np.float32)]


@pytest.fixture(scope="module", params=["float", "graphs", "quantised"])
def networks(request) -> tuple[str, list[tuple[Program, tuple[int, int], list[np.ndarray], list[float | None]]]]:
    """Programs, sizes of their images, what PyTorch makes of them, and what each output may be off."""
    found = []
    cases = drawn({"float": float_networks, "graphs": graphs, "quantised": quant_networks}[request.param])
    more = {"graphs": [on_grids], "quantised": [pooled]}.get(request.param, [])
    for case in [*cases, *(make() for make in more)]:
        size = case[1][0].shape[1:]
        truth = run_program(case[0], *given_images(case[0], size))
        found.append((case[0], size, truth, tolerances(request.param, case)))
    return request.param, found


@pytest.mark.parametrize("core", CORES)
def test_the_truth_on_every_core(core, networks, tmp_path):
    kind, networks = networks
    preset = CORES[core].preset
    library = cross_build(preset, "irstd_core") / "libirstd_core.a"
    program = compile_program(preset, tmp_path / "open", *SOURCE, "-static", library, "-lm", "-lpthread")
    (tmp_path / "stream").write_bytes(stream([(write(made), size) for made, size, *_ in networks]))
    emulated = emulate(core, [program, tmp_path / "results"], stdin=tmp_path / "stream", count=False)
    lines = emulated.output.splitlines()
    assert len(lines) == len(networks) and all(line.startswith("0 ") for line in lines)
    kernels = {kernel.removesuffix("__neon") for line in lines for kernel in line.split()[1:]}
    assert {kernel.split("_")[1] for kernel in kernels if "_" in kernel} >= FORMS[kind]
    if kind == "quantised":
        variant = "sdot" if "dotprod" in CORES[core].isa else "smlal"
        assert {kernel.split("_")[1] for kernel in kernels if "qconv" in kernel} == {variant}
    results = np.fromfile(tmp_path / "results", np.float32)
    for i, (_, _, truths, allowed) in enumerate(networks):
        for truth, tolerance in zip(truths, allowed, strict=True):
            y, results = results[:truth.size].reshape(truth.shape), results[truth.size:]
            if tolerance is not None:
                atol = tolerance * max(1, np.abs(truth).max())
                np.testing.assert_allclose(y, truth, rtol=0, atol=atol, err_msg=f"network {i}")
            else:
                assert_same_bits(y, truth, f"network {i}")
    assert not len(results)

"""The native core gives the same bits on ARM cores as on this machine."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from irstd_edge.benchmarks.arm.emulate import CORES, NATIVE, ROOT, compile_program, cross_build, emulate, run
from irstd_edge.program import Program, write

HERE = Path(__file__).parent
sys.path.insert(0, str(ROOT / "tests/kernels"))  # pytest's importlib mode does not: engine_cases
from engine_cases import SAME, Builder  # noqa: E402

SOURCES = ["-I", NATIVE / "include", ROOT / "tests/kernels/open_bconv2d.c", HERE / "tanhf.c", "-Wl,--wrap=tanhf"]
CASES = [150, 7]


def digests(output: str) -> dict[str, str]:
    assert output.startswith(f"{CASES[0]} cases\n")
    return dict(re.findall(r"^([\w-]+) ([0-9a-f]{16})$", output, re.MULTILINE))


@pytest.fixture(scope="session")
def expected(tmp_path_factory, host) -> str:
    """The digest of this machine, of all its instruction sets."""
    program = tmp_path_factory.mktemp("digest") / "digest"
    run(["cc", "-std=gnu11", "-O2", *SOURCES, host / "libirstd_core.a", "-lm", "-lpthread", "-o", program])
    found = digests(run([program, *CASES]))
    assert len(set(found.values())) == 1
    return found["ref"]


@pytest.mark.parametrize("core", CORES)
def test_every_instruction_set_gives_the_bits_of_this_machine(core, expected, tmp_path):
    preset = CORES[core].preset
    library = cross_build(preset, "irstd_core") / "libirstd_core.a"
    program = compile_program(preset, tmp_path / "digest", *SOURCES, "-static", library, "-lm", "-lpthread")
    found = digests(emulate(core, [program, *CASES], count=False).output)
    assert found and set(found.values()) == {expected}


RUNNER = ["-I", NATIVE / "include", NATIVE / "tools/irstd_bench.c"]


@pytest.fixture(scope="session")
def network(tmp_path_factory, bundle, host) -> tuple[list, np.ndarray]:
    """Arguments of the C runner, and what it gives on this machine."""
    folder = tmp_path_factory.mktemp("network")
    np.load(bundle / "input.npy").tofile(folder / "input.raw")
    run(["cc", "-std=gnu11", "-O2", *RUNNER, host / "libirstd_core.a", "-lm", "-lpthread", "-o", folder / "runner"])
    arguments = [bundle / "model.irstd", "--height", 64, "--width", 64, "--warmup", 0, "--runs", 1, "--input",
                 folder / "input.raw", "--output"]
    run([folder / "runner", *arguments, folder / "output.raw"])
    return arguments, np.fromfile(folder / "output.raw", np.float32)


@pytest.mark.parametrize("core", CORES)
def test_the_engine_gives_the_same_probabilities(core, network, tmp_path):
    """Not the same bits: the float head and its sigmoid sum in the order that suits the core."""
    arguments, expected = network
    preset = CORES[core].preset
    library = cross_build(preset, "irstd_core") / "libirstd_core.a"
    program = compile_program(preset, tmp_path / "runner", *RUNNER, "-static", library, "-lm", "-lpthread")
    for isa in ("ref", None):
        forced = {"IRSTD_ISA": isa} if isa else {}
        emulate(core, [program, *arguments, tmp_path / "output.raw"], env=forced, count=False)
        found = np.fromfile(tmp_path / "output.raw", np.float32)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6, err_msg=str(isa))


def quantised(weight_bits: int, activation_bits: int, signed: int) -> Program:
    """Dense, strided, joined, pointwise and depthwise layers; nothing between them rounds."""
    rng, bits = np.random.default_rng(3), (weight_bits, activation_bits)
    a = {"bits": bits, "activation_signed": signed, "zero_point": 1}
    b = Builder(6)
    x = b.quant(rng, 0, 16, clamp_min=0.0, **a, **SAME)
    y = b.quant(rng, x, 20, **a, **SAME)
    half = b.quant(rng, x, 20, stride_h=2, stride_w=2, **a, **SAME)
    up = b.add("Resize", half, 20, scale_h=2, scale_w=2, mode=0)
    z = b.quant(rng, (x, y, up), 13, (1, 1), **a)
    return b.finish(b.quant(rng, z, 13, groups=13, **a, **SAME), z)


@pytest.mark.parametrize("core", CORES)
def test_quantised_layers_give_the_bits_of_this_machine(core, host, tmp_path):
    preset = CORES[core].preset
    library = cross_build(preset, "irstd_core") / "libirstd_core.a"
    program = compile_program(preset, tmp_path / "runner", *RUNNER, "-static", library, "-lm", "-lpthread")
    run(["cc", "-std=gnu11", "-O2", *RUNNER, host / "libirstd_core.a", "-lm", "-lpthread", "-o", tmp_path / "here"])
    np.random.default_rng(1).normal(0, 1, (6, 24, 72)).astype(np.float32).tofile(tmp_path / "input.raw")
    kernels = set()
    for bits in [(1, 1, 0), (2, 2, 1), (4, 4, 0), (8, 8, 1), (8, 8, 0), (3, 5, 0), (8, 7, 0), (5, 8, 1)]:
        (tmp_path / "model.irstd").write_bytes(write(quantised(*bits)))
        arguments = [tmp_path / "model.irstd", "--height", 24, "--width", 72, "--warmup", 0, "--runs", 1, "--input",
                     tmp_path / "input.raw", "--output"]
        run([tmp_path / "here", *arguments, tmp_path / "expected.raw"])
        told = json.loads(emulate(core, [program, *arguments, tmp_path / "output.raw"], count=False).output)
        kernels |= {layer["kernel"] for layer in told["engine"]["layers"] if layer["op"] == "QuantConv2d"}
        assert (tmp_path / "output.raw").read_bytes() == (tmp_path / "expected.raw").read_bytes(), bits
    expected = "sdot" if "dotprod" in CORES[core].isa else "smlal"
    assert kernels and all(expected in kernel for kernel in kernels)

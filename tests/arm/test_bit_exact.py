"""The native core gives the same bits on ARM cores as on this machine."""

from __future__ import annotations

import re

import numpy as np
import pytest

from irstd_edge.benchmarks.arm.emulate import CORES, NATIVE, ROOT, compile_program, cross_build, emulate, run

SOURCES = ["-I", NATIVE / "include", ROOT / "tests/kernels/open_bconv2d.c"]
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

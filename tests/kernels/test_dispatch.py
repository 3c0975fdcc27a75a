"""Dispatch asks the CPU for everything that the compiler was allowed to use."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from engine_cases import SAME, Builder
from kernel_build import NATIVE, build

from irstd_edge.program import write

#: Macros that flags define besides those of features: what fuses, and sizes of registers.
NO_FEATURE = re.compile(r"__FP_FAST_\w+|__EVEX\d+__|__ARM_NEON__|__(SSE|SSE2)_MATH__")


def macros(compiler: list[str], *flags: str) -> set[str]:
    """Those that are defined as 1."""
    text = subprocess.run([*compiler, *flags, "-dM", "-E", "-x", "c", "/dev/null"], capture_output=True, text=True,
                          check=True).stdout
    return set(re.findall(r"^#define (\w+) 1$", text, re.MULTILINE))


@pytest.mark.parametrize(("toolchain", "compiler"), [
    (None, "cc"), ("aarch64", "aarch64-linux-gnu-gcc"), ("armv7", "arm-linux-gnueabihf-gcc")])
def test_features_of_compiler_flags_are_asked_for(toolchain, compiler, tmp_path):
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    options = [f"-DCMAKE_TOOLCHAIN_FILE={NATIVE}/cmake/{toolchain}.cmake"] if toolchain else []
    folder = build(str(tmp_path), "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *options, targets=())
    asked = set(re.findall(r"F\((\w+), ", (NATIVE / "core/cpu.h").read_text()))
    flags = {tuple(f for f in shlex.split(entry["command"]) if re.match(r"-m(?!cmodel|prefer)", f))
             for entry in json.loads((folder / "compile_commands.json").read_text())}
    assert () in flags and len(flags) > 1
    before = macros([compiler])
    allowed = {macro for some in flags for macro in macros([compiler], *some) - before}
    allowed = {macro for macro in allowed if not NO_FEATURE.fullmatch(macro)}
    assert allowed and allowed <= asked


@pytest.fixture(scope="module")
def bench():
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("qemu-x86_64 is not installed (Debian: qemu-user)")
    program = build("kernel-tests", targets=("irstd_bench",)) / "irstd_bench"
    return [emulator, "-cpu"], program


@pytest.mark.slow
@pytest.mark.parametrize(("cpu", "isa"), [
    ("max", "avx2"), ("Haswell", "avx2"), ("Nehalem", "ref"),
    *((f"max,-{feature}", "ref") for feature in ("avx2", "fma", "f16c", "avx", "xsave", "popcnt"))])
def test_a_cpu_that_lacks_a_feature(bench, cpu, isa, tmp_path):
    """QEMU ends programs by SIGILL where they use what its CPU lacks. It has no AVX-512."""
    emulator, program = bench
    rng, b = np.random.default_rng(0), Builder(8)
    y = b.quant(rng, b.binary(rng, b.fixed(b.conv(rng, 0, 12, **SAME), 8), 8, **SAME), 4, **SAME)
    (tmp_path / "model.irstd").write_bytes(write(b.finish(y)))
    run = subprocess.run([*emulator, cpu, program, tmp_path / "model.irstd", "--height", "8", "--width", "40",
                          "--warmup", "0", "--runs", "1"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["isa"] == isa

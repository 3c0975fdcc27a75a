"""A NEON source gives on this machine, through SIMDe, what it gives on ARM."""

from __future__ import annotations

from pathlib import Path

import pytest

from irstd_edge.benchmarks.arm.emulate import compile_program, emulate, run

SOURCE = Path(__file__).parent / "popcount_neon.c"


@pytest.mark.parametrize(("core", "flags"), [("cortex-a53", []), ("cortex-a7", ["-mfpu=neon-vfpv4"])])
def test_emulated_intrinsics_agree(core, flags, qemu, tmp_path):
    if not any((Path(p) / "simde/arm/neon.h").exists() for p in ("/usr/include", "/usr/local/include")):
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    run(["cc", "-std=gnu11", "-O2", "-Wall", SOURCE, "-o", tmp_path / "here"])
    expected = run([tmp_path / "here"])
    preset = "armv7" if core == "cortex-a7" else "aarch64"
    there = compile_program(preset, tmp_path / "there", *flags, "-static", SOURCE)
    assert emulate(core, [there], count=False).output == expected
    assert expected == f"{sum(bin((i * 2654435761 & 0xFFFFFFFF) >> 13 & 0xFF).count('1') for i in range(4096))}\n"

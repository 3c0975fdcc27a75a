"""Random operators in exactly sized buffers under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import subprocess

import pytest
from kernel_build import build


@pytest.mark.slow
@pytest.mark.parametrize("emulated", [False, True], ids=["native", "emulated"])
def test_sanitizers(emulated, request):
    if emulated:
        request.getfixturevalue("emulated_library")  # skips where AVX-512 cannot be emulated
    options = ["-DIRSTD_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"] + ["-DIRSTD_SIMDE=ON"] * emulated
    folder = build("kernel-sanitize" + "-simde" * emulated, *options, targets=("fuzz_bconv2d",))
    for seed in ("1", "2"):
        run = subprocess.run([folder / "fuzz_bconv2d", "300", seed], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout == "300 cases\n"

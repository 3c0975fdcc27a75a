"""Builds the native core with CMake for the kernel tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "runtimes" / "native"


def simde_options() -> tuple[str, ...]:
    """Of a build with emulated AVX-512 and NEON. Skips where SIMDe is not installed."""
    for folder in ("/usr/include", "/usr/local/include"):
        if (Path(folder) / "simde/x86/avx512.h").exists():
            # Through a folder of its own: zig has a C library of its own, and must not see the rest.
            link = ROOT / "build" / "simde" / "simde"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(Path(folder) / "simde")
            return "-DIRSTD_SIMDE=ON", f"-DCMAKE_C_FLAGS=-isystem {link.parent}"
    pytest.skip("SIMDe is not installed (Debian: libsimde-dev), so AVX-512 and NEON cannot be emulated")


def build(name: str, *options: str, targets=("irstd",)) -> Path:
    """Configure and build into build/<name>; returns that folder."""
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None:
        pytest.skip("cmake is not installed")
    folder = ROOT / "build" / name
    generator = [] if (folder / "CMakeCache.txt").exists() or not shutil.which("ninja") else ["-G", "Ninja"]
    for command in (
        [cmake, "-S", str(NATIVE), "-B", str(folder), *generator, "-DIRSTD_WERROR=ON", *options],
        *([[cmake, "--build", str(folder), "--target", *targets]] if targets else []),
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            pytest.fail(f"{' '.join(command)}\n{result.stdout}\n{result.stderr}", pytrace=False)
    return folder

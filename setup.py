"""Builds the native libraries with CMake into ``irstd_edge/runtimes/lib``; everything else is in setup.cfg."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
LIBRARIES = ("libirstd_ort.so", "libirstd_tflite.so")


#: Where the machine has no C compiler, zig's (a package of its own) serves.
NEEDS_ZIG = not (os.environ.get("CC") or any(shutil.which(name) for name in ("cc", "gcc", "clang")))


def compiler() -> list[str]:
    """CMake's options for the compiler: none where the system has one."""
    if not NEEDS_ZIG:
        return []
    wrapper = ROOT / "build" / "zig-cc"
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang cc "$@"\n')
    wrapper.chmod(0o755)
    archiver = ROOT / "build" / "zig-ar"
    archiver.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang ar "$@"\n')
    archiver.chmod(0o755)
    return [f"-DCMAKE_C_COMPILER={wrapper}", f"-DCMAKE_AR={archiver}", "-DCMAKE_RANLIB=true"]


def build_native(destination: Path) -> None:
    build = ROOT / "build" / "native"
    cmake = shutil.which("cmake") or [sys.executable, "-m", "cmake"]
    cmake = [cmake] if isinstance(cmake, str) else cmake
    subprocess.run([*cmake, "-S", str(ROOT / "runtimes" / "native"), "-B", str(build),
                    "-DCMAKE_BUILD_TYPE=Release", *compiler()], check=True)
    subprocess.run([*cmake, "--build", str(build), "--parallel", str(os.cpu_count() or 1)], check=True)
    destination.mkdir(parents=True, exist_ok=True)
    for name in LIBRARIES:
        found = sorted(build.rglob(name))
        if not found:
            raise SystemExit(f"the native build left no {name} in {build}")
        shutil.copy2(found[0], destination / name)


class BuildPy(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            build_native(Path(self.build_lib) / "irstd_edge" / "runtimes" / "lib")


class EditableWheel(editable_wheel):
    def run(self):
        if not os.environ.get("IRSTD_SKIP_NATIVE"):
            build_native(ROOT / "runtimes" / "lib")
        super().run()


class BinaryDistribution(Distribution):
    """The wheel holds compiled libraries, so it is bound to a platform."""

    def has_ext_modules(self):
        return True


setup(
    cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel},
    distclass=BinaryDistribution,
    setup_requires=["ziglang"] if NEEDS_ZIG else [],
)

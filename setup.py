"""Builds the native libraries with CMake into ``irstd_edge/runtimes/lib``; everything else is in setup.cfg."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
LIBRARIES = ("libirstd_ort.so", "libirstd_tflite.so", "libirstd.so")
#: Where zig is the compiler, its libraries run with this glibc and every later one.
OLDEST_GLIBC = "2.17"

#: Where the machine has no C compiler, zig's (a package of its own) serves.
NEEDS_ZIG = not (os.environ.get("CC") or any(shutil.which(name) for name in ("cc", "gcc", "clang")))
#: CMake needs one of these to run the compiler.
NEEDS_NINJA = not (os.environ.get("CMAKE_GENERATOR") or any(shutil.which(name) for name in ("ninja", "make", "gmake")))


def write_zig_wrappers() -> tuple[Path, Path]:
    """``build/zig-cc`` and ``build/zig-ar``, which run the ziglang package of this interpreter."""
    # Without a target zig compiles for this machine's CPU; the ISA of each kernel file is chosen by its own options.
    libc = f"gnu.{OLDEST_GLIBC}" if platform.libc_ver()[0] == "glibc" else "musl"
    target = f" -target {platform.machine()}-linux-{libc}" if sys.platform == "linux" else ""
    wrappers = []
    for name, arguments in (("zig-cc", f"cc{target}"), ("zig-ar", "ar")):
        wrapper = ROOT / "build" / name
        wrapper.parent.mkdir(parents=True, exist_ok=True)
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ziglang {arguments} "$@"\n')
        wrapper.chmod(0o755)
        wrappers.append(wrapper)
    return tuple(wrappers)


def configuration() -> tuple[list[str], str]:
    """CMake's options for the build system and the compiler, and a key that changes when either does."""
    options, key = [], [str(ROOT)]
    if generator := os.environ.get("CMAKE_GENERATOR"):
        key.append(generator)
    elif ninja := shutil.which("ninja"):
        options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        key.append(ninja)
    else:
        key.append(str(shutil.which("make") or shutil.which("gmake")))
    if NEEDS_ZIG:
        compiler, archiver = write_zig_wrappers()
        options += [f"-DCMAKE_C_COMPILER={compiler}", f"-DCMAKE_AR={archiver}", "-DCMAKE_RANLIB=true",
                    "-DCMAKE_SHARED_LINKER_FLAGS=-s"]
        key += [compiler.read_text(), metadata.version("ziglang")]
    else:
        command = shlex.split(os.environ.get("CC", "")) or [next(filter(shutil.which, ("cc", "gcc", "clang")))]
        found = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        key += [*command, str(shutil.which(command[0])), found.stdout, os.environ.get("CFLAGS", ""),
                os.environ.get("LDFLAGS", "")]
    return options, hashlib.sha256("\0".join(key).encode()).hexdigest()


def build_native(destination: Path) -> None:
    """Build the libraries in ``build/native`` and copy them to ``destination``.

    CMake keeps its first generator, compiler and source folder; where one of them has changed, as in a copy of a
    checkout, the folder is made anew.
    """
    build = ROOT / "build" / "native"
    options, key = configuration()
    stamp = build / "configured-for"
    if build.exists() and not (stamp.is_file() and stamp.read_text() == key):
        shutil.rmtree(build)
    build.mkdir(parents=True, exist_ok=True)
    cmake = shutil.which("cmake")
    cmake = [cmake] if cmake else [sys.executable, "-m", "cmake"]
    subprocess.run([*cmake, "-S", str(ROOT / "runtimes" / "native"), "-B", str(build),
                    "-DCMAKE_BUILD_TYPE=Release", *options], check=True)
    stamp.write_text(key)
    subprocess.run([*cmake, "--build", str(build), "--parallel", str(os.cpu_count() or 1)], check=True)
    destination.mkdir(parents=True, exist_ok=True)
    for name in LIBRARIES:
        found = sorted(build.rglob(name))
        if not found:
            raise SystemExit(f"the native build left no {name} in {build}")
        # A process that has the old library open keeps it: the name changes hands in one step.
        temporary = destination / f"{name}.part"
        shutil.copy2(found[0], temporary)
        os.replace(temporary, destination / name)


class BuildPy(build_py):
    def run(self):
        if self.editable_mode:
            super().run()
            return
        # What an earlier build left here would end up in the wheel, modules that are gone included.
        shutil.rmtree(Path(self.build_lib) / "irstd_edge", ignore_errors=True)
        super().run()
        lib = Path(self.build_lib) / "irstd_edge" / "runtimes" / "lib"
        shutil.rmtree(lib, ignore_errors=True)
        build_native(lib)


class EditableWheel(editable_wheel):
    def run(self):
        build_native(ROOT / "runtimes" / "lib")
        super().run()


class BdistWheel(bdist_wheel):
    """The libraries know nothing of Python: one wheel serves every version of it, on one platform."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    """The wheel holds compiled libraries, so it is bound to a platform."""

    def has_ext_modules(self):
        return True


setup(
    cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel, "bdist_wheel": BdistWheel},
    distclass=BinaryDistribution,
    setup_requires=["ziglang>=0.13"] * NEEDS_ZIG + ["ninja"] * NEEDS_NINJA,
)

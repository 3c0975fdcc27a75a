"""An unpacked arm64 Debian with Python and the peers' wheels, one root per core."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from .emulate import BUILD, CORES, HERE, compile_program, find, run

#: The peers, at the versions of the report. The Debian release has this Python.
PACKAGES = ("onnxruntime==1.31.1", "ai-edge-litert==2.3.0", "backports.strenum==1.2.8", "MNN==3.6.1",
            "ncnn==1.0.20261020", "numpy==2.4.6", "flatbuffers", "protobuf")
RELEASE, PYTHON = "bookworm", "3.11"
GLIBC = (17, 26, 27, 28, 31, 34, 35)


def made(folder: Path, make) -> Path:
    """A folder that appears only when it is whole."""
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        make(part)
        part.rename(folder)
    return folder


def root() -> Path:
    def make(part):
        packages = f"python{PYTHON}-minimal,libpython{PYTHON}-stdlib,libstdc++6,libgomp1"
        run([find("mmdebstrap", "mmdebstrap"), "--variant=extract", "--architectures=arm64", f"--include={packages}",
             RELEASE, part])

    return made(BUILD / "root", make)


def site() -> Path:
    def make(part):
        platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in GLIBC]
        run([sys.executable, "-m", "pip", "install", "--quiet", "--target", part, *platforms, "--no-deps",
             "--python-version", PYTHON, "--implementation", "cp", "--only-binary=:all:", *PACKAGES])

    return made(BUILD / "site", make)


def prefix(core: str) -> Path:
    """The root as this core shows it: engines choose kernels by /proc/cpuinfo, and ONNX Runtime needs an ARM one."""

    def make(part):
        part.mkdir()
        for entry in root().iterdir():
            if entry.name not in ("proc", "sys"):
                (part / entry.name).symlink_to(os.path.relpath(entry, part))
        c = CORES[core]
        architecture = 7 if c.preset == "armv7" else 8
        files = {
            "proc/cpuinfo": f"processor\t: 0\nBogoMIPS\t: 38.40\nFeatures\t: {c.features}\nCPU implementer\t: 0x41\n"
                            f"CPU architecture: {architecture}\nCPU variant\t: 0x0\nCPU part\t: {c.part:#05x}\n"
                            "CPU revision\t: 4\n\n",
            "sys/devices/system/cpu/possible": "0\n",
            "sys/devices/system/cpu/present": "0\n",
        }
        for name, text in files.items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return made(BUILD / "prefix" / core, make)


def python(core: str) -> tuple[Path, list[str], dict[str, str]]:
    """Prefix, command line and environment of the emulated Python."""
    packages = os.path.abspath(site())
    return (prefix(core), [str(root() / f"usr/bin/python{PYTHON}"), "-B", "-s"],
            {"PYTHONPATH": packages, "PYTHONHOME": "/usr", "OMP_NUM_THREADS": "1"})


def markers() -> Path:
    library = BUILD / "libmarkers.so"
    return library if library.exists() else compile_program("aarch64", library, "-shared", "-fPIC", HERE / "markers.c")

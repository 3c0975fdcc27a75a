"""Cross-builds the native core, and runs ARM programs under QEMU with their instructions counted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
NATIVE = ROOT / "runtimes" / "native"
BUILD = ROOT / "build" / "arm"


class MissingError(Exception):
    """A tool of the bench is not on this machine; the message names the Debian package that has it."""


@dataclass(frozen=True)
class Core:
    """A CPU that QEMU knows, and what Linux tells of it in /proc/cpuinfo (it says nothing of this on armv7)."""

    name: str
    preset: str
    isa: str
    part: int
    features: str

    @property
    def qemu(self) -> str:
        return "qemu-arm" if self.preset == "armv7" else "qemu-aarch64"


_V8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_V82 = "atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
_V7 = "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae"
CORES = {
    core.name: core
    for core in (
        Core("cortex-a53", "aarch64", "armv8-a", 0xD03, _V8),
        Core("cortex-a72", "aarch64", "armv8-a", 0xD08, _V8),
        Core("cortex-a76", "aarch64", "armv8.2-a+dotprod", 0xD0B, f"{_V8} {_V82}"),
        Core("cortex-a7", "armv7", "armv7-a+neon", 0xC07, _V7),
        Core("cortex-a15", "armv7", "armv7-a+neon", 0xC0F, _V7),
    )
}


@dataclass(frozen=True)
class Count:
    """What ran between the markers: instructions of each window, the rest over all windows."""

    windows: tuple[int, ...]
    output: str = ""
    loaded: int | None = None
    stored: int | None = None
    mnemonics: Mapping[str, int] = field(default_factory=dict)


def find(program: str, package: str) -> str:
    # The packages of a virtual environment put their programs beside its Python.
    found = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if found is None:
        raise MissingError(f"{program} is not installed (Debian: {package})")
    return found


def run(command: Sequence, **options) -> str:
    """The output of a command that must succeed."""
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def cross_compiler(preset: str) -> str:
    triplet = {"aarch64": "aarch64-linux-gnu", "armv7": "arm-linux-gnueabihf"}[preset]
    return find(f"{triplet}-gcc", f"gcc-{triplet}")


def cross_build(preset: str, *targets: str, options: Sequence[str] = (), folder: Path | None = None) -> Path:
    """Configure the preset and build targets of it; returns the build folder."""
    if not any("IRSTD_ZIG" in option for option in options):
        cross_compiler(preset)
    cmake = find("cmake", "cmake")
    folder = folder or ROOT / "build" / f"native-{preset}"
    run([cmake, "--preset", preset, "-B", folder, "-DIRSTD_WERROR=ON", *options], cwd=NATIVE)
    run([cmake, "--build", folder, "--target", *targets])
    return folder


def compile_program(preset: str, output: Path, *arguments) -> Path:
    """A program or library of a few sources, without CMake."""
    output.parent.mkdir(parents=True, exist_ok=True)
    run([cross_compiler(preset), "-std=gnu11", "-O2", "-Wall", "-Werror", "-o", output, *arguments])
    return output


def plugin() -> Path:
    """The counting plugin, compiled for this machine."""
    source, library = HERE / "count_plugin.c", BUILD / "count_plugin.so"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        library.parent.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CC", "cc").split()
        find(compiler[0], "gcc")
        run([*compiler, "-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
             "-fvisibility=hidden", "-o", library, source])
    return library


def emulate(core: str, command: Sequence, *, prefix: Path | None = None, env: Mapping[str, str] | None = None,
            count: bool = True, mnemonics: bool = False, memory: bool = False, timeout: float = 1800,
            stdin: Path | None = None) -> Count:
    """Run a program on a core. ``prefix`` is where it finds its shared libraries; the environment is ``env`` alone;
    ``stdin`` names a file."""
    qemu = find(CORES[core].qemu, "qemu-user")
    # A fixed environment and address space: neither may move a count.
    line = [find("setarch", "util-linux"), "-R", qemu, "-cpu", core]
    line += ["-L", prefix] if prefix else []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "count.json"
        if count:
            options = ",mnemonics=on" * mnemonics + ",memory=on" * memory
            line += ["-plugin", f"{plugin()},out={out}{options}"]
        variables = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", **(env or {})}
        with open(stdin or os.devnull, "rb") as file:
            output = run([*line, *command], env=variables, timeout=timeout, stdin=file)
        if not count:
            return Count((), output)
        values = json.loads(out.read_text())
    return Count(tuple(values.pop("windows")), output, **values)

"""What this machine has of what irstd-edge can use, and how to get the rest: ``irstd-edge doctor``."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path

from irstd_edge.errors import MissingError, UnsupportedError
from irstd_edge.runtimes import library

GROUPS = ("core", "native", "runtimes", "video", "tools", "devices")
MINIMUM_PYTHON = (3, 11)
#: CPU features that choose kernels, as /proc/cpuinfo names them on x86 and on ARM.
CPU_FEATURES = ("popcnt", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_vpopcntdq",
                "asimd", "asimddp", "i8mm", "sve", "sve2")


@dataclass(frozen=True)
class Check:
    """One thing looked for. ``required``: the core cannot do without; ``fix``: the command or page that brings it."""

    name: str
    group: str  # one of GROUPS
    found: bool
    required: bool = False
    version: str = ""
    detail: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Package:
    """A Python package to look for: its import name, its name in the index, where it belongs, how to get it."""

    module: str
    distribution: str
    group: str
    required: bool
    fix: str
    #: Whether to import it: a broken install shows, but TensorFlow takes ten seconds.
    load: bool = True


PACKAGES = (
    Package("numpy", "numpy", "core", True, "pip install numpy"),
    Package("torch", "torch", "core", True, "pip install torch"),
    Package("onnx", "onnx", "core", True, "pip install onnx"),
    Package("onnxruntime", "onnxruntime", "core", True, "pip install onnxruntime"),
    Package("ai_edge_litert.interpreter", "ai-edge-litert", "runtimes", False, "pip install irstd-edge[tflite]"),
    Package("tflite_runtime.interpreter", "tflite-runtime", "runtimes", False,
            "pip install tflite-runtime (ai-edge-litert serves as well)"),
    Package("tensorflow", "tensorflow", "runtimes", False, "pip install tensorflow (not needed)", load=False),
    Package("imageio_ffmpeg", "imageio-ffmpeg", "video", False, "pip install irstd-edge[video]"),
)
#: Command, group, arguments that print its version, how to get it.
TOOLS = (
    ("cc", "tools", ("--version",), "apt install gcc, or pip install ziglang"),
    ("cmake", "tools", ("--version",), "pip install cmake"),
    ("adb", "devices", ("version",), "apt install adb, or Android's platform-tools"),
    ("trtexec", "devices", (), "comes with TensorRT (JetPack: /usr/src/tensorrt/bin)"),
    ("atc", "devices", (), "comes with Ascend's CANN toolkit"),
)
#: Native library of :data:`irstd_edge.runtimes.library.LIBRARIES` -> what it is for.
PURPOSES = {"ort": "operators for ONNX Runtime", "tflite": "delegate for LiteRT and TFLite",
            "native": "engine for model.irstd"}


@dataclass(frozen=True)
class Environment:
    """``isas``: kernel variants that this CPU runs, best last; ``selected_isa``: the one in use, or None."""

    system: str
    cpu: str
    cores: int
    features: tuple[str, ...]
    isas: tuple[str, ...]
    selected_isa: str | None
    checks: tuple[Check, ...]

    @property
    def missing(self) -> list[Check]:
        """The required things that are not there."""
        return [c for c in self.checks if c.required and not c.found]

    def as_dict(self) -> dict:
        """For JSON; ``ok`` is false where something required is missing."""
        return {"ok": not self.missing} | asdict(self)


def inspect_environment() -> Environment:
    """Look at everything; nothing raises, what fails is reported."""
    cpu, features = _cpu()
    isas, selected, forced = _isas()
    return Environment(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        features=features,
        isas=isas,
        selected_isa=selected,
        checks=(_python(), *map(_package, PACKAGES), *(_library(name, use) for name, use in PURPOSES.items()), *forced,
                *(_tool(*row) for row in TOOLS), _ffmpeg()),
    )


def _python() -> Check:
    wanted = ".".join(map(str, MINIMUM_PYTHON))
    return Check("python", "core", sys.version_info >= MINIMUM_PYTHON, True, platform.python_version(), sys.executable,
                 f"install Python {wanted} or newer")


def _package(package: Package) -> Check:
    try:
        version = metadata.version(package.distribution)
        if package.load:
            import_module(package.module)
        return Check(package.distribution, package.group, True, package.required, version)
    except metadata.PackageNotFoundError:
        detail = ""
    except Exception as e:  # A broken install raises anything, up to the loader's OSError.
        detail = f"installed, but fails to import: {_first_line(e)}"
    return Check(package.distribution, package.group, False, package.required, detail=detail, fix=package.fix)


def _library(name: str, purpose: str) -> Check:
    """Found, and loads."""
    file = library.LIBRARIES[name]
    fix = "in a checkout: make build; else: pip install --force-reinstall irstd-edge"
    try:
        path = library.find(name)
        ctypes.CDLL(str(path))
        return Check(file, "native", True, True, detail=f"{purpose}; {path}")
    except MissingError:
        return Check(file, "native", False, True, detail=f"{purpose}, not in {library.folder()}", fix=fix)
    except OSError as e:
        return Check(file, "native", False, True, detail=f"{purpose}, cannot be loaded: {_first_line(e)}", fix=fix)


def _isas() -> tuple[tuple[str, ...], str | None, tuple[Check, ...]]:
    """Those of this CPU, the one in use, and what is wrong with ``IRSTD_ISA``."""
    isas: tuple[str, ...] = ()
    try:
        isas = tuple(library.available_isas())
        return isas, library.selected_isa(), ()
    except MissingError:
        return isas, None, ()
    except UnsupportedError as e:
        fix = f"unset IRSTD_ISA, or set it to one of {', '.join(isas)}"
        return isas, None, (Check("IRSTD_ISA", "native", False, True, detail=_first_line(e), fix=fix),)


def _tool(name: str, group: str, arguments: tuple[str, ...], fix: str) -> Check:
    path = shutil.which(name)
    if path is None:
        return Check(name, group, False, fix=fix)
    return Check(name, group, True, version=_tool_version(path, arguments), detail=path)


def _ffmpeg() -> Check:
    """The system's ffmpeg, or the one that imageio-ffmpeg brings."""
    path = shutil.which("ffmpeg")
    if path is None:
        try:
            path = import_module("imageio_ffmpeg").get_ffmpeg_exe()
        except Exception:
            return Check("ffmpeg", "video", False, fix="pip install irstd-edge[video]")
    return Check("ffmpeg", "video", True, version=_tool_version(path, ("-version",)), detail=path)


def _tool_version(path: str, arguments: tuple[str, ...]) -> str:
    """The first version-like word that a tool prints, or nothing."""
    if not arguments:
        return ""
    try:
        out = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"\d+\.\d+(\.\d+)*", out)
    return found.group() if found else ""


def _cpu() -> tuple[str, tuple[str, ...]]:
    """Model name and the features of :data:`CPU_FEATURES` that it has."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), ()
    fields = dict(re.findall(r"^([^:\n]+?)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    model = fields.get("model name") or fields.get("Hardware") or platform.machine()
    return model, tuple(f for f in CPU_FEATURES if f in flags)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""The virtual environments of the engines: pinned packages from PyPI, built where they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BUILD_SECONDS = 1800


class EnvironmentFailed(RuntimeError):
    """An environment cannot be made; one line."""


@dataclass(frozen=True)
class Environment:
    """``packages`` are installed with what they need, ``alone`` without (their dependencies are large and unused)."""

    name: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()

    @property
    def pins(self) -> str:
        return "\n".join((*self.packages, *(f"{package} --no-deps" for package in self.alone)))


ENVIRONMENTS: dict[str, Environment] = {
    e.name: e
    for e in (
        Environment("ort", ("onnxruntime==1.31.1", "onnx==1.23.2", "numpy==2.4.6", "sympy==1.14.0")),
        Environment("litert", ("ai-edge-litert==2.3.0", "ai-edge-quantizer==0.10.0", "numpy==2.4.6")),
        Environment("openvino", ("openvino==2026.4.1", "nncf==3.4.0", "numpy==2.4.6")),
        Environment("mnn", ("MNN==3.6.1", "numpy==2.4.6")),
        # pnnx asks for torch and uses it only from Python; its program reads TorchScript without.
        Environment("ncnn", ("ncnn==1.0.20261020", "numpy==2.4.6"), ("pnnx==20261020",)),
        Environment("executorch", ("executorch==1.5.1", "torch==2.13.0", "torchao==0.18.0", "numpy==2.4.6")),
        Environment(
            "lce", ("larq-compute-engine==0.16.0", "larq==0.14.0", "tensorflow-cpu==2.15.1", "numpy==1.26.4")
        ),
    )
}


def build(environment: Environment, root: Path) -> Path:
    """The environment's Python, made anew where its pins have changed. Raises :class:`EnvironmentFailed`."""
    folder = root / environment.name
    python, stamp = folder / "bin" / "python", folder / "pins.txt"
    if stamp.is_file() and stamp.read_text() == environment.pins:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    install = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "venv", folder])
    _run([*install, *environment.packages])
    if environment.alone:
        _run([*install, "--no-deps", *environment.alone])
    (folder / "freeze.txt").write_text(_run([python, "-m", "pip", "freeze", "--disable-pip-version-check"]))
    stamp.write_text(environment.pins)
    return python


def frozen(environment: Environment, root: Path) -> list[str]:
    """Every package of a built environment with its version."""
    file = root / environment.name / "freeze.txt"
    return file.read_text().splitlines() if file.is_file() else []


def variables(python: Path, root: Path) -> dict[str, str]:
    """The variables of an engine's processes: one thread, a home of its own, and no way to install or to report.

    Some engines' packages call pip or send usage data when they are imported.
    """
    home = root / "home"
    home.mkdir(parents=True, exist_ok=True)
    return os.environ | {
        "PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(home), "PYTHONNOUSERSITE": "1", "PIP_NO_INDEX": "1",
        "PIP_REQUIRE_VIRTUALENV": "1", "CI": "true", "NNCF_CI": "1", "TF_CPP_MIN_LOG_LEVEL": "3",
    } | {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}  # fmt: skip


def _run(command: list) -> str:
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=False, timeout=BUILD_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise EnvironmentFailed(str(e)) from e
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise EnvironmentFailed((lines or [f"{command[0]} ended with {done.returncode}"])[-1][:300])
    return done.stdout

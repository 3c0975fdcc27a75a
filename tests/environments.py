"""Environments of their own for runtimes that do not install beside the project's packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]


def environment(name: str, *requirements: str) -> Path:
    """The Python of an environment of its own below build/. Skips where it cannot be made."""
    folder = ROOT / "build" / name
    folder.parent.mkdir(exist_ok=True)
    python = folder / "bin" / "python"
    with FileLock(f"{folder}.lock"):  # tests of another process may want the same
        if not (folder / ".ready").is_file():
            for command in ([sys.executable, "-m", "venv", folder],
                            [python, "-m", "pip", "install", "--quiet", *requirements]):
                done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
                if done.returncode:
                    pytest.skip(f"{' '.join(requirements)} cannot be installed: {done.stderr.strip()[-200:]}")
            (folder / ".ready").touch()
    return python


def tflite214() -> Path:
    """The last release of the legacy interpreter; with numpy 2 it installs, and dies when it is used."""
    return environment("venv-tflite214", "tflite-runtime==2.14.0", "numpy<2")

"""Compiles the small C files beside this one."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path


class CompilerError(RuntimeError):
    """A C file cannot be compiled here; one line."""


def find_compiler() -> list[str]:
    """The command of a C compiler, empty where there is none."""
    return shlex.split(os.environ.get("CC", "")) or [c for c in ("cc", "gcc", "clang") if shutil.which(c)][:1]


def compile_c(name: str, out: Path, *flags: str) -> Path:
    """Compile ``name``, beside this file, to ``out``. Raises :class:`CompilerError`."""
    command = find_compiler()
    if not command:
        raise CompilerError("there is no C compiler; install gcc or clang, or name one in CC")
    out.parent.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).parent / name
    done = subprocess.run([*command, "-O2", *flags, str(source), "-o", str(out)], capture_output=True, text=True,
                          check=False)  # fmt: skip
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [f"{command[0]} failed"]
        raise CompilerError(f"{name} cannot be compiled: {errors[0][:200]}")
    return out.resolve()

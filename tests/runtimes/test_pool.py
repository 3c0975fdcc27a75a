"""The delegate's thread pool under ThreadSanitizer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORE = HERE.parents[1] / "runtimes" / "native" / "core"


def stress(compiler: str, folder: Path, rounds: int, *flags: str) -> None:
    program = folder / "pool_stress"
    command = [compiler, "-std=c11", "-O2", "-g", *flags, f"-I{CORE}", HERE / "pool_stress.c", CORE / "pool.c"]
    done = subprocess.run([*command, "-o", program, "-lpthread"], capture_output=True, text=True, check=False)
    if done.returncode and flags:
        pytest.skip(f"{compiler} has no ThreadSanitizer")
    assert done.returncode == 0, done.stderr
    done = subprocess.run([program, str(rounds)], capture_output=True, text=True, check=False, timeout=300)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert done.returncode == 0 and done.stdout == "ok\n", done.stderr[-3000:]


def test_every_task_runs_once(compiler, tmp_path):
    stress(compiler, tmp_path, 4000)


def test_no_data_race(compiler, tmp_path):
    stress(compiler, tmp_path, 1000, "-fsanitize=thread")


@pytest.mark.slow
def test_no_data_race_for_long(compiler, tmp_path):
    stress(compiler, tmp_path, 20000, "-fsanitize=thread")

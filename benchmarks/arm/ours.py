"""Instruction counts of our engine: the C runner, one inference, one thread."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

from irstd_edge.benchmarks.peers import works

from .emulate import BUILD, CORES, NATIVE, Count, compile_program, cross_build, emulate

ENGINE = "irstd-native"
WORKS = ("biisnet",)


@cache
def model(work: str) -> Path:
    """The work's model.irstd, exported by the sources as they are now."""
    folder = BUILD / "models" / work / ENGINE
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    works.export(work, "native", folder)
    return folder / "model.irstd"


@cache
def runner(preset: str) -> Path:
    """The C runner, linked statically, of the sources as they are now."""
    core = cross_build(preset, "irstd_core") / "libirstd_core.a"
    return compile_program(preset, BUILD / preset / "irstd_bench", "-I", NATIVE / "include",
                           NATIVE / "tools" / "irstd_bench.c", "-static", core, "-lm", "-lpthread")


def count_ours(work: str, core: str, isa: str | None = None, **counting) -> tuple[str, Count]:
    """The instruction set that was taken, best or ``isa``, and the count."""
    command = [runner(CORES[core].preset), model(work), "--height", works.SIZE, "--width", works.SIZE, "--warmup", 1,
               "--runs", 1, "--markers"]
    count = emulate(core, command, env={"IRSTD_ISA": isa} if isa else {}, **counting)
    return json.loads(count.output)["isa"], count

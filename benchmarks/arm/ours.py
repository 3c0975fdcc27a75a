"""Instruction counts of our engine: the C runner, one inference, one thread."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

from irstd_edge.benchmarks.peers import native_layer, works
from irstd_edge.benchmarks.peers.engines import ENGINES

from .emulate import BUILD, CORES, NATIVE, Count, compile_program, cross_build, emulate
from .kernels import LAYERS, program

ENGINE = "irstd-native"
#: What each of ours runs.
WORKS = {e.name: e.works for e in ENGINES.values() if e.ours and e.adapter == "native"}
WORKS[ENGINE] += tuple(LAYERS)


def precision(work: str, engine: str = ENGINE) -> str:
    return LAYERS[work].precision if work in LAYERS else ENGINES[engine].precision


@cache
def model(work: str, engine: str = ENGINE) -> Path:
    """The work's model.irstd, exported by the sources as they are now."""
    folder = BUILD / "models" / work.replace(" ", "-").replace("/", "-by-") / engine
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if work in LAYERS or works.WORKS[work].is_layer:
        folder.mkdir()
        data = program(LAYERS[work]) if work in LAYERS else native_layer.layer_program(works.WORKS[work].shape[0])
        (folder / "model.irstd").write_bytes(data)
    else:
        works.export(ENGINES[engine].forms.get(work, work), "native", folder, size=works.WORKS[work].shape[1])
    return folder / "model.irstd"


@cache
def runner(preset: str) -> Path:
    """The C runner, linked statically, of the sources as they are now."""
    core = cross_build(preset, "irstd_core") / "libirstd_core.a"
    return compile_program(preset, BUILD / preset / "irstd_bench", "-I", NATIVE / "include",
                           NATIVE / "tools" / "irstd_bench.c", "-static", core, "-lm", "-lpthread")


def count_ours(work: str, core: str, isa: str | None = None, engine: str = ENGINE, **counting) -> tuple[str, Count]:
    """The instruction set that was taken, best or ``isa``, and the count."""
    size = LAYERS[work].size if work in LAYERS else works.WORKS[work].shape[1]
    layer = ["--layer", native_layer.TIMED] if work in LAYERS or works.WORKS[work].is_layer else []
    command = [runner(CORES[core].preset), model(work, engine), "--height", size, "--width", size, "--warmup", 1,
               "--runs", 1, "--markers", *layer]
    count = emulate(core, command, env={"IRSTD_ISA": isa} if isa else {}, **counting)
    told = json.loads(count.output)
    kernel = next((row["kernel"] for row in told["engine"]["layers"] if row["name"] == native_layer.TIMED), "")
    if work in LAYERS and LAYERS[work].kernel not in kernel:
        raise RuntimeError(f"{work} on {core}: was computed by {kernel}")
    return told["isa"], count

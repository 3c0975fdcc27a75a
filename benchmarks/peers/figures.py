"""The figures that the engine is held to, from the rows of a comparison: docs/performance.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from irstd_edge.benchmarks.peers.works import WORKS

PEAKS = Path("build/native/peaks")
_THREADS = """
import json, sys, threading, time, numpy as np
from pathlib import Path
from irstd_edge.runtimes.native import Engine
x = np.random.default_rng(0).standard_normal((1, 256, 256), dtype=np.float32)
def bind(threads):
    return Engine(Path(sys.argv[1]), (256, 256), threads).bind([x], [np.empty((1, 256, 256), np.float32)])
one, other, two = bind(1), bind(1), bind(2)
def timed(run):
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
def several(run, started):
    started.wait()
    for _ in range(40): run()
ratios, ceilings = [], []
for block in range(20):
    pairs = [(timed(one), timed(two)) for _ in range(20)]
    alone = np.median([a for a, _ in pairs])
    ratios.append(alone / np.median([b for _, b in pairs]))
    started = threading.Barrier(3)
    both = [threading.Thread(target=several, args=(run, started)) for run in (one, other)]
    for thread in both: thread.start()
    started.wait()
    start = time.perf_counter()
    for thread in both: thread.join()
    ceilings.append(80 * alone / (time.perf_counter() - start))
print(json.dumps([float(np.median(ratios)), float(np.median(ceilings))]))
"""

_INSPECT = "import sys; from irstd_edge.cli import main; main(['inspect', sys.argv[1], '--input-size=256', '--json=-'])"


def extras(folder: Path) -> dict:
    """What rows do not hold: ``peaks`` (GOP/s by instruction set), ``threads`` (speed-up of two, and of two sessions of
    one thread side by side: what the machine gives), ``arena`` (bytes, and their lower bound), ``spmix`` (float ResUNet
    over that in low bits: ``file``, ``arena``, ``mac_bits``); null where it cannot be measured here."""
    found: dict = {"peaks": None, "threads": None, "arena": None, "spmix": None}
    model = folder / "models" / "biisnet" / "irstd-native" / "model.irstd"
    if os.access(PEAKS, os.X_OK):
        found["peaks"] = json.loads(subprocess.run([PEAKS], capture_output=True, text=True, check=True).stdout)
    if model.is_file():
        done = subprocess.run([sys.executable, "-c", _THREADS, model], capture_output=True, text=True, check=False)
        found["threads"] = None if done.returncode else json.loads(done.stdout)
        from irstd_edge.runtimes.native import Engine

        description = Engine(model, (256, 256)).description
        found["arena"] = [description["arena_bytes"], description["arena_lower_bound_bytes"]]
    pair = [folder / "models" / "resunet" / f"irstd-native-{form}" / "model.irstd" for form in ("fp32", "spmix")]
    if all(file.is_file() for file in pair):
        whole, low = (json.loads(subprocess.run([sys.executable, "-c", _INSPECT, file], capture_output=True, check=True,
                                                text=True).stdout) for file in pair)  # fmt: skip
        found["spmix"] = {name: whole[key] / low[key] for name, key in (
            ("file", "file_bytes"), ("arena", "arena_bytes"), ("mac_bits", "mac_bits"))}  # fmt: skip
    return found


class _Rows:
    """Look-ups in the rows of one machine."""

    def __init__(self, document: dict, key: str, machine: str):
        self.values = {(r["work"], r["engine"]): r[key] for r in document["rows"]
                       if r["machine"] == machine and r.get(key) is not None}  # fmt: skip

    def get(self, work: str, engine: str) -> float | None:
        return self.values.get((work, engine))

    def best(self, work: str, fits: Callable[[str], bool] = lambda engine: True) -> tuple[float, str] | None:
        """The smallest value of a peer, and which."""
        found = [(v, e) for (w, e), v in self.values.items() if w == work and not e.startswith("irstd") and fits(e)]
        return min(found, default=None)


_SPMIX = "ResUNet in 2.2 bits by 3.7"


def _fp32(engine: str) -> bool:
    return engine.endswith("-fp32")


def _int8(engine: str) -> bool:
    return engine.endswith("-int8")


def figures(document: dict) -> Iterator[tuple[str, str, str, bool | None]]:
    """(figure, asked, measured, reached); reached is None where it was not measured."""
    times, memory = (_Rows(document, key, "host") for key in ("ms_p50", "peak_bytes"))
    extra = document.get("extras") or {}

    def ratio(name: str, asked: float, value: float | None, note: str = "", most: bool = False):
        if value is None:
            return name, f"{'at most' if most else 'at least'} {asked:g}", "not measured", None
        good = value <= asked if most else value >= asked
        return name, f"{'at most' if most else 'at least'} {asked:g}", f"{value:.3g}{note}", good

    def against(name, asked, work, engine, peer_work, fits):
        ours, peer = times.get(work, engine), times.best(peer_work, fits)
        return ratio(name, asked, ours and peer and peer[0] / ours, (peer and f" ({peer[1]})") or "")

    isa = next((r["isa"] for r in document["rows"] if r["engine"].startswith("irstd-native") and r["isa"]
                and r["machine"] == "host"), None)  # fmt: skip
    peak = (extra.get("peaks") or {}).get(isa)
    for name, work in WORKS.items():
        if work.is_layer:
            channels, size, _ = work.shape
            ms = times.get(name, "irstd-native")
            share = ms and peak and 2 * 9 * channels**2 * size**2 / ms / 1e6 / peak
            if channels >= 64:
                yield ratio(f"{name}, {isa}: share of the peak from registers", 0.85 if isa == "avx512" else 0.8, share)
            yield against(f"{name}: times faster than the fastest peer", 2, name, "irstd-native", name, lambda e: True)
    yield against("BiisNet, engine: times faster than the twin in ORT fp32", 15, "biisnet", "irstd-native",
                  "biisnet-float", lambda e: e == "ort-fp32")
    yield against("BiisNet, engine: than the twin in the fastest fp32 peer", 8, "biisnet", "irstd-native",
                  "biisnet-float", _fp32)
    yield against("BiisNet, engine: than the twin in the fastest int8 peer", 3, "biisnet", "irstd-native",
                  "biisnet-float", _int8)
    for engine, peer in (("irstd-onnx", "ort-fp32"), ("irstd-tflite", "litert-fp32")):
        yield against(f"BiisNet, {engine}: than the twin in {peer}", 6, "biisnet", engine, "biisnet-float",
                      lambda e, peer=peer: e == peer)
    ours, peer = memory.get("biisnet", "irstd-native"), memory.get("biisnet-float", "ort-fp32")
    yield ratio("BiisNet, engine: working memory over that of ORT fp32 on the twin", 0.125,
                ours and peer and ours / peer, most=True)
    arena = extra.get("arena")
    yield ratio("BiisNet, engine: arena over its lower bound", 1.3, arena and arena[0] / arena[1], most=True)
    threads = extra.get("threads") or (None, None)
    yield ratio("BiisNet, engine: two threads over one", 1.7, threads[0],
                f" (two sessions side by side: {threads[1]:.3g})" if threads[1] else "")  # fmt: skip
    yield from _quantised(document, times, extra, isa, ratio)
    limits = {"conv 16-16@256": 7.0, "conv 32-32@128": 5.5, "conv 64-64@64": 5.0}
    for core in ("cortex-a53", "cortex-a76"):
        counts = _Rows(document, "instructions", core)
        biisnet = counts.get("biisnet", "irstd-native")
        for name, asked, fits in ((f"BiisNet as {core}: instructions over the best fp32 peer's", 0.25, _fp32),
                                  (f"BiisNet as {core}: over LiteRT int8's", 0.125 if core == "cortex-a53" else 0.5,
                                   lambda e: e == "litert-int8")):  # fmt: skip
            peer = counts.best("biisnet-float", fits)
            share = biisnet and peer and biisnet / peer[0]
            yield ratio(name, asked, share, f" ({peer[1]})" if peer else "", most=True)
        low, peer = counts.get("resunet", "irstd-native-spmix"), counts.best("resunet", _int8)
        yield ratio(f"{_SPMIX} as {core}: instructions over the best int8 peer's", 1, low and peer and low / peer[0],
                    f" ({peer[1]})" if peer else "", most=True)  # fmt: skip
        own = counts.get("resunet", "irstd-native-int8")
        yield ratio(f"{_SPMIX} as {core}: over ours in int8", 1, low and own and low / own, most=True)
        unet = counts.get("unet", "irstd-native")
        yield ratio(f"U-Net binarised as {core}: M instructions", 120, unet and unet / 1e6, most=True)
        for name, asked in limits.items():
            layer = counts.get(name, "irstd-native")
            if core == "cortex-a76":
                yield ratio(f"{name} as {core}: M instructions", asked, layer and layer / 1e6, most=True)


def _quantised(document: dict, times: _Rows, extra: dict, isa: str | None, ratio) -> Iterator[tuple]:
    """Mixed precision and int8 on this machine."""
    sizes = extra.get("spmix") or {}
    for key, name, asked in (("file", "file", 13), ("arena", "engine's memory", 4.6), ("mac_bits", "MAC bits", 29)):
        yield ratio(f"{_SPMIX}, {name}: times less than in float", asked, sizes.get(key))
    threads = document["measurement"]["threads"]
    for name, work, engine, fits in ((f"{_SPMIX}, {isa}: time over the fastest int8 peer's", "resunet",
                                      "irstd-native-spmix", _int8),
                                     (f"MDPNet@320, fp32, {isa}, threads {threads}: over the fastest fp32 peer's",
                                      "mdpnet@320", "irstd-native-fp32", _fp32),
                                     (f"MDPNet@320, int8, {isa}, threads {threads}: over the fastest int8 peer's",
                                      "mdpnet@320", "irstd-native-int8", _int8)):  # fmt: skip
        ours, peer = times.get(work, engine), times.best(work, fits)
        yield ratio(name, 1, ours and peer and ours / peer[0], f" ({peer[1]})" if peer else "", most=True)
    ours = times.get("mdpnet@320", "irstd-native-int8")
    yield ratio(f"MDPNet@320, int8, {isa}, threads {threads}: frames per second", 137, ours and 1000 / ours)


def markdown(document: dict) -> str:
    """The table of docs/performance.md."""
    lines = ["| figure | asked | measured | reached |", "|:--|--:|:--|:--|"]
    for name, asked, measured, reached in figures(document):
        lines.append(f"| {name} | {asked} | {measured} | {'' if reached is None else 'yes' if reached else 'no'} |")
    return "\n".join(lines) + "\n"

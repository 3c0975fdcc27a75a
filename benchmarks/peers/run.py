"""One comparison: environments, models, interleaved rounds, rows."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

import irstd_edge
from irstd_edge import benchmarks
from irstd_edge.benchmarks import conditions, measure
from irstd_edge.benchmarks.peers import environments, hold, native_layer, rows, works
from irstd_edge.benchmarks.peers.engines import BASE, ENGINES, TOLERANCES, Engine
from irstd_edge.benchmarks.peers.interleaving import FAILURES, PeerWorker, interleave, reason
from irstd_edge.benchmarks.peers.processors import Processors
from irstd_edge.benchmarks.peers.works import WORKS, Work, WorkError

WORKER = f"{benchmarks.__name__}.worker"
MEMORY_METHOD = (
    "resident memory of the worker: the peak (VmHWM, set back by writing 5 to /proc/self/clear_refs) until the end of "
    "the timed runs, less what was resident before the model was opened, the engine's library loaded"
)
CONVERT_SECONDS = 900
#: Networks of these precisions are others than the float ones: they are compared with PyTorch's output of their own.
_OWN_REFERENCE = {"binary", "mixed"}
_CAUGHT = (*FAILURES, environments.EnvironmentFailed, WorkError, OSError, subprocess.SubprocessError)


@dataclass(frozen=True)
class Options:
    """What to compare; folders as the command names them."""

    works: tuple[str, ...] = tuple(WORKS)
    engines: tuple[str, ...] = tuple(ENGINES)
    rounds: int = 40
    threads: int = 1
    isa: str | None = None
    patience: float = 600
    seed: int = 0
    out: Path = Path("build/peers")
    frames: Path = Path("samples/frames")
    others: Path = Path("build/arm/instructions.json")


@dataclass
class _Entry:
    """One engine on one work, on its way."""

    work: Work
    engine: Engine
    known: dict = field(default_factory=dict)
    worker: PeerWorker | None = None
    held: bool = False
    opened: float = 0

    @property
    def name(self) -> str:
        return f"{self.work.name}/{self.engine.name}"

    def told(self, note: str | None) -> None:
        self.known["note"] = "; ".join(filter(None, (self.known["note"], note))) or None

    def skip(self, why: str) -> None:
        self.known["skipped"] = why

    def row(self) -> dict:
        return rows.row(self.work.name, self.engine.name, precision=self.engine.precision, **self.known)


def run(options: Options, command: str, progress: Callable[[str], None] = lambda text: None) -> dict:
    """The document of ``peers.json``. Raises :class:`~irstd_edge.benchmarks.peers.rows.RowError` for foreign rows."""
    others = rows.read(options.others)
    cores = conditions.choose_cores(options.threads)
    before, found = conditions.snapshot(), []
    processors = Processors(cores, options.out, options.patience)
    for family in dict.fromkeys(WORKS[name].family for name in options.works):
        entries = [
            _Entry(work, engine)
            for work in WORKS.values() if work.family == family and work.name in options.works
            for engine in ENGINES.values() if engine.name in options.engines and engine.runs(work)
        ]  # fmt: skip
        found += _family(entries, options, cores, processors, progress)
    device, after = conditions.device(), conditions.snapshot()
    return {
        "schema_version": rows.SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": device | {"cpu_flags": _cpu_flags()},
        "conditions": {"before": before, "after": after},
        "flags": conditions.flags_of(before, after, device, cores) + processors.flags,
        "measurement": {
            "rounds": options.rounds, "seed": options.seed, "isa": options.isa, "threads": options.threads,
            "cores": cores, "processors": processors.summary(),
            "burst_seconds": measure.BURST_SECONDS, "warmup_runs": measure.WARMUP_RUNS,
            "warmup_seconds": measure.WARMUP_SECONDS, "memory_method": MEMORY_METHOD,
            "tolerances": TOLERANCES,
        },
        "environments": {e.name: environments.frozen(e, options.out / "envs")
                         for e in environments.ENVIRONMENTS.values()},
        "rows": found + others,
    }  # fmt: skip


def _family(
    entries: Sequence[_Entry], options: Options, cores: list[int], processors: Processors, progress
) -> list[dict]:
    with ExitStack() as stack:
        for entry in entries:
            progress(f"{entry.name}: opening")
            try:
                _open(entry, options, cores)
                if entry.worker:
                    stack.callback(entry.worker.close)
                    _check(entry, options)
            except _CAUGHT as e:
                entry.skip(reason(e))
        measured = {e.name: e for e in entries if e.worker and not e.known.get("skipped")}
        timings, failed = interleave({n: e.worker for n, e in measured.items()}, options.rounds, options.seed, progress,
                                     processors.steady)  # fmt: skip
        for name, why in failed.items():
            measured[name].skip(why)
        rng = np.random.default_rng(options.seed)
        base = next((n for n in timings if measured[n].engine.name == BASE), None)
        for name, timing in timings.items():
            entry = measured[name]
            entry.known |= rows.latencies(timing.rounds) | {"peak_bytes": _growth(entry.worker)}
            if entry.held and hold.used_avx512(entry.worker.process.pid, time.monotonic() - entry.opened):
                entry.told("used AVX-512 all the same")
                entry.known["isa"] = "auto"
            if base:
                entry.known["ratio"] = rows.ratio(timing.rounds, timings[base].rounds, base, rng)
    return [entry.row() for entry in entries]


def _open(entry: _Entry, options: Options, cores: list[int]) -> None:
    work, engine = entry.work, entry.engine
    entry.known["note"] = engine.note
    source = _prepared(work, options)
    folder = options.out / "models" / source.name / engine.name
    envs = options.out / "envs"
    own = {"IRSTD_ISA": options.isa} if options.isa else {}
    if engine.ours and work.is_layer:
        native_layer.prepare(work, np.load(source / "inputs.npz")["check"], folder)
        python, module, artefact = Path(sys.executable), ["-m", WORKER], engine.adapter
        opener, entry.known["note"] = f"{native_layer.__name__}:open_session", native_layer.NOTE
        environ = environments.variables(python, envs) | own
    elif engine.ours:
        shutil.rmtree(folder, ignore_errors=True)
        form = engine.forms.get(work.name, work.name)
        works.export(form, engine.adapter, folder, size=work.shape[1])
        if engine.precision in _OWN_REFERENCE:
            np.save(folder / "reference.npy", works.reference_of(form, np.load(source / "inputs.npz")["check"]))
        python, module, artefact, opener = Path(sys.executable), ["-m", WORKER], engine.adapter, measure.DEFAULT_OPENER
        environ = environments.variables(python, envs) | own
    else:
        python = environments.build(environments.ENVIRONMENTS[engine.environment], envs)
        environ = environments.variables(python, envs)
        adapter = f"{__package__}.adapters.{engine.adapter}"
        _convert(python, environ, adapter, source, folder, engine)
        if options.isa:
            try:
                python, environ = hold.held(python, environ)
                entry.held = True
            except hold.HoldError as e:
                entry.told(f"not held to {options.isa}: {e}")
        module, artefact, opener = [*_bootstrap(), WORKER], engine.precision, f"{adapter}:open_session"
    candidate = measure.Candidate(work.name, artefact, options.threads, str(folder), tuple(cores), opener)
    entry.worker = PeerWorker(candidate, [str(python), *module], environ)
    x = source / "timed.npy"
    np.save(x, np.load(source / "inputs.npz")["check"][:1])
    try:
        opened = entry.worker.ask(
            "open", bundle=str(folder), artefact=artefact, threads=options.threads, cores=cores, input=str(x),
            opener=opener,
        )
    except FAILURES:
        entry.worker.close()
        raise
    entry.opened = time.monotonic()
    entry.known |= {"runtime": opened["runtime"], "isa": opened["isa"] or (options.isa if entry.held else "auto")}
    entry.told(None if opened["flush_to_zero"] else "flush-to-zero could not be set")


def _check(entry: _Entry, options: Options) -> None:
    """Compare the outputs of the check inputs with the reference; beyond the tolerance the engine is left out."""
    source = options.out / "works" / _folder(entry.work)
    folder = options.out / "models" / source.name / entry.engine.name
    with np.load(source / "inputs.npz") as inputs:
        check, reference = inputs["check"], inputs["reference"]
    own = folder / "reference.npy"
    if own.exists():
        reference = np.load(own)
    given, got = folder.parent / "given.npz", folder.parent / "got.npz"
    np.savez(given, **{str(i): image[None] for i, image in enumerate(check)})
    entry.worker.ask("probabilities", inputs=str(given), outputs=str(got))
    with np.load(got) as outputs:
        difference = np.concatenate([outputs[str(i)] for i in range(len(check))]).astype(np.float64) - reference
    entry.known["max_abs"] = float(np.abs(difference).max())
    entry.known["error"] = float(np.sqrt((difference**2).mean()) / reference.std())
    tolerance = TOLERANCES[entry.engine.precision]
    if not entry.known["error"] <= tolerance:
        entry.worker.close()
        entry.skip(f"its outputs differ from the reference: error {entry.known['error']:.3g}, at most {tolerance:g}")


def _growth(worker: PeerWorker) -> int | None:
    try:
        memory = worker.ask("memory")
    except FAILURES:
        return None
    known = memory["peak_bytes"] is not None and memory["baseline_bytes"] is not None
    return memory["peak_bytes"] - memory["baseline_bytes"] if known else None


def _prepared(work: Work, options: Options, done: dict = {}) -> Path:  # noqa: B006 (once per process)
    """The folder of the work's files, written once."""
    folder = (options.out / "works" / _folder(work)).resolve()
    if folder not in done:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            works.prepare(work, folder, options.frames)
            done[folder] = None
        except Exception as e:  # whatever PyTorch's exporters raise
            done[folder] = WorkError(f"the work cannot be made: {reason(e)}")
    if done[folder]:
        raise done[folder]
    return folder


def _convert(python: Path, environ: dict, adapter: str, source: Path, folder: Path, engine: Engine) -> None:
    """Convert a work for an engine, unless the same was converted before. Raises :class:`WorkError`."""
    pins = environments.ENVIRONMENTS[engine.environment].pins
    key = hashlib.sha256(pins.encode() + engine.precision.encode())
    here = Path(__file__).parent
    for file in (here / "adapters" / f"{engine.adapter}.py", here / "models.py", here / "works.py",
                 *sorted(source.glob("*.onnx")), *sorted(source.glob("bundle/*.tflite"))):  # fmt: skip
        key.update(file.read_bytes())
    stamp = folder / "converted"
    if stamp.is_file() and stamp.read_text() == key.hexdigest():
        return
    shutil.rmtree(folder, ignore_errors=True)
    arguments = [f"{__package__}.convert", adapter, str(source), str(folder.resolve()), engine.precision]
    done = subprocess.run([str(python), *_bootstrap(), *arguments], capture_output=True, text=True, check=False,
                          env=environ, timeout=CONVERT_SECONDS)  # fmt: skip
    if done.returncode:
        raise WorkError(f"conversion: {works.last_line(done.stderr) or f'ended with {done.returncode}'}")
    stamp.write_text(key.hexdigest())


def _bootstrap() -> list[str]:
    packages = {p.__name__: p.__path__[0] for p in (irstd_edge, benchmarks)}
    return [str(Path(__file__).with_name("bootstrap.py")), *(f"{name}={folder}" for name, folder in packages.items())]


def _folder(work: Work) -> str:
    return work.name.replace(" ", "-")


def _cpu_flags() -> list[str]:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    line = next((x for x in text.splitlines() if x.startswith(("flags", "Features"))), ":")
    return line.partition(":")[2].split()

"""One benchmark: plan the candidates, measure them interleaved, compare and evaluate them, and build the report."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from irstd_edge import __version__, data
from irstd_edge.benchmarks import conditions, measure, statistics
from irstd_edge.benchmarks.errors import BenchmarkError
from irstd_edge.benchmarks.measure import Candidate, Preset, Timing
from irstd_edge.benchmarks.report.document import SCHEMA_VERSION
from irstd_edge.benchmarks.targets.local import LocalTarget, LocalWorker
from irstd_edge.bundle import Bundle
from irstd_edge.errors import MissingError, ParityError, UnsupportedError
from irstd_edge.runtimes.detection import Detection, draw_cell, find_targets, spread
from irstd_edge.runtimes.parity import ParitySummary, compare, tolerance
from irstd_edge.runtimes.video import Frame, read_all

#: Artefact of the network in PyTorch itself: no file of its own, the reference of every comparison.
TORCH = "torch"
MEMORY_METHOD = (
    "resident memory of the candidate's own process: the peak (VmHWM) until the end of the timed runs, less what "
    "was resident (VmRSS) once Python and the runtime were loaded and before the artefact was opened"
)
#: A single-threaded candidate that got less of its core than this was disturbed.
LEAST_CPU_SHARE = 0.95
SAMPLES_SHOWN = 6
SAMPLE_CELL = (480, 384)  # width and height in pixels
#: Of a video given as --images, one frame in so many takes part.
VIDEO_STEP = 50


@dataclass(frozen=True)
class Options:
    """What to measure; ``artefacts`` empty means all that the bundles hold, and PyTorch."""

    bundle: Path
    twin: Path | None = None
    artefacts: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    input_size: tuple[int, int] | None = None  # [H, W]; None: the bundle's reference input
    preset_name: str = "quick"
    preset: Preset = measure.PRESETS["quick"]
    images: Path | None = None
    dataset: str | None = None
    root: Path | None = None
    protocol: str = "basicirstd"
    limit: int | None = None
    seed: int = 0
    opener: str = measure.DEFAULT_OPENER


@dataclass(frozen=True)
class Progress:
    """Told by the benchmark: a stage begins, or a share of it is done."""

    stage: Callable[[str], None] = lambda text: None
    update: Callable[[float, str], None] = lambda fraction, text: None


@dataclass(frozen=True)
class _Image:
    """One input of the parity check, float32 ``[1, 1, H, W]``, normalised and padded.

    ``size`` is what outputs are cropped to; ``known`` is PyTorch's output where the bundle stores it, ``frame`` the
    picture where it was given by the user.
    """

    x: np.ndarray
    size: tuple[int, int]
    known: np.ndarray | None = None
    frame: Frame | None = None


@dataclass
class _Run:
    """One candidate on its way through the benchmark."""

    candidate: Candidate
    bundle: Bundle
    worker: LocalWorker
    opened: dict
    timing: Timing = field(default_factory=Timing)
    memory: dict = field(default_factory=dict)
    #: Probability ``[1, 1, H, W]`` per image, None where the artefact cannot take its size.
    outputs: list[np.ndarray | None] = field(default_factory=list)
    parity: ParitySummary = field(default_factory=ParitySummary)
    accuracy: dict | None = None


def run(options: Options, progress: Progress | None = None, target: LocalTarget | None = None) -> dict:
    """Measure, and return the report (see ``docs/report.schema.json``).

    Raises :class:`BenchmarkError`, :class:`~irstd_edge.bundle.BundleError`, :class:`~irstd_edge.data.DataError`,
    :class:`~irstd_edge.errors.MissingError` and :class:`~irstd_edge.errors.UnsupportedError`.
    """
    progress, target = progress or Progress(), target or LocalTarget()
    bundles = open_bundles(options)
    size = options.input_size or bundles[0].manifest.reference_input
    check_size(size, bundles)
    _check_dataset(options)
    candidates = plan(options, bundles, target)
    frames = list(read_all(options.images, VIDEO_STEP)) if options.images else []
    images = {b.manifest.network: _parity_images(b, frames) for b in bundles}
    device = target.device()

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="irstd-edge-")))
        progress.stage("opening")
        runs, skipped = [], []
        for i, candidate in enumerate(candidates):
            progress.update(i / len(candidates), str(candidate))
            bundle = next(b for b in bundles if b.manifest.network == candidate.network)
            worker = target.start(candidate)
            stack.callback(worker.close)
            try:
                opened = _open(worker, timed_input(bundle, size, options.seed), folder)
                runs.append(_Run(candidate, bundle, worker, opened))
            except MissingError as e:
                if options.artefacts:
                    raise
                skipped.append({"network": candidate.network, "artefact": candidate.artefact,
                                "threads": candidate.threads, "reason": str(e)})  # fmt: skip
        if not runs:
            raise MissingError(f"no candidate can run here: {skipped[0]['reason']}")
        target.settle()

        progress.stage("measuring")
        before = target.snapshot()
        timings = measure.measure([r.worker for r in runs], options.preset, options.seed, progress=progress.update)
        after = target.snapshot()
        for r, r.timing in zip(runs, timings, strict=True):
            r.memory = r.worker.ask("memory")

        progress.stage("comparing with PyTorch")
        for i, r in enumerate(runs):
            progress.update(i / len(runs), str(r.candidate))
            r.outputs = _outputs(r.worker, images[r.candidate.network], folder)
        for r in runs:
            r.parity = _parity(r, _torch_outputs(r, runs), images[r.candidate.network])

        if options.dataset:
            progress.stage(f"accuracy on {options.dataset}")
            for i, r in enumerate(runs):
                progress.update(i / len(runs), str(r.candidate))
                r.accuracy = _accuracy(r, options)

    rng = np.random.default_rng(options.seed)
    results = [_result(r, size, rng) for r in runs]
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "irstd-edge", "version": __version__, "packages": conditions.versions()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "conditions": {"before": before, "after": after},
        "measurement": {
            "preset": options.preset_name,
            **asdict(options.preset),
            "warmup_runs": measure.WARMUP_RUNS,
            "warmup_seconds": measure.WARMUP_SECONDS,
            "burst_seconds": measure.BURST_SECONDS,
            "untimed_below_ms": measure.UNTIMED_BELOW_MS,
            "rounds": len(timings[0].rounds),
            "seed": options.seed,
            "memory_method": MEMORY_METHOD,
            "dataset": options.dataset,
            "protocol": options.protocol if options.dataset else None,
        },
        "networks": [_network(b) for b in bundles],
        "results": results,
        "ratios": ratios({r.candidate.key: r.timing.rounds for r in runs}, bundles, options.threads, rng),
        "layers": [
            {"network": b.manifest.network, "artefact": a.kind} | asdict(layer)
            for b in bundles for a in b.manifest.artefacts for layer in a.layers
        ],
        "samples": _samples([r for r in runs if r.bundle is bundles[0]], images[bundles[0].manifest.network]),
        "skipped": skipped,
        "validity": {"flags": _flags(runs, before, after, device, skipped)},
    }  # fmt: skip


def open_bundles(options: Options) -> list[Bundle]:
    """The bundle and its twin's. Raises :class:`BenchmarkError` when they are the same network."""
    bundles = [Bundle.open(path) for path in (options.bundle, options.twin) if path is not None]
    names = [b.manifest.network for b in bundles]
    if len(set(names)) < len(names):
        raise BenchmarkError(f"{options.twin}: holds {names[0]} as well; --twin takes the bundle of its float twin")
    return bundles


def plan(options: Options, bundles: Sequence[Bundle], target: LocalTarget) -> list[Candidate]:
    """The candidates in the order of the tables: per thread count and network, PyTorch first.

    Raises :class:`BenchmarkError` for an artefact that no bundle holds.
    """
    unknown = sorted(set(options.artefacts) - {TORCH} - {kind for b in bundles for kind in b.kinds})
    if unknown:
        raise BenchmarkError(f"no bundle holds {', '.join(unknown)}; there is: {', '.join([TORCH, *bundles[0].kinds])}")
    return [
        Candidate(
            bundle.manifest.network, artefact, threads, str(bundle.path), tuple(target.cores(threads)), options.opener
        )
        for threads in dict.fromkeys(options.threads)
        for bundle in bundles
        # The twin's portable file and its plain ONNX are the same thing.
        for artefact in [TORCH, *(k for k in bundle.kinds if bundle is bundles[0] or k != "portable")]
        if not options.artefacts or artefact in options.artefacts
    ]


def check_size(size: tuple[int, int], bundles: Sequence[Bundle]) -> None:
    """Raise :class:`BenchmarkError` when an artefact cannot take ``[H, W]``."""
    for bundle in bundles:
        multiple = bundle.manifest.preprocessing.size_multiple
        if any(s % multiple or s <= 0 for s in size):
            raise BenchmarkError(f"input {size[0]}x{size[1]}: {bundle.manifest.network} takes multiples of {multiple}")


def timed_input(bundle: Bundle, size: tuple[int, int], seed: int) -> np.ndarray:
    """float32 ``[1, 1, H, W]``: the first test vector, tiled and cropped to ``size``, with a little noise.

    A real frame keeps activations realistic; noise keeps a tiled one from being periodic.
    """
    frame = bundle.test_vectors()[0][0, 0]
    repeats = [-(-want // have) for want, have in zip(size, frame.shape, strict=True)]
    frame = np.tile(frame, repeats)[: size[0], : size[1]]
    noise = np.random.default_rng(seed).normal(0, 0.01, frame.shape)
    return np.ascontiguousarray((frame + noise)[None, None], dtype=np.float32)


def ratios(rounds: dict, bundles: Sequence[Bundle], threads: Sequence[int], rng: np.random.Generator) -> list[dict]:
    """Speed-ups from paired rounds: against the twin in the same runtime, and against PyTorch and portable ONNX.

    ``rounds`` holds the latencies of every candidate by its key.
    """
    network = bundles[0].manifest.network
    twin = bundles[1].manifest.network if len(bundles) > 1 else None
    found = []

    def add(kind: str, name: str, slow: str, fast: str) -> None:
        if slow in rounds and fast in rounds:
            value, interval = statistics.paired_ratio(rounds[slow], rounds[fast], rng)
            found.append({"name": name, "kind": kind, "numerator": slow, "denominator": fast, "value": value,
                          "ci95": list(interval)})  # fmt: skip

    for count in dict.fromkeys(threads):
        suffix = f", {count} threads" if count > 1 else ""
        for artefact in ("onnx", "tflite", "native", TORCH):
            fast = f"{network}/{artefact}/{count}"
            if twin:
                add("twin", f"{artefact}: {network} against {twin}{suffix}", f"{twin}/{artefact}/{count}", fast)
        for artefact in ("onnx", "tflite", "native"):
            fast = f"{network}/{artefact}/{count}"
            for slow in ("portable", TORCH):
                add("runtime", f"{network}: {artefact} against {slow}{suffix}", f"{network}/{slow}/{count}", fast)
    return found


def _check_dataset(options: Options) -> None:
    """Fail before minutes of measuring, not after."""
    if bool(options.dataset) != bool(options.root):
        raise BenchmarkError("--dataset NAME and --root PATH go together")
    if options.dataset:
        data.Dataset(options.root, options.dataset, "test")


def _open(worker: LocalWorker, x: np.ndarray, folder: Path) -> dict:
    candidate, file = worker.candidate, folder / "timed.npy"
    np.save(file, x)
    return worker.ask(
        "open", bundle=candidate.bundle, artefact=candidate.artefact, threads=candidate.threads,
        cores=list(candidate.cores), input=str(file), opener=candidate.opener,
    )  # fmt: skip


def _parity_images(bundle: Bundle, frames: Sequence[Frame]) -> list[_Image]:
    """The bundle's test vectors and the user's frames."""
    preprocessing = bundle.manifest.preprocessing
    vectors, known = bundle.test_vectors()
    images = [_Image(x[None], x.shape[-2:], y[None]) for x, y in zip(vectors, known, strict=True)]
    for frame in frames:
        x = data.pad_to_multiple(data.normalise(frame.image, preprocessing), preprocessing.size_multiple)
        images.append(_Image(x[None, None], frame.image.shape, frame=frame))
    return images


def _outputs(worker, images: list[_Image], folder: Path) -> list[np.ndarray | None]:
    """The probability ``[1, 1, H, W]`` of every image, cropped to its size; None where the artefact cannot take it."""
    source, sink = folder / "inputs.npz", folder / "outputs.npz"
    np.savez(source, **{str(i): image.x for i, image in enumerate(images)})
    worker.ask("probabilities", inputs=str(source), outputs=str(sink))
    with np.load(sink, allow_pickle=False) as found:
        return [
            found[str(i)][..., : image.size[0], : image.size[1]] if str(i) in found else None
            for i, image in enumerate(images)
        ]


def _torch_outputs(run: _Run, runs: Sequence[_Run]) -> list[np.ndarray | None] | None:
    """PyTorch's outputs of the same network, with any number of threads; None where PyTorch was left out."""
    return next((r.outputs for r in runs if r.bundle is run.bundle and r.candidate.artefact == TORCH), None)


def _parity(run: _Run, torch: list[np.ndarray | None] | None, images: list[_Image]) -> ParitySummary:
    """Against PyTorch measured here; of PyTorch itself, or without it, against the outputs that the bundle stores."""
    kind = run.candidate.artefact
    expected = [i.known for i in images] if kind == TORCH or torch is None else torch
    summary = ParitySummary()
    for i, (reference, other) in enumerate(zip(expected, run.outputs, strict=True)):
        if reference is not None and other is not None:
            try:
                summary.add(compare(reference, other, run.bundle.manifest.threshold), f"image {i}")
            except ParityError as e:
                raise ParityError(f"{run.candidate}: {e}") from e
    summary.judge(kind, tolerance(run.bundle, kind))
    return summary


def _accuracy(run: _Run, options: Options) -> dict | None:
    """None for an untrained network, and where an artefact of one fixed size cannot take a set of many."""
    manifest = run.bundle.manifest
    if manifest.checkpoint_sha256 is None:
        return None
    try:
        return run.worker.ask(
            "accuracy", root=str(options.root), dataset=options.dataset, protocol=options.protocol, limit=options.limit,
            preprocessing=asdict(manifest.preprocessing), threshold=manifest.threshold,
        )  # fmt: skip
    except UnsupportedError:
        return None


def _result(run: _Run, size: tuple[int, int], rng: np.random.Generator) -> dict:
    candidate, parity = run.candidate, run.parity.as_dict()
    latency = statistics.latency_statistics(run.timing.rounds, rng).as_dict()
    return {
        "id": candidate.key,
        "network": candidate.network,
        "artefact": candidate.artefact,
        "runtime": run.opened["runtime"],
        "isa": run.opened["isa"],
        "threads": candidate.threads,
        "cores": list(candidate.cores),
        "input": list(size),
        "flush_to_zero": run.opened["flush_to_zero"],
        "file_bytes": _file_bytes(run.bundle, candidate.artefact),
        "latency_ms": latency | {"load_ms": run.opened["load_ms"], "first_ms": run.opened["first_ms"]},
        "cpu_share": run.timing.cpu_share,
        "memory": _memory(run.memory),
        "energy": None,
        "energy_reason": conditions.energy_reason(),
        "parity": {key: parity[key] for key in ("max_abs", "flipped_pixels", "images")},
        "accuracy": run.accuracy,
        "rounds_ms": [[round(float(v), 4) for v in r] for r in run.timing.rounds],
    }


def _file_bytes(bundle: Bundle, artefact: str) -> int:
    if artefact == TORCH:
        return bundle.weights().stat().st_size
    return bundle.artefact(artefact)[0].bytes


def _memory(answer: dict) -> dict | None:
    if answer["peak_bytes"] is None or answer["baseline_bytes"] is None:
        return None
    return answer | {"increase_bytes": max(0, answer["peak_bytes"] - answer["baseline_bytes"])}


def _network(bundle: Bundle) -> dict:
    manifest = bundle.manifest
    return {
        "name": manifest.network,
        "factory": manifest.factory,
        "trained": manifest.checkpoint_sha256 is not None,
        "weights_sha256": manifest.weights_sha256,
        "artefacts": {a.kind: a.sha256 for a in manifest.artefacts},
    }


def _samples(runs: list[_Run], images: list[_Image]) -> list[dict]:
    """Detections of the bundle's network on some of the user's frames, drawn and in numbers."""
    if not runs:
        return []
    order = ("onnx", "tflite", "native", "portable", TORCH)
    shown = min(runs, key=lambda r: order.index(r.candidate.artefact) if r.candidate.artefact in order else len(order))
    found, own = [], shown.outputs
    for i in spread([i for i, image in enumerate(images) if image.frame and own[i] is not None], SAMPLES_SHOWN):
        targets = find_targets(own[i][0, 0], shown.bundle.manifest.threshold)
        detection = Detection(images[i].frame, targets)
        png = io.BytesIO()
        draw_cell(detection, *SAMPLE_CELL).save(png, "PNG", optimize=True)
        found.append({
            "name": images[i].frame.name,
            "result": shown.candidate.key,
            "size": list(images[i].size),
            "targets": [t.as_dict() for t in targets],
            "overlay": "data:image/png;base64," + base64.b64encode(png.getvalue()).decode(),
        })  # fmt: skip
    return found


def _flags(runs: list[_Run], before: dict, after: dict, device: dict, skipped: list) -> list[str]:
    flags = conditions.flags_of(before, after, device, (core for r in runs for core in r.candidate.cores))
    if any(r.timing.runs < measure.RULE_RUNS or r.timing.seconds < measure.RULE_SECONDS for r in runs):
        flags.append("short-measurement")
    if any(r.candidate.threads == 1 and r.timing.cpu_share < LEAST_CPU_SHARE for r in runs):
        flags.append("preempted")
    if not all(r.opened["flush_to_zero"] for r in runs):
        flags.append("denormals")
    if any(r.opened["isa"] == "ref" for r in runs):
        flags.append("reference-kernels")
    if any(r.parity.violations for r in runs):
        flags.append("not-equal")
    if skipped:
        flags.append("skipped-candidates")
    return [flag for flag in conditions.FLAGS if flag in flags]

"""Commands of this floor: verify, evaluate, detect, doctor."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from irstd_edge import errors, terminal
from irstd_edge.json_output import JsonFile, json_option
from irstd_edge.layouts import LAYOUTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from irstd_edge.bundle import Preprocessing
    from irstd_edge.runtimes.detection import Detection
    from irstd_edge.runtimes.session import Session

PATH = click.Path(path_type=Path)
threads_option = click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True,
                              help="Threads of the runtime.")
every_option = click.option("--every", type=click.IntRange(1), default=1, show_default=True,
                            help="Take each n-th frame of a video.")


@click.command()
@click.argument("bundle", type=PATH, metavar="DIR")
@click.option("--images", type=PATH, help="An image, a video, or a folder of them.")
@click.option("--dataset", help="Name of a data set's folder, as NUAA-SIRST: its test images are compared too, "
                                "and IoU, nIoU, Pd and Fa.")
@click.option("--root", type=PATH, help="The folder that holds the data set's folder.")
@click.option("--artefact", "artefacts", multiple=True, metavar="KIND", help="One artefact (repeatable); default all.")
@threads_option
@every_option
@json_option("the result")
def verify(bundle, images, dataset, root, artefacts, threads, every, json_file):
    """Compare the artefacts of a bundle with PyTorch: identical tensors first, then the metrics.

    The bundle's own test vectors are always compared. Exit code 4 where a tolerance is exceeded.
    """
    from irstd_edge.bundle import Bundle
    from irstd_edge.data import Dataset
    from irstd_edge.runtimes import parity
    from irstd_edge.runtimes.video import count_frames, list_inputs, read_all

    _both(dataset, root)
    opened = Bundle.open(bundle)
    samples = Dataset(root, dataset, "test") if dataset else None
    total = sum(count_frames(p, every) for p in list_inputs(images)) if images else 0
    frames = ((f.name, f.image) for f in read_all(images, every)) if images else ()
    with _progress("verify", total + (len(samples) if samples else 0)) as advance:
        result = parity.verify(opened, frames, list(artefacts) or None, threads, samples, advance)
    _print_verification(result)
    if json_file:
        json_file.write({"network": opened.manifest.network, "threads": threads, "dataset": dataset,
                         "images": None if images is None else str(images)} | result.as_dict())
    result.check()


@click.command()
@click.argument("network", required=False, metavar="NETWORK|DIR")
@click.option("--dataset", help="Name of a data set's folder, as NUAA-SIRST.")
@click.option("--root", type=PATH, help="The folder that holds the data set's folder.")
@click.option("--split", metavar="test|train|FILE",
              help="Default test. Or a file of names, one a line: its path, or that below img_idx, as idx_427/test.")
@click.option("--protocol", type=click.Choice(["basicirstd", "resize256"]), default="basicirstd", show_default=True,
              help="Native size, or everything resized to 256 x 256; their figures are not comparable.")
@click.option("--roc", "roc_file", type=PATH, metavar="FILE.csv",
              help="Write the figures at many thresholds, and their plot beside it (needs matplotlib).")
@click.option("--worst", "worst_file", type=PATH, metavar="FILE.png",
              help="Draw the images of the lowest IoU, with prediction and truth.")
@click.option("--worst-count", type=click.IntRange(1, 100), default=12, show_default=True, help="How many of them.")
@click.option("--clips", type=PATH, help="A folder of X.mp4 with boxes X.csv: in how many frames is the target found?")
@every_option
@click.option("--artefact", metavar="KIND",
              help="Of a bundle: what to run; default the first of onnx, native, tflite, portable that it holds, of "
                   "those that run any size.")
@click.option("--checkpoint", type=PATH, help="Of a network: its weights; default those that come with it.")
@click.option("--from-layout", type=click.Choice(list(LAYOUTS)),
              help="Whose public checkpoint it is: its keys are mapped onto the network here.")
@click.option("--model", metavar="PACKAGE.MODULE:FACTORY", help="A network of your own.")
@click.option("--allow-pickle", is_flag=True, help="Read a pickled checkpoint: it can run code; trust its source.")
@click.option("--mean", type=float, help="Of a network: mean on the 0..255 scale.")
@click.option("--std", type=float, help="Of a network: standard deviation on the 0..255 scale.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Of the probability; default the network's (0.5).")
@threads_option
@json_option("the result")
def evaluate(network, dataset, root, split, protocol, roc_file, worst_file, worst_count, clips, every, artefact,
             checkpoint, from_layout, model, allow_pickle, mean, std, threshold, threads, json_file):
    """Measure IoU, nIoU, Pd and Fa of a network or a bundle on a data set, or the targets found in clips."""
    from irstd_edge.data import Dataset
    from irstd_edge.files import check_writable, write_csv
    from irstd_edge.metrics import ROC_THRESHOLDS, ThresholdSweep, UnionShares
    from irstd_edge.plots import require_matplotlib
    from irstd_edge.runtimes import accuracy, review
    from irstd_edge.runtimes.video import count_frames
    from irstd_edge.training.seen import count_seen

    _both(dataset, root)
    if not dataset and not clips:
        raise click.UsageError("name --dataset NAME --root DIR, or --clips DIR")
    if not dataset and (roc_file or worst_file or split):
        raise click.UsageError("--roc, --worst and --split need --dataset NAME --root DIR")
    if split and ":" in dataset:
        raise click.UsageError(f"--dataset {dataset} names a split already: leave out --split {split}")
    plot = roc_file and roc_file.with_suffix(".png")
    if plot and worst_file and plot.absolute() == worst_file.absolute():
        raise click.UsageError(f"--roc {roc_file} draws its plot into {plot}: give --worst another name")
    for file in filter(None, (roc_file, plot, worst_file)):
        check_writable(file)
    if worst_file:
        _check_picture(worst_file)
    if roc_file:
        if roc_file.suffix.lower() == ".png":
            raise click.UsageError(f"{roc_file}: name the CSV; the plot is written beside it as .png")
        require_matplotlib()
    samples = Dataset.named(root, dataset, split or "test") if dataset else None
    files = accuracy.list_clips(clips) if clips else []
    name, session, preprocessing, usual, recipes = _open_network(
        network, artefact, threads, checkpoint=checkpoint, from_layout=from_layout, model=model,
        allow_pickle=allow_pickle, mean=mean, std=std)
    threshold = usual if threshold is None else threshold
    seen = count_seen(recipes, root, samples) if samples else None
    if seen:
        click.echo(f"warning: {name} was trained on {seen} of these {len(samples)} images; no figure of this tells "
                   f"how it does on others", err=True)
    report = {
        "network": name, "artefact": session.artefact, "runtime": session.runtime,
        "dataset": samples and samples.name, "split": samples and samples.split, "trained_on": seen,
        "protocol": protocol, "metric": accuracy.METRIC, "threshold": threshold, "threads": threads,
        "normalisation": {"mean": preprocessing.mean, "std": preprocessing.std}, "accuracy": None, "union": None,
        "clips": None,
    }
    sweep = ThresholdSweep({*ROC_THRESHOLDS, threshold}) if roc_file else None
    worst = review.WorstImages(worst_count, threshold) if worst_file else None
    shares = UnionShares(threshold)

    def on_map(sample, probability) -> None:
        for collector in filter(None, (sweep, worst, shares)):
            collector(sample, probability)

    total = (len(samples) if samples else 0) + sum(count_frames(f, every) for f in files)
    with _progress("evaluate", total) as advance:
        if samples:
            report["accuracy"] = accuracy.evaluate(
                session, samples, preprocessing, protocol=protocol, threshold=threshold, on_image=advance,
                on_map=on_map).as_dict()
            report["union"] = shares.as_dict() if any(shares.as_dict().values()) else None
        if clips:
            report["clips"] = [
                accuracy.evaluate_clip(session, f, preprocessing, threshold=threshold, every=every, on_image=advance)
                .as_dict() for f in files]
    _print_evaluation(report)
    if sweep:
        rows = sweep.rows()
        write_csv(roc_file, rows)
        review.plot_sweep(rows, threshold, f"{name}, {samples.name} {samples.split}", plot)
    if worst:
        report["worst"] = [{"image": c.name, "iou": c.iou} for c in worst.cases]
        _save_picture(review.worst_sheet(worst.cases), worst_file)
    if json_file:
        json_file.write(report)


@click.command()
@click.argument("bundle", type=PATH, metavar="DIR")
@click.argument("source", type=PATH, metavar="INPUT")
@click.option("--artefact", metavar="KIND",
              help="What to run; default the first of onnx, native, tflite, portable that the bundle holds, of those "
                   "that run any size.")
@click.option("--out", type=PATH, help="Folder for overlays, detections.json and detections.csv.")
@json_option("the targets of every frame")
@click.option("--csv", "csv_file", type=PATH, help="Write the targets as CSV, one row each.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Of the probability; default the network's (0.5).")
@click.option("--overlay/--no-overlay", default=True, show_default=True, help="Draw a PNG or MP4 for each input.")
@click.option("--sheet", type=PATH, help="Write one picture with up to twelve of the frames.")
@threads_option
def detect(bundle, source, artefact, out, json_file, csv_file, threshold, overlay, sheet, threads):
    """Detect targets in INPUT: an image, a video, or a folder of them; any size, 8- or 16-bit.

    A file of a folder that cannot be read is reported and the others are done; the exit code is then 2.
    """
    from time import perf_counter

    from irstd_edge.bundle import Bundle
    from irstd_edge.data import DataError
    from irstd_edge.files import check_writable, write_csv
    from irstd_edge.runtimes import detection
    from irstd_edge.runtimes.session import open_session, preferred_artefact
    from irstd_edge.runtimes.video import count_frames, list_inputs, read_frames

    files = list_inputs(source)
    if out is not None:
        if out.resolve() in {f.parent.resolve() for f in files}:
            raise click.UsageError("--out is the folder of the input; name another")
        json_file, csv_file = json_file or JsonFile(out / "detections.json"), csv_file or out / "detections.csv"
    for file in filter(None, (csv_file, sheet)):
        check_writable(file)
    if sheet:
        _check_picture(sheet)
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    session = open_session(opened, artefact or preferred_artefact(opened), threads)
    threshold = manifest.threshold if threshold is None else threshold

    failed: dict[Path, DataError] = {}
    total = 0
    for file in files:
        try:
            total += count_frames(file)
        except DataError as e:
            failed[file] = e
    overlays = _overlay_names(files) if out is not None and overlay else {}
    records, rows, shown, seconds = [], [], [], 0.0
    with _progress("detect", total) as advance:
        for file in (f for f in files if f not in failed):
            try:
                with _overlays(file, out / overlays[file] if overlays else None) as draw:
                    for frame in read_frames(file):
                        began = perf_counter()
                        probability = detection.predict(session, frame.image, manifest.preprocessing)
                        found = detection.Detection(frame, detection.find_targets(probability, threshold))
                        seconds += perf_counter() - began
                        if sheet and len(records) % max(1, total // 12) == 0:
                            shown.append(found)
                        records.append(found.as_dict())
                        rows.extend(found.rows())
                        draw(found)
                        advance(frame.name)
            except DataError as e:
                failed[file] = e
    if failed and not source.is_dir():
        raise failed[source]

    fps = len(records) / seconds if seconds else None
    if json_file:
        json_file.write({
            "network": manifest.network, "artefact": session.artefact, "runtime": session.runtime,
            "threshold": threshold, "threads": threads, "frames_per_second": fps, "frames": records,
            "failed": [{"file": f.name, "error": str(e)} for f, e in failed.items()],
        })
    if csv_file:
        write_csv(csv_file, rows, detection.CSV_FIELDS)
    if shown:
        _save_picture(detection.contact_sheet(detection.spread(shown, 12)), sheet)
    _print_detections(records, fps)
    if out is not None:
        click.echo(out)
    for error in failed.values():
        click.echo(f"irstd-edge: {error}", err=True)
    if failed:
        click.echo(f"irstd-edge: {len(failed)} of {len(files)} files failed; the others are done", err=True)
        return errors.USAGE
    return errors.OK


@click.command()
@json_option("the result")
def doctor(json_file):
    """Tell which runtimes, instruction sets and tools are here, and how to get the missing ones.

    Exit code 5 where something is missing that the core needs.
    """
    from irstd_edge.runtimes.environment import inspect_environment

    environment = inspect_environment()
    _print_environment(environment)
    if json_file:
        json_file.write(environment.as_dict())
    if environment.missing:
        raise errors.MissingError("missing: " + ", ".join(f"{c.name} ({c.fix})" for c in environment.missing))


def _both(dataset: str | None, root: Path | None) -> None:
    if bool(dataset) != bool(root):
        raise click.UsageError("--dataset NAME and --root DIR go together")


def _open_network(reference: str | None, artefact: str | None, threads: int, **options
                  ) -> tuple[str, Session, Preprocessing, float, list[dict]]:
    """A session on a bundle's artefact or on a network: its name, session, preprocessing, threshold, and the recipes
    that it was trained by, where they are known."""
    from irstd_edge.bundle import MANIFEST, Bundle
    from irstd_edge.runtimes.session import open_session, preferred_artefact
    from irstd_edge.training.seen import training_recipes

    if reference and ("/" in reference or (Path(reference) / MANIFEST).is_file()):
        given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
        if given:
            raise click.UsageError(f"{reference} is a bundle, which has its own network: leave out {', '.join(given)}")
        manifest = (bundle := Bundle.open(Path(reference))).manifest
        recipes = training_recipes(None, manifest.checkpoint_sha256)
        session = open_session(bundle, artefact or preferred_artefact(bundle), threads)
        return manifest.network, session, manifest.preprocessing, manifest.threshold, recipes
    if artefact not in (None, "torch"):
        raise click.UsageError(f"--artefact {artefact} needs a bundle, as irstd-edge export writes it")
    from irstd_edge.checkpoints import load_network
    from irstd_edge.runtimes.pytorch import TorchSession

    loaded = load_network(reference, **options)
    recipes = training_recipes(options["checkpoint"], loaded.checkpoint_sha256)
    return loaded.name, TorchSession(loaded.network, threads), loaded.preprocessing, loaded.threshold, recipes


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar with frames a second on standard error; yields a call to make after each frame."""
    from rich import progress
    from rich.console import Console
    from rich.text import Text

    class Rate(progress.ProgressColumn):
        def render(self, task):
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} fps" if speed else "", style="cyan")

    bar = progress.Progress(progress.TextColumn("{task.description}"), progress.BarColumn(),
                            progress.MofNCompleteColumn(), Rate(), progress.TimeRemainingColumn(),
                            console=Console(stderr=True), transient=True)
    with bar:
        task = bar.add_task(title, total=total)
        yield lambda name: bar.advance(task)


def _overlay_names(files: list[Path]) -> dict[Path, str]:
    """Overlay of each input: ``X.png`` or ``X.mp4``; where two would collide the input's suffix stays in the name."""
    from collections import Counter

    from irstd_edge.runtimes.video import is_video

    suffixes = {f: ".mp4" if is_video(f) else ".png" for f in files}
    taken = Counter(f.stem + suffix for f, suffix in suffixes.items())
    return {f: (f.stem if taken[f.stem + suffix] == 1 else f.name) + suffix for f, suffix in suffixes.items()}


@contextmanager
def _overlays(source: Path, path: Path | None) -> Iterator[Callable[[Detection], None]]:
    """Yields a call to make with each detection of one input: it draws to a PNG, to an MP4, or nothing."""
    import numpy as np

    from irstd_edge.runtimes.detection import draw_overlay
    from irstd_edge.runtimes.video import is_video, video_info, writing

    if path is None:
        yield lambda found: None
    elif is_video(source):
        with writing(path, video_info(source).fps) as write:
            yield lambda found: write(np.asarray(draw_overlay(found)))
    else:
        yield lambda found: _save_picture(draw_overlay(found), path)


def _check_picture(path: Path) -> None:
    from PIL import Image

    Image.init()
    if path.suffix.lower() not in Image.EXTENSION:
        raise click.UsageError(f"{path}: no picture format of that name; use .png or .jpg")


def _save_picture(picture, path: Path) -> None:
    from irstd_edge.files import replacing

    with replacing(path) as temporary:
        picture.save(temporary, **({"optimize": True} if path.suffix.lower() == ".png" else {"quality": 90}))


def _show(*tables) -> None:
    console = terminal.console()
    for table in tables:
        console.print(table)


def _print_verification(result) -> None:
    table = terminal.table("artefact", "on", "images", "max-abs", "limit", "1 - cosine", "flipped px", "in images", "")
    for title, summaries in (("test vectors", result.vectors), ("images", result.images)):
        for kind, s in summaries.items():
            table.add_row(kind, title, str(s.images), f"{s.max_abs:.2e}", f"{result.tolerances[kind].max_abs:.0e}",
                          f"{1 - s.cosine:.1e}", str(s.flipped_pixels), str(s.images_with_flips),
                          "[red]differs[/]" if s.violations else
                          "[green]equal[/]" if not s.flipped_pixels else "[green]within the limits[/]")
    tables = [table]
    if result.accuracy:
        metrics = terminal.table("artefact", "IoU", "nIoU", "Pd", "Fa (1e-6)", "images")
        for kind, a in result.accuracy.items():
            metrics.add_row(kind, *_figures(a.as_dict()))
        tables.append(metrics)
    _show(*tables)


def _figures(a: dict) -> tuple[str, ...]:
    return f"{a['iou']:.4f}", f"{a['niou']:.4f}", f"{a['pd']:.4f}", f"{a['fa'] * 1e6:.2f}", str(a["images"])


def _print_evaluation(report: dict) -> None:
    tables = []
    if report["accuracy"]:
        table = terminal.table("network", "artefact", "data set", "protocol", "IoU", "nIoU", "Pd", "Fa (1e-6)",
                               "images")
        table.add_row(*(report[k] for k in ("network", "artefact", "dataset", "protocol")),
                      *_figures(report["accuracy"]))
        tables.append(table)
    if report["clips"]:
        table = terminal.table("clip", "frames", "found", "share", "false targets a frame")
        for c in report["clips"]:
            table.add_row(c["clip"], str(c["frames"]), str(c["found"]), f"{c['share']:.0%}",
                          f"{c['false_targets_per_frame']:.2f}")
        tables.append(table)
    _show(*tables)
    if report["union"]:
        share = {k: f"{v:.1%}" for k, v in report["union"].items()}
        click.echo("Lost of the IoU: {missed_wholly} by targets missed wholly, {missed_partly} partly; "
                   "{false_wholly} by predictions false wholly, {false_partly} partly".format(**share))


def _print_detections(records: list[dict], fps: float | None, most: int = 20) -> None:
    table = terminal.table("file", "frame", "x", "y", "box", "area", "score")
    found = [(r, t) for r in records for t in r["targets"]]
    for record, t in found[:most]:
        table.add_row(record["file"], "" if record["frame"] is None else str(record["frame"]), f"{t['x']:.1f}",
                      f"{t['y']:.1f}", "{}, {}, {} x {}".format(*t["box"]), str(t["area"]), f"{t['score']:.3f}")
    _show(table)
    rest = f" ({len(found) - most} more)" if len(found) > most else ""
    click.echo(f"{_count(len(found), 'target')} in {_count(len(records), 'frame')}{rest}"
               + (f", {fps:.1f} frames a second" if fps else ""))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _print_environment(environment) -> None:
    from rich.markup import escape

    table = terminal.table("", "what", "version", "where, or how to get it")
    for column in table.columns:
        column.justify, column.no_wrap = "left", False
    for check in environment.checks:
        mark = "[green]ok[/]" if check.found else "[red]missing[/]" if check.required else "[yellow]absent[/]"
        table.add_row(mark, check.name, check.version,
                      escape(check.detail if check.found else "; ".join(filter(None, (check.detail, check.fix)))))
    _show(table)
    isas = ", ".join(environment.isas) or "unknown"
    click.echo(f"{environment.system}; {environment.cpu}, {environment.cores} cores"
               f" ({' '.join(environment.features) or 'features unknown'})")
    click.echo(f"kernels: {isas}; selected: {environment.selected_isa or 'none'}")

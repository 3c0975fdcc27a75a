"""``irstd-edge benchmark`` and ``irstd-edge report``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from irstd_edge.benchmarks.measure import PRESETS


def _size(context, parameter, value: str | None) -> tuple[int, int] | None:
    from irstd_edge.data import parse_size

    return None if value is None else parse_size(value)


_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("bundle", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--twin", metavar="DIR", type=click.Path(path_type=Path),
              help="Bundle of the float network of the same topology, to compare speed with.")  # fmt: skip
@click.option("--artefact", "artefacts", metavar="NAME", multiple=True,
              help="torch, onnx, tflite, portable ...; repeatable. Default: all of the bundle, and torch.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 1024), multiple=True, default=(1,), show_default=True,
              help="Threads per runtime; repeatable.")  # fmt: skip
@click.option("--input-size", metavar="H[xW]", callback=_size, help="Input of the timing. Default: the bundle's own.")
@click.option("--preset", type=click.Choice(list(PRESETS)), default="quick", show_default=True,
              help=f"Least length per candidate: {', '.join(f'{n} {p}' for n, p in PRESETS.items())}.")  # fmt: skip
@click.option("--min-runs", type=click.IntRange(1), help="Least runs per candidate, instead of the preset's.")
@click.option("--min-seconds", type=click.FloatRange(0), help="Least seconds per candidate, instead of the preset's.")
@click.option("--images", metavar="PATH", type=click.Path(path_type=Path),
              help="Image, video or folder: compared with PyTorch and shown with detections.")  # fmt: skip
@click.option("--dataset", metavar="NAME", help="Data set to measure accuracy on (its test split), as NUAA-SIRST.")
@click.option("--root", metavar="PATH", type=_FOLDER, help="The folder that holds the data set's folder.")
@click.option("--protocol", type=click.Choice(["basicirstd", "resize256"]), default="basicirstd", show_default=True,
              help="Protocol of the accuracy.")  # fmt: skip
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Accuracy on the first N images alone.")
@click.option("--out", metavar="DIR", type=_FOLDER, help="Write report.json, report.html and report.md here.")
@click.option("--json", "json_file", metavar="FILE", type=_FILE, help="Write the report.")
@click.option("--html", "html_file", metavar="FILE", type=_FILE, help="Write the report as a page.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order within rounds and of the intervals.")
def benchmark(bundle, twin, artefacts, threads, input_size, preset, min_runs, min_seconds, images, dataset, root,
              protocol, limit, out, json_file, html_file, seed) -> None:  # fmt: skip
    """Measure latency, memory, parity and accuracy of a bundle's artefacts, interleaved, each in its own process.

    Compare with the float twin:

    \b
      irstd-edge export biisnet --to onnx,tflite,portable --out build/bundle
      irstd-edge export biisnet-float --untrained --to onnx,tflite --out build/twin
      irstd-edge benchmark build/bundle --twin build/twin --out build
    """
    from rich.console import Console

    from irstd_edge.benchmarks.report import document, html, markdown
    from irstd_edge.benchmarks.run import Options, run
    from irstd_edge.files import check_writable, write_text

    html.check_available()
    files = {
        "json": json_file or (out / "report.json" if out else None),
        "html": html_file or (out / "report.html" if out else None),
        "md": out / "report.md" if out else None,
    }
    for file in filter(None, files.values()):
        check_writable(file)
    length, name = PRESETS[preset], preset
    if min_runs is not None or min_seconds is not None:
        name = "custom"
        length = replace(length, min_runs=min_runs or length.min_runs,
                         min_seconds=length.min_seconds if min_seconds is None else min_seconds)  # fmt: skip
    options = Options(
        bundle=bundle, twin=twin, artefacts=artefacts, threads=threads, input_size=input_size, preset_name=name,
        preset=length, images=images, dataset=dataset, root=root, protocol=protocol, limit=limit, seed=seed,
    )  # fmt: skip
    with _progress() as progress:
        report = run(options, progress)
    console = Console()
    markdown.print_tables(report, console)
    document.validate(report)
    if files["json"]:
        document.write(report, files["json"])
    if files["html"]:
        write_text(files["html"], html.render(report))
    if files["md"]:
        write_text(files["md"], markdown.render(report))
    for file in filter(None, files.values()):
        console.print(f"wrote {file}", highlight=False, markup=False, soft_wrap=True)


@click.command()
@click.argument("file", metavar="REPORT.json", type=click.Path(path_type=Path))
@click.option("--html", "html_file", metavar="FILE", type=_FILE, help="Write a self-contained page.")
@click.option("--markdown", "markdown_file", metavar="FILE", type=_FILE, help="Write tables in markdown.")
def report(file, html_file, markdown_file) -> None:
    """Render REPORT.json as a page, as markdown, or as tables in the terminal (the default)."""
    from rich.console import Console

    from irstd_edge.benchmarks.report import document, html, markdown
    from irstd_edge.files import write_text

    found, console = document.read(file), Console()
    if html_file:
        write_text(html_file, html.render(found))
    if markdown_file:
        write_text(markdown_file, markdown.render(found))
    for written in filter(None, (html_file, markdown_file)):
        console.print(f"wrote {written}", highlight=False, markup=False, soft_wrap=True)
    if not html_file and not markdown_file:
        markdown.print_tables(found, console)


class _progress:
    """A progress bar on standard error that follows a benchmark."""

    def __enter__(self):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        from irstd_edge.benchmarks.run import Progress as Told

        self.bar = Progress(
            TextColumn("{task.description:<24}"), BarColumn(), TextColumn("{task.fields[detail]}"), TimeElapsedColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self.bar.start()
        task = self.bar.add_task("", total=1.0, detail="")
        return Told(
            stage=lambda text: self.bar.update(task, description=text, completed=0, detail=""),
            update=lambda fraction, text: self.bar.update(task, completed=fraction, detail=text),
        )

    def __exit__(self, *exc) -> None:
        self.bar.stop()

"""A report as markdown and as tables for the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from irstd_edge.benchmarks.conditions import FLAGS
from irstd_edge.benchmarks.report import view

_COLUMNS = (
    ("network", "network"), ("runtime", "runtime"), ("isa", "kernels"), ("threads", "threads"), ("p50", "p50 ms"),
    ("interval", "95 % interval"), ("p90", "p90 ms"), ("p99", "p99 ms"), ("memory", "memory"), ("file", "file"),
    ("max_abs", "max abs"), ("flipped", "flipped px"), ("iou", "IoU"), ("pd", "Pd"), ("fa", "Fa x1e6"),
)  # fmt: skip
_TEXT = ("network", "runtime", "isa")
#: What a terminal leaves out, the narrow one more.
_NOT_IN_TERMINAL = ("runtime", "interval", "flipped")
_NOT_IN_NARROW = (*_NOT_IN_TERMINAL, "isa", "p99", "file", "fa")
_NARROW = 110


def render(report: dict) -> str:
    """Markdown: results, speed-ups, validity."""
    shown = _shown(report)
    lines = [
        f"# Benchmark of {report['networks'][0]['name']}",
        "",
        f"{view.device_line(report)}; {report['created']}, irstd-edge {report['tool']['version']}.",
        "",
        "| " + " | ".join(title for _, title in shown) + " |",
        "|" + "|".join(":--" if name in _TEXT else "--:" for name, _ in shown) + "|",
    ]
    lines += ["| " + " | ".join(_cell(getattr(row, name)) for name, _ in shown) + " |" for row in view.rows(report)]
    if report["ratios"]:
        lines += ["", "| speed-up | factor | 95 % interval |", "|:--|--:|--:|"]
        lines += [f"| {_cell(name)} | {value} | {interval} |" for name, value, interval in view.ratio_rows(report)]
    if report["validity"]["flags"]:
        lines += ["", "Read with care:", ""]
        lines += [f"- `{flag}`: {FLAGS.get(flag, '')}" for flag in report["validity"]["flags"]]
    lines += [f"- left out: {_cell(s['network'])} {s['artefact']}: {_cell(s['reason'])}" for s in report["skipped"]]
    return "\n".join(lines) + "\n"


def print_tables(report: dict, console: Console) -> None:
    """The same as :func:`render`, as coloured tables, with fewer columns in a narrow terminal."""
    rows, main = view.rows(report), report["networks"][0]["name"]
    shown = _shown(report, without=_NOT_IN_NARROW if console.width < _NARROW else _NOT_IN_TERMINAL)
    table = Table(title=view.device_line(report), box=SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("artefact", no_wrap=True)
    for name, title in shown:
        table.add_column(title, justify="left" if name in _TEXT else "right", no_wrap=name != "network")
    for row, result in zip(rows, report["results"], strict=True):
        cells = (escape(getattr(row, name)) for name, _ in shown)
        table.add_row(result["artefact"], *cells, style=None if row.network == main else "dim")
    console.print(table)
    if report["ratios"]:
        speed_ups = Table(box=SIMPLE_HEAD, pad_edge=False)
        speed_ups.add_column("speed-up")
        speed_ups.add_column("factor", justify="right", style="bold")
        speed_ups.add_column("95 % interval", justify="right")
        for row in view.ratio_rows(report):
            speed_ups.add_row(*map(escape, row))
        console.print(speed_ups)
    for flag in report["validity"]["flags"]:
        console.print(f"[yellow]{flag}[/yellow]: {FLAGS.get(flag, '')}", highlight=False)
    for s in report["skipped"]:
        console.print(f"left out: {s['network']} {s['artefact']}: {s['reason']}", style="yellow", markup=False)


def _shown(report: dict, without: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """The columns that hold something, and threads where they differ."""
    rows = view.rows(report)
    if len({row.threads for row in rows}) == 1:
        without += ("threads",)
    return [(name, title) for name, title in _COLUMNS if name not in without and any(getattr(r, name) for r in rows)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

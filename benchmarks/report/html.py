"""A report as one self-contained page: style, plots and pictures inline, no script, nothing to fetch."""

from __future__ import annotations

from importlib import resources

from irstd_edge.benchmarks.conditions import FLAGS
from irstd_edge.benchmarks.report import view
from irstd_edge.errors import MissingError

#: Precisions in the order of the bars, narrow to wide.
_NARROW_FIRST = ("W1A1", "W2", "W3", "W4", "W8", "float16", "float32")


def check_available() -> None:
    """Raise :class:`MissingError` when what renders a page is not installed."""
    try:
        import jinja2  # noqa: F401
        import jsonschema  # noqa: F401
    except ImportError as e:
        raise MissingError(f"{e.name} is missing; get it with: pip install 'irstd-edge[report]'") from e


def render(report: dict) -> str:
    """The page of a valid report."""
    check_available()
    from jinja2 import Environment, StrictUndefined

    from irstd_edge.benchmarks.report import plots

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"size": view.size, "count": view.count, "number": view.number, "factor": view.factor}
    template = environment.from_string(resources.files(__package__).joinpath("report.html").read_text())
    beyond, runs = plots.slower_than_shown(report)
    return template.render(
        report=report,
        main=report["networks"][0],
        twin=report["networks"][1] if len(report["networks"]) > 1 else None,
        device_line=view.device_line(report),
        rows=view.rows(report),
        headline=headline(report),
        other_ratios=[r for r in report["ratios"] if r["kind"] == "runtime"],
        latency_plot=plots.latency_plot(report),
        accuracy_plot=plots.accuracy_plot(report),
        beyond=beyond,
        runs=runs,
        layers=layer_tables(report),
        flags=[(flag, FLAGS.get(flag, "")) for flag in report["validity"]["flags"]],
        cores=dict.fromkeys(", ".join(map(str, r["cores"])) or "not pinned" for r in report["results"]),
        several_threads=len({r["threads"] for r in report["results"]}) > 1,
        any_isa=any(r["isa"] for r in report["results"]),
        runtime_name=view.runtime_name,
    )


def headline(report: dict) -> list[dict]:
    """One card per speed-up over the twin (all thread counts); without a twin, per speed-up between runtimes."""
    by_id = {r["id"]: r for r in report["results"]}
    kinds = [r for r in report["ratios"] if r["kind"] == "twin"] or report["ratios"]
    cards = []
    for ratio in kinds:
        slow, fast = by_id[ratio["numerator"]], by_id[ratio["denominator"]]
        longest = max(slow["latency_ms"]["p50"], fast["latency_ms"]["p50"])
        same_network = slow["network"] == fast["network"]
        against = view.runtime_name(slow["artefact"]) if same_network else slow["network"]
        cards.append({
            "value": max(ratio["value"], 1 / ratio["value"]),
            "ci95": sorted(ratio["ci95"] if ratio["value"] >= 1 else (1 / v for v in ratio["ci95"])),
            "verdict": verdict(ratio),
            "title": view.runtime_name(fast["artefact"]),
            "threads": fast["threads"],
            "against": against,
            "bars": [
                {
                    "name": view.runtime_name(r["artefact"]) if same_network else r["network"],
                    "p50": r["latency_ms"]["p50"],
                    "share": 100 * r["latency_ms"]["p50"] / longest,
                    "kind": kind,
                }
                for r, kind in ((fast, "main"), (slow, "twin"))
            ],
        })  # fmt: skip
    return cards


def verdict(ratio: dict) -> str:
    """``faster than`` or ``slower than``, and ``as fast as`` where the interval holds 1."""
    low, high = ratio["ci95"]
    return "faster than" if low > 1 else "slower than" if high < 1 else "about as fast as"


def layer_tables(report: dict) -> list[dict]:
    """Per artefact of the main network: its layers, and the share of operations and bytes per precision."""
    main, tables = report["networks"][0]["name"], []
    for artefact in dict.fromkeys(layer["artefact"] for layer in report["layers"] if layer["network"] == main):
        layers = [layer for layer in report["layers"] if layer["network"] == main and layer["artefact"] == artefact]
        precisions = sorted({layer["realised"] for layer in layers}, key=_width_rank)
        totals = {key: max(sum(layer[key] for layer in layers), 1) for key in ("macs", "bytes")}
        tables.append({
            "artefact": artefact,
            "layers": layers,
            "most": {key: max(max(layer[key] for layer in layers), 1) for key in totals},
            "totals": totals,
            "downgraded": sum(layer["requested"] != layer["realised"] for layer in layers),
            "precisions": precisions,
            "colours": {p: _colour(p, precisions) for p in precisions},
            "shares": {
                key: [
                    {
                        "precision": p,
                        "share": 100 * sum(layer[key] for layer in layers if layer["realised"] == p) / totals[key],
                    }
                    for p in precisions
                ]
                for key in totals
            },
        })  # fmt: skip
    return tables


def _colour(precision: str, precisions: list[str]) -> str:
    """Style class: compressed precisions in the accent's shades, float ones in grey."""
    if not precision.startswith("W"):
        return "grey" if precision == "float32" else "pale"
    return "deep" if precision == precisions[0] else "light"


def _width_rank(precision: str) -> tuple[int, str]:
    rank = next((i for i, name in enumerate(_NARROW_FIRST) if precision.startswith(name)), len(_NARROW_FIRST))
    return rank, precision

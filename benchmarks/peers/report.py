"""``peers.md`` and ``peers.png`` of a comparison."""

from __future__ import annotations

from pathlib import Path


def markdown(document: dict) -> str:
    """One table per work and machine, the fastest first."""
    machine, settings = document["machine"], document["measurement"]
    parts = [
        "# Engines compared", "",
        f"{machine['cpu']} ({machine['architecture']}), {machine['os']}, {document['created'][:10]}. Threads: "
        f"{settings['threads']}, {settings['rounds']} interleaved rounds. `{document['command']}`",
        "", settings["processors"]["text"],
    ]  # fmt: skip
    if document["flags"]:
        parts += ["", f"Doubtful because of: {', '.join(document['flags'])}."]
    for (work, where), found in _tables(document["rows"]).items():
        base = next((r["ratio"]["to"] for r in found if r["ratio"]), None)
        heading = ["engine", "isa", "p50 ms", "p10 to p90", f"time / {base}" if base else "ratio", "95 % interval"]
        heading += ["M instructions", "memory", "max abs", ""]
        parts += ["", f"## {work}, {where}", "", _line(heading), _line([":--", ":--", *["--:"] * 7, ":--"])]
        parts += [_line(_cells(row)) for row in found]
    return "\n".join(parts) + "\n"


def plot(document: dict, file: Path) -> None:
    """Medians per work with p10 to p90, on this machine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tables = {key: [r for r in found if r["ms_p50"]] for key, found in _tables(document["rows"]).items()}
    tables = {work: found for (work, where), found in tables.items() if where == "host" and found}
    if not tables:
        return
    heights = [len(found) + 1.2 for found in tables.values()]
    figure, axes = plt.subplots(len(tables), 1, figsize=(8, 0.32 * sum(heights)), squeeze=False,
                                gridspec_kw={"height_ratios": heights}, layout="constrained")  # fmt: skip
    for axis, (work, found) in zip(axes[:, 0], tables.items(), strict=True):
        found = found[::-1]
        values = [r["ms_p50"] for r in found]
        low = [v - (r["ms_p10"] or v) for v, r in zip(values, found, strict=True)]
        high = [(r["ms_p90"] or v) - v for v, r in zip(values, found, strict=True)]
        colours = ["#c2410c" if r["engine"].startswith("irstd") else "#64748b" for r in found]
        axis.barh([r["engine"] for r in found], values, xerr=[low, high], color=colours, error_kw={"lw": 0.8})
        axis.set_title(work, loc="left", fontsize=10)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.bar_label(axis.containers[-1], [f" {v:.3g}" for v in values], fontsize=7, padding=6)
    threads = document["measurement"]["threads"]
    axes[-1, 0].set_xlabel(f"ms, threads: {threads}, p50 with p10 to p90; {document['machine']['cpu']}", fontsize=8)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _tables(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Rows by work and machine, the fastest first, the skipped last."""
    tables: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        tables.setdefault((row["work"], row["machine"]), []).append(row)
    worst = float("inf")
    return {
        key: sorted(found, key=lambda r: (r["skipped"] is not None, r["ms_p50"] or worst, r["instructions"] or worst))
        for key, found in tables.items()
    }


def _cells(row: dict) -> list[str]:
    def text(value, form: str, scale: float = 1) -> str:
        return "" if value is None else format(value * scale, form)

    ratio = row["ratio"] or {"value": None, "ci95": None}
    spread = "" if row["ms_p10"] is None else f"{row['ms_p10']:.3g} to {row['ms_p90']:.3g}"
    interval = "" if not ratio["ci95"] else f"{ratio['ci95'][0]:.3g} to {ratio['ci95'][1]:.3g}"
    remark = f"skipped: {row['skipped']}" if row["skipped"] else row["note"] or ""
    return [
        row["engine"], row["isa"] or "", text(row["ms_p50"], ".3g"), spread, text(ratio["value"], ".3g"), interval,
        text(row["instructions"], ".4g", 1e-6), text(row["peak_bytes"], ".3g", 2**-20) + (" MiB" * bool(
            row["peak_bytes"])), text(row["max_abs"], ".2g"), remark.replace("|", "/"),
    ]  # fmt: skip


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"

"""What all renderings of a report share: names, numbers as text, rows of the result table."""

from __future__ import annotations

from dataclasses import dataclass

RUNTIME_NAMES = {
    "torch": "PyTorch",
    "onnx": "ONNX Runtime",
    "tflite": "LiteRT",
    "native": "irstd",
    "portable": "ONNX Runtime, portable",
}


@dataclass(frozen=True)
class Row:
    """One line of the result table, as text; ``main`` marks the network that the report is about."""

    main: bool
    network: str
    name: str  # the artefact in its runtime
    runtime: str
    isa: str
    threads: str
    p50: str
    interval: str
    p90: str
    p99: str
    first: str
    load: str
    memory: str
    file: str
    max_abs: str
    flipped: str
    iou: str
    pd: str
    fa: str


def rows(report: dict) -> list[Row]:
    """The results in the report's order."""
    found, main = [], report["networks"][0]["name"]
    for r in report["results"]:
        latency, accuracy = r["latency_ms"], r["accuracy"]
        low, high = latency["ci95_p50"]
        found.append(
            Row(
                main=r["network"] == main,
                network=r["network"],
                name=runtime_name(r["artefact"]),
                runtime=r["runtime"],
                isa=r["isa"] or "",
                threads=str(r["threads"]),
                p50=number(latency["p50"]),
                interval=f"{number(low)} to {number(high)}",
                p90=number(latency["p90"]),
                p99=number(latency["p99"]),
                first=number(latency["first_ms"]),
                load=number(latency["load_ms"]),
                memory=size(r["memory"]["increase_bytes"]) if r["memory"] else "",
                file=size(r["file_bytes"]),
                max_abs=scientific(r["parity"]["max_abs"]),
                flipped=str(r["parity"]["flipped_pixels"]),
                iou=f"{accuracy['iou']:.4f}" if accuracy else "",
                pd=f"{accuracy['pd']:.4f}" if accuracy else "",
                fa=f"{accuracy['fa'] * 1e6:.1f}" if accuracy else "",
            )
        )
    return found


def runtime_name(artefact: str) -> str:
    return RUNTIME_NAMES.get(artefact, artefact)


def number(value: float) -> str:
    """Three significant digits, no exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def scientific(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}" if value else "0"


def factor(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def size(count: int) -> str:
    """Bytes as text, binary units."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def count(value: float) -> str:
    """A count with a metric prefix: 12.3 M."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def device_line(report: dict) -> str:
    """``AMD EPYC (x86_64), 1 thread, 256 x 256`` in words."""
    threads = sorted({r["threads"] for r in report["results"]})
    height, width = report["results"][0]["input"]
    counted = "1 thread" if threads == [1] else f"{' and '.join(map(str, threads))} threads"
    return f"{report['device']['cpu']} ({report['device']['architecture']}), {counted}, input {height} x {width}"


def ratio_rows(report: dict) -> list[tuple[str, str, str]]:
    """Name, factor and interval of every ratio."""
    return [(r["name"], f"{factor(r['value'])}x", " to ".join(factor(v) for v in r["ci95"])) for r in report["ratios"]]

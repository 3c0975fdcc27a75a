"""The report's plots as inline SVG; colours and type come from the page's style sheet, so they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from markupsafe import Markup, escape

from irstd_edge.benchmarks.report import view

_WIDTH = 1000
_LEFT, _RIGHT = 210, 70  # room for names, and for the last label


class _Svg:
    """Collects elements; text is escaped."""

    def __init__(self):
        self.parts: list[str] = []

    def add(self, element: str, text: str | None = None, **attributes) -> None:
        joined = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
        self.parts.append(f"<{element}{joined}/>" if text is None else f"<{element}{joined}>{escape(text)}</{element}>")

    def done(self, height: float, title: str, description: str) -> Markup:
        return Markup(
            f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}. {escape(description)}">'
            f"<title>{escape(title)}</title>{''.join(self.parts)}</svg>"
        )


def latency_plot(report: dict) -> Markup:
    """One row per result: the density of its latencies on a common logarithmic axis, p50 marked, p99 as whisker."""
    results = sorted(report["results"], key=lambda r: (r["threads"], _artefact_rank(r["artefact"])))
    samples = _samples(results)
    low, high = min(np.percentile(s, 0.5) for s in samples) / 1.12, _slowest_shown(samples)
    row, top = 46, 12
    bottom = top + row * len(results)
    svg, x = _Svg(), _log_axis(low, high)
    _grid(svg, low, high, x, top, bottom, "latency, ms (logarithmic)")
    for i, (result, values) in enumerate(zip(results, samples, strict=True)):
        base = top + row * (i + 1) - 9
        kind = _kind(report, result)
        stats = result["latency_ms"]
        svg.add("text", _name(report, result), x=_LEFT - 14, y=base - 12, class_="label", text_anchor="end")
        svg.add("text", result["network"], x=_LEFT - 14, y=base + 2, class_="faint", text_anchor="end")
        svg.add("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=base, y2=base, class_="base")
        svg.add("path", d=_density(values, low, high, x, base, row - 14), class_=f"density {kind}")
        median, p99 = x(stats["p50"]), x(stats["p99"])
        svg.add("line", x1=_f(median), x2=_f(p99), y1=base, y2=base, class_=f"whisker {kind}")
        svg.add("line", x1=_f(median), x2=_f(median), y1=base - 26, y2=base + 4, class_=f"median {kind}")
        svg.add("text", view.number(stats["p50"]), x=_f(median + 8), y=base - 18, class_="value")
    said = "; ".join(f"{r['network']} {_name(report, r)} {view.number(r['latency_ms']['p50'])} ms" for r in results)
    return svg.done(bottom + 46, "Latency distribution", f"Medians: {said}.")


def slower_than_shown(report: dict) -> tuple[int, int]:
    """How many runs lie beyond the axis of :func:`latency_plot`, and how many there are."""
    samples = _samples(report["results"])
    high = _slowest_shown(samples)
    return sum(int((s > high).sum()) for s in samples), sum(map(len, samples))


def accuracy_plot(report: dict) -> Markup | None:
    """IoU against p50; results without accuracy stand as ticks on the axis. None where no accuracy was measured."""
    known = [r for r in report["results"] if r["accuracy"]]
    if not known:
        return None
    p50s = [r["latency_ms"]["p50"] for r in report["results"]]
    low, high = min(p50s) / 1.25, max(p50s) * 1.25
    ious = [r["accuracy"]["iou"] for r in known]
    floor = max(0.0, math.floor((min(ious) - 0.08) * 10) / 10)
    ceiling = min(1.0, math.ceil((max(ious) + 0.04) * 10) / 10)
    top, bottom, left = 52, 350, 70
    svg, x = _Svg(), _log_axis(low, high, left)

    def y(value: float) -> float:
        return bottom - (value - floor) / (ceiling - floor) * (bottom - top)

    for tick in np.arange(round(floor * 20), round(ceiling * 20) + 1) / 20:
        svg.add("line", x1=left, x2=_WIDTH - _RIGHT, y1=_f(y(tick)), y2=_f(y(tick)), class_="grid")
        svg.add("text", f"{tick:.2f}", x=left - 12, y=_f(y(tick) + 4), class_="tick", text_anchor="end")
    svg.add("text", "IoU", x=left - 12, y=top - 20, class_="axis", text_anchor="end")
    _grid(svg, low, high, x, top, bottom, "p50 latency, ms (logarithmic)", left)
    placed: list[tuple[float, float]] = []
    for r in sorted(known, key=lambda r: r["latency_ms"]["p50"]):
        px, py = x(r["latency_ms"]["p50"]), y(r["accuracy"]["iou"])
        svg.add("circle", cx=_f(px), cy=_f(py), r=7, class_=f"dot {_kind(report, r)}")
        level = py - 14
        while any(abs(px - qx) < 170 and abs(level - qy) < 17 for qx, qy in placed):
            level -= 17
        placed.append((px, level))
        svg.add("text", _name(report, r), x=_f(px), y=_f(level), class_="label", text_anchor="middle")
    for r in report["results"]:
        if not r["accuracy"]:
            px = x(r["latency_ms"]["p50"])
            svg.add("path", d=f"M{px:.1f} {bottom - 2}l-6 -11h12z", class_=f"dot {_kind(report, r)}")
    said = "; ".join(f"{_name(report, r)} IoU {r['accuracy']['iou']:.3f}" for r in known)
    return svg.done(bottom + 46, "Accuracy against latency", said + ".")


def _samples(results: list[dict]) -> list[np.ndarray]:
    return [np.concatenate([np.asarray(r) for r in result["rounds_ms"]]) for result in results]


def _artefact_rank(artefact: str) -> int:
    order = list(view.RUNTIME_NAMES)
    return order.index(artefact) if artefact in order else len(order)


def _slowest_shown(samples: list[np.ndarray]) -> float:
    return max(np.percentile(s, 99) for s in samples) * 1.12


def _kind(report: dict, result: dict) -> str:
    return "main" if result["network"] == report["networks"][0]["name"] else "twin"


def _name(report: dict, result: dict) -> str:
    several = len({r["threads"] for r in report["results"]}) > 1
    return view.runtime_name(result["artefact"]) + (f", {result['threads']} thr." if several else "")


def _log_axis(low: float, high: float, left: float = _LEFT):
    span = math.log(high / low)
    return lambda value: left + math.log(max(value, low) / low) / span * (_WIDTH - _RIGHT - left)


def _ticks(low: float, high: float) -> Iterator[float]:
    """1-2-5 steps, finer where the axis is short."""
    steps = (1, 2, 5) if high / low > 6 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    for decade in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        yield from (s * 10**decade for s in steps if low <= s * 10**decade <= high)


def _grid(svg: _Svg, low: float, high: float, x, top: float, bottom: float, title: str, left: float = _LEFT) -> None:
    for tick in _ticks(low, high):
        svg.add("line", x1=_f(x(tick)), x2=_f(x(tick)), y1=top, y2=bottom, class_="grid")
        svg.add("text", f"{tick:g}", x=_f(x(tick)), y=bottom + 19, class_="tick", text_anchor="middle")
    svg.add("text", title, x=(left + _WIDTH - _RIGHT) / 2, y=bottom + 40, class_="axis", text_anchor="middle")


def _density(values: np.ndarray, low: float, high: float, x, base: float, height: float) -> str:
    """A smoothed histogram over the logarithm of the latency, its peak at full height."""
    bins, logs = 360, np.log(values)
    edges = np.linspace(math.log(low), math.log(high), bins + 1)
    counts, _ = np.histogram(logs, edges)
    # Silverman's width, in bins; never below what a line can show.
    spread = min(logs.std(), float(np.subtract(*np.percentile(logs, [75, 25]))) / 1.34)
    width = max(0.9 * spread * len(logs) ** -0.2 / (edges[1] - edges[0]), 1.5)
    reach = math.ceil(3 * width)
    padded = np.pad(counts, reach)
    smooth = np.convolve(padded, np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2), "valid")
    smooth = smooth / max(smooth.max(), 1e-9) * height
    shown = np.flatnonzero(smooth > 0.15)
    if not len(shown):
        return f"M{_LEFT} {base:.1f}"
    first, last = max(shown[0] - 1, 0), min(shown[-1] + 1, bins - 1)
    centres = np.exp((edges[:-1] + edges[1:]) / 2)
    line = " ".join(f"L{x(centres[i]):.1f} {base - smooth[i]:.1f}" for i in range(first, last + 1))
    return f"M{x(centres[first]):.1f} {base:.1f} {line} L{x(centres[last]):.1f} {base:.1f}Z"


def _f(value: float) -> str:
    return f"{value:.1f}"

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from irstd_edge import cli
from irstd_edge.benchmarks import conditions
from irstd_edge.benchmarks.errors import BenchmarkError
from irstd_edge.benchmarks.report import document, html, markdown, view

ROOT = Path(__file__).parents[2]


def test_report_fulfils_its_schema(report):
    document.validate(report)


def test_schema_is_sound_and_the_same_in_docs():
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(document.schema())
    assert json.loads((ROOT / "docs/report.schema.json").read_text()) == document.schema()


def test_fixed_names(report):
    """What other tools read."""
    for result in report["results"]:
        assert {"network", "artefact", "threads", "input", "latency_ms", "parity", "accuracy"} <= set(result)
        assert {"p50", "p90", "p99", "mean", "n"} <= set(result["latency_ms"])
        assert {"max_abs", "flipped_pixels", "images"} == set(result["parity"])
        assert result["accuracy"] is None or {"iou", "niou", "pd", "fa", "images"} <= set(result["accuracy"])


def test_write_and_read_give_the_same(report, tmp_path):
    document.write(report, tmp_path / "new" / "report.json")
    text = (tmp_path / "new" / "report.json").read_text()
    assert document.read(tmp_path / "new" / "report.json") == json.loads(json.dumps(report))
    assert re.search(r'^ *"input": \[64,64\],$', text, re.MULTILINE), "lists of numbers stay on one line"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("schema_version",), 99, "schema version 99, this release reads 1"),
        (("results", 0, "latency_ms", "p50"), "fast", "results/0/latency_ms/p50"),
        (("results", 1, "surprise"), 1, "results/1"),
        (("samples", 0, "overlay"), "https://example.org/x.png", "samples/0/overlay"),
    ],
)
def test_wrong_reports_are_refused(report_copy, tmp_path, path, value, words):
    part = report_copy
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report_copy))
    with pytest.raises(BenchmarkError, match=words):
        document.read(file)
    with pytest.raises(BenchmarkError):
        document.write(report_copy, tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


def test_command_line(report, tmp_path, capsys):
    file = tmp_path / "report.json"
    document.write(report, file)
    written = ["--html", str(tmp_path / "a.html"), "--markdown", str(tmp_path / "a.md")]
    assert cli.main(["report", str(file), *written]) == 0
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert "| tiny |" in (tmp_path / "a.md").read_text()
    assert cli.main(["report", str(file)]) == 0
    assert "onnx" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "irstd-edge benchmark DIR --json"), ("{", "cannot be read as JSON"), ("[]", "schema version None")],
)
def test_bad_files_are_one_line(tmp_path, capsys, content, words):
    file = tmp_path / "report.json"
    if content is not None:
        file.write_text(content)
    assert cli.main(["report", str(file)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_unwritable_output_is_one_line(report, tmp_path, capsys):
    file = tmp_path / "report.json"
    document.write(report, file)
    assert cli.main(["report", str(file), "--html", str(file / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


class Loads(HTMLParser):
    """Collects what a browser would fetch, and the tags."""

    def __init__(self):
        super().__init__()
        self.fetched, self.tags, self.alts = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.fetched += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset", "data", "poster")]
        self.fetched += re.findall(r"url\(([^)]*)\)", values.get("style") or "")
        if tag == "img":
            self.alts.append(values.get("alt"))


def test_page_is_self_contained(report):
    page = html.render(report)
    parser = Loads()
    parser.feed(page)
    assert parser.fetched and all(v.startswith("data:") for v in parser.fetched)
    assert not {"script", "iframe", "object", "embed"} & set(parser.tags), "names in a report must be escaped"
    assert "url(" not in page and "@import" not in page
    assert len(parser.alts) == 2 and all(parser.alts)
    assert page.count("<svg") == page.count('role="img"') == 2


def test_page_shows_what_matters(report):
    page = html.render(report)
    twin = next(r for r in report["ratios"] if r["kind"] == "twin")
    assert f"{view.factor(twin['value'])}<small>" in page
    assert "prefers-color-scheme: dark" in page
    assert "&lt;script&gt;alert(1)" in page and "no 4-bit kernel here" in page
    for flag in report["validity"]["flags"]:
        assert flag in page
    assert "tiny-float is untrained" in page


def test_page_without_twin_accuracy_samples_and_layers(report_copy):
    report_copy["networks"] = report_copy["networks"][:1]
    report_copy["results"] = [r | {"accuracy": None, "memory": None} for r in report_copy["results"][:1]]
    report_copy |= {"ratios": [], "layers": [], "samples": []}
    report_copy["validity"]["flags"] = []
    document.validate(report_copy)
    page = html.render(report_copy)
    assert "Not measured in this run" in page and "Sample detections" not in page


def test_markdown_tables_are_whole(report):
    lines = markdown.render(report).splitlines()
    table = [line for line in lines if line.startswith(("| tiny |", "| tiny-float |"))]
    assert len(table) == 7
    header = next(line for line in lines if line.startswith("| network"))
    assert {line.count("|") for line in table} == {header.count("|")}
    assert any("onnx: tiny against tiny-float" in line for line in lines)


@pytest.mark.parametrize(("value", "text"), [(0.01234, "0.0123"), (0.5, "0.50"), (12.34, "12.3"), (227.4, "227")])
def test_numbers(value, text):
    assert view.number(value) == text


@pytest.mark.parametrize(("size", "text"), [(7, "7 B"), (2048, "2.0 KiB"), (307200, "300 KiB"), (5 << 30, "5.0 GiB")])
def test_sizes(size, text):
    assert view.size(size) == text


def test_flags_are_documented():
    table = (ROOT / "docs/benchmark.md").read_text()
    assert all(f"| `{flag}` | {text} |" in table for flag, text in conditions.FLAGS.items())


def machine(root: Path, governor: str = "", mhz: int = 2000, throttles: int = 0, stolen: int = 0) -> dict:
    cpu = root / "sys/devices/system/cpu/cpu0"
    for folder in (cpu / "cpufreq", cpu / "thermal_throttle", root / "proc", root / "sys/class/thermal/thermal_zone0"):
        folder.mkdir(parents=True, exist_ok=True)
    if governor:
        (cpu / "cpufreq/scaling_governor").write_text(governor + "\n")
    (cpu / "cpufreq/scaling_cur_freq").write_text(f"{mhz * 1000}\n")
    (cpu / "thermal_throttle/core_throttle_count").write_text(f"{throttles}\n")
    (root / "sys/class/thermal/thermal_zone0/temp").write_text("45500\n")
    (root / "proc/stat").write_text(f"cpu  {1000 + 10 * stolen} 0 0 0 0 0 0 {stolen} 0 0\n")
    return conditions.snapshot(root) | {"load_average": [0.1, 0.1, 0.1]}


def test_conditions_and_their_flags(tmp_path):
    quiet = {"virtual_machine": False}
    before = machine(tmp_path / "a", "performance")
    assert before["frequency_mhz"] == [2000.0] and before["temperatures_c"] == {"thermal_zone0": 45.5}
    assert conditions.flags_of(before, before, quiet, [0]) == []
    hot = machine(tmp_path / "b", "performance", mhz=1500, throttles=3, stolen=50)
    assert conditions.flags_of(before, hot, quiet, [0]) == ["frequency-drift", "throttled", "stolen-time"]
    slow = machine(tmp_path / "c", "powersave") | {"load_average": [3.0, 1.0, 1.0]}
    assert conditions.flags_of(slow, slow, quiet, [0]) == ["governor-not-performance", "other-load"]
    unknown = machine(tmp_path / "d")
    assert conditions.flags_of(unknown, unknown, {"virtual_machine": True}, []) == [
        "governor-unknown", "virtual-machine", "not-pinned"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_page_in_a_browser(report, tmp_path, theme):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here; get it with: apt-get install chromium")
    from PIL import Image

    page, picture = tmp_path / "report.html", tmp_path / "page.png"
    page.write_text(html.render(report))
    scheme = ["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []

    def chromium(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
             "--hide-scrollbars", "--window-size=1200,2400", "--enable-logging=stderr", *scheme, *arguments,
             page.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip

    shown = chromium(f"--screenshot={picture}")
    assert "CONSOLE" not in shown.stderr
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert pixels.shape[:2] == (2400, 1200)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500, "the page is all but blank"
    assert (pixels[3, 3].mean() > 200) == (theme == "light")
    assert "<title>tiny benchmark" in chromium("--dump-dom").stdout

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from fake_benchmark import OPENER, make_bundle

from irstd_edge import cli
from irstd_edge.benchmarks import floating_point
from irstd_edge.benchmarks.errors import BenchmarkError, CandidateError
from irstd_edge.benchmarks.measure import Preset
from irstd_edge.benchmarks.report import document
from irstd_edge.benchmarks.run import Options, plan, run, timed_input
from irstd_edge.benchmarks.targets.local import LocalTarget
from irstd_edge.bundle import Bundle
from irstd_edge.data import DataError
from irstd_edge.errors import MissingError


@pytest.fixture
def options(bundles) -> Options:
    return Options(bundle=bundles[0], preset=Preset(5, 0.02), artefacts=("onnx", "portable"), opener=OPENER)


def test_results_are_complete_and_in_order(report):
    assert [r["id"] for r in report["results"]] == [
        "tiny/torch/1", "tiny/onnx/1", "tiny/tflite/1", "tiny/portable/1",
        "tiny-float/torch/1", "tiny-float/onnx/1", "tiny-float/tflite/1",
    ]  # fmt: skip
    onnx = report["results"][1]
    assert (onnx["runtime"], onnx["isa"], onnx["input"]) == ("fake-onnx 1.0", "avx2", [64, 64])
    assert onnx["file_bytes"] == 400 and onnx["latency_ms"]["n"] >= 20
    assert len(onnx["rounds_ms"]) == report["measurement"]["rounds"]
    assert onnx["latency_ms"]["n"] == sum(map(len, onnx["rounds_ms"]))
    assert onnx["energy"] is None and onnx["energy_reason"]


def test_speed_ups_are_those_of_the_sleeps(report):
    ratios = {(r["numerator"], r["denominator"]): r["value"] for r in report["ratios"]}
    assert 2.0 < ratios["tiny-float/onnx/1", "tiny/onnx/1"] < 4.5  # 8 ms against 2 ms and the wake-up
    assert 0.7 < ratios["tiny-float/torch/1", "tiny/torch/1"] < 1.4


def test_parity_leaves_out_unsupported_sizes(report):
    parities = {r["id"]: r["parity"] for r in report["results"]}
    assert parities["tiny/torch/1"] == {"max_abs": 0.0, "flipped_pixels": 0, "images": 2}  # stored outputs
    assert parities["tiny/onnx/1"] == {"max_abs": 0.0, "flipped_pixels": 0, "images": 4}
    assert 0 < parities["tiny/tflite/1"]["max_abs"] < 1e-6


def test_accuracy_of_the_trained_network_alone(report):
    accuracies = {r["id"]: r["accuracy"] for r in report["results"]}
    assert accuracies["tiny/onnx/1"] == {"iou": pytest.approx(1), "niou": pytest.approx(1), "pd": 1.0, "fa": 0.0,
                                         "images": 2, "targets": 2}  # fmt: skip
    assert accuracies["tiny-float/onnx/1"] is None


def test_samples_hold_the_targets(report):
    assert [s["name"] for s in report["samples"]] == ["0.png", "1.png"]
    assert report["samples"][1]["size"] == [50, 60]
    assert report["samples"][0]["targets"][0]["box"] == [20, 10, 4, 4]


def test_flags_and_flush_to_zero(report):
    assert "short-measurement" in report["validity"]["flags"]
    assert all(r["flush_to_zero"] for r in report["results"]) or "denormals" in report["validity"]["flags"]


def test_workers_are_pinned(report):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot pin processes")
    assert all(len(r["cores"]) == r["threads"] for r in report["results"])


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("portable:crash", CandidateError, "tiny portable .*SIGABRT.*--artefact"),
        ("portable:raise", CandidateError, "tiny portable .1 thread.: two lines"),
        ("portable:missing", MissingError, "tiny portable .*get it"),
    ],
)
def test_a_failing_candidate_is_named(options, monkeypatch, fault, error, words):
    monkeypatch.setenv("FAKE_FAULT", fault)
    with pytest.raises(error, match=words) as raised:
        run(replace(options, artefacts=("portable",)))
    assert "\n" not in str(raised.value)


def test_a_missing_runtime_is_skipped_where_nobody_asked_for_it(bundles, options, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_FAULT", "onnx:missing")
    small = make_bundle(tmp_path / "small", "tiny", ("onnx", "portable"), trained=True)
    found = run(replace(options, bundle=small, artefacts=()))
    assert [s["artefact"] for s in found["skipped"]] == ["onnx"]
    assert "skipped-candidates" in found["validity"]["flags"]
    assert [r["artefact"] for r in found["results"]] == ["torch", "portable"]


def test_plan(bundles, options):
    opened = [Bundle.open(b) for b in bundles]
    all_of_them = plan(replace(options, artefacts=(), threads=(1, 1)), opened, LocalTarget())
    assert len(all_of_them) == 7
    with pytest.raises(BenchmarkError, match="no bundle holds nativ; there is: torch, onnx, tflite, portable"):
        plan(replace(options, artefacts=("nativ",)), opened, LocalTarget())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"input_size": (60, 64)}, BenchmarkError, "multiples of 32"),
        ({"threads": (4096,)}, ValueError, "usable cores"),
        ({"dataset": "toy"}, BenchmarkError, "go together"),
        ({"dataset": "toy", "root": "nowhere"}, DataError, "no such file"),
        ({"images": "nowhere"}, DataError, "nowhere"),
    ],
)
def test_bad_options_fail_before_measuring(options, change, error, words):
    paths = {k: options.bundle / v if k in ("root", "images") else v for k, v in change.items()}
    with pytest.raises(error, match=words):
        run(replace(options, **paths))


def test_the_twin_must_be_another_network(options):
    with pytest.raises(BenchmarkError, match="float twin"):
        run(replace(options, twin=options.bundle))


def test_timed_input_takes_any_size(bundles):
    x = timed_input(Bundle.open(bundles[0]), (96, 160), 0)
    assert x.shape == (1, 1, 96, 160) and x.dtype == np.float32 and x.max() > 2


def test_flush_to_zero_flushes():
    """In a thread of its own: the mode is per thread and must not leak into other tests."""
    from threading import Thread

    seen = []
    thread = Thread(target=lambda: seen.append((floating_point.set_flush_to_zero(), floating_point.flushes_to_zero())))
    thread.start()
    thread.join()
    assert seen[0][0] == seen[0][1]


def test_command_line_errors(bundles, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["benchmark", str(bundles[0]), "--json", str(tmp_path / "file" / "report.json")]
    assert cli.main(arguments) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert cli.main(["benchmark", str(tmp_path)]) == 2
    assert "irstd-edge export" in capsys.readouterr().err
    assert cli.main(["benchmark", str(bundles[0]), "--input-size", "a"]) == 2


def test_command_line(bundles, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("irstd_edge.benchmarks.run.Options", partial(Options, opener=OPENER))
    arguments = ["--artefact", "onnx", "--artefact", "portable", "--min-runs", "3", "--min-seconds", "0.01"]
    assert cli.main(["benchmark", str(bundles[0]), *arguments, "--threads", "1", "--out", str(tmp_path / "new")]) == 0
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["report.html", "report.json", "report.md"]
    report = document.read(tmp_path / "new" / "report.json")
    assert report["measurement"]["preset"] == "custom" and report["measurement"]["min_runs"] == 3
    assert "tiny: onnx against portable" in capsys.readouterr().out

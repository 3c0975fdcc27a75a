"""The comparison with other engines, without any of them: rows, merging, failures, the order of the rounds."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_benchmark import FakeClock, FakeWorker

from irstd_edge.benchmarks.errors import CandidateError
from irstd_edge.benchmarks.peers import environments, figures, native_layer, report, rows, run, works
from irstd_edge.benchmarks.peers.engines import BASE, ENGINES, Engine
from irstd_edge.benchmarks.peers.environments import Environment, EnvironmentFailed
from irstd_edge.benchmarks.peers.hold import HoldError
from irstd_edge.benchmarks.peers.interleaving import interleave, reason
from irstd_edge.benchmarks.peers.works import WORKS
from irstd_edge.errors import MissingError

LAYER = "conv 64-64@64"


def workers(*names: str, log: list | None = None) -> dict[str, FakeWorker]:
    clock = FakeClock()
    return {name: FakeWorker(name, clock, 1.0, [] if log is None else log) for name in names}


class Dying:
    """A worker that fails at its n-th burst."""

    def __init__(self, worker: FakeWorker, at: int):
        self.worker, self.left = worker, at

    def ask(self, do: str, **request) -> dict:
        self.left -= 1
        if self.left < 0:
            raise CandidateError("x fp32 (1 thread): out\n of memory; leave it out with --artefact, or report it")
        return self.worker.ask(do, **request)


def test_a_row_has_every_key():
    made = rows.row("unet", "ort-fp32", ms_p50=2.0, extra="kept")
    assert made["machine"] == "host" and made["extra"] == "kept" and made["skipped"] is None
    assert {"isa", "ms_p10", "ms_p90", "instructions", "peak_bytes", "ratio", "max_abs"} <= made.keys()
    assert rows.row("unet", "ort-fp32", skipped="no such package")["ms_p50"] is None


@pytest.mark.parametrize(("change", "words"), [
    ({"machine": "toaster"}, "machine one of"),
    ({"ms_p50": "fast"}, "ms_p50: wrong type"),
    ({"skipped": 3}, "skipped: wrong type"),
    ({"ratio": {"value": 2}}, "to, value and ci95"),
    ({"ms_p50": None}, "neither measured nor skipped"),
])  # fmt: skip
def test_a_bad_row_is_refused(change, words):
    with pytest.raises(rows.RowError, match=f"unet/ncnn.*{words}"):
        rows.row(**{"work": "unet", "engine": "ncnn", "ms_p50": 1.0} | change)


def test_rows_of_another_part_are_read(tmp_path):
    file = tmp_path / "instructions.json"
    assert rows.read(file) == []
    one = {"work": "unet", "engine": "mnn-fp32", "machine": "cortex-a53", "isa": "neon", "instructions": 471_000_000}
    for content in ([one], {"rows": [one]}):
        file.write_text(json.dumps(content))
        assert rows.read(file) == [rows.row(**one)]
    for content in ("{", '{"a": 1}', '[{"work": "unet"}]', '[{"work": "unet", "engine": "x"}]'):
        file.write_text(content)
        with pytest.raises(rows.RowError, match=r"instructions\.json"):
            rows.read(file)


def test_latencies_and_ratio():
    found = rows.latencies([np.array([1.0, 2.0]), np.array([3.0])])
    assert (found["ms_p50"], found["runs"], found["rounds"]) == (2.0, 3, 2)
    found = rows.ratio([np.full(2, 3.0)] * 4, [np.full(2, 2.0)] * 4, "unet/ort-fp32", np.random.default_rng(0))
    assert found == {"to": "unet/ort-fp32", "value": 1.5, "ci95": [1.5, 1.5]}


def test_the_order_is_random_and_seeded():
    def order(seed: int) -> list[str]:
        log: list = []
        interleave(workers("a", "b", "c", "d", log=log), 5, seed)
        return [name for name, request in log if request["min_runs"] == 1]

    first = order(0)
    assert first == order(0) != order(1)
    turns = [first[i : i + 4] for i in range(0, 20, 4)]
    assert all(sorted(turn) == ["a", "b", "c", "d"] for turn in turns) and len(set(map(tuple, turns))) > 1


@pytest.mark.parametrize("at", [0, 3])
def test_an_engine_that_dies_is_left_out(at):
    found = workers("a", "b", "c")
    found["b"] = Dying(found["b"], at)
    timings, failed = interleave(found, 6, 0)
    assert failed == {"b": "out of memory"}
    assert {name: len(t.rounds) for name, t in timings.items()} == {"a": 6, "c": 6}


def test_reasons_are_one_line():
    assert reason(ValueError("a\n  b")) == "a b"
    assert reason(KeyError()) == "KeyError"


def test_a_built_environment_is_kept_and_a_failure_told(tmp_path, monkeypatch):
    commands = []

    def fake(command: list) -> str:
        commands.append([str(part) for part in command])
        (tmp_path / "a").mkdir(exist_ok=True)
        return "numpy==2"

    monkeypatch.setattr(environments, "_run", fake)
    one = Environment("a", ("numpy==2",), ("pnnx==1",))
    python = environments.build(one, tmp_path)
    assert environments.build(one, tmp_path) == python and len(commands) == 4
    assert "--no-deps" in commands[2] and environments.frozen(one, tmp_path) == ["numpy==2"]
    environments.build(replace(one, packages=("numpy==3",)), tmp_path)
    assert len(commands) == 8
    monkeypatch.undo()
    with pytest.raises(EnvironmentFailed):
        environments._run([sys.executable, "-c", "import sys; sys.exit('no space left')"])


def test_engines_can_install_nothing(tmp_path):
    found = environments.variables(Path("/envs/a/bin/python"), tmp_path)
    assert found["PIP_NO_INDEX"] == "1" and found["OMP_NUM_THREADS"] == "1"
    assert found["HOME"].startswith(str(tmp_path)) and found["PATH"].startswith("/envs/a/bin:")


def test_the_tables_fit_together():
    for engine in ENGINES.values():
        assert engine.ours or engine.environment in environments.ENVIRONMENTS
        assert set(engine.works) <= set(WORKS)
        if not engine.ours:
            assert (Path(run.__file__).parent / "adapters" / f"{engine.adapter}.py").is_file()
    for family in {w.family for w in WORKS.values()}:
        assert any(ENGINES[BASE].runs(w) for w in WORKS.values() if w.family == family)
    for environment in environments.ENVIRONMENTS.values():
        assert all("==" in package for package in (*environment.packages, *environment.alone))


def test_the_unet_is_the_one_that_was_measured():
    network = works.network(WORKS["unet"])
    assert sum(p.numel() for p in network.parameters()) == 516_545


def test_our_layer_reads_and_writes_signs_alone(tmp_path):
    x = np.random.default_rng(0).standard_normal((1, 64, 6, 7), dtype=np.float32)
    native_layer.prepare(WORKS[LAYER], x, tmp_path)
    session = native_layer.open_session(str(tmp_path), "native", 1)
    try:
        result = session.run(x)
    except MissingError as e:
        pytest.skip(str(e))
    np.testing.assert_array_equal(result, np.load(tmp_path / "reference.npy"))
    session.prepare(x)()
    kernels = [layer["kernel"] for layer in session._engine.description["layers"]]
    assert session.isa == "ref" or "_signs__" in kernels[1]


@pytest.fixture
def document(tmp_path, monkeypatch) -> dict:
    """A whole run of one layer: an engine that works, one that is wrong, one that dies, one without environment."""
    scripts = {"good": "x", "wrong": "x + 9", "dies": "os._exit(3)"}

    def convert(python, environ, adapter, source, folder, engine):
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "reference.npy", np.load(source / "inputs.npz")["check"])

    def build(environment, root):
        if environment.name == "mnn":
            raise EnvironmentFailed("ERROR: no matching distribution")
        return Path(sys.executable)

    def prepare(work, folder, frames):
        folder.mkdir(parents=True)
        x = np.random.default_rng(0).standard_normal((2, 1, 4, 4), dtype=np.float32)
        np.savez(folder / "inputs.npz", check=x, reference=x)

    def held(python, environ):
        raise HoldError("objdump is missing")

    (tmp_path / "fake_engines").mkdir()
    for name, result in scripts.items():
        (tmp_path / "fake_engines" / f"{name}.py").write_text(
            "import os\nclass Session:\n    runtime, isa = 'fake 1', None\n"
            f"    def run(self, x):\n        return {result}\n"
            "    def prepare(self, x):\n        return lambda: self.run(x)\n"
            "def open_session(bundle, artefact, threads):\n    return Session()\n"
        )
    bootstrap = [*run._bootstrap(), f"irstd_edge.benchmarks.peers={tmp_path}",
                 f"irstd_edge.benchmarks.peers.adapters={tmp_path / 'fake_engines'}"]  # fmt: skip
    table = {
        name: Engine(name, environment, adapter, "fp32", (LAYER,))
        for name, environment, adapter in (
            (BASE, "ort", "good"), ("peer", "ort", "good"), ("wrong", "ort", "wrong"), ("dies", "ort", "dies"),
            ("mnn-fp32", "mnn", "good"), ("absent", "ort", "absent"),
        )
    }  # fmt: skip
    table["irstd-native"] = ENGINES["irstd-native"]
    for name, value in {"_convert": convert, "_bootstrap": lambda: bootstrap, "ENGINES": table}.items():
        monkeypatch.setattr(run, name, value)
    monkeypatch.setattr(run.environments, "build", build)
    monkeypatch.setattr(run.hold, "held", held)
    monkeypatch.setattr(run.works, "prepare", prepare)
    monkeypatch.setattr(run.native_layer, "MODEL", "nowhere/layer.irstd")
    options = run.Options(works=(LAYER,), engines=tuple(table), rounds=3, isa="avx2", patience=0, out=tmp_path / "out",
                          others=tmp_path / "arm")  # fmt: skip
    return run.run(options, "make peers")


def test_figures_of_low_bits():
    """Numbers chosen so that every ratio can be read off."""
    times = {("resunet", "irstd-native-spmix"): 6, ("resunet", "openvino-int8"): 12, ("resunet", "ort-int8"): 24,
             ("resunet", "ort-fp32"): 3, ("mdpnet@320", "irstd-native-int8"): 5, ("mdpnet@320", "litert-int8"): 4}
    counts = {"irstd-native-spmix": 300, "irstd-native-int8": 200, "ort-int8": 400}
    made = [rows.row(*key, ms_p50=float(ms), isa="avx2") for key, ms in times.items()]
    made += [rows.row("resunet", engine, instructions=n, machine="cortex-a76") for engine, n in counts.items()]
    document = {"rows": made, "measurement": {"threads": 2},
                "extras": {"spmix": {"file": 13.5, "arena": 4.0, "mac_bits": 29.0}}}
    found = {name: (measured, reached) for name, _, measured, reached in figures.figures(document)}
    low = "ResUNet in 2.2 bits by 3.7"
    assert found[f"{low}, file: times less than in float"] == ("13.5", True)
    assert found[f"{low}, engine's memory: times less than in float"] == ("4", False)
    assert found[f"{low}, MAC bits: times less than in float"] == ("29", True)
    assert found[f"{low}, avx2: time over the fastest int8 peer's"] == ("0.5 (openvino-int8)", True)
    assert found[f"{low} as cortex-a76: instructions over the best int8 peer's"] == ("0.75 (ort-int8)", True)
    assert found[f"{low} as cortex-a76: over ours in int8"] == ("1.5", False)
    assert found[f"{low} as cortex-a53: over ours in int8"] == ("not measured", None)
    assert found["MDPNet@320, int8, avx2, threads 2: over the fastest int8 peer's"] == ("1.25 (litert-int8)", False)
    assert found["MDPNet@320, fp32, avx2, threads 2: over the fastest fp32 peer's"] == ("not measured", None)
    assert found["MDPNet@320, int8, avx2, threads 2: frames per second"] == ("200", True)


def test_failures_are_rows_not_crashes(document):
    found = {r["engine"]: r for r in document["rows"]}
    assert found["peer"]["ms_p50"] > 0 and found["peer"]["max_abs"] == 0 and found["peer"]["isa"] == "auto"
    assert found["peer"]["note"].startswith("not held to avx2: objdump is missing")
    assert found["peer"]["ratio"]["to"] == f"{LAYER}/{BASE}" and found[BASE]["ratio"]["value"] == 1
    assert found["wrong"]["max_abs"] == pytest.approx(9, abs=1e-5)
    assert "differ" in found["wrong"]["skipped"] and not found["wrong"]["ms_p50"]
    assert "code 3" in found["dies"]["skipped"]
    assert found["mnn-fp32"]["skipped"] == "ERROR: no matching distribution"
    assert "absent" in found["absent"]["skipped"]
    assert found["irstd-native"]["skipped"]
    assert document["schema_version"] == 1 and document["machine"]["cpu_flags"] is not None
    assert document["measurement"]["processors"]["least_share"] == 0.9
    json.dumps(document)


def test_the_report_names_every_engine(document, tmp_path):
    text = report.markdown(document)
    assert all(r["engine"] in text for r in document["rows"]) and "skipped: ERROR: no matching" in text
    assert document["measurement"]["processors"]["text"] in text
    assert text.index("| peer |") < text.index("| dies |")
    pytest.importorskip("matplotlib")
    report.plot(document, tmp_path / "peers.png")
    assert os.path.getsize(tmp_path / "peers.png") > 1000

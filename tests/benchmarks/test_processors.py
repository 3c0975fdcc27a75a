"""Bursts between two good probes of the processors, measured again after a bad one."""

from __future__ import annotations

import json

import pytest

from irstd_edge.benchmarks import conditions
from irstd_edge.benchmarks.peers import processors
from irstd_edge.benchmarks.peers.compiler import CompilerError, find_compiler
from irstd_edge.benchmarks.peers.processors import Processors


class Clock:
    def __init__(self):
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def probed(tmp_path, monkeypatch):
    """Processors of two cores whose probes find the given shares of the second one, then 1."""

    def make(*shares: float, round_trips: tuple = (), patience: float = 100) -> Processors:
        left, trips = iter(shares), iter(round_trips)

        class Done:
            @property
            def stdout(self) -> str:
                return json.dumps({"alone": [3.5, 3.5], "together": [3.5, 3.5 * next(left, 1.0)],
                                   "round_trips": [next(trips, 60)]})  # fmt: skip

        monkeypatch.setattr(processors, "compile_c", lambda *_: tmp_path / "probe")
        monkeypatch.setattr(processors.subprocess, "run", lambda *_, **__: Done())
        monkeypatch.setattr(processors, "time", Clock())
        monkeypatch.setattr(processors, "one_cache", lambda cores: True)
        return Processors([0, 1], tmp_path, patience)

    return make


def bursts():
    count = 0

    def measure() -> int:
        nonlocal count
        count += 1
        return count

    return measure


def test_a_good_phase_costs_one_probe_per_burst(probed):
    found, measure = probed(), bursts()
    assert [found.steady(measure) for _ in range(3)] == [1, 2, 3]
    assert found.shares == [1.0] * 4 and found.dropped == found.doubtful == 0 and found.flags == []
    assert str(found).startswith("0 of 4 probes around bursts found")


def test_a_burst_before_a_bad_probe_is_measured_again(probed):
    found, measure = probed(1.0, 1.0, 0.5, 0.6, 0.95), bursts()
    assert [found.steady(measure) for _ in range(2)] == [1, 3]
    assert found.dropped == 1 and not found.flags and found.shares == [1.0, 1.0, 0.5, 0.6, 0.95, 1.0]
    assert 0 < found.summary()["seconds"] < 100


def test_processors_that_share_no_cache_are_waited_for(probed):
    found, measure = probed(round_trips=(60, 330, 340, 65, 60)), bursts()
    assert found.steady(measure) == 2 and found.dropped == 1
    assert found.round_trips == [60, 330, 340, 65, 60] and "2 a cache line" in str(found)


@pytest.mark.parametrize(("text", "shared"), [("0-1\n", True), ("0,2-3\n", False), ("0\n", False)])
def test_one_cache_is_what_the_system_says(tmp_path, text, shared):
    (tmp_path / "cpu0/cache/index3").mkdir(parents=True)
    (tmp_path / "cpu0/cache/index3/shared_cpu_list").write_text(text)
    assert processors.one_cache([0, 1], tmp_path) is shared
    assert not processors.one_cache([1], tmp_path)


def test_when_patience_ends_it_goes_on_and_says_so(probed):
    found, measure = probed(*[0.5] * 100, patience=3), bursts()
    assert found.steady(measure) and found.steady(measure)
    assert found.doubtful == 2 and found.flags == ["shared-processors"] and "2 doubtful" in str(found)


def test_an_engine_that_dies_is_not_asked_again(probed):
    found = probed()
    assert found.steady(lambda: None) is None and found.dropped == 0


def test_without_a_probe_bursts_are_kept_and_flagged(tmp_path, monkeypatch):
    def fail(*_):
        raise CompilerError("there is no C compiler")

    monkeypatch.setattr(processors, "compile_c", fail)
    found = Processors([0], tmp_path, 1)
    assert found.steady(lambda: 3) == 3
    assert found.flags == ["processors-not-probed"] and "no C compiler" in str(found)
    assert Processors([], tmp_path, 1).unprobed


def test_the_probe_itself(tmp_path):
    cores = conditions.usable_cores()[:2]
    if not cores or not find_compiler():
        pytest.skip("there is no C compiler, or processes cannot be pinned here")
    found = Processors(cores, tmp_path, 1)
    assert not found.unprobed
    assert 0 < found.shares[0] < 1.5 and all(0.1 < rate < 100 for rate in found._full)

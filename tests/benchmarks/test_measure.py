from __future__ import annotations

import io
import json

import numpy as np
import pytest
from fake_benchmark import FakeClock, FakeWorker

from irstd_edge.benchmarks import worker
from irstd_edge.benchmarks.measure import Preset, measure


@pytest.fixture
def clock(monkeypatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(worker.time, "perf_counter_ns", lambda: clock.now)
    monkeypatch.setattr(worker.time, "process_time_ns", lambda: clock.now)
    return clock


def workers(clock: FakeClock, *milliseconds: float) -> tuple[list[FakeWorker], list[tuple[str, dict]]]:
    log = []
    return [FakeWorker(f"net{i}", clock, ms, log) for i, ms in enumerate(milliseconds)], log


def test_every_round_holds_every_candidate_once(clock):
    candidates, log = workers(clock, 1, 5, 40)
    timings = measure(candidates, Preset(30, 0.5), seed=3)
    names = [name for name, _ in log[3:]]
    rounds = [names[i : i + 3] for i in range(0, len(names), 3)]
    assert len(names) % 3 == 0
    assert all(sorted(r) == ["net0", "net1", "net2"] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1, "the order must vary"
    assert {len(t.rounds) for t in timings} == {len(rounds)}


def test_the_seed_fixes_the_order(clock):
    orders = []
    for _ in range(2):
        candidates, log = workers(clock, 1, 1, 1)
        measure(candidates, Preset(10, 1.0), seed=7)
        orders.append([name for name, _ in log])
    assert orders[0] == orders[1]


@pytest.mark.parametrize(("ms", "runs"), [(1, 200), (20, 10), (100, 10)])
def test_warm_up_is_ten_runs_and_a_fifth_of_a_second(clock, ms, runs):
    candidates, _ = workers(clock, ms)
    (timing,) = measure(candidates, Preset(1, 0))
    untimed = len(timing.rounds) if ms < 20 else 0
    assert candidates[0].runs == runs + timing.runs + untimed


def test_both_bounds_are_met(clock):
    fast, slow = workers(clock, 0.5, 40)[0]
    timings = measure([fast, slow], Preset(100, 1.0))
    assert all(t.runs >= 100 and t.seconds >= 1.0 for t in timings)
    assert len(timings[0].rounds) == 34, "the slow one needs 34 bursts of three runs"
    assert timings[0].rounds[0] == pytest.approx(np.full(200, 0.5))
    assert timings[1].rounds[0] == pytest.approx(np.full(3, 40.0))


def test_progress_ends_at_one(clock):
    told = []
    measure(workers(clock, 5)[0], Preset(20, 0.1), progress=lambda share, text: told.append(share))
    assert told == sorted(told) and told[-1] == 1.0


def test_the_untimed_run_is_not_counted(clock):
    candidate = worker.Candidate()
    durations = iter([9, 1, 1, 1])
    candidate.call = lambda: clock.tick(next(durations))
    assert candidate.burst({"min_runs": 3, "seconds": 0, "untimed": 1})["ns"] == [1_000_000] * 3


def test_a_failing_request_is_one_line():
    answers = io.StringIO()
    requests = ['{"do": "burst", "min_runs": 1, "seconds": 0, "untimed": 0}', '{"do": "close"}', "not reached"]
    worker.serve(io.StringIO("\n".join(requests)), answers)
    assert json.loads(answers.getvalue())["error"]["type"] == "TypeError"

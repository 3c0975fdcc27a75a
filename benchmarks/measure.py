"""Interleaved measurement of several candidates on one target.

Every round wakes each candidate once, in random order, for a short burst: slow drift of clock, temperature and
other load then hits all alike, and ratios are taken within rounds. A candidate is warmed up by at least 10 runs and
0.2 s; then rounds go on until every candidate has ``min_runs`` runs and ``min_seconds`` of timed work.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

WARMUP_RUNS = 10
WARMUP_SECONDS = 0.2
#: Timed length of one burst; a burst has at least one run.
BURST_SECONDS = 0.1
#: A candidate whose runs are shorter gets one untimed run first, which brings its caches back; to longer runs a cold
#: cache makes no difference.
UNTIMED_BELOW_MS = 20.0
#: Below this a measurement is flagged ``short-measurement``.
RULE_RUNS = 100
RULE_SECONDS = 10.0

DEFAULT_OPENER = "irstd_edge.benchmarks.worker:open_candidate"


@dataclass(frozen=True)
class Preset:
    """Least runs and least timed seconds per candidate."""

    min_runs: int
    min_seconds: float

    def __str__(self) -> str:
        return f"{self.min_runs} runs and {self.min_seconds:g} s"


#: ``rapid`` is for a look and for tests, ``quick`` is the rule, ``official`` follows MLPerf Mobile.
PRESETS: dict[str, Preset] = {
    "rapid": Preset(64, 2.0),
    "quick": Preset(RULE_RUNS, RULE_SECONDS),
    "normal": Preset(256, 30.0),
    "official": Preset(1024, 60.0),
}


@dataclass(frozen=True)
class Candidate:
    """One artefact of one network in its runtime. ``opener`` is ``module:function(bundle, artefact, threads)``.

    The module's ``preload(artefact)``, if it has one, is called before the clock of ``load_ms`` starts.
    """

    network: str
    artefact: str
    threads: int
    bundle: str
    cores: tuple[int, ...] = ()
    opener: str = DEFAULT_OPENER

    @property
    def key(self) -> str:
        return f"{self.network}/{self.artefact}/{self.threads}"

    def __str__(self) -> str:
        return f"{self.network} {self.artefact} ({self.threads} thread{'s' * (self.threads > 1)})"


class Worker(Protocol):
    """The process that runs a candidate; see :mod:`irstd_edge.benchmarks.worker` for the requests."""

    candidate: Candidate

    def ask(self, do: str, **request) -> dict: ...


@dataclass
class Timing:
    """What was measured of one candidate: ``rounds`` of latencies in ms, one float64 array per round."""

    rounds: list[np.ndarray] = field(default_factory=list)
    wall_ns: int = 0
    cpu_ns: int = 0

    @property
    def runs(self) -> int:
        return sum(len(r) for r in self.rounds)

    @property
    def seconds(self) -> float:
        return self.wall_ns / 1e9

    @property
    def cpu_share(self) -> float:
        """CPU time over wall time: near the number of threads when nobody else ran on the cores."""
        return self.cpu_ns / max(self.wall_ns, 1)

    def add(self, burst: dict) -> None:
        self.rounds.append(np.asarray(burst["ns"], dtype=np.float64) / 1e6)
        self.wall_ns += burst["wall_ns"]
        self.cpu_ns += burst["cpu_ns"]


def measure(
    workers: Sequence[Worker],
    preset: Preset,
    seed: int = 0,
    burst_seconds: float = BURST_SECONDS,
    progress: Callable[[float, str], None] = lambda fraction, text: None,
) -> list[Timing]:
    """Warm up and measure opened workers, interleaved; one :class:`Timing` per worker, with the same rounds.

    Args:
        workers: their candidates are open.
        preset: least runs and seconds per candidate.
        seed: of the random order within the rounds.
        burst_seconds: timed length of a burst.
        progress: called with the share done (0..1) and what is being done.
    """
    untimed = []
    for worker in workers:
        progress(0.0, f"warming up {worker.candidate}")
        warm = worker.ask("burst", min_runs=WARMUP_RUNS, seconds=WARMUP_SECONDS, untimed=0)
        untimed.append(int(np.median(warm["ns"]) < UNTIMED_BELOW_MS * 1e6))
    timings, order = [Timing() for _ in workers], random.Random(seed)
    while (done := min((_share(t, preset) for t in timings), default=1.0)) < 1.0:
        for i in order.sample(range(len(workers)), len(workers)):
            progress(done, f"round {len(timings[i].rounds) + 1}")
            timings[i].add(workers[i].ask("burst", min_runs=1, seconds=burst_seconds, untimed=untimed[i]))
    progress(1.0, f"{len(timings[0].rounds)} rounds" if timings else "nothing to measure")
    return timings


def _share(timing: Timing, preset: Preset) -> float:
    return min(timing.runs / max(preset.min_runs, 1), timing.seconds / max(preset.min_seconds, 1e-9), 1.0)

"""Rounds over the engines of one family, each in a process of its own: woken once a round, in random order.

An engine that fails is left out from then on and told with its reason; the others go on.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from irstd_edge.benchmarks.errors import BenchmarkError
from irstd_edge.benchmarks.measure import (
    BURST_SECONDS,
    UNTIMED_BELOW_MS,
    WARMUP_RUNS,
    WARMUP_SECONDS,
    Candidate,
    Timing,
    Worker,
)
from irstd_edge.benchmarks.targets.local import LocalWorker
from irstd_edge.errors import MissingError, UnsupportedError

#: Longest wait for one answer of an engine.
ANSWER_SECONDS = 300.0
FAILURES = (BenchmarkError, MissingError, UnsupportedError, ValueError, KeyError)


class PeerWorker(LocalWorker):
    """:class:`~irstd_edge.benchmarks.targets.local.LocalWorker` of any Python, ended when it does not answer."""

    def __init__(self, candidate: Candidate, command: Sequence[str], environment: Mapping[str, str]):
        self.candidate = candidate
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment, text=True
        )

    def ask(self, do: str, **request) -> dict:
        timer = threading.Timer(ANSWER_SECONDS, self.process.kill)
        timer.start()
        try:
            return super().ask(do, **request)
        finally:
            timer.cancel()


def reason(error: Exception) -> str:
    """One line without the names that the row has anyway."""
    text = " ".join(str(error).split()).split("; leave it out with")[0]
    return text.split(" thread): ", 1)[-1][:300] or type(error).__name__


def interleave(
    workers: Mapping[str, Worker],
    rounds: int,
    seed: int,
    progress: Callable[[str], None] = lambda text: None,
    steady: Callable[[Callable[[], dict | None]], dict | None] = lambda measure: measure(),
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Warm up and measure opened workers, by name: the timings of those that held out, the reasons of the others.

    ``steady`` calls a burst until nothing disturbed it:
    :meth:`~irstd_edge.benchmarks.peers.processors.Processors.steady`.
    """
    alive, failed, untimed = dict(workers), {}, {}

    def ask(name: str, **request) -> dict | None:
        try:
            return alive[name].ask("burst", **request)
        except FAILURES as e:
            failed[name] = reason(e)
            del alive[name]
            return None

    for name in list(alive):
        progress(f"warming up {name}")
        if warm := ask(name, min_runs=WARMUP_RUNS, seconds=WARMUP_SECONDS, untimed=0):
            untimed[name] = int(np.median(warm["ns"]) < UNTIMED_BELOW_MS * 1e6)
    timings, order = {name: Timing() for name in alive}, random.Random(seed)
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        for name in order.sample(sorted(alive), len(alive)):
            request = {"min_runs": 1, "seconds": BURST_SECONDS, "untimed": untimed[name]}
            if burst := steady(lambda name=name, request=request: ask(name, **request)):
                timings[name].add(burst)
    return {name: timings[name] for name in alive}, failed

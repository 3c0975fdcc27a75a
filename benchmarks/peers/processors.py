"""Whether every core has its full speed while all are used, and they share a cache: probed around each burst.

Other processes may run on the cores, and a virtual machine's processors may be moved: for a while to one physical core,
or to two that share no cache although the machine says so. What was measured then is measured again.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from irstd_edge.benchmarks.peers.compiler import CompilerError, compile_c

#: Smallest share of its full speed that a core must have. Two that share one have 0.5 each; clocks differ by less.
LEAST_SHARE = 0.9
#: Longest way of a cache line to another core and back, in ns, where the system says that both share a cache. Within
#: the shared cache of a Zen 4 it takes 50 to 70, between two such 330 to 350.
FARTHEST_NS = 200
#: Engines' threads may spin for a while after a run.
SETTLE_SECONDS = 0.05
PAUSE_SECONDS = 0.5

T = TypeVar("T")


class Processors:
    """The probe and what it found: ``shares`` of the full speed, of the slowest core, and ``round_trips`` in ns, of the
    two farthest, one per probe; bursts ``dropped``; ``doubtful`` ones that were kept.

    ``patience``: seconds in all to wait for the cores and to measure again.
    """

    def __init__(self, cores: Sequence[int], folder: Path, patience: float):
        self.cores, self.patience, self.spent = list(cores), patience, 0.0
        self.shares: list[float] = []
        self.round_trips: list[float] = []
        self._farthest = FARTHEST_NS if one_cache(cores) else np.inf
        self.dropped = self.doubtful = 0
        self.unprobed, self._full, self._good = None, np.zeros(len(cores)), False
        if not cores:
            self.unprobed = "the system does not allow to pin processes to cores"
            return
        try:
            self._program = compile_c("probe.c", folder / "probe", "-pthread")
            self.probe()
        except (CompilerError, OSError, subprocess.SubprocessError) as e:
            self.unprobed = str(e)

    def probe(self) -> bool:
        """Whether every core has its full speed now, the best that it had alone in any probe, and all are near."""
        time.sleep(SETTLE_SECONDS)
        command = [str(self._program), *map(str, self.cores)]
        found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
        self._full = np.maximum(self._full, found["alone"])
        self.shares.append(round(float((found["together"] / self._full).min()), 2))
        self.round_trips.append(max(found["round_trips"], default=0))
        self._good = self.shares[-1] >= LEAST_SHARE and self.round_trips[-1] <= self._farthest
        return self._good

    def steady(self, measure: Callable[[], T | None]) -> T | None:
        """What ``measure`` returns between two good probes, or None at once; doubtful where patience has ended."""
        if self.unprobed:
            return measure()
        while True:
            start = time.monotonic()
            while not self._good and self.spent + time.monotonic() - start < self.patience:
                time.sleep(PAUSE_SECONDS)
                self.probe()
            good, waited = self._good, time.monotonic() - start
            result = measure()
            if result is None or (self.probe() and good):
                self.spent += waited
                return result
            self.spent += time.monotonic() - start
            if self.spent >= self.patience:
                self.doubtful += 1
                return result
            self.dropped += 1

    @property
    def flags(self) -> list[str]:
        return ["shared-processors"] * bool(self.doubtful) + ["processors-not-probed"] * bool(self.unprobed)

    def summary(self) -> dict:
        return {"least_share": LEAST_SHARE, "farthest_ns": FARTHEST_NS, "shares": self.shares,
                "round_trips": self.round_trips, "dropped": self.dropped, "doubtful": self.doubtful,
                "seconds": round(self.spent, 1), "unprobed": self.unprobed, "text": str(self)}  # fmt: skip

    def __str__(self) -> str:
        if self.unprobed:
            return f"The processors were not probed: {self.unprobed}."
        bad = sum(share < LEAST_SHARE for share in self.shares)
        text = f"{bad} of {len(self.shares)} probes around bursts found a core below {LEAST_SHARE:g} of its speed"
        if len(self.cores) > 1:
            far = sum(trip > self._farthest for trip in self.round_trips)
            text += f", {far} a cache line that took more than {FARTHEST_NS} ns to another core and back"
        text += f"; {self.dropped} bursts were measured again."
        if self.doubtful:
            text += f" No better phase came within {self.patience:g} s: {self.doubtful} doubtful ones were kept."
        return text


def one_cache(cores: Sequence[int], root: Path = Path("/sys/devices/system/cpu")) -> bool:
    """Whether the system says that all of the cores share a cache."""
    lists = (file.read_text() for file in root.glob(f"cpu{next(iter(cores), 0)}/cache/index*/shared_cpu_list"))
    return any(set(cores) <= set(_numbers(text)) for text in lists)


def _numbers(text: str) -> Iterator[int]:
    for part in text.strip().split(","):
        low, _, high = part.partition("-")
        yield from range(int(low), int(high or low) + 1)

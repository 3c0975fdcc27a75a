"""Whether every core has its full speed while all are used: probed around each burst.

A virtual machine's processors may share one physical core for a while, and other processes may run on them; what was
measured then is measured again.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from irstd_edge.benchmarks.peers.compiler import CompilerError, compile_c

#: Smallest share of its full speed that a core must have. Two that share one have 0.5 each; clocks differ by less.
LEAST_SHARE = 0.9
#: Engines' threads may spin for a while after a run.
SETTLE_SECONDS = 0.05
PAUSE_SECONDS = 0.5

T = TypeVar("T")


class Processors:
    """The probe and what it found: ``shares``, one per probe; bursts ``dropped``; ``doubtful`` ones that were kept.

    ``patience``: seconds in all to wait for the cores and to measure again.
    """

    def __init__(self, cores: Sequence[int], folder: Path, patience: float):
        self.cores, self.patience, self.spent = list(cores), patience, 0.0
        self.shares: list[float] = []
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
        """Whether every core has its full speed now, the best that it had alone in any probe."""
        time.sleep(SETTLE_SECONDS)
        command = [str(self._program), *map(str, self.cores)]
        found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
        self._full = np.maximum(self._full, found["alone"])
        self.shares.append(round(float((found["together"] / self._full).min()), 2))
        self._good = self.shares[-1] >= LEAST_SHARE
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
        return {"least_share": LEAST_SHARE, "shares": self.shares, "dropped": self.dropped, "doubtful": self.doubtful,
                "seconds": round(self.spent, 1), "unprobed": self.unprobed, "text": str(self)}  # fmt: skip

    def __str__(self) -> str:
        if self.unprobed:
            return f"The processors were not probed: {self.unprobed}."
        low, middle = np.percentile(self.shares, [0, 50])
        text = (
            f"Probed {len(self.shares)} times around the bursts, the slowest core had {middle:.2f} of its full speed "
            f"in the median, {low:.2f} at worst; measured again, as it had less than {LEAST_SHARE:g}: "
            f"{self.dropped} bursts."
        )
        if self.doubtful:
            text += f" No better phase came within {self.patience:g} s: {self.doubtful} doubtful ones were kept."
        return text

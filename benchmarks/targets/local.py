"""This machine as a target: every candidate is a process of its own, pinned to chosen cores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

from irstd_edge import errors
from irstd_edge.benchmarks import conditions
from irstd_edge.benchmarks.errors import CandidateError
from irstd_edge.benchmarks.measure import Candidate

#: Worker errors that keep their type, and so the exit code of the command.
_TYPED = {e.__name__: e for e in (errors.UnsupportedError, errors.MissingError)}


class LocalWorker:
    """The process of one candidate. Close it, or use it as a context manager."""

    def __init__(self, candidate: Candidate):
        self.candidate = candidate
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        threads = str(candidate.threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "irstd_edge.benchmarks.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment, text=True,
        )  # fmt: skip

    def ask(self, do: str, **request) -> dict:
        """Send one request and wait for its answer.

        Raises :class:`CandidateError` naming the candidate when the process died or the runtime failed, and
        :class:`~irstd_edge.errors.MissingError` or :class:`~irstd_edge.errors.UnsupportedError` as the runtime did.
        """
        try:
            self.process.stdin.write(json.dumps({"do": do} | request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            way_out = "leave it out with --artefact, or report it"
            raise CandidateError(f"{self.candidate}: {self._cause_of_death()}; {way_out}")
        answer = json.loads(line)
        if "error" in answer:
            kind, message = answer["error"]["type"], answer["error"]["message"]
            raise _TYPED.get(kind, CandidateError)(f"{self.candidate}: {message}")
        return answer["ok"]

    def close(self) -> None:
        """End the process; a process that does not end by itself within 5 s is killed."""
        try:
            self.process.stdin.write('{"do": "close"}\n')
            self.process.stdin.close()
        except (OSError, ValueError):
            pass
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def __enter__(self) -> LocalWorker:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _cause_of_death(self) -> str:
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return "its process closed its output"
        cause = f"its process ended with code {code}"
        if code < 0:
            cause = f"its process was ended by {signal.Signals(-code).name}"
        self.log.seek(0)
        words = self.log.read().decode(errors="replace").strip().splitlines()
        return f"{cause} ({words[-1].strip()[:200]})" if words else cause


class LocalTarget:
    """Starts workers here and tells about this machine."""

    name = "local"

    def start(self, candidate: Candidate) -> LocalWorker:
        return LocalWorker(candidate)

    def cores(self, threads: int) -> list[int]:
        return conditions.choose_cores(threads)

    def device(self) -> dict:
        return conditions.device()

    def snapshot(self) -> dict:
        return conditions.snapshot()

    def settle(self) -> None:
        """Give the processes just started time to fall asleep."""
        time.sleep(0.2)

"""One candidate in a process of its own: ``python -m irstd_edge.benchmarks.worker``.

JSON lines in on standard input, one JSON line out per request; everything that a runtime prints goes to standard
error. The process sleeps between requests, so that candidates take turns on the same cores.

Requests: ``{"do": "open" | "burst" | "memory" | "probabilities" | "accuracy" | "close", ...}``. An answer is
``{"ok": {...}}`` or ``{"error": {"type": ..., "message": ...}}``.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from irstd_edge.errors import MissingError, UnsupportedError

#: What is imported before the clock of ``load_ms`` starts: a runtime's own start-up is not the network's.
#: Of ``tflite`` it is the interpreter that :func:`irstd_edge.runtimes.tflite.interpreter_module` finds.
RUNTIME_MODULES = {"torch": "torch", "onnx": "onnxruntime", "portable": "onnxruntime",
                   "native": "irstd_edge.runtimes.native"}


def preload(artefact: str) -> None:
    """Import an artefact's runtime; what is missing is told when the session is opened."""
    with contextlib.suppress(ImportError, MissingError):
        if artefact == "tflite":
            from irstd_edge.runtimes.tflite import interpreter_module

            interpreter_module()
        elif artefact in RUNTIME_MODULES:
            importlib.import_module(RUNTIME_MODULES[artefact])


def open_candidate(bundle: str, artefact: str, threads: int):
    """Open a :class:`~irstd_edge.runtimes.session.Session` of a bundle folder."""
    from irstd_edge.bundle import Bundle
    from irstd_edge.runtimes.session import open_session

    return open_session(Bundle.open(Path(bundle)), artefact, threads)


class Candidate:
    """The state of a worker: an open session and a prepared call."""

    def __init__(self):
        self.session = None
        self.call: Callable[[], None] | None = None
        self.threads = 1
        self.baseline: int | None = None

    def open(self, request: dict) -> dict:
        """Pin, import the runtime, open the artefact, bind the input (an ``.npy``), run once."""
        import numpy as np

        if request["cores"]:
            os.sched_setaffinity(0, request["cores"])
        self.threads = request["threads"]
        x = np.load(request["input"], allow_pickle=False)
        name, function = request["opener"].split(":")
        module = importlib.import_module(name)
        opener = getattr(module, function)
        if hasattr(module, "preload"):
            module.preload(request["artefact"])
        self._flush()
        self.baseline = _status("VmRSS")
        _reset_peak()
        start = time.perf_counter_ns()
        self.session = opener(request["bundle"], request["artefact"], self.threads)
        self._flush()
        self.call = self.session.prepare(x)
        loaded = time.perf_counter_ns()
        self.call()
        first = time.perf_counter_ns()
        gc.collect()
        gc.disable()
        return {
            "runtime": self.session.runtime,
            "isa": self.session.isa,
            "load_ms": (loaded - start) / 1e6,
            "first_ms": (first - loaded) / 1e6,
            "flush_to_zero": self._flush(),
        }

    def burst(self, request: dict) -> dict:
        """Untimed runs, then timed ones until both bounds are met.

        Answers wall nanoseconds per run, and the CPU time and wall time of the timed part.
        """
        call, clock, samples = self.call, time.perf_counter_ns, []
        for _ in range(request["untimed"]):
            call()
        least, length = request["min_runs"], int(request["seconds"] * 1e9)
        cpu, start = time.process_time_ns(), clock()
        before = start
        while len(samples) < least or before - start < length:
            call()
            after = clock()
            samples.append(after - before)
            before = after
        return {"ns": samples, "wall_ns": before - start, "cpu_ns": time.process_time_ns() - cpu}

    def memory(self, request: dict) -> dict:
        """Resident bytes before the artefact was opened, and the peak since (None where the system does not tell)."""
        return {"baseline_bytes": self.baseline, "peak_bytes": _status("VmHWM")}

    def probabilities(self, request: dict) -> dict:
        """Run every array of an ``.npz`` (float32 ``[1, 1, H, W]``) and write the outputs under the same names.

        Sizes that the artefact cannot take are left out; the answer names them.
        """
        import numpy as np

        found, unsupported = {}, []
        with np.load(request["inputs"], allow_pickle=False) as inputs:
            for name in inputs.files:
                try:
                    found[name] = self.session.run(inputs[name])
                except UnsupportedError:
                    unsupported.append(name)
        np.savez(request["outputs"], **found)
        return {"unsupported": unsupported}

    def accuracy(self, request: dict) -> dict:
        """IoU, nIoU, Pd and Fa of the open session on the test split of a data set."""
        from irstd_edge.benchmarks.accuracy import measure_accuracy
        from irstd_edge.bundle import Preprocessing

        return measure_accuracy(
            self.session,
            request["root"],
            request["dataset"],
            Preprocessing(**request["preprocessing"]),
            request["threshold"],
            request["protocol"],
            request["limit"],
        )

    def _flush(self) -> bool:
        from irstd_edge.benchmarks.floating_point import set_flush_to_zero

        return set_flush_to_zero()


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until ``close`` or the end of the input."""
    candidate = Candidate()
    for line in requests:
        request = json.loads(line)
        if request["do"] == "close":
            return
        try:
            answer = {"ok": getattr(candidate, request["do"])(request)}
        except Exception as e:  # whatever a runtime raises becomes one line that names the candidate
            answer = {"error": {"type": type(e).__name__, "message": " ".join(str(e).split()) or type(e).__name__}}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _status(key: str) -> int | None:
    """Bytes of one line of ``/proc/self/status``."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _reset_peak() -> None:
    """Let ``VmHWM`` start anew; where this is not allowed, the peak of the imports stays in it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()

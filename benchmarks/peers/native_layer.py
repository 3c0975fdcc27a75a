"""Our single layers: measured by the C program beside the kernels, not by a worker.

The one place to change when a program measures layers with packed inputs and outputs.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from irstd_edge.benchmarks.peers.works import Work
from irstd_edge.errors import MissingError

PROGRAM = Path("build/native/bench_bconv2d")
NOTE = "float in and out, RPReLU, residual and rounding included; median alone, not interleaved with the peers"
SECONDS = 0.5
_LINE = re.compile(r"^\s*(\d+)-(\d+)\s+@(\d+)\s+n\w+\s+(\S+).*?\s([\d.]+) ms")


def measure(work: Work, isa: str | None, core: int | None, program: Path = PROGRAM) -> dict:
    """``{ms_p50, isa, note}`` of the fastest variant (of ``isa`` alone where given).

    Raises :class:`~irstd_edge.errors.MissingError` where there is no program or it does not measure this layer.
    """
    if not os.access(program, os.X_OK):
        raise MissingError(f"{program} is not built")
    pin = None if core is None else lambda: os.sched_setaffinity(0, [core])
    done = subprocess.run([program, "--seconds", str(SECONDS), "--layout", "nhwc"], capture_output=True, text=True,
                          check=False, timeout=600, preexec_fn=pin)  # fmt: skip
    if done.returncode:
        raise MissingError(f"{program} ended with {done.returncode}")
    channels, size, _ = work.shape
    shape = (channels, channels, size)
    found = [(float(ms), variant) for *numbers, variant, ms in map(_fields, done.stdout.splitlines())
             if tuple(numbers) == shape and (isa is None or variant.endswith(f"__{isa}"))]  # fmt: skip
    if not found:
        raise MissingError(f"{program} does not measure {work.name}")
    ms, variant = min(found)
    return {"ms_p50": ms, "isa": variant.rpartition("__")[2], "note": NOTE}


def _fields(line: str) -> tuple:
    """in, out, size, variant and ms of a line of the program; zeros where it is another line."""
    match = _LINE.match(line)
    return (*map(int, match.groups()[:3]), match[4], match[5]) if match else (0, 0, 0, "", 0)

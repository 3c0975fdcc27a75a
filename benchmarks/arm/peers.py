"""Instruction counts of the peer engines: their own ARM wheels, one inference, one thread."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from irstd_edge.benchmarks.peers.engines import TOLERANCES
from irstd_edge.benchmarks.peers.works import last_line

from . import machine
from .emulate import CORES, emulate
from .models import ADAPTERS, model, module, work_folder


def count_peer(work: str, peer: str, core: str) -> dict:
    """What the row of one peer on one work and core knows; ``skipped`` says why there is no count."""
    adapter, _, precision = peer.partition("-")
    known = {"isa": CORES[core].isa, "precision": precision}
    prefix, python, env = machine.python(core)
    inputs = work_folder(work) / "inputs.npz"
    try:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "output.npy"
            arguments = (f"{ADAPTERS}.{adapter}", model(work, peer), inputs, output, machine.markers())
            command = [*python, *module("irstd_edge.benchmarks.arm.guest", *arguments)]
            count = emulate(core, command, prefix=prefix, env=env)
            y = np.load(output)
    except RuntimeError as e:
        return known | {"skipped": last_line(str(e))}
    expected = np.load(inputs)["reference"][:1]
    # A fast engine that computes something else is no bar.
    error = float(np.sqrt(np.mean((y - expected) ** 2)) / expected.std())
    if not error <= TOLERANCES[precision]:
        return known | {"skipped": f"its output is wrong by {error:.2g} of its deviation"}
    return known | {"instructions": count.windows[-1], "error": error}

"""Our kernels stay within the instructions of benchmarks/arm/budgets.json."""

from __future__ import annotations

import json

import pytest

from irstd_edge.benchmarks.arm import ours
from irstd_edge.benchmarks.arm.emulate import HERE

BUDGETS = json.loads((HERE / "budgets.json").read_text())
#: A count does not depend on the machine, but a little on the compiler.
SLACK = 1.02


@pytest.mark.parametrize(("work", "core"), [(work, core) for work in BUDGETS for core in BUDGETS[work]])
def test_within_budget(work, core, qemu):
    budget = BUDGETS[work][core]
    isa, count = ours.count_ours(work, core)
    assert isa == budget["isa"]
    (instructions,) = count.windows
    assert instructions <= SLACK * budget["instructions"], (
        f"{work} on {core}: {instructions / budget['instructions']:.3f} of its budget; if that is meant, run "
        "python -m irstd_edge.benchmarks.arm --engine irstd-native --write-budgets")

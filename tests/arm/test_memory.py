"""Networks that 32 bits cannot hold are refused: no size wraps around."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from irstd_edge.benchmarks.arm.emulate import NATIVE, ROOT, compile_program, cross_build, emulate
from irstd_edge.program import write

sys.path.insert(0, str(ROOT / "tests/kernels"))  # pytest's importlib mode does not: engine_cases
from engine_cases import Builder


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> Path:
    library = cross_build("armv7", "irstd_core") / "libirstd_core.a"
    return compile_program("armv7", tmp_path_factory.mktemp("memory") / "runner", "-I", NATIVE / "include",
                           NATIVE / "tools/irstd_bench.c", "-static", library, "-lm", "-lpthread")


def wide(case: str) -> tuple[Builder, int, str]:
    """A program, its output and what it is refused with, at 4 x 32768 pixels."""
    rng = np.random.default_rng(0)
    b = Builder(1)
    if case == "row":  # of 8 GiB
        x = b.conv(rng, 0, 65536, (1, 1), bias=False)
        return b, b.conv(rng, x, 1, (1, 1)), "out of memory: a row of t1, of 32768 columns"
    if case == "arena":  # rows of half a gigabyte
        x = b.conv(rng, 0, 4096, (1, 1), bias=False)
        for _ in range(3):
            x = b.add("MaxPool", x, 4096, kernel_h=2, kernel_w=1, stride_h=1, stride_w=1)
        return b, b.conv(rng, x, 1, (1, 1)), r"out of memory: an arena of \d{10,} bytes or more"
    if case == "sums":  # of 16 bits
        return b, b.binary(rng, 0, 65536, kernel=(1, 1), grid=-1), r"out of memory: \d{10} bytes for a row of Bin"
    x = b.conv(rng, 0, 1200, (1, 1), bias=False)  # 1200 * 31 lines of 33 thousand floats
    y = b.conv(rng, x, 1, (31, 1), stride_w=2, pad_top=15, pad_bottom=15)
    return b, y, r"out of memory: \d+ bytes for a row of Conv2d_1"


@pytest.mark.parametrize("case", ["row", "arena", "sums", "lines"])
def test_sizes_beyond_32_bits(case, runner, tmp_path):
    b, y, message = wide(case)
    (tmp_path / "model.irstd").write_bytes(write(b.finish(y)))
    with pytest.raises(RuntimeError, match=message):
        emulate("cortex-a7", [runner, tmp_path / "model.irstd", "--height", 4, "--width", 32768], count=False)

"""Our libraries in the real ARM runtimes: the compressed layers of a network give the bits of this machine.

The float layers are the runtimes' own, and sum in another order there.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from irstd_edge.benchmarks.arm import machine
from irstd_edge.benchmarks.arm.emulate import CORES, cross_build, emulate, run

SCRIPT = Path(__file__).parent / "run_adapter.py"
LIBRARIES = {"onnx": "ort", "tflite": "tflite"}
PROBABILITY = "probability"
ON_EVERY_CORE = pytest.mark.parametrize("core", [name for name, core in CORES.items() if core.preset == "aarch64"])


def run_both(core: str, runtime: str, folder: Path, host: Path, tmp_path: Path) -> tuple[dict, dict]:
    """Every map that the runtime tells, by name: on this machine, and on the core."""
    name = f"adapters/{LIBRARIES[runtime]}/libirstd_{LIBRARIES[runtime]}.so"
    arguments = [runtime, folder / f"model.{runtime}"]
    run([sys.executable, SCRIPT, *arguments, host / name, folder / "input.npy", tmp_path / "here.npz"])
    library = cross_build("aarch64", f"irstd_{LIBRARIES[runtime]}") / name
    prefix, python, env = machine.python(core)
    emulate(core, [*python, SCRIPT, *arguments, library, folder / "input.npy", tmp_path / "there.npz"],
            prefix=prefix, env=env, count=False)
    here, there = np.load(tmp_path / "here.npz"), np.load(tmp_path / "there.npz")
    np.testing.assert_allclose(there[PROBABILITY], here[PROBABILITY], rtol=0, atol=1e-6)
    return here, there


@ON_EVERY_CORE
@pytest.mark.parametrize("runtime", LIBRARIES)
def test_the_compressed_layers_give_the_bits_of_this_machine(core, runtime, layers, host, tmp_path):
    here, there = run_both(core, runtime, layers, host, tmp_path)
    maps = [key for key in here if re.fullmatch(r"binary_conv2d(_\d+)?", key)]
    assert len(maps) == 16
    assert not [key for key in maps if not np.array_equal(here[key], there[key])]


@ON_EVERY_CORE
@pytest.mark.parametrize("runtime", LIBRARIES)
def test_the_fused_program_gives_the_probability_of_this_machine(core, runtime, bundle, host, tmp_path):
    here, _ = run_both(core, runtime, bundle, host, tmp_path)
    assert not [key for key in here if "binary_conv2d" in key]

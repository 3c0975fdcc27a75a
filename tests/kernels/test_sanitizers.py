"""Random operators, networks and damaged files in exactly sized buffers under AddressSanitizer and
UndefinedBehaviorSanitizer."""

from __future__ import annotations

import itertools
import subprocess

import numpy as np
import pytest
from engine_cases import binary_networks, float_networks, graphs, quant_networks
from engine_library import chosen
from hypothesis import HealthCheck, Phase, given, settings
from kernel_build import build, simde_options
from program_files import FILE, SIZE, changed_words, open_all, patched

from irstd_edge.program import write

pytestmark = pytest.mark.slow
#: Instruction sets of the native build, and of the emulated one.
ISAS = {"native": ["ref", "avx2", "avx512"], "emulated": ["avx512", "neon"]}
#: Quantised convolutions that another one is cheaper than.
VARIANTS = [None, "qconv2d_pairs", "qconv2d_maddwd", "qconv2d_smlal", "qconv2d_sdot"]


@pytest.fixture(scope="module", params=ISAS)
def sanitized(request):
    """The folder of the build, and the instruction sets that it can run here."""
    library = request.getfixturevalue("emulated_library" if request.param == "emulated" else "library")
    options = ["-DIRSTD_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    options += simde_options() if request.param == "emulated" else ()
    folder = build("kernel-sanitize" + "-simde" * (request.param == "emulated"), *options,
                   targets=("open_bconv2d", "open_programs"))
    return folder, [isa for isa in ISAS[request.param] if library.isas().get(isa)]


def test_sanitizers(sanitized):
    for seed in ("1", "2"):
        run = subprocess.run([sanitized[0] / "open_bconv2d", "300", seed], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith("300 cases\n")


@pytest.mark.parametrize("strategy", [binary_networks, graphs, float_networks, quant_networks])
def test_networks(sanitized, strategy):
    """What the strategies of the engine's tests draw, on one thread and on three."""
    programs: dict[tuple[int, int], list[bytes]] = {}

    @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True,
              phases=[Phase.generate])
    @given(strategy())
    def collect(case):
        programs.setdefault(case[1][0].shape[1:], []).append(write(case[0]))

    collect()
    for isa, variant in itertools.product(sanitized[1], VARIANTS if strategy is quant_networks else [None]):
        for i, (size, files) in enumerate(programs.items()):
            with chosen(quant=variant):
                results = open_all(sanitized[0] / "open_programs", files, size, 1 + 2 * (i % 2), isa)
            assert all(status == 0 for status, _ in results), results


def test_damaged_files(sanitized):
    rng = np.random.default_rng(0)
    special = [0, 1, 2, 3, 64, 300, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FC00000, 0x7F800000, len(FILE)]
    files = changed_words()
    for _ in range(1500):
        count = rng.integers(1, 5)
        values = np.where(rng.random(count) < 0.6, rng.choice(special, count), rng.integers(0, 2**32, count))
        places = 4 * rng.integers(7, len(FILE) // 4, count)
        files.append(patched(FILE, *zip(places.tolist(), values.tolist(), strict=True)))
    files += [FILE[:size] for size in range(0, len(FILE), 97)]
    for isa in sanitized[1]:
        results = open_all(sanitized[0] / "open_programs", files, SIZE, 1, isa)
        assert all(message for status, message in results if status)

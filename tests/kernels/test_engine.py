"""The native engine on every instruction set, bit for bit, against the truth of engine_truth.py."""

from __future__ import annotations

import numpy as np
import pytest
from engine_cases import SAME, Builder, binary_networks, graphs
from engine_library import Engine, strip_rows
from engine_truth import run_program
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_truth import assert_same_bits

from irstd_edge.program import write

QUICK = settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=4000)
SOME_THREADS, SOME_STRIPS = st.sampled_from([1, 1, 2, 3]), st.sampled_from([None, 1, 3, 64])


def available(library) -> list[str]:
    return [isa for isa, has in library.isas().items() if has]


def assert_close(y, truth, tolerance, context):
    """Bit for bit where there is no tolerance, else within that part of the largest value."""
    if tolerance is None:
        assert_same_bits(y, truth, context)
    else:
        np.testing.assert_allclose(y, truth, rtol=0, atol=tolerance * max(1, np.abs(truth).max()), err_msg=context)


def check(library, isas, program, images, tolerances=None, *, threads=1, strip=None, runs=1):
    expected, data = run_program(program, *images), write(program)
    for isa in isas:
        with library.forced(isa), strip_rows(strip):
            engine = Engine(library, data, *images[0].shape[1:], threads)
        with engine:
            for _ in range(runs):
                for i, (y, truth) in enumerate(zip(engine(*images), expected, strict=True)):
                    assert_close(y, truth, tolerances[i] if tolerances else None, f"output {i} on {isa}, {engine.kernels}")


@QUICK
@given(case=binary_networks(), threads=SOME_THREADS, strip=SOME_STRIPS)
def test_binary_networks(library, case, threads, strip):
    check(library, available(library), *case, threads=threads, strip=strip, runs=2)


@pytest.mark.slow
@LONG
@given(case=binary_networks(), threads=SOME_THREADS, strip=SOME_STRIPS)
def test_many_binary_networks(library, case, threads, strip):
    check(library, available(library), *case, threads=threads, strip=strip, runs=2)


@settings(QUICK, max_examples=60)
@given(case=binary_networks(), strip=SOME_STRIPS)
def test_binary_networks_emulated(emulated_library, case, strip):
    """The sources of AVX-512 and NEON on any x86 CPU."""
    check(emulated_library, ["avx512", "neon"], *case, strip=strip)


@pytest.mark.slow
@settings(LONG, max_examples=1500)
@given(case=binary_networks(), strip=SOME_STRIPS)
def test_many_binary_networks_emulated(emulated_library, case, strip):
    check(emulated_library, ["avx512", "neon"], *case, strip=strip)


@QUICK
@given(case=graphs(), threads=SOME_THREADS, strip=SOME_STRIPS)
def test_graphs(library, case, threads, strip):
    """int16 results are exact; so are float32 ones of sums that are."""
    check(library, available(library), *case, threads=threads, strip=strip, runs=2)


@pytest.mark.slow
@LONG
@given(case=graphs(), threads=SOME_THREADS, strip=SOME_STRIPS)
def test_many_graphs(library, case, threads, strip):
    check(library, available(library), *case, threads=threads, strip=strip, runs=2)


def image(*shape, seed=0, scale=2.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


class TestOnce:
    """Networks that were wrong once, and their kin."""

    @pytest.fixture
    def rng(self):
        return np.random.default_rng(5)

    def run(self, library, program, *images, **options):
        check(library, available(library), program, images, **({"runs": 2} | options))

    def test_tensor_that_is_read_as_signs_alone(self, library, rng):
        """Its values are written all the same, where a kernel cannot write the signs itself."""
        b = Builder(3)
        x = b.fixed(0, 8)
        pool = b.add("AveragePool", x, 3, 8, kernel_h=2, kernel_w=2, stride_h=2, stride_w=2)
        slow = b.binary(rng, pool, 5, grid=8, activation=2, clamp_min=-0.5, clamp_max=0.5, **SAME)
        floating = b.binary(rng, slow, 6, grid=-1, **SAME)
        self.run(library, b.finish(b.binary(rng, floating, 4, **SAME)), image(3, 14, 30))

    def test_binarised_in_two_ways_and_never_read(self, library, rng):
        b = Builder(3)
        y = b.binary(rng, b.fixed(0, 8), 5, **SAME)
        self.run(library, b.finish(b.binary(rng, y, 4, **SAME), b.binary(rng, y, 4, **SAME)), image(3, 14, 30))

    def test_kernel_of_one_row_padded_above_and_below(self, library, rng):
        b = Builder(3)
        pads = {"pad_top": 2, "pad_bottom": 1, "pad_left": 1, "pad_right": 2}
        self.run(library, b.finish(b.binary(rng, b.fixed(0, 8), 5, kernel=(1, 3), **pads)), image(3, 4, 70))

    @pytest.mark.parametrize(("groups", "out"), [(3, 15), (8, 16), (5, 25), (16, 32), (7, 14)])
    def test_groups_of_few_channels(self, library, rng, groups, out):
        """Tiles of sums reach behind the last channel."""
        b = Builder(2 * groups)
        self.run(library, b.finish(b.binary(rng, b.fixed(0, 8), out, groups=groups, **SAME)), image(2 * groups, 4, 200))

    def test_margins_of_two_readers(self, library, rng):
        """One needs much on the left, one on the right."""
        b = Builder(6)
        x, threshold = b.fixed(0, 8), {"threshold": np.zeros(6, np.float32)}
        near = b.binary(rng, x, 4, constants=threshold, pad_left=100, pad_top=1, pad_bottom=1)
        far = b.binary(rng, x, 4, kernel=(1, 1), constants=threshold, pad_right=192)
        self.run(library, b.finish(near, far), image(6, 5, 64))

    def test_product_that_overflows(self, library, rng):
        """0 * scale * 2^f is 0 wherever 0 * scale is."""
        b = Builder(2)
        scale = {"scale": np.float32([3e38, -3e38, 1e36])}
        signs = b.binary(rng, 0, 3, kernel=(1, 1), grid=8, constants=scale)
        y = b.binary(rng, 0, 3, kernel=(1, 1), grid=8, constants=scale)
        self.run(library, b.finish(y, b.binary(rng, signs, 3, kernel=(1, 1))), image(2, 3, 40))

    def test_clamped_nan(self, library, rng):
        b = Builder(2)
        y = b.binary(rng, 0, 2, residual=0, kernel=(1, 1), grid=-1, activation=2, activation_first=0, clamp_min=-1.0,
                     clamp_max=1.0)
        x = image(2, 3, 40)
        x[:, ::2, ::5] = np.nan
        self.run(library, b.finish(y), x)

    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_denormals_are_zero(self, library, threads):
        """On every thread, for constants and for values, whatever the kernel."""
        tiny = np.float32(1e-39)
        b = Builder(1)
        grid, gate = b.fixed(0, 8), {"scale": np.float32([1]), "bias": np.float32([0]), "weight": np.int32([[[[1]]]])}
        outs = [b.binary(np.random.default_rng(0), x, 1, kernel=(1, 1), grid=bits, activation=0,
                         constants=gate | {"threshold": np.array([tiny])}) for x in (0, grid) for bits in (-1, 8)]
        small = b.binary(np.random.default_rng(0), 0, 1, kernel=(1, 1), grid=-1, activation=0,
                         constants=gate | {"scale": np.array([tiny]), "threshold": np.float32([0.5])})
        outs.append(b.binary(np.random.default_rng(0), small, 1, kernel=(1, 1), grid=-1, activation=0,
                             constants=gate | {"threshold": np.float32([0])}))
        outs.append(b.add("Multiply", (0, 0), 1))
        program = b.finish(*outs)
        x = np.tile(np.float32([0, 1e-20, 1, -1]), (1, 6, 10))
        for isa in available(library):
            with library.forced(isa), Engine(library, write(program), 6, 40, threads) as engine:
                *signs, kept, square = engine(x)
                for y in signs:
                    assert (y == np.where(x < 0, -1, 1)).all(), isa
                assert (kept == 1).all() and (square == np.where(np.abs(x) == 1, 1, 0)).all(), isa

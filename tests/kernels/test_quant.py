"""Quantised convolutions in the engine, bit for bit, against int64 sums and float32 steps of engine_truth.py."""

from __future__ import annotations

import re

import numpy as np
import pytest
from engine_cases import SAME, Builder, quant_networks
from engine_library import Engine, chosen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_build import ROOT
from kernel_library import INVALID, UNSUPPORTED, KernelError
from program_files import node_place, patched, sealed
from test_engine import SOME_STRIPS, SOME_THREADS, available, check, image

from irstd_edge.program import OPERATORS, ProgramError, write

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


#: The cheapest that is exact, or one that is taken wherever it is.
VARIANTS = st.sampled_from([None, "qconv2d_maddubs", "qconv2d_pairs", "qconv2d_maddwd"])
EMULATED_VARIANTS = st.sampled_from(["qconv2d_smlal", "qconv2d_sdot"])


@QUICK
@given(case=quant_networks(), threads=SOME_THREADS, strip=SOME_STRIPS, variant=VARIANTS)
def test_quant_networks(library, case, threads, strip, variant):
    check(library, available(library), *case, threads=threads, strip=strip, quant=variant, runs=2)


@pytest.mark.slow
@settings(QUICK, max_examples=2000)
@given(case=quant_networks(), threads=SOME_THREADS, strip=SOME_STRIPS, variant=VARIANTS)
def test_many_quant_networks(library, case, threads, strip, variant):
    check(library, available(library), *case, threads=threads, strip=strip, quant=variant, runs=2)


@settings(QUICK, max_examples=60)
@given(case=quant_networks(), strip=SOME_STRIPS, variant=EMULATED_VARIANTS)
def test_quant_networks_emulated(emulated_library, case, strip, variant):
    """The sources of AVX-512 and NEON on any x86 CPU."""
    check(emulated_library, ["avx512", "neon"], *case, strip=strip, quant=variant)


@pytest.mark.slow
@settings(QUICK, max_examples=1000)
@given(case=quant_networks(), strip=SOME_STRIPS, variant=EMULATED_VARIANTS)
def test_many_quant_networks_emulated(emulated_library, case, strip, variant):
    check(emulated_library, ["avx512", "neon"], *case, strip=strip, quant=variant)


def documented_variants() -> list[tuple[str, str]]:
    """Kernel and instruction set of the rows of docs/kernels.md."""
    rows = re.findall(r"^\| `(qconv2d_\w+)` \| ([^|]*) \|", (ROOT / "docs/kernels.md").read_text(), re.MULTILINE)
    isas = {"any": "ref", "AVX2": "avx2", "AVX-512": "avx512", "AVX-VNNI,": "avx2", "NEON": "neon"}
    return [(kernel, isas[isa.split()[0]]) for kernel, isa in rows]


@pytest.mark.parametrize(("kernel", "isa"), documented_variants())
def test_variants_that_are_reached(library, kernel, isa, request):
    """So that the tests above hold every variant to the truth that this CPU has, or that is emulated."""
    native = library.isas().get(isa)
    rng, b = np.random.default_rng(6), Builder(9)
    y = b.quant(rng, b.quant(rng, 0, 21, bits=(4, 4), **SAME), 5, bits=(3, 2), **SAME)
    program, images = b.finish(y), [image(9, 12, 75)]
    used = library if native else request.getfixturevalue("emulated_library")
    with used.forced(isa), chosen(quant=kernel), Engine(used, write(program), 12, 75) as engine:
        kernels = engine.kernels
    if kernel == "qconv2d_dpbusd" and isa == "avx2" and not kernels[0].startswith(kernel):
        pytest.skip("this CPU has no AVX-VNNI")
    assert all(name.startswith(kernel + "_") and name.endswith(f"__{isa}") for name in kernels), kernels
    check(used, [isa], program, images, quant=kernel, runs=2)


class TestOnce:
    """What the strategy meets by chance alone."""

    @pytest.fixture
    def rng(self):
        return np.random.default_rng(5)

    def run(self, library, program, *images, **options):
        check(library, available(library), program, images, **({"runs": 2} | options))

    def test_largest_sums(self, library):
        """Every product is as large as it can be, of either sign, with all bits and fewer."""
        for bits in [(8, 8), (8, 7), (7, 8), (4, 8), (4, 4), (1, 8)]:
            for sign in (1, -1):
                rng = np.random.default_rng(1)
                b = Builder(24)
                y = b.quant(rng, 0, 4, bits=bits, **SAME)
                weight = b.nodes[-1].constants["weight"]
                # Two's complement: all bits but the highest, or the highest alone; one bit is +1 or -1.
                one = 1 if bits[0] == 1 else 2 ** (bits[0] - 1) - 1 if sign > 0 else 2 ** (bits[0] - 1)
                one = 0 if bits[0] == 1 and sign < 0 else one
                digits = np.tile(one >> np.arange(bits[0]) & 1, 24 * 9).astype(np.uint8)
                weight[:] = np.packbits(digits, bitorder="little")
                self.run(library, b.finish(y), np.full((24, 5, 40), 1e6, np.float32))

    def test_values_that_only_quantised_layers_read_are_not_stored(self, library, rng):
        b = Builder(8)
        x = b.quant(rng, b.quant(rng, 0, 8, **SAME), 8, **SAME)
        program = b.finish(b.quant(rng, (x, b.add("Activation", 0, 8)), 3, (1, 1)))
        self.run(library, program, image(8, 20, 40))
        with Engine(library, write(program), 20, 40) as engine:
            sizes = {layer["name"]: layer["output_bytes"] for layer in engine.description["layers"]}
        assert sizes["QuantConv2d_0"] == sizes["QuantConv2d_1"] == 0

    @pytest.mark.parametrize("width", [7, 33])
    def test_a_sum_is_computed_by_its_later_layer(self, library, rng, width):
        b = Builder(8)
        first, second = b.quant(rng, 0, 10, **SAME), b.quant(rng, 0, 10, (1, 1))
        total = b.add("Add", (first, second), 10, activation=1)
        program = b.finish(b.quant(rng, total, 3, **SAME))
        self.run(library, program, image(8, 9, width))
        with Engine(library, write(program), 9, width) as engine:
            kernels = {layer["name"]: layer["kernel"] for layer in engine.description["layers"]}
        assert sorted(k == "folded" for k in kernels.values()) == [False, False, False, True]

    @pytest.mark.parametrize("bits", [(4, 1), (4, 2), (3, 4), (8, 8)])
    @pytest.mark.parametrize("signed", [0, 1])
    def test_maps_survive_a_maximum_pool(self, library, rng, bits, signed):
        a = {"bits": bits, "activation_signed": signed * (bits[1] > 1), **SAME}
        b = Builder(8)
        x = b.quant(rng, 0, 37, **a)
        pool = b.add("MaxPool", x, 37, kernel_h=2, kernel_w=2, stride_h=2, stride_w=2)
        wide = b.add("MaxPool", x, 37, kernel_h=3, kernel_w=3, stride_h=2, stride_w=1)
        program = b.finish(b.quant(rng, pool, 5, **a), b.quant(rng, wide, 5, zero_point=1, **a))
        for size in [(20, 40), (5, 3), (9, 75)]:
            self.run(library, program, image(8, *size))
        with Engine(library, write(program), 20, 40) as engine:
            layers = {layer["name"]: layer for layer in engine.description["layers"]}
        for name in ("MaxPool_1", "MaxPool_2"):
            assert layers[name]["kernel"].startswith("MaxPool_quantised__") and layers[name]["output_bytes"] == 0
        assert layers["QuantConv2d_0"]["output_bytes"] == 0

    def test_a_maximum_pool_of_what_may_be_a_nan(self, library, rng):
        b = Builder(3)
        x = b.quant(rng, 0, 4, **SAME)
        b.nodes[-1].constants["bias"][1] = np.nan
        pool = b.add("MaxPool", x, 4, kernel_h=2, kernel_w=2, stride_h=2, stride_w=2)
        program = b.finish(b.quant(rng, pool, 2, **SAME))
        with Engine(library, write(program), 12, 40) as engine:
            assert not engine.kernels[1].startswith("MaxPool_quantised")

    def test_signs_and_two_quantisers_of_one_tensor(self, library, rng):
        b = Builder(5)
        x = b.quant(rng, 0, 12, bits=(3, 4), **SAME)
        self.run(library, b.finish(b.quant(rng, x, 4, bits=(4, 2), **SAME), b.quant(rng, x, 4, bits=(4, 6), **SAME),
                                   b.binary(rng, x, 4, grid=-1, **SAME)), image(5, 12, 33))

    def test_behind_a_binary_layer(self, library, rng):
        b = Builder(5)
        x = b.binary(rng, b.fixed(0, 8), 12, **SAME)
        self.run(library, b.finish(b.quant(rng, x, 4, **SAME), b.quant(rng, b.binary(rng, x, 7, **SAME), 3)),
                 image(5, 12, 300))

    def test_margins_of_two_readers(self, library, rng):
        b = Builder(6)
        left = b.quant(rng, 0, 4, (1, 3), pad_left=2, zero_point=3)
        right = b.quant(rng, 0, 4, (3, 5), dilation_w=2, pad_right=9, zero_point=3)
        self.run(library, b.finish(left, right), image(6, 9, 40))

    @pytest.mark.parametrize(("kernel", "channels"), [((3, 3), 33), ((1, 3), 7), ((5, 2), 8), ((4, 1), 5), ((9, 3), 4)])
    @pytest.mark.parametrize("variant", [None, "qconv2d_maddwd", "qconv2d_smlal"])
    def test_depthwise(self, library, emulated_library, rng, kernel, channels, variant):
        """Rows of a channel are merged, whatever the kernel, the dilation and the padding."""
        for bits, zero, dilation in [((7, 8), 0, 1), ((8, 8), 5, 3), ((4, 3), 1, 2)]:
            b = Builder(channels)
            pads = dict(zip(SAME, rng.integers(0, 5, 4).tolist(), strict=True))
            y = b.quant(rng, 0, channels, kernel, bits, channels, zero_point=zero, dilation_h=dilation,
                        dilation_w=dilation, **pads)
            program = b.finish(b.quant(rng, y, 3))
            for width in (9, 41):
                images = [image(channels, 30, width)]
                for used in (library, emulated_library):
                    isas = available(library) if used is library else ["avx512", "neon"]
                    check(used, isas, program, images, quant=variant, runs=2)
                    for isa in isas:
                        with used.forced(isa), Engine(used, write(program), 30, width) as engine:
                            assert "_depthwise_" in engine.kernels[0]

    def test_a_depthwise_stride_is_not_merged(self, library, rng):
        b = Builder(8)
        y = b.quant(rng, 0, 8, groups=8, bits=(8, 8), stride_w=2, **SAME)
        self.run(library, b.finish(b.quant(rng, y, 3)), image(8, 9, 70))

    @pytest.mark.parametrize("scale", [0.01, 1e4, 1e30])
    @pytest.mark.parametrize(("bits", "signed", "zero"), [(8, 0, 0), (8, 1, 0), (6, 0, 3), (4, 0, 0), (3, 1, -2)])
    def test_values_near_and_far(self, library, emulated_library, rng, scale, bits, signed, zero):
        """What is quantised lies within the steps, far beyond them, beyond the integers, or is no number."""
        b = Builder(6)
        a = {"bits": (4, bits), "activation_signed": signed, "zero_point": zero}
        y = b.quant(rng, 0, 9, clamp_min=float(rng.choice([-np.inf, 0.0])), **a, **SAME)
        b.nodes[-1].constants["scale"] *= np.float32(scale)
        total = b.add("Add", (b.quant(rng, y, 9, **a, **SAME), b.add("Activation", y, 9)), 9)
        program, x = b.finish(b.quant(rng, total, 5, **a, **SAME)), image(6, 11, 37)
        x[:, 3:5, ::7] = [np.inf], [-np.inf]
        x[:, 6, ::5] = np.nan
        self.run(library, program, x)
        check(emulated_library, ["avx512", "neon"], program, [x])

    @pytest.mark.parametrize(("value", "kernel"), [(64, "pairs"), (65, "maddwd")])
    def test_pairs_are_proved_to_fit(self, library, value, kernel):
        """Largest inputs times two weights of one sign: 255 * 128 fits, 255 * 130 does not."""
        rng, b = np.random.default_rng(2), Builder(8)
        y = b.quant(rng, 0, 4, bits=(8, 8), **SAME)
        weight = np.full((4, 72), value) * np.where(np.arange(4) % 2, -1, 1)[:, None]
        weight[2] = np.tile([127, -128], 36)
        b.nodes[-1].constants["weight"][:] = weight.astype(np.int8).view(np.uint8)
        program = b.finish(y)
        self.run(library, program, np.full((8, 5, 40), 1e6, np.float32))
        if "avx2" not in available(library):
            pytest.skip("no AVX2")
        with library.forced("avx2"), Engine(library, write(program), 5, 40) as engine:
            assert kernel in engine.kernels[0] or "dpbusd" in engine.kernels[0]

    @pytest.mark.parametrize("bits", [(4, 4), (8, 8), (2, 2)])
    def test_layers_alone_take_the_kernels_of_their_bounds(self, library, rng, bits):
        b = Builder(8)
        program = b.finish(b.quant(rng, 0, 8, bits=bits, **SAME))
        found = {}
        for isa in available(library):
            with library.forced(isa), Engine(library, write(program), 16, 64) as engine:
                found[isa] = engine.kernels[0]
        assert found["ref"].startswith("qconv2d_ref_")
        if "avx2" in found and "dpbusd" not in found["avx2"]:  # pairs of 8-bit products can exceed 16 bits
            assert ("maddwd" if bits == (8, 8) else "maddubs") in found["avx2"]
        if "avx512" in found:
            assert "dpbusd" in found["avx512"]


class TestErrors:
    @staticmethod
    def program(**attributes):
        b = Builder(3)
        return b.finish(b.quant(np.random.default_rng(0), 0, 3, bits=(3, 4), **attributes))

    def refused(self, library, data):
        with pytest.raises(KernelError) as caught:
            Engine(library, data, 8, 8)
        return caught.value

    @pytest.mark.parametrize(("slot", "value", "message"), [
        ("in_channels", 4, "QuantConv2d_0: 4 to 3 channels in 1 groups do not go with its inputs' 3 and output's 3"),
        ("groups", 2, "3 to 3 channels in 2 groups"),
        ("weight_bits", 9, "weight_bits must be in 1..8, got 9"),
        ("weight_bits", 2, "weight must have 21 bytes, got 33"),
        ("activation_bits", 0, "activation_bits must be in 1..8, got 0"),
        ("zero_point", 16, "zero_point must be in 0..15, got 16"),
        ("kernel_h", 32, "kernel_h must be in 1..31, got 32"),
    ])
    def test_integers(self, library, slot, value, message):
        data = write(self.program())
        index = [a.name for a in OPERATORS["QuantConv2d"].integers].index(slot)
        error = self.refused(library, patched(data, (node_place(0, "i", index, data), value)))
        assert error.status == INVALID and message in str(error)

    @pytest.mark.parametrize(("slot", "value", "message"), [
        (0, 0, "inverse_step is out of range"), (0, 0x7FC00000, "inverse_step is out of range"),
        (1, 0x7FC00000, "clamp_min is out of range"), (2, 0xFF800000, "clamp_min exceeds clamp_max"),
    ])
    def test_floats(self, library, slot, value, message):
        data = write(self.program(clamp_min=0.0))
        error = self.refused(library, patched(data, (node_place(0, "f", slot, data), value)))
        assert error.status == INVALID and message in str(error)

    def test_one_signed_bit(self, library):
        b = Builder(3)
        data = write(b.finish(b.quant(np.random.default_rng(0), 0, 3, bits=(3, 1))))
        index = [a.name for a in OPERATORS["QuantConv2d"].integers].index("activation_signed")
        error = self.refused(library, patched(data, (node_place(0, "i", index, data), 1)))
        assert error.status == INVALID and "signed activations have 2 bits or more" in str(error)

    def test_weights_beyond_the_last(self, library):
        data = bytearray(write(self.program()))
        place = node_place(0, "constant", 0, data)
        offset = int.from_bytes(data[place:place + 4], "little")
        data[offset + 10] |= 0x80  # 81 bits of 88
        assert "weight has bits beyond its last channel" in str(self.refused(library, sealed(bytes(data))))

    def test_sums_beyond_32_bits(self, library):
        b = Builder(4000)
        data = write(b.finish(b.quant(np.random.default_rng(0), 0, 1, (5, 3), bits=(8, 8))))
        index = [a.name for a in OPERATORS["QuantConv2d"].integers].index("in_channels")
        assert index == 1  # 4000 * 15 * 128 * 255 fits; the same with 5 more rows of the kernel does not
        error = self.refused(library, patched(data, (node_place(0, "i", 3, data), 10)))
        assert "sums of 120000 products can exceed 32 bits" in str(error)

    def test_too_many_quantisers_of_one_tensor(self, library):
        rng = np.random.default_rng(0)
        b = Builder(3)
        error = self.refused(library, write(b.finish(*(b.quant(rng, 0, 3, inverse_step=1.0 + i) for i in range(5)))))
        assert error.status == UNSUPPORTED
        assert "QuantConv2d_4: its input x0 is quantised in more than 4 different ways" in str(error)

    @pytest.mark.parametrize(("change", "message"), [
        ({"activation_signed": 1, "zero_point": 9}, "zero_point must be among the quantised inputs"),
        ({"clamp_min": 1.0, "clamp_max": 0.0}, "clamp_min 1.0 exceeds clamp_max 0.0"),
    ])
    def test_python_refuses_them_too(self, change, message):
        with pytest.raises(ProgramError, match=message):
            self.program(**change)

    def test_python_refuses_groups_of_several_inputs(self):
        b = Builder(2, 2)
        with pytest.raises(ProgramError, match="groups is 2, with 2 inputs"):
            b.finish(b.quant(np.random.default_rng(0), (0, 1), 2, groups=2))

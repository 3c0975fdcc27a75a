"""The native engine on every instruction set, bit for bit, against the truth of engine_truth.py."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from engine_cases import SAME, Builder, binary_networks, float_networks, graphs, normal
from engine_library import Engine, chosen
from engine_truth import run_program
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_library import INVALID, OK, UNSUPPORTED, KernelError
from kernel_truth import assert_same_bits

from irstd_edge.program import Program, Tensor, write

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=1500)
SOME_THREADS, SOME_STRIPS = st.sampled_from([1, 1, 2, 3]), st.sampled_from([None, 1, 3, 64])


def available(library) -> list[str]:
    return [isa for isa, has in library.isas().items() if has]


def assert_close(y, truth, tolerance, context):
    """Bit for bit where there is no tolerance, else within that part of the largest value."""
    if tolerance is None:
        assert_same_bits(y, truth, context)
    else:
        np.testing.assert_allclose(y, truth, rtol=0, atol=tolerance * max(1, np.abs(truth).max()), err_msg=context)


def check(library, isas, program, images, tolerances=None, *, threads=1, strip=None, quant=None, runs=1):
    expected, data = run_program(program, *images), write(program)
    for isa in isas:
        with library.forced(isa), chosen(strip, quant):
            engine = Engine(library, data, *images[0].shape[1:], threads)
        with engine:
            for _ in range(runs):
                for i, (y, truth) in enumerate(zip(engine(*images), expected, strict=True)):
                    tolerance = tolerances[i] if tolerances else None
                    assert_close(y, truth, tolerance, f"output {i} on {isa}, {engine.kernels}")


def test_every_half_is_widened(library):
    """As a weight of one tap on one pixel of 1."""
    weight = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(-1, 1, 1, 1)
    b = Builder(1)
    sizes = {"in_channels": 1, "out_channels": 2**16, "kernel_h": 1, "kernel_w": 1}
    program = b.finish(b.add("Conv2d", 0, 2**16, constants={"weight": weight}, **sizes))
    with np.errstate(invalid="ignore"), Engine(library, write(program), 1, 1) as engine:
        (y,) = engine(np.ones((1, 1, 1), np.float32))
        np.testing.assert_array_equal(y, weight.astype(np.float32).reshape(-1, 1, 1))


@pytest.mark.parametrize("operator", ["Conv2d", "ConvTranspose2d"])
def test_halves_are_the_same_network(library, operator):
    rng = np.random.default_rng(8)
    b = Builder(5)
    y = b.conv(rng, 0, 7, operator=operator, pad_top=1, stride_w=2)
    full = b.finish(y)
    (node,) = full.nodes
    halved = replace(node, constants={**node.constants, "weight": node.constants["weight"].astype(np.float16)})
    same = replace(node, constants={**node.constants, "weight": halved.constants["weight"].astype(np.float32)})
    image = normal(rng, 5, 9, 11)
    results = []
    for form in (halved, same):
        with Engine(library, write(replace(full, nodes=(form,))), 9, 11) as engine:
            results.append(engine(image)[0])
    assert_same_bits(*results, operator)


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


#: Of the largest value: float32 sums of some hundred products, and Winograd's.
FLOAT_TOLERANCE = 2e-5


@QUICK
@given(case=float_networks(), threads=SOME_THREADS, strip=SOME_STRIPS)
def test_float_networks(library, case, threads, strip):
    program, images = case
    check(library, available(library), program, images, [FLOAT_TOLERANCE] * len(program.outputs), threads=threads,
          strip=strip, runs=2)


@pytest.mark.slow
@LONG
@given(case=float_networks(), threads=SOME_THREADS, strip=SOME_STRIPS)
def test_many_float_networks(library, case, threads, strip):
    program, images = case
    check(library, available(library), program, images, [FLOAT_TOLERANCE] * len(program.outputs), threads=threads,
          strip=strip, runs=2)


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

    def test_row_of_weight_zero(self, library):
        """The first row of a resize reads one row: the next may not be there yet, here NaN in the caller's buffer."""
        b = Builder(1)
        x = b.add("Resize", 0, 1, scale_h=2, scale_w=2, mode=2)
        y = b.add("Resize", x, 1, scale_h=2, scale_w=2, mode=1)
        for strip in (1, 2, 3):
            self.run(library, b.finish(x, y), np.full((1, 1, 1), 0.5, np.float32), strip=strip)

    def test_fixed_point_as_floats(self, library, rng):
        b = Builder(3)
        y = b.binary(rng, b.fixed(0, 8), 4, **SAME)
        b.tensors[y] = Tensor("floats", 4)
        self.run(library, b.finish(y), image(3, 14, 30))

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


# The paths that kernels take ---------------------------------------------------------------------------------------


def binary_case(name: str):
    """A network whose binary layers are to be computed in one form, and the images."""
    rng = np.random.default_rng(11)
    b = Builder(20)
    x = b.fixed(0, 8)
    if name.startswith("int16"):
        out, residual = {"int16": (20, None), "int16 plain": (20, None), "int16 residual": (20, x),
                         "int16 repeated": (40, x), "int16 averaged": (10, x), "int16 odd": (33, None),
                         "int16 negative": (8, None)}[name]
        # Slopes and scales of both signs.
        constants = {"scale": np.float32([3, -3] * 4) / 256, "activation_parameters": np.float32(
            [[0] * 8, [-1 / 2, -1 / 4, -127 / 128, -1 / 128, 1 / 2, 1 / 4, 127 / 128, 0], [0] * 8])}
        y = b.binary(rng, x, out, residual, activation=int(name != "int16 plain"),
                     constants=constants if name == "int16 negative" else None, **SAME)
        if name == "int16 odd":
            y = b.binary(rng, y, 7, kernel=(5, 3), stride_w=2, dilation_h=2, pad_top=4, pad_bottom=4, pad_value=1)
        return b.finish(y), [image(20, 9, 75)]
    signs = {"signs": {"activation": 1}, "signs of floats": {"grid": -1, "activation": 1},
             "signs of a clamp": {"activation": 2, "clamp_min": -0.3, "clamp_max": 0.4}}[name]
    y = b.binary(rng, b.binary(rng, x, 33, **SAME, **signs), 18, **SAME, **signs)
    return b.finish(b.binary(rng, y, 5, grid=-1, activation=2, **SAME)), [image(20, 9, 75)]


FORMS = {"int16": ["int16"], "int16 plain": ["int16"], "int16 residual": ["int16"], "int16 repeated": ["int16"],
         "int16 averaged": ["int16"], "int16 negative": ["int16"], "int16 odd": ["signs", "int16"],
         "signs": ["signs", "signs", "float"], "signs of floats": ["signs", "signs", "float"],
         "signs of a clamp": ["signs", "signs", "float"]}


@pytest.mark.parametrize("name", FORMS)
def test_kernels_that_are_reached(core, name):
    """Not the fallback: so that the tests above hold the fast kernels to the truth."""
    program, images = binary_case(name)
    isa = core.isa()
    check(core, [isa], program, images, runs=3)
    with Engine(core, write(program), *images[0].shape[1:]) as engine:
        kernels = [k for k in engine.kernels if k.startswith("bconv2d")]
    forms = [k.removesuffix(f"__{isa}").split("_")[-1] for k in kernels]
    assert forms == (["popcount"] * len(kernels) if isa == "ref" else FORMS[name])


def float_case(name: str):
    """Layers of which the last two are to be computed in one form, and the image."""
    rng = np.random.default_rng(13)
    b = Builder(2)

    def conv(x, out, kernel=(3, 3), groups=1, operator="Conv2d", **attributes):
        channels = b.tensors[x].channels
        shape = (channels, out // groups) if operator == "ConvTranspose2d" else (out, channels // groups)
        constants = {"weight": normal(rng, *shape, *kernel), "bias": normal(rng, out)}
        if attributes.get("activation") == 2:
            constants["slope"] = normal(rng, out)
        return b.add(operator, x, out, -1, constants, in_channels=channels, out_channels=out, kernel_h=kernel[0],
                     kernel_w=kernel[1], groups=groups, **attributes)

    x, same2 = conv(0, 20, **SAME), dict.fromkeys(SAME, 2)
    y = {
        "pointwise": lambda: conv(x, 19, (1, 1), activation=1),
        "depthwise": lambda: conv(x, 20, groups=20, activation=2, dilation_h=2, dilation_w=2, **same2),
        "depthwise strided": lambda: conv(x, 20, (5, 5), 20, stride_h=2, stride_w=2, **same2),
        "winograd": lambda: conv(x, 17, activation=2, **SAME),
        "winograd grouped": lambda: conv(x, 18, groups=2, **SAME),
        "winograd wide": lambda: conv(x, 9, (3, 5), dilation_w=3, pad_left=7, pad_right=5, pad_top=2),
        "direct": lambda: conv(x, 7, activation=3, clamp_min=-0.2, clamp_max=0.3, **SAME),
        "direct strided": lambda: conv(x, 18, stride_h=2, stride_w=3, dilation_w=2, **SAME),
        "transposed": lambda: conv(x, 18, (4, 4), operator="ConvTranspose2d", stride_h=2, stride_w=2, **SAME),
        "transposed grouped": lambda: conv(x, 5, (3, 3), 5, "ConvTranspose2d", stride_w=3, output_pad_w=2,
                                           activation=1),
    }[name]()
    return b.finish(conv(y, 1, (1, 1), activation=4), y), [image(2, 19, 75, scale=1)]


@pytest.mark.parametrize("name", ["pointwise", "depthwise", "depthwise strided", "winograd", "winograd grouped",
                                  "winograd wide", "direct", "direct strided", "transposed", "transposed grouped"])
def test_float_forms_that_are_reached(core, name):
    """The result is an output too, so that its copy in the arena is what the form writes."""
    program, images = float_case(name)
    inner = Program(program.tensors, program.nodes, program.inputs, program.outputs[:1])
    for made in (program, inner):
        check(core, [core.isa()], made, images, [FLOAT_TOLERANCE] * len(made.outputs), runs=2)
    with Engine(core, write(inner), *images[0].shape[1:]) as engine:
        assert engine.kernels[1].split("_")[1] == name.split()[0]


def folding_network():
    """Sums and joins in front of and behind every form of convolution."""
    rng = np.random.default_rng(17)
    b = Builder(2)
    same = SAME | {"steps": 16}
    x = b.conv(rng, 0, 12, **same)
    down = b.conv(rng, b.conv(rng, x, 12, groups=12, **same), 12, (1, 1))
    sums = [b.add("Add", (down, x), 12, activation=1)]
    sums.append(b.add("Add", (x, b.conv(rng, sums[0], 12, **same)), 12, -1, {"slope": normal(rng, 12)}, activation=2))
    joined = b.add("Concat", (sums[1], x, down, sums[0]), 48)
    pair = b.conv(rng, joined, 12, (1, 1)), b.conv(rng, joined, 12, **same)
    y = b.add("Add", pair, 12, activation=3, clamp_min=-9.0)
    return b.finish(b.conv(rng, y, 1, (1, 1))), [image(2, 21, 75, scale=1)]


def test_sums_and_joins_are_folded(library):
    program, images = folding_network()
    for threads, strip in [(1, None), (1, 1), (2, 3), (3, 64)]:
        check(library, available(library), program, images, [FLOAT_TOLERANCE], threads=threads, strip=strip, runs=2)
    with Engine(library, write(program), *images[0].shape[1:]) as engine:
        kernels = dict(zip((layer["name"] for layer in engine.description["layers"]), engine.kernels, strict=True))
        # The first summand of the first sum is read again by the concatenation.
        assert {name for name, kernel in kernels.items() if kernel == "folded"} == {"Add_5", "Concat_6", "Add_9"}
        assert library.c.irstd_run_layer(engine.handle, b"Concat_6") != 0
        assert library.c.irstd_last_error() == b"Concat_6 is computed by Conv2d_8"


def test_layers_that_cannot_be_run_alone(library):
    """Those that need the caller's buffers, as any of their inputs, and those that a run leaves out."""
    b = Builder(3, 3)
    x = b.add("Activation", 0, 3, activation=1)
    y = b.add("Multiply", (x, 1), 3)
    unread = b.add("Activation", b.add("Activation", x, 3), 3)
    program = b.finish(b.add("Activation", b.add("Activation", y, 3), 3))
    names = {node.output: node.name for node in program.nodes}
    with Engine(library, write(program), 7, 33) as engine:
        engine(*(image(3, 7, 33, seed=s) for s in (1, 2)))
        buffers, memory = "reads or writes the caller's buffers", "has no memory: no output depends on it"
        for tensor, message in [(y, buffers), (x, buffers), (program.outputs[0], buffers), (unread, memory),
                                (unread - 1, memory)]:
            assert library.c.irstd_run_layer(engine.handle, names[tensor].encode()) == INVALID
            assert library.c.irstd_last_error().decode() == f"{names[tensor]} {message}"
        assert library.c.irstd_run_layer(engine.handle, b"nobody") == INVALID
        assert library.c.irstd_last_error() == b"there is no layer nobody"
        assert library.c.irstd_run_layer(engine.handle, names[program.outputs[0] - 1].encode()) == OK


@pytest.mark.parametrize("form", ["projection", "pointwise", "depthwise", "direct"])
@pytest.mark.parametrize("activation", [0, 1, 2, 3, 4])
def test_sums_are_folded_into_convolutions_of_int16(library, form, activation):
    """The addend is read whichever form computes the convolution."""
    rng = np.random.default_rng(18)
    kernel, out, groups = {"projection": ((1, 1), 3, 1), "pointwise": ((1, 1), 8, 1), "depthwise": ((3, 3), 8, 8),
                           "direct": ((3, 3), 6, 1)}[form]
    b = Builder(8, out)
    made = b.conv(rng, b.fixed(0, 8), out, kernel, groups=groups, **(SAME if kernel == (3, 3) else {}))
    added = b.add("Activation", 1, out, activation=5)
    constants = {"slope": normal(rng, out)} if activation == 2 else {}
    clamp = {"clamp_min": -0.5, "clamp_max": 0.75} if activation == 3 else {}
    pair = (made, added), (added, made)
    total = b.add("Add", pair[activation % 2], out, -1, constants, activation=activation, **clamp)
    program = b.finish(b.add("Activation", total, out))
    images = [image(channels, 7, 75, seed=channels, scale=1) for channels in (8, out)]
    check(library, available(library), program, images, [FLOAT_TOLERANCE], runs=2)
    with Engine(library, write(program), 7, 75) as engine:
        kernels = [kernel.split("_")[1] for kernel in engine.kernels if kernel.startswith("Conv2d")]
        assert kernels == [form] and engine.kernels.count("folded") == 1


def test_nan_goes_through(library):
    """As in PyTorch: activations, sums and maxima of a NaN are NaN; on a grid it is the lowest value."""
    rng = np.random.default_rng(2)
    b = Builder(2)
    ones = {"weight": np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1)}
    # Winograd's form would spread it over the rows that are computed at once.
    outs = [b.add("Conv2d", b.add("Activation", 0, 2), 2, -1, ones | ({"slope": normal(rng, 2)} if kind == 2 else {}),
                  in_channels=2, out_channels=2, kernel_h=1, kernel_w=1, activation=kind, groups=1,
                  **({"clamp_min": -1.0, "clamp_max": 1.0} if kind == 3 else {})) for kind in range(6)]
    outs.append(b.add("Activation", 0, 2, activation=1))
    outs += [b.add("MaxPool", 0, 2, kernel_h=2, kernel_w=w, stride_h=1, stride_w=w - 1) for w in (2, 3)]
    outs.append(b.add("Add", (0, outs[0]), 2, activation=1))
    outs.append(b.add("MaxPool", 0, 2, kernel_h=3, kernel_w=3, stride_h=2, stride_w=2, ceil_mode=1, **SAME))
    outs += [b.add("ChannelMaxPool", 0, 1), b.add("Resize", 0, 2, mode=0, size=2, height=9, width=20)]
    whole = [b.add("GlobalMaxPool", 0, 2), b.add("GlobalAveragePool", 0, 2)]
    x = image(2, 7, 75, scale=1)
    x[:, ::3, ::5] = np.nan
    program = b.finish(*outs, *whole)
    made = run_program(program, x)
    assert all(np.isnan(y).any() and not np.isnan(y).all() for y in made[:len(outs)])
    assert all(np.isnan(y).all() for y in made[len(outs):])
    check(library, available(library), program, [x], [FLOAT_TOLERANCE] * len(made), runs=2)


@pytest.mark.parametrize("threads", [1, 3])
def test_saturation(core, threads):
    """Sums, offsets, slopes and residuals at both ends of int16, in the int16 kernels and out of them."""
    rng = np.random.default_rng(3)
    b = Builder(9)
    x = b.fixed(0, 8)
    ends = np.float32([32767, -32768, 30000, -30000, 1, -1, 127, 0]) / 256
    plain = {"scale": np.full(8, 1 / 256, np.float32)}
    outs = [b.binary(rng, x, 8, r, activation=1, constants=plain | {
        "bias": ends * share, "activation_parameters": np.float32([ends[::-1] / 2, [0.5, -0.5] * 4, ends])}, **SAME)
        for share in (0.5, 1) for r in (None, b.conv(rng, x, 8, grid=8, steps=1, **SAME))]
    x = image(9, 6, 70, scale=300)
    check(core, [core.isa()], b.finish(*outs), [x], runs=2, threads=threads)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 7, 8, 12, 18, 24, 40])
@pytest.mark.parametrize("shape", ["3x3", "5x5 in rows", "3x3 of strides", "1x4 of ones", "3x3 of groups"])
def test_channels_that_share_words(core, channels, shape):
    """Taps of few channels lie side by side in a word, over rows and columns that are outside the image."""
    rng = np.random.default_rng(channels)
    attributes, groups = {"3x3": (SAME, 1), "3x3 of groups": (SAME, 3),
                          "5x5 in rows": ({"kernel": (5, 5), "pad_top": 3, "pad_bottom": 2, "pad_left": 4}, 1),
                          "3x3 of strides": (SAME | {"stride_h": 2, "stride_w": 2, "dilation_h": 2, "dilation_w": 3,
                                                     "pad_left": 3, "pad_top": 3}, 1),
                          "1x4 of ones": ({"kernel": (1, 4), "pad_left": 2, "pad_value": 1}, 1)}[shape]
    b = Builder(channels * groups)
    x = b.fixed(0, 8)
    values = b.binary(rng, x, 12 * groups, groups=groups, **attributes)
    signs = b.binary(rng, b.binary(rng, x, 4 * groups, groups=groups, **attributes), 2, kernel=(1, 1))
    check(core, [core.isa()], b.finish(values, signs), [image(channels * groups, 7, 70)], runs=2)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_a_side_that_a_factor_leaves_as_long_is_copied(core, mode):
    """Two rows times 4/3 are two rows: PyTorch then takes them as they are."""
    b = Builder(3)
    rows = b.add("Resize", 0, 3, mode=mode, scale_h=4, divisor_h=3, scale_w=1, divisor_w=1, size=0, height=0, width=0)
    wider = b.add("Resize", 0, 3, mode=mode, scale_h=4, divisor_h=3, scale_w=3, divisor_w=1, size=0, height=0, width=0)
    x = image(3, 2, 5)
    check(core, [core.isa()], b.finish(rows, wider), [x], [0.0, FLOAT_TOLERANCE], runs=2)
    assert_same_bits(run_program(b.finish(rows), x)[0], x)


def test_five_ways_to_binarise_are_too_many(library):
    rng = np.random.default_rng(1)
    b = Builder(3)
    program = b.finish(*(b.binary(rng, 0, 4, **SAME) for _ in range(5)))
    with pytest.raises(KernelError, match="BinaryConv2d_4: its input x0 is binarised in more than 4") as e:
        Engine(library, write(program), 8, 8)
    assert e.value.status == UNSUPPORTED


@pytest.mark.parametrize("wide", [False, True])
def test_planning_a_network_of_thousands_of_nodes_ends(library, wide):
    """In a chain, and side by side: every second one reads the same tensor."""
    b = Builder(1)
    x = b.add("Activation", 0, 1, activation=1)
    for y in [b.add("Activation", x, 1, activation=1) for _ in range(1000)] if wide else [0] * 2000:
        x = b.add("Add", (x, y), 1) if wide else b.add("Activation", x, 1, activation=1)
    begin = time.process_time()
    with Engine(library, write(b.finish(x)), 1024, 4) as engine:
        assert time.process_time() - begin < 30  # seconds where it took hours
        assert engine.description["strip_rows"] >= 2


@pytest.mark.parametrize("threads", [1, 3])
def test_whole_maps_share_memory(library, threads):
    """Attention holds back all rows of a map; the maps of blocks that are done make room, their margins too."""
    rng, height, width, channels, blocks = np.random.default_rng(5), 24, 40, 16, 8
    b, x = Builder(1), 0
    for _ in range(blocks):
        x = b.conv(rng, x, channels, (3, 3), pad_top=1, pad_left=1, pad_bottom=1, pad_right=1)
        gate = b.add("Activation", b.add("GlobalAveragePool", x, channels), channels, activation=4)
        x = b.add("Activation", b.add("Multiply", (x, gate), channels), channels, activation=4)
    program, images = b.finish(b.conv(rng, x, 1, (1, 1))), [image(1, height, width, scale=1)]
    check(library, available(library), program, images, [FLOAT_TOLERANCE], threads=threads, runs=2)
    with Engine(library, write(program), height, width, threads=threads) as engine:
        # Of 24 maps no more than three and what the threads need besides; with margins a row has 64 columns for 40.
        assert engine.description["arena_bytes"] < 6 * height * channels * 64 * 4


def test_padding_as_wide_as_it_gets(library):
    """What columns outside the image lack, for thousands of them."""
    rng = np.random.default_rng(4)
    b = Builder(64)
    wide = {"pad_left": 4096, "pad_right": 4096, "pad_top": 1, "pad_bottom": 1, "dilation_w": 500}
    program = b.finish(b.binary(rng, 0, 64, kernel=(3, 5), grid=-1, **wide))
    begin = time.process_time()
    check(library, available(library)[-1:], program, [image(64, 2, 40)])
    assert time.process_time() - begin < 30


# The same bits however it is run -----------------------------------------------------------------------------------


def detector():
    """A small network of every kind of operator: a U, channel attention, two outputs of two sizes."""
    rng = np.random.default_rng(2)
    b = Builder(1, 1)
    x = b.conv(rng, b.add("Concat", (0, 1), 2), 12, grid=8, steps=16, **SAME)
    down = b.binary(rng, b.add("AveragePool", x, 12, 8, kernel_h=2, kernel_w=2, stride_h=2, stride_w=2), 24, **SAME)
    deep = b.binary(rng, b.binary(rng, down, 24, **SAME), 24, down, pad_value=0, **SAME)
    gate = b.conv(rng, b.add("GlobalAveragePool", deep, 24), 24, (1, 1), activation=4)
    deep = b.add("Multiply", (deep, gate), 24)
    up = b.add("Resize", (b.binary(rng, deep, 12, kernel=(1, 1)), x), 12, 8, scale_h=2, scale_w=2, mode=1)
    head = b.conv(rng, up, 1, (1, 1), activation=4)
    small = b.add("MaxPool", head, 1, kernel_h=3, kernel_w=3, stride_h=3, stride_w=3)
    return b.finish(head, small, b.conv(rng, small, 2, (4, 4), operator="ConvTranspose2d", stride_h=2, stride_w=2))


def run_once(library, isa, data, images, threads=1, strip=None):
    with library.forced(isa), chosen(strip):
        engine = Engine(library, data, *images[0].shape[1:], threads)
    with engine:
        first = engine(*images)
        for _ in range(2):
            for a, b in zip(engine(*images), first, strict=True):
                assert_same_bits(a, b, "repeated")
        return first


def test_the_same_bits_of_floats(library):
    program, images = folding_network()
    data = write(program)
    for isa in available(library):
        expected = run_once(library, isa, data, images)
        for threads, strip in [(1, 1), (1, 3), (1, 64), (2, None), (3, 3), (2, 1)]:
            for a, b in zip(run_once(library, isa, data, images, threads, strip), expected, strict=True):
                assert_same_bits(a, b, f"{isa}, {threads} threads, strip {strip}")


@pytest.mark.parametrize("size", [(26, 70), (6, 142), (32, 20)])
def test_the_same_bits(library, size):
    program = detector()
    data, images = write(program), [image(1, *size, seed=s) for s in (1, 2)]
    truth = run_program(program, *images)
    for isa in available(library):
        expected = run_once(library, isa, data, images)
        for y, t in zip(expected, truth, strict=True):
            # A gate that differs by an ulp may turn a sign over: the two agree nearly everywhere.
            assert (np.abs(y - t) > 1e-5).mean() < 0.02
        for threads, strip in [(1, 1), (1, 3), (1, 64), (2, None), (3, 3), (2, 1)]:
            for a, b in zip(run_once(library, isa, data, images, threads, strip), expected, strict=True):
                assert_same_bits(a, b, f"{isa}, {threads} threads, strip {strip}")


def test_two_sessions_in_two_threads(library):
    data = write(detector())
    images = [[image(1, 40, 70, seed=s), image(1, 40, 70, seed=s + 1)] for s in (3, 7)]
    expected = [run_once(library, None, data, pair) for pair in images]
    failures = []

    def work(pair, truth):
        try:
            with Engine(library, data, 40, 70, 2) as engine:
                for _ in range(20):
                    for a, b in zip(engine(*pair), truth, strict=True):
                        assert_same_bits(a, b)
        except AssertionError as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=job) for job in zip(images, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@pytest.mark.parametrize("bits", [-1, 8])
def test_fixed_point_of_nan_and_ends(library, bits):
    """NaN gives the lowest value, halves go up, both ends saturate; in vectors and behind them."""
    b = Builder(1)
    values = np.float32([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.5 / 16, -0.5 / 16, 1.5 / 16, 127.9, -0.0, 0.4999 / 16])
    x = np.resize(values, (1, 3, 77))
    y = b.fixed(0, 4, 16) if bits < 0 else b.fixed(0, 4, bits)
    program = b.finish(y)
    low, high = (-2048.0, 32767 / 16) if bits < 0 else (-8.0, 127 / 16)
    with Engine(library, write(program), 3, 77) as engine:
        got = engine(x)[0][0, 0, :11]
    assert got.tolist() == [low, high, low, high, low, 1 / 16, 0, 2 / 16, min(high, 127.875), 0, 0]
    check(library, available(library), program, [x])

"""Every rejected input: its status, and a message that names the culprit."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from kernel_library import (
    INVALID,
    NCHW,
    NHWC,
    OK,
    UNSET,
    UNSUPPORTED,
    Attributes,
    KernelError,
)

VALID = {
    "version": 1, "bit_order": 1, "in_channels": 6, "out_channels": 4, "kernel_h": 3, "kernel_w": 2, "groups": 2,
    "pad_value": 0,
}  # fmt: skip
MANDATORY = ["version", "bit_order", "in_channels", "out_channels", "kernel_h", "kernel_w", "pad_value"]


def constants(**replaced) -> dict:
    return {
        "weight": np.zeros(4 * 3 * 2, np.int32), "threshold": np.zeros(6), "scale": np.ones(4), "bias": np.zeros(4),
        "activation_parameters": None,
    } | replaced  # fmt: skip


def create(core, attributes=None, layout=NCHW, **replaced):
    c = constants(**replaced)
    return core.bconv2d(VALID | (attributes or {}), c["weight"], c["threshold"], c["scale"], c["bias"],
                        c["activation_parameters"], layout=layout)  # fmt: skip


def rejects(status, *words):
    class Check:
        def __enter__(self):
            return self

        def __exit__(self, kind, error, _traceback):
            assert kind is KernelError, f"not rejected: {words}"
            assert error.status == status, error
            for word in words:
                assert word in error.message, error.message
            return True

    return Check()


def test_valid(core):
    op = create(core)
    assert op.output_size(3, 2) == (1, 1)
    assert op(np.ones((1, 6, 3, 2))).shape == (1, 4, 1, 1)


def test_init_sets_defaults_and_leaves_mandatory_ones_unset(library):
    a = Attributes()
    ctypes.memset(ctypes.byref(a), 0x55, ctypes.sizeof(a))
    library.c.irstd_bconv2d_attributes_init(ctypes.byref(a))
    assert [getattr(a, name) for name in MANDATORY] == [UNSET] * len(MANDATORY)
    assert (a.stride_h, a.dilation_w, a.groups, a.activation_first, a.fraction_bits) == (1, 1, 1, 1, -1)
    assert (a.clamp_min, a.clamp_max) == (-np.inf, np.inf)


@pytest.mark.parametrize("name", MANDATORY)
def test_mandatory(library, name):
    with rejects(INVALID, name, "mandatory"):
        create(library, {name: UNSET})


@pytest.mark.parametrize(
    "name, value",
    [
        ("version", 0), ("version", 2), ("bit_order", 0), ("bit_order", 2), ("in_channels", 0),
        ("in_channels", 65537), ("out_channels", 0), ("out_channels", 65537), ("kernel_h", 0), ("kernel_h", 32),
        ("kernel_w", 0), ("kernel_w", 32), ("stride_h", 0), ("stride_h", 4097), ("stride_w", 0), ("stride_w", 4097),
        ("dilation_h", 0), ("dilation_h", 4097), ("dilation_w", 0), ("dilation_w", 4097), ("pad_top", -1),
        ("pad_top", 4097), ("pad_left", -1), ("pad_left", 4097), ("pad_bottom", -1), ("pad_bottom", 4097),
        ("pad_right", -1), ("pad_right", 4097), ("groups", 0), ("groups", 65537), ("pad_value", -2), ("pad_value", 2),
        ("residual", -1), ("residual", 3), ("activation", -1), ("activation", 3), ("activation_first", -1),
        ("activation_first", 2), ("clamp_min", np.nan), ("clamp_max", np.nan), ("fraction_bits", -2),
        ("fraction_bits", 16), ("fraction_bits", 2**31 - 1),
    ],
)  # fmt: skip
def test_out_of_range(library, name, value):
    with rejects(INVALID, name + " must be in", "got"):
        create(library, {name: value})


@pytest.mark.parametrize("groups", [3, 4, 5])
def test_groups_divide_both(library, groups):
    with rejects(INVALID, "groups must divide", f"groups={groups}", "in_channels=6", "out_channels=4"):
        create(library, {"groups": groups})


def test_clamp_order(library):
    with rejects(INVALID, "clamp_min", "clamp_max"):
        create(library, {"activation": 2, "clamp_min": 1.0, "clamp_max": 0.5})


@pytest.mark.parametrize("words", [0, 23, 25])
def test_weight_size(library, words):
    with rejects(INVALID, "weight must have 96 bytes", f"got {4 * words}"):
        create(library, weight=np.zeros(words, np.int32))


@pytest.mark.parametrize("index", [0, 7, 23])
def test_weight_tail_bits(library, index):
    weight = np.zeros(24, np.int32)
    weight[index] = 0b111
    create(library, weight=weight)
    weight[index] = 0b1000  # the group has 3 channels
    with rejects(INVALID, "weight", "tail bits"):
        create(library, weight=weight)
    weight[index] = -(2**31)
    with rejects(INVALID, "weight", "tail bits"):
        create(library, weight=weight)


@pytest.mark.parametrize("name", ["weight", "threshold", "scale", "bias"])
def test_missing_constant(library, name):
    with rejects(INVALID, name, "got 0"):
        create(library, **{name: None})


def test_a_constant_without_data(library):
    op = create(library)
    op.operator.constants[2] = None
    assert library.c.irstd_check_bconv2d(ctypes.byref(op.operator)) == INVALID
    assert b"constant 2 must not be NULL" in library.c.irstd_last_error()


def test_activation_parameters(library):
    with rejects(INVALID, "activation_parameters must be given"):
        create(library, {"activation": 1})
    for activation in (0, 2):
        with rejects(INVALID, "activation_parameters must be absent"):
            create(library, {"activation": activation}, activation_parameters=np.zeros((3, 4)))


@pytest.mark.parametrize("layout", [-1, 2])
def test_layout(library, layout):
    with rejects(INVALID, "layout"):
        create(library, layout=layout)


def test_null_arguments(library):
    op, session = create(library), ctypes.c_void_p(1)
    opened, nothing = op.open(9, 9), (ctypes.c_void_p * 1)()
    for call, message in (
        (lambda: library.c.irstd_check_bconv2d(None), b"op must not"),
        (lambda: library.c.irstd_open_bconv2d(None, 9, 9, 0, 1, ctypes.byref(session)), b"op must not"),
        (lambda: library.c.irstd_open_bconv2d(ctypes.byref(op.operator), 9, 9, 0, 1, None), b"session must not"),
        (lambda: library.c.irstd_run_parallel(None, None, None, None), b"session, inputs and outputs"),
        (lambda: library.c.irstd_run_parallel(opened.handle, nothing, nothing, None), b"input x must not be NULL"),
    ):
        assert call() == INVALID
        assert message in library.c.irstd_last_error()
    assert not session.value
    library.c.irstd_bconv2d_attributes_init(None)
    library.c.irstd_close(None)


def test_the_isa_may_be_asked_for_without_an_error(library):
    with library.forced("nothing"):
        assert library.c.irstd_isa(None) is None


@pytest.mark.parametrize("height, width, words", [
    (2, 9, ["2 x 9", "kernel of 3 x 2"]), (9, 1, ["9 x 1", "kernel"]), (0, 9, ["height", "got 0"]),
    (9, -1, ["width", "got 9 and -1"]), (32769, 9, ["height"]), (9, 2**62, ["width"]), (-(2**63), 9, ["height"]),
])  # fmt: skip
def test_image_size(core, height, width, words):
    with rejects(INVALID, *words):
        create(core).open(height, width)


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_threads(core, threads):
    with rejects(INVALID, "threads", str(threads)):
        create(core).open(9, 9, threads=threads)


def test_residual_channels(core):
    with rejects(INVALID, "residual_input must be absent where residual is 0"):
        create(core).open(4, 4, 4)
    op = create(core, {"residual": 1})
    with rejects(INVALID, "residual_input must be given where residual is 1"):
        op.open(4, 4)
    for channels in (-4, 2**40):
        with rejects(INVALID, f"residual_input has {channels} channels"):
            op.open(4, 4, channels)
    for channels in (3, 6):
        with rejects(INVALID, f"residual channels ({channels}) must divide out_channels (4)"):
            op.open(4, 4, channels)
    for channels in (1, 2, 4, 8):
        assert op.open(4, 4, channels).shape == (4, 2, 3)


def test_a_run_without_threads(core):
    """irstd_run does what irstd_run_parallel does."""
    op, x = create(core, {"activation": 2, "clamp_min": -3.0}), np.random.default_rng(0).normal(size=(6, 7, 70))
    session, y = op.open(7, 70, threads=3), np.zeros((4, 5, 69), np.float32)
    x = np.ascontiguousarray(x, np.float32)
    inputs, outputs = (ctypes.c_void_p * 1)(x.ctypes.data), (ctypes.c_void_p * 1)(y.ctypes.data)
    assert core.c.irstd_run(session.handle, inputs, outputs) == OK
    assert np.array_equal(y, session(x))


def test_isa_table(library, emulated_library):
    names = list(library.isas())
    assert names[0] == "ref" and library.isas()["ref"]
    assert library.c.irstd_isa_name(-1) is None and library.c.irstd_isa_name(99) is None
    assert not library.c.irstd_isa_available(-1) and not library.c.irstd_isa_available(99)
    available = [name for name, ok in library.isas().items() if ok]
    assert library.isa() == available[-1]
    assert emulated_library.isas()["avx512"]


def test_forced_isa_names_the_variant(core):
    isa = core.isa()
    assert create(core).variant.endswith("__" + isa)
    with core.forced(""):
        assert core.isa() in core.isas()


@pytest.mark.parametrize("forced", ["neon9", "AVX2", " ", "avx2 ", "x" * 1000])
def test_unknown_isa(library, forced):
    with library.forced(forced):
        with rejects(UNSUPPORTED, "IRSTD_ISA", forced[:32], "ref"):
            library.isa()
        with rejects(UNSUPPORTED, "IRSTD_ISA", forced[:32]):
            create(library)


def test_unavailable_isa(library):
    missing = [name for name, ok in library.isas().items() if not ok]
    if not missing:
        pytest.skip("this CPU has every instruction set of the build")
    with library.forced(missing[0]), rejects(UNSUPPORTED, "IRSTD_ISA=" + missing[0], "CPU"):
        create(library)


def test_outputs_of_layouts(library):
    assert create(library, layout=NHWC)(np.ones((1, 3, 2, 6))).shape == (1, 1, 1, 4)

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
    OUT_OF_MEMORY,
    RUN,
    UNSET,
    UNSUPPORTED,
    Attributes,
    Error,
    KernelError,
    Parallel,
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


def create(core, attributes=None, layout=NCHW, weight_words=None, **replaced):
    c = constants(**replaced)
    return core.bconv2d(VALID | (attributes or {}), c["weight"], c["threshold"], c["scale"], c["bias"],
                        c["activation_parameters"], layout=layout, weight_words=weight_words)  # fmt: skip


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


@pytest.mark.parametrize("words", [0, 23, 25, 2**40])
def test_weight_size(library, words):
    with rejects(INVALID, "weight must have 24 words", str(words)):
        create(library, weight_words=words)


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
    with rejects(INVALID, name, "NULL"):
        create(library, weight_words=24, **{name: None})


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


def test_null_attributes_and_result(library):
    error = Error()
    handle = ctypes.c_void_p(1)
    assert library.c.irstd_bconv2d_create(None, None, 0, None, None, None, None, 0, ctypes.byref(handle),
                                          ctypes.byref(error)) == INVALID  # fmt: skip
    assert b"attributes" in error.message and not handle.value
    assert (
        library.c.irstd_bconv2d_create(None, None, 0, None, None, None, None, 0, None, ctypes.byref(error)) == INVALID
    )
    assert b"op" in error.message
    library.c.irstd_bconv2d_destroy(None)
    library.c.irstd_bconv2d_attributes_init(None)
    assert library.c.irstd_bconv2d_variant(None) is None


def test_error_may_be_null(library):
    handle = ctypes.c_void_p()
    assert (
        library.c.irstd_bconv2d_create(None, None, 0, None, None, None, None, 0, ctypes.byref(handle), None) == INVALID
    )
    with library.forced("nothing"):
        assert library.c.irstd_isa(None) is None


@pytest.mark.parametrize("height, width, words", [
    (2, 9, ["height 2", "kernel (3)"]), (9, 1, ["width 1", "kernel (2)"]), (0, 9, ["height", "got 0"]),
    (9, -1, ["width", "got -1"]), (2**24 + 1, 9, ["height"]), (9, 2**62, ["width"]), (-(2**63), 9, ["height"]),
])  # fmt: skip
def test_image_size(core, height, width, words):
    op = create(core)
    with rejects(INVALID, *words):
        op.output_size(height, width)
    with rejects(INVALID, *words):
        op.workspace_bytes(height, width)


@pytest.mark.parametrize("threads", [0, -1, 4097])
def test_threads(core, threads):
    with rejects(INVALID, "threads", str(threads)):
        create(core).workspace_bytes(9, 9, threads)


def test_null_results(library):
    op, error, size = create(library), Error(), ctypes.c_int64()
    assert (
        library.c.irstd_bconv2d_output_size(op.handle, 9, 9, None, ctypes.byref(size), ctypes.byref(error)) == INVALID
    )
    assert b"out_height" in error.message
    assert library.c.irstd_bconv2d_workspace_bytes(op.handle, 9, 9, 1, None, ctypes.byref(error)) == INVALID
    assert b"bytes" in error.message
    assert (
        library.c.irstd_bconv2d_output_size(None, 9, 9, ctypes.byref(size), ctypes.byref(size), ctypes.byref(error))
        == INVALID
    )
    assert b"op" in error.message


class Call:
    """irstd_bconv2d_run with one argument replaced."""

    def __init__(self, core, attributes=None, **replaced):
        self.op = create(core, attributes)
        self.error = Error()
        self.x, self.y = np.ones((1, 6, 4, 4), np.float32), np.zeros((1, 4, 2, 3), np.float32)
        self.residual = np.ones((1, 8, 2, 3), np.float32)
        needed = self.op.workspace_bytes(4, 4)
        self.workspace = np.zeros(needed + 1, np.uint8)
        a = {
            "op": self.op.handle, "batch": 1, "height": 4, "width": 4, "x": self.x.ctypes.data, "residual": None,
            "channels": 0, "y": self.y.ctypes.data, "workspace": self.workspace.ctypes.data, "bytes": needed,
            "parallel": None,
        } | replaced  # fmt: skip
        self.status = core.c.irstd_bconv2d_run(*a.values(), ctypes.byref(self.error))
        self.message = self.error.message.decode()


@pytest.mark.parametrize(
    "replaced, words",
    [
        ({"op": None}, ["op"]), ({"batch": 0}, ["batch", "got 0"]), ({"batch": -1}, ["batch"]),
        ({"batch": 2**40}, ["batch"]), ({"height": 2}, ["height"]), ({"width": 0}, ["width"]),
        ({"x": None}, ["x must"]), ({"y": None}, ["y must"]),
    ],
)  # fmt: skip
def test_run_arguments(core, replaced, words):
    call = Call(core, **replaced)
    assert call.status == INVALID
    for word in words:
        assert word in call.message


def test_run_workspace(core):
    assert Call(core).status == OK
    needed = create(core).workspace_bytes(4, 4)
    assert needed > 0
    for replaced in ({"bytes": needed - 1}, {"bytes": 0}, {"workspace": None}):
        call = Call(core, **replaced)
        assert call.status == INVALID and f"workspace must have {needed} bytes" in call.message


def test_run_residual(core):
    data = np.ones((1, 8, 2, 3), np.float32)
    call = Call(core, residual=data.ctypes.data, channels=4)
    assert call.status == INVALID and "residual_input must be absent" in call.message
    call = Call(core, {"residual": 1})
    assert call.status == INVALID and "residual_input must be given" in call.message
    for channels in (0, -4, 3, 6, 2**40):
        call = Call(core, {"residual": 1}, residual=data.ctypes.data, channels=channels)
        assert call.status == INVALID and f"residual channels ({channels})" in call.message
    for channels in (1, 2, 4, 8):
        assert Call(core, {"residual": 1}, residual=data.ctypes.data, channels=channels).status == OK


def test_run_parallel(core):
    nothing = Parallel(RUN(), None, 2)
    for parallel in (nothing, Parallel(RUN(lambda *_: None), None, 0), Parallel(RUN(lambda *_: None), None, 4097)):
        call = Call(core, parallel=ctypes.byref(parallel))
        assert call.status == INVALID and "parallel" in call.message


def test_sizes_beyond_the_address_space(core):
    call = Call(core, height=2**24, width=2**24, batch=2**24, workspace=None)
    assert call.status in (INVALID, OUT_OF_MEMORY) and "exceeds the address space" in call.message


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

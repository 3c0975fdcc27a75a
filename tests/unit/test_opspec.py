import pytest

from irstd_edge.opspec import (
    BINARY_CONV2D_ATTRIBUTES,
    FIXED_POINT,
    OPERATORS,
    PROGRAM,
    BinaryConv2dSpec,
    FixedPointSpec,
    OpSpecError,
    ProgramSpec,
)

BASE = {"in_channels": 8, "out_channels": 16, "kernel_h": 3, "kernel_w": 3, "pad_value": 0}
MANDATORY = {"version": 1, "bit_order": 1, **BASE}


def _bad_values(attribute):
    if attribute.kind is int:
        yield 1.5
        yield True
    if attribute.allowed is not None:
        yield max(attribute.allowed) + 1
    if attribute.minimum is not None:
        yield attribute.minimum - 1
    if attribute.maximum is not None:
        yield attribute.maximum + 1


CASES = [(a.name, v) for a in BINARY_CONV2D_ATTRIBUTES for v in _bad_values(a)]


@pytest.mark.parametrize("name, value", CASES, ids=lambda v: str(v))
def test_every_attribute_rejects_what_is_out_of_range(name, value):
    with pytest.raises(OpSpecError, match=name):
        BinaryConv2dSpec(**{**BASE, name: value})


def test_clamp_bounds_are_ordered_and_not_nan():
    with pytest.raises(OpSpecError, match="clamp_min"):
        BinaryConv2dSpec(**BASE, clamp_min=1.0, clamp_max=0.0)
    with pytest.raises(OpSpecError, match="clamp"):
        BinaryConv2dSpec(**BASE, clamp_min=float("nan"))


@pytest.mark.parametrize("groups", [3, 5, 16])
def test_groups_divide_the_channels(groups):
    with pytest.raises(OpSpecError, match="groups"):
        BinaryConv2dSpec(**BASE, groups=groups)


def test_attributes_round_trip_and_name_the_unknown_and_the_missing():
    spec = BinaryConv2dSpec.from_attributes({**MANDATORY, "stride_h": 2, "residual": 1})
    assert BinaryConv2dSpec.from_attributes(spec.attributes()) == spec
    with pytest.raises(OpSpecError, match=r"unknown.*strid"):
        BinaryConv2dSpec.from_attributes({**MANDATORY, "strid": 2})
    for name in MANDATORY:
        with pytest.raises(OpSpecError, match=f"missing.*{name}"):
            BinaryConv2dSpec.from_attributes({k: v for k, v in MANDATORY.items() if k != name})


def test_fixed_point():
    spec = FixedPointSpec.from_attributes({"version": 1, "fraction_bits": 7, "bits": 11})
    assert spec.attributes() == {"version": 1, "fraction_bits": 7, "bits": 11}
    with pytest.raises(OpSpecError, match=r"missing attributes of irstd\.FixedPoint: version, bits"):
        FixedPointSpec.from_attributes({"fraction_bits": 7})
    for attribute in FIXED_POINT.attributes:
        for value in _bad_values(attribute):
            with pytest.raises(OpSpecError, match=attribute.name):
                FixedPointSpec(**{"fraction_bits": 7, "bits": 11, attribute.name: value})


def test_program():
    spec = ProgramSpec.from_attributes({"version": 1, "height": 64, "width": 96})
    assert spec.attributes() == {"version": 1, "height": 64, "width": 96}
    for attribute in PROGRAM.attributes:
        for value in _bad_values(attribute):
            with pytest.raises(OpSpecError, match=attribute.name):
                ProgramSpec(**{"height": 64, "width": 96, attribute.name: value})


def test_a_variadic_input_is_the_last():
    assert [o.name for o in PROGRAM.inputs if o.variadic] == ["x"]
    assert not any(o.variadic for operator in OPERATORS.values() for o in operator.inputs[:-1])


def test_sizes():
    spec = BinaryConv2dSpec(**{**BASE, "in_channels": 66}, stride_h=2, dilation_w=2, pad_top=1, groups=2)
    assert (spec.words, spec.weight_shape, spec.macs_per_output) == (2, (16, 3, 3, 2), 297)
    assert spec.output_size(9, 9) == (4, 5)
    with pytest.raises(OpSpecError, match="width 4"):
        spec.output_size(9, 4)


@pytest.mark.parametrize("channels, fits", [(16, True), (4, True), (48, True), (6, False), (24, False), (0, False)])
def test_residual_channels_divide_or_are_a_multiple(channels, fits):
    spec = BinaryConv2dSpec(**BASE)
    if fits:
        spec.check_residual_channels(channels)
    else:
        with pytest.raises(OpSpecError, match="residual"):
            spec.check_residual_channels(channels)

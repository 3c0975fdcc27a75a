"""The committed C header is what irstd_edge/opspec.py generates, and the struct follows it."""

from kernel_library import Attributes

from irstd_edge import opspec, opspec_c


def test_header_is_up_to_date():
    assert opspec_c.HEADER.read_text(encoding="utf-8") == opspec_c.header(), "run python -m irstd_edge.opspec_c"


def test_every_attribute_has_a_row():
    rows = [line for line in opspec_c.header().splitlines() if line.startswith("    X(")]
    assert [row.split(", ")[1] for row in rows] == [a.name for o in opspec.OPERATORS.values() for a in o.attributes]
    assert [name for name, _ in Attributes._fields_] == [a.name for a in opspec.BINARY_CONV2D_ATTRIBUTES]

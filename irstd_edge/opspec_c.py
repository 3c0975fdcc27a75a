"""Writes ``runtimes/native/include/irstd_opspec.h``, the C view of :mod:`irstd_edge.opspec`.

``python -m irstd_edge.opspec_c`` rewrites the committed file; a test asserts that it is up to date.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from irstd_edge import opspec

HEADER = Path(__file__).resolve().parent.parent / "runtimes" / "native" / "include" / "irstd_opspec.h"

_CONSTANTS = ("OPSET_VERSION", "WORD_BITS", "BIT_ORDER_LSB_PLUS_ONE", "MAX_KERNEL", "MAX_CHANNELS", "MAX_STEP",
              "MAX_SIDE", "MAX_IMAGES")


def _literal(value: int | float) -> str:
    if isinstance(value, int):
        return str(value)
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    return f"{value!r}f"


def _row(attribute: opspec.Attribute) -> str:
    integer = attribute.kind is int
    low, high = attribute.minimum, attribute.maximum
    if attribute.allowed is not None:
        low, high = min(attribute.allowed), max(attribute.allowed)
        # C checks a range, so a set with a hole would silently accept more than Python does.
        assert sorted(attribute.allowed) == list(range(low, high + 1)), attribute
    low = -math.inf if low is None else low
    high = math.inf if high is None else high
    default = "INT32_MIN" if attribute.default is None else _literal(attribute.default)
    cells = (
        "int32_t" if integer else "float",
        attribute.name,
        str(int(attribute.default is None)),
        default,
        _literal(low),
        _literal(high),
    )
    return f"    X({', '.join(cells)})"


def _upper(name: str) -> str:
    """BinaryConv2d to BINARY_CONV2D."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()


def _table(operator: opspec.Operator) -> list[str]:
    rows = " \\\n".join(_row(a) for a in operator.attributes)
    return [f"#define IRSTD_{_upper(operator.name)}_ATTRIBUTES(X) \\", rows, ""]


def header() -> str:
    """The text of the generated header."""
    defines = [f"#define IRSTD_{name} {getattr(opspec, name)}" for name in _CONSTANTS]
    for enum in (opspec.Residual, opspec.Activation):
        defines += [f"#define IRSTD_{enum.__name__.upper()}_{item.name} {int(item)}" for item in enum]
    names = [f'#define IRSTD_DOMAIN "{opspec.DOMAIN}"',
             *(f'#define IRSTD_{_upper(name)} "{name}"' for name in opspec.OPERATORS)]
    return "\n".join(
        [
            "/* Generated from irstd_edge/opspec.py by `python -m irstd_edge.opspec_c`. Do not edit. */",
            "#ifndef IRSTD_OPSPEC_H",
            "#define IRSTD_OPSPEC_H",
            "",
            "#include <math.h>",
            "#include <stdint.h>",
            "",
            *names,
            *defines,
            "",
            "/* X(type, name, mandatory, default, minimum, maximum) */",
            *(line for operator in opspec.OPERATORS.values() for line in _table(operator)),
            "#endif",
            "",
        ]
    )


if __name__ == "__main__":
    from irstd_edge.files import write_text

    write_text(HEADER, header())

"""Writes ``runtimes/native/include/irstd_program.h``, the C view of :mod:`irstd_edge.program`.

``python -m irstd_edge.program_c`` rewrites the committed file; a test asserts that it is up to date.
"""

from __future__ import annotations

import re
from pathlib import Path

from irstd_edge import program
from irstd_edge.opspec import Attribute

HEADER = Path(__file__).resolve().parent.parent / "runtimes" / "native" / "include" / "irstd_program.h"

_LIMITS = ("MAX_TENSORS", "MAX_NODES", "NODE_INPUTS", "NODE_CONSTANTS")
_ENUMS = (program.TensorType, program.FloatActivation, program.ResizeMode, program.ResizeSize)
_TYPES = {"I": "uint32_t", "i": "int32_t", "Q": "uint64_t", "f": "float", "s": "uint8_t"}
_RECORDS = (
    ("irstd_file_header", program.HEADER_FIELDS, program.HEADER, "The first bytes of the file."),
    ("irstd_tensor_record", program.TENSOR_FIELDS, program.TENSOR,
     "One image [channels, H, W]: int16 of value q * 2^-fraction_bits, or float32 where that is -1.\n * "
     "name: its place in the strings, from strings_offset."),
    ("irstd_node_record", program.NODE_FIELDS, program.NODE,
     "One operation; name: as a tensor's. There follow inputs[input_count], and i[], f[] and constant[] of its\n * "
     "operator; an absent constant has offset and bytes 0."),
)


def macro_name(name: str) -> str:
    """``GlobalAveragePool`` -> ``GLOBAL_AVERAGE_POOL``; ``Conv2d`` -> ``CONV2D``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


def _member(name: str, code: str) -> str:
    count = code[:-1]
    return f"    {_TYPES[code[-1]]} {name}{f'[{count}]' if count else ''};"


def _struct(name: str, fields, layout, doc: str) -> list[str]:
    return [f"/* {doc} */", f"typedef struct {name} {{", *(_member(*f) for f in fields), f"}} {name};",
            f'_Static_assert(sizeof({name}) == {layout.size}, "{name}");', ""]


def _bounds(attribute: Attribute) -> tuple[int, int]:
    if attribute.allowed is None:
        return attribute.minimum, attribute.maximum
    low, high = min(attribute.allowed), max(attribute.allowed)
    assert sorted(attribute.allowed) == list(range(low, high + 1)), attribute
    return low, high


def _slots(kind: program.OperatorType) -> list[str]:
    groups = (("i", kind.integers), ("f", kind.floats), ("constant", kind.constants))
    prefix = f"IRSTD_{macro_name(kind.name)}"
    return [f"#define {prefix}_{macro_name(slot.name)} {i} /* {group}[] */"
            for group, slots in groups for i, slot in enumerate(slots)]


def header() -> str:
    """The text of the generated header."""
    magic = program.MAGIC.replace(b"\r\n", b"").replace(b"\x89", b"").decode()
    lines = [
        "/* Generated from irstd_edge/program.py by `python -m irstd_edge.program_c`. Do not edit.",
        " * The file model.irstd; little endian, offsets from its start. */",
        "#ifndef IRSTD_PROGRAM_H",
        "#define IRSTD_PROGRAM_H",
        "",
        "#include <stdint.h>",
        "",
        f'#define IRSTD_PROGRAM_MAGIC "\\x89" "{magic}\\r\\n"',
        f"#define IRSTD_PROGRAM_VERSION {program.VERSION}",
        f"#define IRSTD_PROGRAM_ALIGNMENT {program.ALIGNMENT}",
        *(f"#define IRSTD_{name} {getattr(program, name)}" for name in _LIMITS),
        "",
    ]
    for kind in _ENUMS:
        lines += [f"#define IRSTD_{macro_name(kind.__name__)}_{item.name} {int(item)}" for item in kind] + [""]
    lines += ["/* bytes 0: none. */", "typedef struct irstd_constant_record {", "    uint32_t offset;",
              "    uint32_t bytes;", "} irstd_constant_record;", ""]
    for record in _RECORDS:
        lines += _struct(*record)
    lines += ["enum {", *(f"    IRSTD_OP_{macro_name(k.name)} = {k.number}," for k in program.OPERATORS.values()),
              "};", ""]
    lines += ["/* X(NAME, number, text, fewest inputs, most inputs, integers, floats, constants) */",
              "#define IRSTD_PROGRAM_OPERATORS(X) \\",
              " \\\n".join(
                  f'    X({macro_name(k.name)}, {k.number}, "{k.name}", {k.min_inputs}, {k.max_inputs}, '
                  f"{len(k.integers)}, {len(k.floats)}, {len(k.constants)})" for k in program.OPERATORS.values()), ""]
    lines += ["/* X(OPERATOR, NAME, text, slot, minimum, maximum) of every i[] slot */",
              "#define IRSTD_PROGRAM_INTEGERS(X) \\",
              " \\\n".join(
                  f'    X({macro_name(k.name)}, {macro_name(a.name)}, "{a.name}", {i}, {_bounds(a)[0]}, '
                  f"{_bounds(a)[1]})" for k in program.OPERATORS.values() for i, a in enumerate(k.integers)), ""]
    for kind in program.OPERATORS.values():
        lines += [f"/* {kind.name}({', '.join(kind.inputs)}) */", *_slots(kind), ""]
    return "\n".join([*lines, "#endif", ""])


if __name__ == "__main__":
    from irstd_edge.files import write_text

    write_text(HEADER, header())

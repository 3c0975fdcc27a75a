"""Renders the operator table of :mod:`irstd_edge.program`.

``python -m irstd_edge.program_docs`` rewrites the table in ``docs/native.md``; a test asserts that it is up to date.
"""

from __future__ import annotations

import re
from pathlib import Path

from irstd_edge import program

PAGE = Path(__file__).resolve().parent.parent / "docs" / "native.md"
HEAD = "| op | inputs | i[] | f[] | constants |"


def _constant(slot: program.Constant) -> str:
    kind = " or ".join(d.name for d in slot.dtypes)
    return f"{slot.name} {kind} {slot.letters}{' or none' if slot.optional else ''}"


def table() -> str:
    """The table as markdown."""
    rows = [HEAD, "|---|---|---|---|---|"]
    for kind in program.OPERATORS.values():
        inputs = ", ".join(kind.inputs) if kind.name != "Concat" else f"1 to {program.NODE_INPUTS}"
        cells = (f"{kind.number} {kind.name}", inputs, ", ".join(a.name for a in kind.integers),
                 ", ".join(a.name for a in kind.floats), ", ".join(map(_constant, kind.constants)))
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def page(text: str) -> str:
    """The page with its table up to date."""
    found = re.search(rf"^{re.escape(HEAD)}\n(\|.*\n)+", text, re.MULTILINE)
    return text[:found.start()] + table() + text[found.end():]


if __name__ == "__main__":
    from irstd_edge.files import write_text

    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))

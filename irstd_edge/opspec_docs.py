"""Renders the operator specification: ``python -m irstd_edge.opspec_docs > docs/operators.md``."""

from __future__ import annotations

import textwrap

from irstd_edge import opspec


def _bounds(attribute: opspec.Attribute) -> str:
    if attribute.allowed is not None:
        return ", ".join(str(v) for v in attribute.allowed)
    if attribute.minimum is None and attribute.maximum is None:
        return "any"
    return f"{attribute.minimum} to {attribute.maximum}"


def render() -> str:
    """The whole page as markdown."""
    lines = [
        f"# Operators of the domain `{opspec.DOMAIN}`, version {opspec.OPSET_VERSION}",
        "",
        "Written by `python -m irstd_edge.opspec_docs` from `irstd_edge/opspec.py`, the single source of the ONNX",
        "schemas, the TFLite option keys, the C constants and the validation on load.",
        "",
        "```text",
        *[line.strip("\n") for line in (opspec.__doc__ or "").strip().splitlines()[5:]],
        "```",
    ]
    for operator in opspec.OPERATORS.values():
        doc = textwrap.fill(operator.doc, 120)
        lines += ["", f"## `{opspec.DOMAIN}.{operator.name}`", "", doc, "", "### Inputs", "",
                  "| # | input | type | shape | optional | constant | meaning |", "|---|---|---|---|---|---|---|"]
        lines += [
            f"| {i}{' ...' if o.variadic else ''} | `{o.name}` | {o.dtype} | `{o.shape}` | "
            f"{'yes' if o.optional else ''} | {'yes' if o.constant else ''} | {o.doc} |"
            for i, o in enumerate(operator.inputs)
        ]
        lines += ["", "### Attributes", "",
                  "All are scalars: ONNX attributes, and keys of the flexbuffer map of a TFLite custom op.", "",
                  "| attribute | type | default | values | meaning |", "|---|---|---|---|---|"]
        lines += [
            f"| `{a.name}` | {a.kind.__name__} | {'mandatory' if a.default is None else a.default} | "
            f"{_bounds(a)} | {a.doc} |"
            for a in operator.attributes
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")

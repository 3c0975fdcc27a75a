"""The error of an export that cannot take an operator: which one, where in the user's code, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir
import torch

import irstd_edge
from irstd_edge.errors import UnsupportedError
from irstd_edge.export.passes.graph import LAYER, SOURCE

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*(?:\n[ \t]+([^\n]*))?')
#: Code of others than the user, the last one worth naming where there is nothing else.
_TORCH, _OURS = Path(torch.__file__).parent, Path(irstd_edge.__file__).parent


class RefusedError(UnsupportedError):
    """An operator that a target, or PyTorch's exporter (``torch``), does not take.

    ``target``: who refuses; ``operator``: its name there, "" where PyTorch stopped before there were operators;
    ``why``: the reason without its place.
    """

    def __init__(self, message: str, target: str, operator: str, why: str):
        super().__init__(message)
        self.target, self.operator, self.why = target, operator, why

    def noting(self, text: str) -> RefusedError:
        """The same error with a sentence behind its message."""
        return RefusedError(f"{self}; {text}", self.target, self.operator, self.why)


def refuse(node: ir.Node, target: str, why: str) -> RefusedError:
    """The error that ``target`` cannot take ``node``; ``why`` is a verb and what follows, as "has no TFLite form"."""
    name = _named(node)
    if not node.metadata_props.get(SOURCE):  # the simplifier made it in the place of others
        reader = next((user for v in node.outputs for user, _ in v.uses() if user.metadata_props.get(SOURCE)), None)
        name += f", which {_named(reader)} reads," if reader is not None else ""
    return RefusedError(f"{name} {why}: change it there, or leave {target} out of --to", target, node.op_type,
                        f"{node.op_type} {why}")


def _named(node: ir.Node) -> str:
    layer, source = (node.metadata_props.get(key, "") for key in (LAYER, SOURCE))
    place = f" of layer {layer}" if layer else f" ({node.name})" if node.name else ""
    return f"{node.op_type}{place}{f' ({source})' if source else ''}"


def place_of(trace: str) -> str:
    """File, line and code of the innermost frame of a traceback's text that is the user's, else ours, else ""."""
    found = [(Path(file), line, code.strip()) for file, line, code in _FRAME.findall(trace)]
    found = [f for f in found if f[0].is_file() and not f[0].is_relative_to(_TORCH)]
    found = [f for f in found if not f[0].is_relative_to(_OURS)] or found
    if not found:
        return ""
    file, line, code = found[-1]
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return f"{shown}:{line}" + (f", `{code}`" if code else "")

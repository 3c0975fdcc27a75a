"""The smallest part of a network that fails to export, as a Python file that fails alike.

Where PyTorch gives a graph, the part is some operators of it, with random weights; else it is a submodule.
"""

from __future__ import annotations

import operator
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx, nn

from irstd_edge.bundle import ARTEFACTS
from irstd_edge.errors import UNSUPPORTED
from irstd_edge.export.capture import name_layers, onnx_export, quiet, refuse_export
from irstd_edge.export.passes import compress, lower
from irstd_edge.export.refusal import RefusedError
from irstd_edge.export.targets.native import write_graph
from irstd_edge.export.targets.onnx import to_onnx
from irstd_edge.export.targets.tflite import write_static
from irstd_edge.files import write_text
from irstd_edge.nn.inference import freeze

Tensors = tuple[torch.Tensor, ...]


def minimize(network: nn.Module, factory: str, input_size: tuple[int, int], error: RefusedError, path: Path) -> None:
    """Write the smallest part of ``network`` that ``error.target`` refuses for the same reason.

    Args:
        network: what failed; its weights do not get into the file.
        factory: what made it, as in a bundle's manifest, for a part that only its own code can make.
        input_size: (H, W) of its image.
        error: what the export raised.
        path: of the Python file, written whole or not at all.

    Raises :class:`~irstd_edge.data.DataError` where the file cannot be written.
    """
    frozen, example = freeze(network), torch.zeros(1, 1, *input_size)
    try:
        with quiet():
            graph = torch.export.export(frozen, (example,), strict=False)
    except Exception:  # PyTorch's errors have no common class
        imports, body = _submodule(frozen, example, factory, error)
    else:
        imports, body = _operators(graph, error) or _whole(factory, "", (example,))
    lines = sorted((*imports, "from irstd_edge.export.minimize import reproduce\n"), key=lambda x: x.split()[1])
    write_text(path, _FILE.format(why=error.why, target=error.target, imports="".join(lines), body=body))


def reproduce(part: nn.Module, inputs: Tensors, target: str) -> int:
    """Export a part and tell what comes: the exit code of the error, or 0. For the files of :func:`minimize`."""
    error = _refusal(part.eval(), inputs, target)
    print("exports without an error" if error is None else error)
    return 0 if error is None else UNSUPPORTED


_FILE = '''"""What irstd-edge export refuses, alone; run it with: python FILE

{why}
"""

import sys

import torch

{imports}
{body}

if __name__ == "__main__":
    sys.exit(reproduce(part, inputs, {target!r}))
'''


def _refusal(part: nn.Module, inputs: Tensors, target: str) -> RefusedError | None:
    """What ``target`` (``torch``: PyTorch's exporter alone) says of a part."""
    try:
        model = onnx_export(part, inputs, None)
    except Exception as e:  # as above
        return refuse_export(part, inputs, e)
    if target not in ARTEFACTS:
        return None
    try:
        name_layers(model, part)
        compress(model)
        if target == "native":
            write_graph(model.graph)
        elif target == "tflite":
            write_static(model)
        else:
            to_onnx(lower(model) if target == "portable" else model)
    except RefusedError as e:
        return e
    except Exception:  # a slice can be what no network is, as a constant alone
        return None
    return None


def _alike(found: RefusedError | None, error: RefusedError) -> bool:
    return found is not None and (found.target, found.operator) == (error.target, error.operator) and (
        bool(error.operator) or found.why.split(":")[0] == error.why.split(":")[0])


# A submodule -------------------------------------------------------------------------------------------------------


def _submodule(frozen: nn.Module, example: torch.Tensor, factory: str, error: RefusedError
               ) -> tuple[list[str], str]:
    """The smallest submodule, called with tensors alone, that fails alike by itself."""
    calls: dict[str, Tensors] = {}
    handles = [module.register_forward_pre_hook(
        lambda m, inputs, name=name: calls.setdefault(name, inputs) and None) for name, module in
        frozen.named_modules() if name]
    try:
        with torch.no_grad():
            frozen(example)
    finally:
        for handle in handles:
            handle.remove()
    for name in sorted(calls, key=lambda n: len(list(frozen.get_submodule(n).modules()))):
        inputs = calls[name]
        if inputs and all(isinstance(x, torch.Tensor) for x in inputs) and _alike(
                _refusal(frozen.get_submodule(name), inputs, "torch"), error):
            return _whole(factory, name, inputs)
    return _whole(factory, "", (example,))


def _whole(factory: str, name: str, inputs: Tensors) -> tuple[list[str], str]:
    return (["from irstd_edge.checkpoints import build_network\n", "from irstd_edge.nn.inference import freeze\n"],
            "torch.manual_seed(0)\n"
            f"part = freeze(build_network({factory!r})).get_submodule({name!r})\n{_inputs(inputs)}")


def _inputs(inputs: Tensors) -> str:
    return f"inputs = ({''.join(f'{_random(x)}, ' for x in inputs).rstrip()})\n"


# Operators ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slice:
    """Some operators as a module of their own, its floats random, others zero."""

    module: fx.GraphModule
    inputs: Tensors
    constants: dict[str, torch.Tensor]


def _operators(program: torch.export.ExportedProgram, error: RefusedError) -> tuple[list[str], str] | None:
    """The fewest operators that fail alike: one, else one with what it depends on, by and by deeper."""
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    values = {**program.state_dict, **program.constants}
    signature = program.graph_signature
    constants = {name: values[target] for name, target in {
        **signature.inputs_to_parameters, **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants}.items() if target in values}
    # Those whose names are like the refused one's come first: mostly it is one of them.
    wanted = re.sub(r"[^a-z0-9]", "", error.operator.removesuffix(".default").rpartition(".")[2].lower())
    nodes.sort(key=lambda n: not wanted or wanted not in re.sub(r"[^a-z0-9]", "", str(n.target)))
    for chosen in _growing(nodes):
        made = _slice(chosen, constants)
        if made is not None and _alike(_refusal(made.module, made.inputs, error.target), error):
            return _text(made)
    return None


def _growing(nodes: list[fx.Node]) -> Iterator[tuple[fx.Node, set[fx.Node]]]:
    """Each node with those that it depends on up to a depth, shallow ones first; the last node and the nodes."""
    everything = set(nodes)
    for depth in (0, 1, 2, 4, 8, len(nodes)):
        for node in nodes:
            cone = {node}
            for _ in range(depth):
                cone |= {p for n in cone for p in n.all_input_nodes if p in everything}
            yield node, cone


def _slice(chosen: tuple[fx.Node, set[fx.Node]], constants: dict[str, torch.Tensor]) -> _Slice | None:
    """None where a value that enters or leaves is no tensor."""
    last, inside = chosen
    graph, root, copies = fx.Graph(), nn.Module(), {}
    inputs, kept = [], {}
    for node in last.graph.nodes:
        if node in inside:
            for source in node.all_input_nodes:
                if source in copies:
                    continue
                value = source.meta.get("val")
                if not isinstance(value, torch.Tensor):
                    return None
                if source.name in constants:
                    name = f"c{len(kept)}"
                    kept[name] = _made_up(constants[source.name], torch.rand)
                    root.register_buffer(name, kept[name])
                    copies[source] = graph.get_attr(name)
                else:
                    copies[source] = graph.placeholder(f"x{len(inputs)}")
                    inputs.append(_made_up(value))
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    result = last.meta.get("val")
    if isinstance(result, tuple | list):
        graph.output(tuple(graph.call_function(operator.getitem, (copies[last], i)) for i, v in enumerate(result)
                           if isinstance(v, torch.Tensor)))
    elif isinstance(result, torch.Tensor) and inputs:
        graph.output(copies[last])
    else:
        return None
    return _Slice(fx.GraphModule(root, graph, "Part"), tuple(inputs), kept)


def _made_up(value: torch.Tensor, draw: Callable = torch.randn) -> torch.Tensor:
    shape = [int(s) for s in value.shape]
    if not value.dtype.is_floating_point:
        return torch.zeros(shape, dtype=value.dtype)
    return draw(shape, generator=torch.Generator().manual_seed(0)).to(value.dtype)


def _random(value: torch.Tensor, draw: str = "torch.randn") -> str:
    """The code that makes a tensor of this shape and type; constants are positive, as variances must be."""
    shape = list(value.shape)
    if not value.dtype.is_floating_point:
        return f"torch.zeros({shape}, dtype={value.dtype})"
    return f"{draw}({shape})" + ("" if value.dtype == torch.float32 else f".to({value.dtype})")


def _text(made: _Slice) -> tuple[list[str], str]:
    """Imports, and the class with its inputs."""
    source = made.module.graph.python_code("self").src
    lines = [line.partition(";")[0] for line in source.strip().splitlines()]
    lines[0] = f"def forward(self, {', '.join(f'x{i}' for i in range(len(made.inputs)))}):"
    imports = [f"from torch import {name}\n" for name in ("device", "inf", "nan")
               if any(re.search(rf"(?<![.\w]){name}\b", line) for line in lines[1:])]
    if "ops.irstd" in source:
        imports.append("import irstd_edge.nn.functional  # torch.ops.irstd\n")
    constants = "".join(f"        self.register_buffer({name!r}, {_random(value, 'torch.rand')})\n"
                        for name, value in made.constants.items())
    start = f"    def __init__(self):\n        super().__init__()\n{constants}\n" if constants else ""
    return imports, (f"\nclass Part(torch.nn.Module):\n{start}{textwrap.indent(chr(10).join(lines), '    ')}\n\n\n"
                     f"torch.manual_seed(0)\npart = Part()\n{_inputs(made.inputs)}")

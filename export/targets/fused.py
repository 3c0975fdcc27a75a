"""What the onnx and tflite targets share: the parts of a network that our engine runs, as one ``irstd.Program`` each.

A part is convex (no path leaves it and comes back), so that it can be one node, and holds a compressed layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from irstd_edge.errors import MissingError, UnsupportedError
from irstd_edge.export.layers import count_macs
from irstd_edge.export.passes.graph import constant, initializer, is_compressed, is_fixed_point, is_quant
from irstd_edge.export.passes.simplify import has_weights
from irstd_edge.export.passes.specialize import Specialize
from irstd_edge.export.targets.native import has_form, write_graph
from irstd_edge.opspec import DOMAIN, MAX_IMAGES, PROGRAM, ProgramSpec

#: A float convolution of more multiply-accumulates stays outside, where it can: the runtimes are faster at it.
LARGE_MACS = 50_000_000

_Nodes = frozenset[ir.Node]


@dataclass(frozen=True)
class Part:
    """A part of a network as a program: the names of the values that enter and leave it, and the file's bytes.

    ``size``: (H, W) of its inputs at the reference size; ``layer_bytes``: of the constants of each layer in it.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    size: tuple[int, int]
    data: bytes
    layer_bytes: dict[str, int]


def find_parts(model: ir.Model, input_size: tuple[int, int],
               other_size: tuple[int, int] | None = None, per_layer: bool = False) -> tuple[Part, ...]:
    """The parts of a compressed model for :func:`fuse`, in order; empty where there is nothing for the engine.

    Args:
        model: of dynamic size, or of ``input_size``; it is left as it is.
        input_size: (H, W); the size at which operations are counted.
        other_size: another one, at which each part must be the same program.
        per_layer: each part is one quantised convolution; binary ones are operators of their own.

    Raises nothing for a network that the engine cannot run: what remains outside keeps its own nodes.
    """
    if not any(map(is_compressed, model.graph)):
        return ()
    static = _specialized(model, input_size)
    other = None if other_size is None else _specialized(model, other_size)
    found: list[Part] = []
    regions = ([frozenset({n})] for n in static.graph if is_quant(n)) if per_layer else _regions(static.graph)
    for candidates in regions:
        for nodes in candidates:
            part = _part(static.graph, nodes)
            if (part is not None and _serves(other, part) and _replaces(model, [*found, part], nodes)
                    and _opens(part)):
                found.append(part)
                break
    return tuple(found)


def fuse(model: ir.Model, parts: Iterable[Part]) -> ir.Model:
    """A copy of ``model``, of dynamic or any fixed size, in which a Program node stands for each part.

    Raises :class:`ValueError` where a part does not belong to the model.
    """
    model = model.clone()
    for part in parts:
        _insert(model, part)
    common_passes.RemoveUnusedNodesPass()(model)
    model.graph.sort()
    return model


def _specialized(model: ir.Model, size: tuple[int, int]) -> ir.Model:
    model = model.clone()
    Specialize(size)(model)
    return model


def _insert(model: ir.Model, part: Part) -> None:
    graph, values = model.graph, _values(model.graph)
    if missing := [name for name in (*part.inputs, *part.outputs) if name not in values]:
        raise ValueError(f"the network has no value {', '.join(missing)}")
    data = initializer(graph, PROGRAM.name.lower(), np.frombuffer(part.data, np.uint8))
    spec = ProgramSpec(*part.size)
    node = ir.Node(DOMAIN, PROGRAM.name, [data, *(values[name] for name in part.inputs)],
                   [ir.AttrInt64(name, value) for name, value in spec.attributes().items()],
                   num_outputs=len(part.outputs), name=f"network/{PROGRAM.name}")
    graph.append(node)
    for name, result in zip(part.outputs, node.outputs, strict=True):
        old = values[name]
        result.type, result.shape = old.type, old.shape
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        old.name, result.name = f"{name}/replaced", name
    model.opset_imports.setdefault(DOMAIN, spec.version)


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    return {v.name: v for v in (*graph.inputs, *(v for node in graph for v in node.outputs))}


# Which nodes make a part -------------------------------------------------------------------------------------------


def _regions(graph: ir.Graph) -> Iterator[list[_Nodes]]:
    """Convex sets of nodes that hold a compressed one; each as a list: the preferred form first."""
    for whole in _convex(graph):
        pieces = [p for p in _connected(whole - _large_ends(whole)) if any(map(is_compressed, p))]
        for piece in pieces:
            yield [piece] if len(pieces) > 1 or piece == whole else [piece, whole]


def _convex(graph: ir.Graph) -> list[_Nodes]:
    """Maximal connected sets of nodes with a native form, and no path from one to itself through another.

    Along every path supported and other nodes take turns; nodes of one turn have none of another between them.
    """
    turns: dict[ir.Node, int] = {}
    for node in graph:
        supported = has_form(node)
        turns[node] = max((turns[p] + (turns[p] % 2 != supported) for p in _producers(node)), default=int(supported))
    return [part for turn in sorted({t for t in turns.values() if t % 2})
            for part in _connected(frozenset(n for n, t in turns.items() if t == turn))]


def _large_ends(nodes: _Nodes) -> _Nodes:
    """Large float layers before the first compressed node or after the last, and what lies further out."""
    ordered = [n for n in next(iter(nodes)).graph if n in nodes]
    behind, before = _reach(ordered, _producers), _reach(ordered[::-1], _users)
    ends: set[ir.Node] = set()
    for node in ordered:
        if not _is_core(node) and has_weights(node) and (count_macs(node) or 0) > LARGE_MACS:
            if node not in behind:
                ends |= {node, *_closure(node, _producers, nodes)}
            elif node not in before:
                ends |= {node, *_closure(node, _users, nodes)}
    return frozenset(ends)


def _is_core(node: ir.Node) -> bool:
    return is_compressed(node) or is_fixed_point(node)


def _reach(ordered: list[ir.Node], neighbours) -> set[ir.Node]:
    """The nodes that have a core node among their neighbours, or those' neighbours, of the same set."""
    reached: set[ir.Node] = set()
    within = set(ordered)
    for node in ordered:
        if any(n in within and (_is_core(n) or n in reached) for n in neighbours(node)):
            reached.add(node)
    return reached


def _closure(node: ir.Node, neighbours, within: _Nodes) -> set[ir.Node]:
    found, pending = set(), [node]
    while pending:
        for other in neighbours(pending.pop()):
            if other in within and other not in found:
                found.add(other)
                pending.append(other)
    return found


def _connected(nodes: _Nodes) -> list[_Nodes]:
    """The parts of a set that are connected by values or by a common input, in the order of the graph."""
    parts: list[_Nodes] = []
    rest = set(nodes)
    for node in next(iter(nodes)).graph if nodes else ():
        if node in rest:
            part = frozenset({node, *_closure(node, _neighbours, nodes)})
            parts.append(part)
            rest -= part
    return parts


def _producers(node: ir.Node) -> list[ir.Node]:
    return [p for v in node.inputs if v is not None and (p := v.producer()) is not None]


def _users(node: ir.Node) -> list[ir.Node]:
    return [user for v in node.outputs for user, _ in v.uses()]


def _neighbours(node: ir.Node) -> list[ir.Node]:
    shared = [user for v in node.inputs if v is not None and constant(v) is None for user, _ in v.uses()]
    return [*_producers(node), *_users(node), *shared]


# What a part is ----------------------------------------------------------------------------------------------------


def _part(graph: ir.Graph, nodes: _Nodes) -> Part | None:
    """None where the engine does not take them together."""
    ordered = [n for n in graph if n in nodes]
    inside = {v for n in ordered for v in n.outputs}
    inputs = list(dict.fromkeys(v for n in ordered for v in n.inputs
                                if v is not None and v not in inside and constant(v) is None))
    outputs = [v for n in ordered for v in n.outputs
               if v.is_graph_output() or any(user not in nodes for user, _ in v.uses())]
    if len({tuple(v.shape)[2:] for v in inputs}) != 1 or max(len(inputs), len(outputs)) > MAX_IMAGES:
        return None
    try:
        names = tuple(v.name for v in inputs), tuple(v.name for v in outputs)
        data, layer_bytes = write_graph(ir.convenience.extract(graph, *names))
    except UnsupportedError:
        return None
    return Part(*names, tuple(int(s) for s in tuple(inputs[0].shape)[2:]), data, layer_bytes)


def _serves(other: ir.Model | None, part: Part) -> bool:
    """Whether the part is the same program at another size of the network."""
    if other is None:
        return True
    try:
        return write_graph(ir.convenience.extract(other.graph, part.inputs, part.outputs))[0] == part.data
    except (UnsupportedError, ValueError):
        return False


def _replaces(model: ir.Model, parts: list[Part], nodes: _Nodes) -> bool:
    """Whether the last of the parts takes its nodes' place in the model itself, where sizes may need some of them."""
    try:
        left = {v.name for node in fuse(model, parts).graph for v in node.outputs}
    except ValueError:
        return False
    return not any(v.name in left for node in nodes for v in node.outputs if v.name not in parts[-1].outputs)


def _opens(part: Part) -> bool:
    """Whether the engine takes the part, where there is an engine to ask: it has limits that the format does not."""
    from irstd_edge.runtimes.native import Engine, EngineError

    with TemporaryDirectory() as folder:
        path = Path(folder) / "part.irstd"
        path.write_bytes(part.data)
        try:
            Engine(path, part.size)
        except EngineError:
            return False
        except MissingError:
            pass
    return True

"""From a PyTorch network to one onnx-ir graph in which every compressed layer is a single ``irstd`` node."""

from __future__ import annotations

import ast
import io
import logging
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import torch
from torch import nn
from torch.export import Dim

from irstd_edge.bundle import output_name
from irstd_edge.errors import UnsupportedError, first_line
from irstd_edge.export.passes.graph import LAYER, SOURCE, is_compressed
from irstd_edge.export.refusal import RefusedError, place_of
from irstd_edge.export.schema import register_schemas
from irstd_edge.nn.binary import FoldedBinaryConv2d
from irstd_edge.nn.inference import freeze
from irstd_edge.nn.quant import FoldedQuantConv2d
from irstd_edge.opspec import BINARY_CONV2D_ATTRIBUTES, DOMAIN, OPSET_VERSION, QUANT_CONV2D_ATTRIBUTES
from irstd_edge.outputs import run_network

#: The lowest opset of the default domain that the exporter writes without conversion.
ONNX_OPSET = 18
#: Opset 18 came with IR version 8: every ONNX Runtime since 1.14 reads it.
IR_VERSION = 8
INPUT_NAME, OUTPUT_NAME = "input", "probability"
#: What to do about a network that does not run at the size of an export.
ANOTHER_SIZE = "choose another --input-size"
DEFAULT_SIZE_MULTIPLE = 32


@dataclass(frozen=True)
class Capture:
    """A captured network.

    ``static_reason`` is empty where height and width are dynamic, and otherwise says why they are fixed.
    ``unused`` names the compressed layers on which the kept output does not depend (training-only heads).
    """

    model: ir.Model
    static_reason: str
    unused: tuple[str, ...] = ()

    @property
    def dynamic(self) -> bool:
        return not self.static_reason


def count_outputs(network: nn.Module, input_size: tuple[int, int]) -> int:
    """How many tensors a network returns in evaluation mode. Raises :class:`UnsupportedError` where it does not run."""
    return _run(freeze(network), torch.zeros(1, 1, *input_size))[1]


def capture(network: nn.Module, input_size: tuple[int, int], outputs: Sequence[int] = (0,), dynamic: bool = True,
            channels: int = 1) -> Capture:
    """Freeze and export ``network`` (float32 ``[1, channels, H, W]`` in) to an onnx-ir model of opset 18.

    Height and width are dynamic in steps of the network's ``size_multiple`` (32 where it has none); a network
    that cannot be exported so is exported at ``input_size`` and the reason is kept. Of several outputs, flattened
    in the order of the return value, those at the places ``outputs`` (negative: from the end) are kept, in this order.
    Every node carries the PyTorch path of its layer in ``metadata_props["layer"]``.

    Raises :class:`UnsupportedError` where PyTorch cannot export the network, or a compressed layer would be lost.
    """
    register_schemas()
    frozen = freeze(network)
    example = torch.zeros(1, channels, *input_size)
    calls, count = _run(frozen, example)
    outputs = [check_place(place, count) for place in outputs]
    multiple = getattr(network, "size_multiple", DEFAULT_SIZE_MULTIPLE)
    model, reason = _export(frozen, example, multiple if dynamic else None)
    name_layers(model, network)
    _check_complete(model, calls, network)
    unused = _keep_outputs(model, outputs)
    model.graph.inputs[0].name, model.graph.outputs[0].name = INPUT_NAME, OUTPUT_NAME
    for place, value in list(zip(outputs, model.graph.outputs, strict=True))[1:]:
        value.name = output_name(place)
    model.ir_version = IR_VERSION
    return Capture(model, reason, unused)


@torch.no_grad()
def _run(frozen: nn.Module, example: torch.Tensor) -> tuple[Counter, int]:
    """How often each compressed layer is called, by path, and how many tensors the network returns."""
    calls: Counter = Counter()
    hooks = [
        module.register_forward_hook(lambda *_, path=path: calls.update([path]))
        for path, module in frozen.named_modules() if isinstance(module, FoldedBinaryConv2d | FoldedQuantConv2d)
    ]
    try:
        return calls, len(run_network(frozen, example, way_out=ANOTHER_SIZE))
    finally:
        for hook in hooks:
            hook.remove()


def _export(frozen: nn.Module, example: torch.Tensor, multiple: int | None) -> tuple[ir.Model, str]:
    reason = "a fixed size was asked for"
    if multiple is not None:
        # A size of one tile would be specialised to a constant by torch.export.
        height, width = Dim("h", min=2), Dim("w", min=2)
        if multiple > 1:
            height, width = multiple * height, multiple * width
        try:
            return onnx_export(frozen, (example,), ({2: height, 3: width},)), ""
        except Exception as e:  # the exporter's errors have no common class
            _raise_interrupt(e)
            reason = f"PyTorch cannot export it with a dynamic size: {_root_line(e)}"
    try:
        return onnx_export(frozen, (example,), None), reason
    except Exception as e:
        _raise_interrupt(e)
        raise refuse_export(frozen, (example,), e) from e


#: What the exporter says of a node that it cannot translate.
_TRANSLATING = re.compile(r"translating node %(\w+) .*?target=torch\.ops\.([\w.]+)\]")


def refuse_export(frozen: nn.Module, example: tuple[torch.Tensor, ...], error: Exception) -> RefusedError:
    """What :func:`onnx_export` raised, with the operator and its place in the user's code where they can be told."""
    chain, operator, place = [error], "", ""
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    found = next(filter(None, (_TRANSLATING.search(str(e)) for e in chain)), None)
    if found is not None:
        operator, place = found[2], _place_of_node(frozen, example, found[1])
        what = f"{operator}{f' ({place})' if place else ''} has no ONNX form in PyTorch's exporter"
        why = f"{operator} has no ONNX form"
    else:
        place = place_of("".join(traceback.format_tb(chain[-1].__traceback__))) or place_of(str(chain[-1]))
        why = _root_line(error)
        what = f"PyTorch cannot export the network{f' ({place})' if place else ''}: {why}"
    return RefusedError(f"{what}: write it with other operators there (a branch on values as torch.where)",
                        "torch", operator, why)


def _place_of_node(frozen: nn.Module, example: tuple[torch.Tensor, ...], name: str) -> str:
    """Of a node of the decomposed graph, found by its name, or by its operator's in the graph before."""
    with quiet():
        program = torch.export.export(frozen, example, strict=False)
        nodes = [*program.run_decompositions().graph.nodes, *program.graph.nodes]
    stem = re.sub(r"_\d+$", "", name)
    for matches in (lambda n: n.name == name, lambda n: stem in str(n.target)):
        if (node := next(filter(matches, nodes), None)) is not None:
            return place_of(node.meta.get("stack_trace") or "")
    return ""


def _raise_interrupt(error: BaseException | None) -> None:
    """Ctrl-C while PyTorch exports comes back as an error of its own, wrapped: make it a KeyboardInterrupt again."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        error = error.__cause__ or error.__context__


def onnx_export(frozen: nn.Module, example: tuple[torch.Tensor, ...], dynamic_shapes) -> ir.Model:
    """PyTorch's exporter, with our operators as single nodes. Raises whatever it raises."""
    with quiet():
        program = torch.onnx.export(
            frozen, example, dynamo=True, opset_version=ONNX_OPSET, dynamic_shapes=dynamic_shapes, optimize=False,
            verbose=False, custom_translation_table={torch.ops.irstd.binary_conv2d.default: _binary_conv2d,
                                                     torch.ops.irstd.quant_conv2d.default: _quant_conv2d,
                                                     torch.ops.irstd.fixed_point.default: _fixed_point},
        )
    return program.model


def _binary_conv2d(x, weight, threshold, scale, bias, activation_parameters, residual_input, *attributes):
    """One ``torch.ops.irstd.binary_conv2d`` call to one ``irstd::BinaryConv2d`` node."""
    from onnxscript import values

    named = {a.name: value for a, value in zip(BINARY_CONV2D_ATTRIBUTES, attributes, strict=True)}
    return values.Opset(DOMAIN, OPSET_VERSION).BinaryConv2d(
        x, weight, threshold, scale, bias, activation_parameters, residual_input, **named
    )


def _quant_conv2d(x, weight, scale, bias, *attributes):
    """One ``torch.ops.irstd.quant_conv2d`` call to one ``irstd::QuantConv2d`` node."""
    from onnxscript import values

    named = {a.name: value for a, value in zip(QUANT_CONV2D_ATTRIBUTES, attributes, strict=True)}
    return values.Opset(DOMAIN, OPSET_VERSION).QuantConv2d(x, weight, scale, bias, **named)


def _fixed_point(x, fraction_bits, bits):
    """One ``torch.ops.irstd.fixed_point`` call to one ``irstd::FixedPoint`` node."""
    from onnxscript import values

    return values.Opset(DOMAIN, OPSET_VERSION).FixedPoint(
        x, version=OPSET_VERSION, fraction_bits=fraction_bits, bits=bits
    )


@contextmanager
def quiet():
    """Without the exporter's progress lines and warnings: what matters is raised or recorded."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def name_layers(model: ir.Model, network: nn.Module) -> None:
    """Write the PyTorch path of the layer that made each node, and the line of its code, into its metadata."""
    paths = {path for path, _ in network.named_modules()}
    for node in model.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        scopes = [s for s in ast.literal_eval(scopes) if s in paths] if scopes else []
        node.metadata_props[LAYER] = scopes[-1] if scopes else ""
        node.metadata_props[SOURCE] = place_of(node.metadata_props.get("pkg.torch.onnx.stack_trace", ""))


def _frozen_path(path: str, paths: set[str]) -> str:
    """The training network's layer that became ``path`` of the frozen one."""
    while path and path not in paths:
        path = path.rpartition(".")[0]
    return path


def _check_complete(model: ir.Model, calls: Counter, network: nn.Module) -> None:
    paths = {path for path, _ in network.named_modules()}
    expected: Counter = Counter()
    for path, times in calls.items():
        expected[_frozen_path(path, paths)] += times
    found = Counter(n.metadata_props[LAYER] for n in model.graph if is_compressed(n))
    if found != expected:
        wrong = sorted(p for p in expected | found if expected[p] != found[p])
        raise UnsupportedError(
            f"compressed layers changed while PyTorch exported the network: {', '.join(wrong)}; "
            "call each one from forward(), outside torch.no_grad-only or data-dependent branches"
        )


def check_place(place: int, count: int) -> int:
    """A place among ``count`` outputs, counted from the start. Raises :class:`ValueError` where it is none."""
    if not count:
        raise UnsupportedError("the network returns no tensor; return the probability map from forward()")
    if not -count <= place < count:
        raise ValueError(f"the network returns {count} tensor{'s' * (count > 1)}, none at place {place}; choose from 0 "
                         f"to {count - 1}, or -1 for the last")
    return place % count


def _keep_outputs(model: ir.Model, places: Sequence[int]) -> tuple[str, ...]:
    """Drop the other outputs and what only they need; returns the compressed layers that went."""
    before = {n.metadata_props[LAYER] for n in model.graph if is_compressed(n)}
    kept = [model.graph.outputs[place] for place in places]
    if len(set(kept)) < len(kept):
        raise UnsupportedError("the network returns one tensor twice; return it once, or keep one output alone")
    model.graph.outputs[:] = kept
    common_passes.RemoveUnusedNodesPass()(model)
    after = {n.metadata_props[LAYER] for n in model.graph if is_compressed(n)}
    return tuple(sorted(before - after))


def _root_line(error: BaseException) -> str:
    """The first line of the deepest cause: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"

"""From a float network to a quantised one: batch normalisation folded into convolutions, convolutions replaced.

Which batch normalisation follows which convolution is seen in one forward pass, so that any network that runs will do,
whatever its code looks like.
"""

from __future__ import annotations

import copy
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from irstd_edge.errors import first_line
from irstd_edge.nn.quant import QuantConv2d
from irstd_edge.opspec import OpSpecError

#: Bits of weights and activations; None is float.
Bits = tuple[int, int] | None


class ConversionError(ValueError):
    """A network cannot be quantised so; the message names the layer and the way out."""


@dataclass(frozen=True)
class QuantLayer:
    """One quantised convolution: bits of its weights and activations (1..8), whether its inputs may be negative."""

    weight_bits: int
    activation_bits: int
    signed: bool


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` does to a network: enough to build the quantised one from the float one's factory.

    ``folded`` maps each batch normalisation to the convolution that takes it in, ``layers`` each convolution to its
    quantised form; names are those of ``named_modules``.
    """

    folded: dict[str, str] = field(default_factory=dict)
    layers: dict[str, QuantLayer] = field(default_factory=dict)

    def to_json(self) -> str:
        layers = {name: [q.weight_bits, q.activation_bits, q.signed] for name, q in self.layers.items()}
        return json.dumps({"folded": self.folded, "layers": layers})

    @classmethod
    def from_json(cls, text: str) -> Conversion:
        """Inverse of :meth:`to_json`. Raises :class:`ConversionError`."""
        try:
            value = json.loads(text)
            layers = {str(name): QuantLayer(int(w), int(a), bool(s)) for name, (w, a, s) in value["layers"].items()}
            return cls({str(k): str(v) for k, v in value["folded"].items()}, layers)
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ConversionError(f"damaged table of quantised layers ({type(e).__name__}: {e})") from e


@dataclass(frozen=True)
class Trace:
    """What one forward pass shows; names in the order of first calls.

    ``convolutions`` are all plain ``nn.Conv2d`` that ran, ``edges`` those of them that read the image or make the
    output (the first and the last one, at least), ``left`` the batch normalisations that no convolution can take in,
    with the reason, ``other`` the layers with weights of other kinds.
    """

    convolutions: tuple[str, ...]
    edges: tuple[str, ...]
    folded: dict[str, str]
    left: dict[str, str]
    other: dict[str, str]


class _Uses(TorchFunctionMode):
    """Counts how often the values of each watched tensor are used; to ask for its shape is no use."""

    def __init__(self):
        super().__init__()
        self.counts: dict[int, int] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(isinstance(value, torch.Tensor) for value in tree_leaves(result)):
            for value in tree_leaves((args, kwargs or {})):
                if id(value) in self.counts:
                    self.counts[id(value)] += 1
        return result


@torch.no_grad()
def trace(network: nn.Module, size: tuple[int, int], channels: int = 1) -> Trace:
    """Look at a network in evaluation mode while it runs on zeros ``[1, channels, H, W]``; it is left as it was.

    Raises :class:`ConversionError` where it cannot run, or where a batch normalisation keeps no statistics.
    """
    names = {m: name for name, m in network.named_modules()}
    modes = {m: m.training for m in names}
    image = torch.zeros(1, channels, *size, device=next((p.device for p in network.parameters()), "cpu"))
    uses, kept, producer = _Uses(), [], {}
    called: list[str] = []
    readers, sources, other = set(), defaultdict(list), {}

    def note(module, inputs, output):
        name = names[module]
        if type(module) is nn.BatchNorm2d:
            if module.running_mean is None:
                raise ConversionError(f"{name}: this batch normalisation keeps no running statistics, what it computes "
                                      "depends on the batch: train with track_running_stats=True")
            sources[name].append(producer.get(id(inputs[0])))
        elif type(module) is nn.Conv2d:
            called.append(name)
            if inputs[0] is image or len(called) == 1:
                readers.add(name)
            # Kept alive, so that no later tensor has its id.
            kept.append(output)
            producer[id(output)] = name, len(kept) - 1
            uses.counts[id(output)] = 0
        elif next(module.parameters(recurse=False), None) is not None and not isinstance(module, nn.PReLU):
            other[name] = type(module).__name__

    handles = [m.register_forward_hook(note) for m in names]
    network.eval()
    try:
        with uses:
            network(image)
    except ConversionError:
        raise
    except Exception as e:
        raise ConversionError(f"{type(network).__name__} cannot be run on an image of {size[0]} x {size[1]}: "
                              f"{first_line(e)}; networks here take one grey channel: wrap it") from e
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    # A convolution takes in what follows it where each of its results goes there, and nowhere else.
    outputs = Counter(called)
    folded, left = {}, {}
    taken: set[str] = set()
    for norm, found in sources.items():
        makers = {s and s[0] for s in found}
        conv = next(iter(makers))
        if conv is None or len(makers) > 1:
            left[norm] = "its input is not that of one convolution alone"
        elif len(found) != outputs[conv] or any(uses.counts[id(kept[s[1]])] != 1 for s in found):
            left[norm] = f"the output of {conv} is used elsewhere too"
        elif conv in taken:
            left[norm] = f"{conv} has taken in another one"
        else:
            folded[norm] = conv
            taken.add(conv)
    convolutions = tuple(dict.fromkeys(called))
    edges = tuple(name for name in convolutions if name in readers or name == called[-1])
    return Trace(convolutions, edges, folded, left, other)


def convert(network: nn.Module, conversion: Conversion) -> nn.Module:
    """A copy with batch normalisation folded and convolutions replaced by quantised ones, first steps by LSQ's rule.

    The copy has ``conversion`` as an attribute, which :func:`irstd_edge.checkpoints.save_weights` stores.
    Raises :class:`ConversionError` naming the layer.
    """
    network = copy.deepcopy(network)
    modules = dict(network.named_modules())
    replaced = {}
    for norm, conv in conversion.folded.items():
        fold_batch_norm(_layer(modules, conv, nn.Conv2d), _layer(modules, norm, nn.BatchNorm2d))
        replaced[modules[norm]] = nn.Identity()
    for name, q in conversion.layers.items():
        conv = _layer(modules, name, nn.Conv2d)
        if conv is network:
            raise ConversionError("the network is a single convolution: wrap it in nn.Sequential")
        try:
            replaced[conv] = QuantConv2d.from_float(conv, q.weight_bits, q.activation_bits, q.signed)
        except OpSpecError as e:
            raise ConversionError(f"{name}: {e}; choose other bits, or leave it float") from e
        except ValueError as e:
            raise ConversionError(f"{name}: {e}; leave it float") from e
        replaced[conv].train(conv.training)
    for module in modules.values():
        for name, child in module._modules.items():
            if child in replaced:
                module._modules[name] = replaced[child]
    network.conversion = conversion
    return network


@torch.no_grad()
def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Put the inference form of ``norm``, which follows ``conv``, into the weights and bias of ``conv``."""
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = (0 if conv.bias is None else conv.bias.double()) - norm.running_mean.double()
    bias = bias * scale + (0 if norm.bias is None else norm.bias.double())
    # New parameters: the old ones may be shared with another layer.
    conv.weight = nn.Parameter((conv.weight.double() * scale.view(-1, 1, 1, 1)).to(conv.weight.dtype))
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype))


def assign(table: Mapping[str, Bits], signed: Mapping[str, bool], folded: dict[str, str]) -> Conversion:
    """The conversion that a table of bits per layer asks for; ``signed`` tells which layers see negative inputs."""
    return Conversion(folded, {name: QuantLayer(*bits, signed[name]) for name, bits in table.items() if bits})


def _layer(modules: Mapping[str, nn.Module], name: str, kind: type) -> nn.Module:
    found = modules.get(name)
    if type(found) is not kind:
        raise ConversionError(f"the network has no {kind.__name__} named {name!r}, which the table of quantised layers "
                              "names: it belongs to another network")
    return found

"""Bits per layer: tables of them, blocks and levels of a network, and the search of symmetric progressive assignments.

Symmetric and progressive are words of SPMix-Q's abstract (IEEE TGRS 2024, doi 10.1109/TGRS.2023.3346904); its table of
bits is not published. What the words mean here is a reconstruction: the encoder's and the decoder's blocks of one
resolution share their bits, and bits do not grow from a finer to a coarser resolution.
"""

from __future__ import annotations

import itertools
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from irstd_edge.complexity import FLOAT_BITS, LayerCount, Precision, measure_precision
from irstd_edge.nn.convert import Bits

#: The four figures that SPMix-Q publishes: mean bits, and full precision over SPMix-Q in size, memory, computation.
#: How it computes the last two is not published.
PUBLISHED = {"weight_bits_mean": 2.42, "activation_bits_mean": 3.82, "size_ratio": 13.0, "memory_ratio": 4.6,
             "compute_ratio": 29.0}


class BitTableError(ValueError):
    """A table of bits, or what is asked of one, is wrong; the message names the entry and the way out."""


def parse_bits(value, where: str) -> Bits:
    """``"float"`` as None, ``4`` as (4, 4), ``[6, 3]`` or ``"6,3"`` as (6, 3). Raises :class:`BitTableError`."""
    if value == "float":
        return None
    pair = value
    if isinstance(value, str):
        parts = [p.strip() for p in value.split(",")]
        pair = [int(p) if p.isdecimal() else p for p in parts]
    if not isinstance(pair, list | tuple):
        pair = (pair, pair)
    if len(pair) == 1:
        pair = (*pair, *pair)
    if len(pair) != 2 or not all(isinstance(b, int) and not isinstance(b, bool) and 1 <= b <= 8 for b in pair):
        raise BitTableError(f"{where}: bits are a number 1 to 8, a pair of them (weights, activations) or \"float\", "
                            f"got {value!r}")
    return tuple(pair)


@dataclass(frozen=True)
class BitTable:
    """Bits by pattern: of the rules that match a layer the last one holds, else the default.

    A pattern (``*``, ``?``, ``[...]``) matches a layer's name or that of a module around it.
    """

    default: Bits
    rules: tuple[tuple[str, Bits], ...] = ()

    @classmethod
    def read(cls, path: Path) -> BitTable:
        """Read a TOML or JSON file of ``default`` and ``layers``. Raises :class:`BitTableError` naming the file."""
        try:
            text = Path(path).read_text()
            values = json.loads(text) if Path(path).suffix == ".json" else tomllib.loads(text)
        except (OSError, ValueError) as e:
            raise BitTableError(f"{path}: {e}") from e
        if not isinstance(values, dict) or set(values) - {"default", "layers"} or not isinstance(
                values.get("layers", {}), dict):
            raise BitTableError(f"{path}: holds more or other than `default` and a table `layers`")
        rules = tuple((name, parse_bits(value, f"{path}: {name}")) for name, value in values.get("layers", {}).items())
        return cls(parse_bits(values.get("default", "float"), f"{path}: default"), rules)

    def resolve(self, names: Sequence[str]) -> dict[str, Bits]:
        """The bits of each layer. Raises :class:`BitTableError` for a pattern that matches none."""
        table = dict.fromkeys(names, self.default)
        for pattern, bits in self.rules:
            found = [name for name in names if matches(pattern, name)]
            if not found:
                raise BitTableError(f"{pattern!r} matches no convolution; they are {', '.join(names)}")
            table |= dict.fromkeys(found, bits)
        return table


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern is that of a layer, or of a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def table_text(table: Mapping[str, Bits]) -> str:
    """The TOML file of a table by layer, as :meth:`BitTable.read` reads it."""
    rows = "".join(f'"{name}" = {json.dumps(list(bits) if bits else "float")}\n' for name, bits in table.items())
    return f'# Bits of weights and activations by layer.\ndefault = "float"\n\n[layers]\n{rows}'


@dataclass(frozen=True)
class Block:
    """A submodule whose convolutions are of one resolution: 2^level times less than the image's."""

    name: str
    layers: tuple[str, ...]
    level: int
    encoder: bool

    @property
    def side(self) -> str:
        return "encoder" if self.encoder else "decoder"


def find_blocks(layers: Sequence[LayerCount], size: tuple[int, int]) -> list[Block]:
    """The largest submodules whose layers are of one resolution, never the whole network, in the order of first calls.

    Those up to the first of the coarsest resolution are the encoder. A layer on globally pooled values (1 x 1) counts
    to the resolution of the layer before it.

    Args:
        layers: in the order of first calls.
        size: height and width of the image that they were counted at.
    """
    levels: dict[str, int] = {}
    before = 0
    for layer in layers:
        if layer.output_size != (1, 1):
            before = max(0, round(math.log2(size[0] / layer.output_size[0])))
        levels[layer.name] = before
    found: list[tuple[str, tuple[str, ...]]] = []

    def split(prefix: str, names: list[str]) -> None:
        children: dict[str, list[str]] = {}
        for name in names:
            children.setdefault(".".join(name.split(".")[:prefix.count(".") + 2 if prefix else 1]), []).append(name)
        for child, inside in children.items():
            whole = len(children) == 1 and not found and len(inside) > 1
            if inside == [child] or (len({levels[n] for n in inside}) == 1 and not whole):
                found.append((child, tuple(inside)))
            else:
                split(child, inside)

    split("", list(levels))
    order = list(levels)
    found.sort(key=lambda block: order.index(block[1][0]))
    deepest = max(levels.values(), default=0)
    turn = next((i for i, (_, names) in enumerate(found) if levels[names[0]] == deepest), 0)
    return [Block(name, names, levels[names[0]], i <= turn) for i, (name, names) in enumerate(found)]


@dataclass(frozen=True)
class Assignment:
    """Bits by level, the finest first; ``loss`` is the sum of the measured losses of its blocks' bits, one by one."""

    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    loss: float
    table: dict[str, Bits]
    precision: Precision


#: The options of ``quantize`` that set the ceilings.
_OPTIONS = {"weights": "--max-weight-bits", "activations": "--max-activation-bits"}


def _levels(blocks: Sequence[Block]) -> list[int]:
    return sorted({b.level for b in blocks})


def _free(blocks: Sequence[Block], fixed: Mapping[str, Bits]) -> dict[str, int]:
    """The levels of the layers that a search assigns bits to."""
    return {name: b.level for b in blocks for name in b.layers if name not in fixed}


def _amounts(layers: Sequence[LayerCount], blocks: Sequence[Block], fixed: Mapping[str, Bits], kind: str
             ) -> tuple[int, list[int], int]:
    """Of weights, or of activations: the bits of all layers that are not free, how many the free ones of each level
    have, and how many there are in all."""
    free, index = _free(blocks, fixed), list(_OPTIONS).index(kind)
    amount = {layer.name: layer.weights if kind == "weights" else layer.inputs for layer in layers}
    constant = sum(count * ((fixed.get(name) or (FLOAT_BITS,) * 2)[index]) for name, count in amount.items()
                   if name not in free)
    share = [sum(amount[name] for name, level in free.items() if level == wanted) for wanted in _levels(blocks)]
    return constant, share, sum(amount.values())


def check_ceilings(layers: Sequence[LayerCount], blocks: Sequence[Block], bits: Sequence[int],
                   fixed: Mapping[str, Bits], *, max_weight_bits: float, max_activation_bits: float) -> None:
    """Raise :class:`BitTableError` where even the fewest ``bits`` everywhere miss a ceiling: needs counts alone.

    The other arguments are those of :func:`search_assignments`.
    """
    for kind, ceiling in zip(_OPTIONS, (max_weight_bits, max_activation_bits), strict=True):
        constant, share, total = _amounts(layers, blocks, fixed, kind)
        least = (constant + sum(share) * min(bits)) / total
        if least > ceiling:
            raise BitTableError(f"no assignment reaches a mean of {ceiling:g} bits of {kind}: {min(bits)} bits "
                                f"everywhere make {least:.2f} with the {len(fixed)} layers of fixed bits: raise "
                                f"{_OPTIONS[kind]}, or give those fewer bits by --edges or --layer")


def search_assignments(
    layers: Sequence[LayerCount],
    blocks: Sequence[Block],
    losses: Mapping[tuple[str, str, int], float],
    fixed: Mapping[str, Bits],
    *,
    max_weight_bits: float = PUBLISHED["weight_bits_mean"],
    max_activation_bits: float = PUBLISHED["activation_bits_mean"],
    keep: int = 5,
) -> list[Assignment]:
    """The non-increasing bits by level that meet both ceilings and lose least, the best first.

    The loss of an assignment is the sum over its blocks of what each loses alone; so weights and activations are
    searched apart, each exhaustively. Of two of the same loss the one of more bits comes first.

    Args:
        layers: of the whole network, see :func:`irstd_edge.complexity.count_layers`.
        blocks: see :func:`find_blocks`; those of fixed layers alone do not count.
        losses: rise of the loss by block, ``weights`` or ``activations``, and bits; less than 0 counts as 0. The bits
            named here are the candidates.
        fixed: layers that the search does not touch, with their bits; they count in the means all the same.
        max_weight_bits, max_activation_bits: ceilings of the means over the whole network.
        keep: how many are returned.

    Raises :class:`BitTableError` where nothing meets a ceiling.
    """
    bits = sorted({b for _, _, b in losses}, reverse=True)
    ceilings = {"max_weight_bits": max_weight_bits, "max_activation_bits": max_activation_bits}
    check_ceilings(layers, blocks, bits, fixed, **ceilings)
    levels, free = _levels(blocks), _free(blocks, fixed)
    sides = []
    for kind, ceiling in zip(_OPTIONS, ceilings.values(), strict=True):
        constant, share, total = _amounts(layers, blocks, fixed, kind)
        rise = {(level, b): sum(max(0.0, losses[block.name, kind, b]) for block in blocks
                                if block.level == level and free.keys() & set(block.layers))
                for level in levels for b in bits}
        rows = []
        for choice in itertools.combinations_with_replacement(bits, len(levels)):
            mean = (constant + sum(s * b for s, b in zip(share, choice, strict=True))) / total
            if mean <= ceiling:
                rows.append((sum(rise[key] for key in zip(levels, choice, strict=True)), -mean, choice))
        sides.append(sorted(rows)[:keep])
    found = []
    for (w_loss, _, w), (a_loss, _, a) in itertools.product(*sides):
        table = {layer.name: fixed.get(layer.name) for layer in layers}
        table |= {name: (w[levels.index(level)], a[levels.index(level)]) for name, level in free.items()}
        found.append(Assignment(w, a, w_loss + a_loss, table, measure_precision(layers, table)))
    return sorted(found, key=lambda x: (x.loss, -x.precision.weight_bits_mean))[:keep]

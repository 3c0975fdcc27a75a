"""What a file of a bundle holds, layer by layer: precision, kernel, bytes, operations; and the plan of its memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

from irstd_edge import program
from irstd_edge.bundle import Bundle, BundleError
from irstd_edge.complexity import FLOAT_BITS, LayerCount, Precision, measure_precision
from irstd_edge.errors import MissingError, UnsupportedError
from irstd_edge.opspec import PROGRAM
from irstd_edge.program_sizes import node_macs, tensor_sizes

KINDS = {".irstd": "native", ".onnx": "onnx", ".tflite": "tflite"}
#: (H, W) of files that serve any size.
DEFAULT_SIZE = (256, 256)
#: (bits of weight, of activation) -> precision, where that is no W1A1, W4A8 ...
_FLOATS = {(FLOAT_BITS, FLOAT_BITS): "float32", (16, FLOAT_BITS): "float16"}


@dataclass(frozen=True)
class Layer:
    """One operator of a file; what the file does not tell is None.

    ``precision``, ``weight_bits``, ``activation_bits``: of what multiplies; "" and None for all else. ``bytes``: of its
    constants; ``kernel``, ``output_bytes`` (the memory of its result): where our engine runs it. ``macs``: at the
    inspected size. ``weights``: how many, 0 where an earlier layer has the same; ``inputs``: elements of its inputs.
    ``shape``: [C, H, W] of its result. ``reads`` and ``writes`` are names of tensors.
    """

    name: str
    op: str
    bytes: int
    precision: str = ""
    kernel: str | None = None
    output_bytes: int | None = None
    macs: int | None = 0
    shape: tuple[int, ...] | None = None
    reads: tuple[str, ...] = ()
    writes: str = ""
    weights: int = 0
    inputs: int = 0
    weight_bits: int | None = None
    activation_bits: int | None = None

    @property
    def mac_bits(self) -> int | None:
        """Multiply-accumulates times bits of weight times bits of activation."""
        return self.macs and self.macs * self.weight_bits * self.activation_bits

    def as_dict(self) -> dict:
        """For JSON."""
        return {**asdict(self), "mac_bits": self.mac_bits}


@dataclass(frozen=True)
class Plan:
    """How our engine runs a network or a part of one, and where its memory lies.

    ``steps``: (layer, first row, last row + 1) in the order of the run; ``layers``: their names. ``buffers``: dicts of
    name (of a tensor), holds (values, signs or integers), rows, offset, bytes; first_step, last_step, first_layer and
    last_layer: it is in use in those steps that compute those layers.
    """

    name: str
    arena_bytes: int
    arena_lower_bound_bytes: int
    scratch_offset: int
    scratch_bytes: int
    layers: tuple[str, ...]
    steps: tuple[tuple[int, int, int], ...]
    buffers: tuple[dict, ...]

    def as_dict(self) -> dict:
        """For JSON: ``steps`` is their number."""
        return {**asdict(self), "steps": len(self.steps)}


@dataclass(frozen=True)
class Inspection:
    """One file; ``arena_bytes`` is the memory between the layers that our engine runs, its lower bound what is alive at
    one time; of several :attr:`plans` their sums."""

    file: str
    kind: str
    file_bytes: int
    input: tuple[int, int] | None
    layers: tuple[Layer, ...]
    isa: str | None = None
    plans: tuple[Plan, ...] = ()

    @property
    def arena_bytes(self) -> int | None:
        return sum(p.arena_bytes for p in self.plans) if self.plans else None

    @property
    def arena_lower_bound_bytes(self) -> int | None:
        return sum(p.arena_lower_bound_bytes for p in self.plans) if self.plans else None

    @property
    def precision(self) -> Precision:
        """Sums and means over the layers that multiply, see :mod:`irstd_edge.complexity`; unknown operations are 0."""
        return measure_precision(
            LayerCount(x.name, x.weights, x.inputs, x.macs or 0, x.weight_bits, x.activation_bits, (1, 1))
            for x in self.layers if x.weight_bits is not None)

    @property
    def is_counted(self) -> bool:
        """Whether the operations of every layer are known."""
        return all(x.macs is not None for x in self.layers)

    def as_dict(self) -> dict:
        """For JSON; ``macs`` and ``mac_bits`` are null where those of a layer are unknown."""
        p = self.precision
        return {
            "file": self.file, "kind": self.kind, "file_bytes": self.file_bytes, "input": self.input, "isa": self.isa,
            "arena_bytes": self.arena_bytes, "arena_lower_bound_bytes": self.arena_lower_bound_bytes,
            "macs": p.macs if self.is_counted else None, "mac_bits": p.mac_bits if self.is_counted else None,
            "weight_bits_mean": p.weight_bits_mean, "activation_bits_mean": p.activation_bits_mean,
            "layers": [x.as_dict() for x in self.layers], "plans": [x.as_dict() for x in self.plans],
        }


class Weights:
    """Counts the weights of a file, each constant once, however many layers read it."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def count(self, data: bytes, number: int) -> int:
        """``number``, or 0 where a constant of the same bytes was counted before."""
        known = data in self._seen
        self._seen.add(data)
        return 0 if known else number


def precision_name(weight_bits: int, activation_bits: int) -> str:
    """``W4A8``, or ``float32``, ``float16`` (weights of 16 bits, all else of 32)."""
    return _FLOATS.get((weight_bits, activation_bits), f"W{weight_bits}A{activation_bits}")


def inspect_path(path: Path, size: tuple[int, int] | None = None) -> list[Inspection]:
    """The artefacts of a bundle folder, or one ``.irstd``, ``.onnx`` or ``.tflite`` file.

    Args:
        path: folder or file.
        size: (H, W) at which memory and operations are counted; by default the bundle's or the file's own, or
            256 x 256. A TFLite file stays at its own size.

    Raises :class:`~irstd_edge.bundle.BundleError`, :class:`~irstd_edge.errors.UnsupportedError` (size or kind) and
    :class:`~irstd_edge.errors.MissingError` (the engine for ``.irstd``, the schema for ``.tflite``).
    """
    path = Path(path)
    if path.is_dir():
        bundle = Bundle.open(path)
        size = size or tuple(bundle.manifest.reference_input)
        return [_inspect_file(bundle.artefact(kind)[1], size) for kind in bundle.kinds]
    return [_inspect_file(path, size)]


def _inspect_file(path: Path, size: tuple[int, int] | None) -> Inspection:
    kind = kind_of(path)
    if kind == "native":
        return _native(path, size or DEFAULT_SIZE)
    if kind == "onnx":
        from irstd_edge.export.inspect_onnx import inspect_onnx

        return inspect_onnx(path, size)
    from irstd_edge.export.inspect_tflite import inspect_tflite

    return inspect_tflite(path)


def kind_of(path: Path) -> str:
    """``native``, ``onnx`` or ``tflite`` of a file that is there.

    Raises :class:`~irstd_edge.errors.UnsupportedError` and :class:`~irstd_edge.bundle.BundleError`.
    """
    kind = KINDS.get(path.suffix)
    if kind is None and not path.exists():
        raise BundleError(f"{path}: no such file or folder")
    if kind is None:
        raise UnsupportedError(f"{path}: no file that can be inspected; known: {', '.join(KINDS)}, and bundle folders")
    if not path.is_file():
        raise BundleError(f"{path}: missing; write one with: irstd-edge export NETWORK --out DIR")
    return kind


def _native(path: Path, size: tuple[int, int]) -> Inspection:
    from irstd_edge.runtimes.native import EngineError

    data = path.read_bytes()
    try:
        found = program.read(data)
        isa, layers, plan = _run_by_engine(data, found, size, path.name, Weights())
    except program.ProgramError as e:
        raise BundleError(f"{path}: {e}; export again") from e
    except EngineError as e:
        raise UnsupportedError(f"{path}: {e}") from e
    return Inspection(path.name, "native", len(data), size, tuple(layers), isa, (plan,))


def inspect_programs(parts: Sequence[tuple[str, bytes, tuple[int, int] | None]], weights: Weights
                     ) -> tuple[str | None, list[list[Layer]], tuple[Plan, ...]]:
    """The instruction set, and the layers and the plan of each Program of a file, given as (name, bytes, (H, W)).

    There is neither kernel nor plan where a size is unknown, or the engine is not here or refuses.
    """
    from irstd_edge.runtimes.native import EngineError

    isa, layers, plans = None, [], []
    for name, data, size in parts:
        found, inside = program.read(data), None
        if size is not None:
            with suppress(EngineError, MissingError):
                isa, inside, plan = _run_by_engine(data, found, size, name, weights)
                plans.append(plan)
        if inside is None:
            inside = [_program_layer(found, node, i, size, weights) for i, node in enumerate(found.nodes)]
        layers.append([replace(x, op=f"{PROGRAM.tflite_name}/{x.op}") for x in inside])
    return isa, layers, tuple(plans)


def _run_by_engine(data: bytes, found: program.Program, size: tuple[int, int], name: str, weights: Weights
                   ) -> tuple[str, list[Layer], Plan]:
    from irstd_edge.runtimes.native import Engine

    engine = Engine(data, size)
    told, planned = engine.description, engine.plan()
    layers = [_program_layer(found, node, i, size, weights, told["layers"][i]) for i, node in enumerate(found.nodes)]
    plan = Plan(name, told["arena_bytes"], told["arena_lower_bound_bytes"], planned["scratch_offset"],
                planned["scratch_bytes"], tuple(node.name for node in found.nodes),
                tuple(map(tuple, planned["steps"])), tuple(planned["buffers"]))
    return told["isa"], layers, plan


def _program_layer(found: program.Program, node: program.Node, index: int, size: tuple[int, int] | None,
                   weights: Weights, told: dict | None = None) -> Layer:
    shape = macs = None
    if size is not None:
        sizes = tensor_sizes(found, *size)
        shape = (found.tensors[node.output].channels, *sizes[node.output])
        macs = node_macs(found, *size)[index]
    told = {} if told is None else told
    layer = {"kernel": told.get("kernel"), "output_bytes": told.get("output_bytes"), "shape": shape,
             "reads": tuple(found.tensors[i].name for i in node.inputs), "writes": found.tensors[node.output].name}
    stored = sum(a.nbytes for a in node.constants.values())
    if "weight" not in node.constants:
        return Layer(node.name, node.operator, stored, **layer)
    weight, a = node.constants["weight"], node.attributes
    if node.operator == "BinaryConv2d":
        bits = (1, 1)
    else:
        bits = a.get("weight_bits", 8 * weight.dtype.itemsize), a.get("activation_bits", FLOAT_BITS)
    number = a["out_channels"] * a["in_channels"] // a["groups"] * a["kernel_h"] * a["kernel_w"]
    # A binary convolution's second input is its residual.
    images = node.inputs if node.operator == "QuantConv2d" else node.inputs[:1]
    inputs = 0 if size is None else sum(found.tensors[i].channels * prod(sizes[i]) for i in images)
    return Layer(node.name, node.operator, stored, precision_name(*bits), macs=macs,
                 weights=weights.count(weight.tobytes(), number), inputs=inputs, weight_bits=bits[0],
                 activation_bits=bits[1], **layer)

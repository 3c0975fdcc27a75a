"""From a loaded network to a verified bundle."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from irstd_edge import __version__
from irstd_edge.bundle import (
    ARTEFACTS,
    Artefact,
    Bundle,
    LayerPrecision,
    Manifest,
    TestVectors,
    output_name,
    sha256,
    staged_folder,
    write_manifest,
)
from irstd_edge.checkpoints import LoadedNetwork, weights_metadata
from irstd_edge.errors import UnsupportedError
from irstd_edge.export.capture import (
    ANOTHER_SIZE,
    DEFAULT_SIZE_MULTIPLE,
    Capture,
    capture,
    check_place,
    count_outputs,
)
from irstd_edge.export.layers import constant_bytes, describe_layers
from irstd_edge.export.passes import compress
from irstd_edge.export.passes.halve_weights import HalveWeights
from irstd_edge.export.passes.specialize import Specialize
from irstd_edge.export.refusal import RefusedError
from irstd_edge.export.targets.fused import find_parts, fuse
from irstd_edge.export.targets.native import to_native
from irstd_edge.export.targets.onnx import to_onnx
from irstd_edge.export.targets.portable import lowered
from irstd_edge.export.targets.tflite import to_tflite
from irstd_edge.nn.inference import freeze
from irstd_edge.opspec import BIT_ORDER_LSB_PLUS_ONE, OPSET_VERSION
from irstd_edge.outputs import check_shape, check_values, run_network

FILES = {"onnx": "model.onnx", "tflite": "model.tflite", "native": "model.irstd", "portable": "model_portable.onnx"}
WEIGHTS, TEST_VECTORS = "weights.safetensors", "test_vectors.npz"
PORTABLE_REASON = "standard operators only"
#: Targets whose files can be for one size where the captured graph serves any.
_WRITTEN_FOR_A_SIZE = {"tflite", "native"}
#: What weights of float layers are stored in.
FLOAT_WEIGHTS = ("fp32", "fp16")
_SEED = 20250304


@dataclass(frozen=True)
class _File:
    """One artefact in memory; ``static_reason``: why it runs one size alone, "" where it runs any."""

    kind: str
    data: bytes
    layout: str
    input: tuple[int, int] | None
    layers: tuple[LayerPrecision, ...]
    static_reason: str


def export_bundle(
    source: LoadedNetwork,
    targets: Sequence[str],
    out: Path,
    input_size: tuple[int, int] = (256, 256),
    strict: bool = False,
    overwrite: bool = False,
    per_layer: bool = False,
    repro: Path | None = None,
    weights: str = "fp32",
    output: int = 0,
    all_outputs: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Export a network to a bundle folder and verify every file of it on the bundle's test vectors.

    Args:
        source: the network with its preprocessing, see :func:`irstd_edge.checkpoints.load_network`.
        targets: of :data:`irstd_edge.bundle.ARTEFACTS`.
        out: the folder; it appears only when everything in it is verified.
        input_size: (H, W) of fixed-size files, of the test vectors, and at which operations are counted.
        strict: refuse when a layer's realised precision is not the requested one (so, for a compressed network,
            always with ``portable``, which has no compressed operators).
        overwrite: replace a folder that is no bundle of ours.
        per_layer: keep one node for each layer in ``onnx`` and ``tflite`` files, instead of Program nodes.
        repro: where an operator is refused, write the smallest part that fails to this Python file.
        weights: of :data:`FLOAT_WEIGHTS`; ``fp16`` stores those of float layers in 16 bits, see
            :class:`~irstd_edge.export.passes.halve_weights.HalveWeights`.
        output: place of the probability map among the tensors that the network returns (negative: from the end).
        all_outputs: keep the other tensors behind it, such as those of deep supervision; else they are dropped.
        note: called with a sentence for everything that a user should know and that is no error.

    Raises :class:`~irstd_edge.errors.UnsupportedError` (a layer, operator or target),
    :class:`~irstd_edge.errors.ParityError` (a file differs from PyTorch), :class:`~irstd_edge.errors.MissingError`
    (a runtime to verify with), :class:`ValueError` and :class:`~irstd_edge.bundle.BundleError` (arguments).
    Nothing is left in ``out`` then.
    """
    targets = check_targets(targets)
    if weights not in FLOAT_WEIGHTS:
        raise ValueError(f"weights is {weights!r}; choose from {', '.join(FLOAT_WEIGHTS)}")
    _check_size(source.network, input_size)
    # Opened first: a folder that cannot be written is told before the work, and nothing of it stays on an error.
    with staged_folder(Path(out), overwrite=overwrite) as folder, _minimizing(source, input_size, repro):
        inputs = make_test_inputs(input_size)
        count = count_outputs(source.network, input_size)
        places = [check_place(output, count)]
        dropped = [place for place in range(count) if place != places[0]]
        if all_outputs:
            places, dropped = places + dropped, []
        outputs = reference_outputs(source.network, inputs, places)
        captured = capture(source.network, input_size, places)
        another = _another_size(source.network, input_size, places) if captured.dynamic else None
        if isinstance(another, str):
            captured, another = _fixed(source.network, input_size, places, another), None
        files = _build(captured, targets, input_size, another and another.size, source.network, per_layer,
                       weights == "fp16")
        if strict:
            _refuse_downgrades(files)
        manifest = _write(folder, source, files, input_size, inputs, places, outputs)
        _verify(folder)
        faults = {} if another is None else _faults(folder, files, another)
        if faults.keys() - _WRITTEN_FOR_A_SIZE:
            reason = "; ".join(fault for kind, fault in faults.items() if kind not in _WRITTEN_FOR_A_SIZE)
            captured = _fixed(source.network, input_size, places, f"at other sizes it differs from PyTorch ({reason})")
            files = _build(captured, targets, input_size, None, source.network, per_layer, weights == "fp16")
            manifest = _write(folder, source, files, input_size, inputs, places, outputs)
            _verify(folder)
        elif faults:
            files = [replace(f, static_reason=faults[f.kind], input=tuple(input_size)) if f.kind in faults else f
                     for f in files]
            manifest = _write(folder, source, files, input_size, inputs, places, outputs)
    if source.checkpoint_sha256 is None:
        note(f"no checkpoint was given: the weights are those that {source.factory} made")
    if dropped:
        note(f"of {count} tensors that the network returns, number {places[0]} is exported; --all-outputs keeps all")
    for text in _notes(captured, files, input_size):
        note(text)
    return manifest


@contextmanager
def _minimizing(source: LoadedNetwork, input_size: tuple[int, int], repro: Path | None) -> Iterator[None]:
    """Adds to the error of a refused operator where its smallest part is, or how to get that."""
    try:
        yield
    except RefusedError as e:
        if repro is None:
            raise e.noting("--minimize writes the smallest part that fails to a file") from e
        from irstd_edge.export.minimize import minimize

        minimize(source.network, source.factory, input_size, e, repro)
        raise e.noting(f"the smallest part that fails: {repro}") from e


def check_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """The targets without repetitions, in table order. Raises :class:`UnsupportedError` for an unknown one."""
    for name in targets:
        if name not in ARTEFACTS:
            near = difflib.get_close_matches(name, ARTEFACTS, 1, 0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UnsupportedError(f"unknown target {name!r}; {hint}known: {', '.join(ARTEFACTS)}")
    if not targets:
        raise ValueError(f"no target is named; choose from {', '.join(ARTEFACTS)}")
    return tuple(kind for kind in ARTEFACTS if kind in targets)


def make_test_inputs(input_size: tuple[int, int]) -> np.ndarray:
    """float32 ``[4, 1, H, W]``: values around zero, noise, targets on a cloudy sky, and a step edge. Deterministic."""
    rng = np.random.default_rng(_SEED)
    h, w = input_size
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    near_zero = rng.integers(-3, 4, (h, w)) * rng.choice([2.0**-8, 2.0**-7, 1e-7, 1e-30], (h, w))
    noise = rng.standard_normal((h, w))
    sky = 0.8 * np.sin(x / 37 + 0.7) * np.cos(y / 29) + 0.15 * rng.standard_normal((h, w)) - 0.5
    for _ in range(8):
        cy, cx, size = rng.uniform(0, h), rng.uniform(0, w), rng.uniform(0.8, 3)
        sky += rng.uniform(1.5, 4) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * size**2))
    edge = np.where(x + y > (h + w) / 2, 3.0, -2.5) + 0.05 * rng.standard_normal((h, w))
    return np.stack([near_zero, noise, sky, edge])[:, None].astype(np.float32)


@torch.no_grad()
def reference_outputs(network: torch.nn.Module, inputs: np.ndarray, places: Sequence[int] = (0,)) -> list[np.ndarray]:
    """PyTorch's outputs at some places for all inputs: ``[N, ...]`` each, the first the probability ``[N, 1, H, W]``.

    Raises :class:`UnsupportedError` where the network does not return one probability map of the input's size.
    """
    frozen, results = freeze(network), []
    for x in torch.from_numpy(inputs).split(1):
        tensors = run_network(frozen, x, way_out=ANOTHER_SIZE)
        probability = tensors[places[0]]
        try:
            check_shape(probability, x)
            check_values(probability, slack=0)
        except UnsupportedError as e:
            raise UnsupportedError(f"{e}; --output names another of several") from e
        results.append([tensors[place].float().numpy() for place in places])
    outputs = [np.concatenate(parts) for parts in zip(*results, strict=True)]
    if not all(np.isfinite(y).all() for y in outputs):
        raise UnsupportedError("the network returns NaN or infinity on the test vectors; check its weights")
    return outputs


def _check_size(network: torch.nn.Module, input_size: tuple[int, int]) -> None:
    multiple = getattr(network, "size_multiple", 1)
    if len(input_size) != 2 or any(s < 1 or s % multiple for s in input_size):
        raise ValueError(f"input size {'x'.join(map(str, input_size))}: height and width must be positive multiples "
                         f"of {multiple}")


@dataclass(frozen=True)
class _AnotherSize:
    """Inputs of a size other than the bundle's, and PyTorch's outputs for them."""

    size: tuple[int, int]
    inputs: np.ndarray
    outputs: list[np.ndarray]


def _another_size(network: torch.nn.Module, input_size: tuple[int, int],
                  places: Sequence[int] = (0,)) -> _AnotherSize | str:
    """A second, non-square size that the network runs at, small where there is a choice; or why there is none."""
    multiple = getattr(network, "size_multiple", DEFAULT_SIZE_MULTIPLE)
    tiles = max(2, -(-64 // multiple)) | 1  # odd: halving shows
    small = (multiple * tiles, multiple * (tiles + 1))
    near = (input_size[0] + multiple, input_size[1] + 2 * multiple)
    differs = all(a != b for a, b in zip(small, input_size, strict=True))
    sizes = [small, near] if differs and small[0] * small[1] < near[0] * near[1] else [near]
    reason = ""
    for size in sizes:
        inputs = make_test_inputs(size)
        try:
            return _AnotherSize(size, inputs, reference_outputs(network, inputs, places))
        except UnsupportedError as e:
            reason = f"the network does not run at {size[0]}x{size[1]} ({e})"
    return reason


def _fixed(network: torch.nn.Module, input_size: tuple[int, int], places: Sequence[int], reason: str) -> Capture:
    return replace(capture(network, input_size, places, dynamic=False), static_reason=reason)


def _notes(captured: Capture, files: Sequence[_File], input_size: tuple[int, int]):
    reasons = {f.static_reason: [g.kind for g in files if g.static_reason == f.static_reason] for f in files}
    for reason, kinds in reasons.items():
        if reason:
            yield f"{', '.join(kinds)}: runs {input_size[0]}x{input_size[1]} images alone: {reason}"
    if captured.unused:
        yield f"left out, as no exported output depends on them: {', '.join(captured.unused)}"


def _build(captured: Capture, targets, input_size, other_size, network: torch.nn.Module,
           per_layer: bool, halves: bool) -> list[_File]:
    model, fixed = compress(captured.model), captured.static_reason
    if halves:
        HalveWeights()(model)
    size = tuple(input_size) if fixed else None
    static = model.clone()
    Specialize(input_size)(static)
    wanted = {"onnx", "tflite"} & set(targets)
    parts = find_parts(model, input_size, other_size, per_layer) if wanted else ()
    inside = sum((Counter(part.layer_bytes) for part in parts), Counter())
    files = []
    for kind in targets:
        if kind == "onnx":
            fused = fuse(model, parts)
            layers = describe_layers(model, static, layer_bytes=inside + Counter(constant_bytes(fused)))
            files.append(_File(kind, to_onnx(fused), "NCHW", size, layers, fixed))
        elif kind == "portable":
            plain = lowered(model)
            layers = describe_layers(plain, static, PORTABLE_REASON)
            files.append(_File(kind, to_onnx(plain), "NCHW", size, layers, fixed))
        elif kind == "native":
            native = to_native(model, input_size, other_size)
            layers = describe_layers(static, static, layer_bytes=native.layer_bytes)
            reason = fixed or native.static_reason
            files.append(_File(kind, native.data, "NCHW", tuple(input_size) if reason else None, layers, reason))
        else:
            multiple = getattr(network, "size_multiple", DEFAULT_SIZE_MULTIPLE)
            written = to_tflite(model, input_size, other_size, multiple, parts)
            layers = describe_layers(static, static, layer_bytes=inside + Counter(written.layer_bytes))
            files.append(_File(kind, written.data, "NHWC", tuple(input_size), layers, fixed or written.static_reason))
    return files


def _refuse_downgrades(files: Sequence[_File]) -> None:
    lost = [f"{f.kind}: {layer.name} {layer.requested} -> {layer.realised} ({layer.reason})"
            for f in files for layer in f.layers if layer.downgraded]
    if lost:
        kinds = sorted({f.kind for f in files if any(layer.downgraded for layer in f.layers)})
        raise UnsupportedError(f"--strict: {len(lost)} layers are not realised as requested; leave {', '.join(kinds)} "
                               f"out of --to, or leave out --strict. {'; '.join(lost)}")


def _write(folder: Path, source: LoadedNetwork, files, input_size, inputs, places, outputs) -> Manifest:
    artefacts = []
    for file in files:
        path = folder / FILES[file.kind]
        path.write_bytes(file.data)
        artefacts.append(Artefact(file.kind, path.name, sha256(path), len(file.data), file.layout, file.input,
                                  file.layers, not file.static_reason))
    state = {k: v.detach().clone().contiguous() for k, v in source.network.state_dict().items()}
    save_file(state, folder / WEIGHTS, weights_metadata(source.network))
    (folder / WEIGHTS).chmod(0o644)  # safetensors makes it private
    others = {output_name(place): y for place, y in zip(places[1:], outputs[1:], strict=True)}
    np.savez_compressed(folder / TEST_VECTORS, input=inputs, probability=outputs[0], **others)
    manifest = Manifest(
        network=source.name,
        tool_version=__version__,
        opset_version=OPSET_VERSION,
        bit_order=BIT_ORDER_LSB_PLUS_ONE,
        checkpoint_sha256=source.checkpoint_sha256,
        weights=WEIGHTS,
        weights_sha256=sha256(folder / WEIGHTS),
        factory=source.factory,
        preprocessing=source.preprocessing,
        threshold=source.threshold,
        reference_input=tuple(input_size),
        artefacts=tuple(artefacts),
        test_vectors=TestVectors(TEST_VECTORS, sha256(folder / TEST_VECTORS), len(inputs)),
        outputs=tuple(places),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_manifest(folder, manifest)
    return manifest


def _verify(folder: Path) -> None:
    from irstd_edge.runtimes.parity import check_vectors

    check_vectors(Bundle.open(folder))


def _faults(folder: Path, files: Sequence[_File], another: _AnotherSize) -> dict[str, str]:
    """Of the files that are said to run any size: what is wrong at another one, by kind, within the tolerances."""
    from irstd_edge.runtimes.parity import ParitySummary, compare_outputs, tolerance
    from irstd_edge.runtimes.session import open_session

    bundle, faults = Bundle.open(folder), {}
    for kind in [f.kind for f in files if not f.static_reason]:
        session, summary = open_session(bundle, kind), ParitySummary()
        try:
            for i, image in enumerate(another.inputs):
                expected = [y[i:i + 1] for y in another.outputs]
                parity = compare_outputs(expected, session.run_all(image[None]), bundle.manifest.threshold)
                summary.add(parity, f"test image {i} of {another.size[0]}x{another.size[1]}")
            violations = summary.judge(kind, tolerance(bundle, kind))
        except Exception as e:  # the runtimes' errors have no common class
            violations = [f"{kind} at {another.size[0]}x{another.size[1]}: {str(e).strip().splitlines()[0]}"]
        if violations:
            faults[kind] = "; ".join(violations)
    return faults

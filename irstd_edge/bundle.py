"""The bundle: a folder of artefacts with one ``manifest.json``, written by export and opened by the runtimes.

The manifest holds what an artefact needs to be run and trusted: inputs and outputs, preprocessing, the precision
of every layer requested and realised, the SHA-256 of every file, and test vectors (an input and PyTorch's output).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import types
import typing
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path

import numpy as np

from irstd_edge.files import write_text

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
#: Artefact kinds in the order in which tables list them.
ARTEFACTS = ("onnx", "tflite", "native", "portable")


class BundleError(ValueError):
    """A bundle is missing, damaged or of another version; the message names the file and the way out."""


@dataclass(frozen=True)
class Preprocessing:
    """``(grey - mean) / std`` on 0..255, then zeros at the bottom and right up to ``size_multiple``; cropped back."""

    mean: float
    std: float
    size_multiple: int = 32


@dataclass(frozen=True)
class LayerPrecision:
    """One layer: precision as ``W1A1``, ``float32`` ...; bytes of its constants; reason where realised differs."""

    name: str
    operator: str
    requested: str
    realised: str
    bytes: int
    macs: int | None  # at the bundle's reference input; None where that is unknown
    reason: str = ""

    @property
    def downgraded(self) -> bool:
        return self.requested != self.realised


@dataclass(frozen=True)
class Artefact:
    """One exported file. ``input`` is [H, W] where the file has a fixed size, None where it is dynamic.

    ``resizable``: it was compared with PyTorch at another size than the reference's too, and a session runs any.
    """

    kind: str
    file: str
    sha256: str
    bytes: int
    layout: str  # NCHW or NHWC
    input: tuple[int, int] | None
    layers: tuple[LayerPrecision, ...]
    resizable: bool = False


@dataclass(frozen=True)
class TestVectors:
    """An npz of ``input`` (normalised, float32 [N, 1, H, W]) and ``probability`` (PyTorch's output).

    Further outputs are ``output_P``, P their place among the tensors that the network returns.
    """

    __test__ = False

    file: str
    sha256: str
    images: int


@dataclass(frozen=True)
class Manifest:
    network: str
    tool_version: str
    opset_version: int  # of the irstd domain
    bit_order: int
    checkpoint_sha256: str | None
    #: Weights file (safetensors, state_dict of the network) within the bundle: the PyTorch side of every comparison.
    weights: str
    weights_sha256: str
    #: A name of the registry, or the user's ``package.module:factory``.
    factory: str
    preprocessing: Preprocessing
    threshold: float
    #: [H, W] at which MACs are counted and fixed-size artefacts were written.
    reference_input: tuple[int, int]
    artefacts: tuple[Artefact, ...]
    test_vectors: TestVectors
    #: Of the tensors that the network returns, in the order of its return value, those that files give, in their
    #: order: the probability first.
    outputs: tuple[int, ...] = (0,)
    schema_version: int = SCHEMA_VERSION
    created: str = field(default="")


def output_name(place: int) -> str:
    """The name in files of an output besides the probability, by its place among those of the network."""
    return f"output_{place}"


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def staged_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes ``target`` when the block ends without an error.

    Nothing is left behind on an error. An existing folder is replaced only with ``overwrite``, or where it is empty
    or holds a bundle of ours (of any version, damaged or not) and no other file. Raises :class:`BundleError`.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise BundleError(f"{target} is a file; name a folder")
    if not overwrite:
        _check_replaceable(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as e:
        raise BundleError(f"{target}: cannot be written ({e.strerror})") from e
    try:
        yield staging
        if not overwrite:
            _check_replaceable(target)  # a file may have come since
        try:
            staging.chmod(0o755)
            _swap(staging, target)
        except OSError as e:
            raise BundleError(f"{target}: cannot be written ({e.strerror or e})") from e
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_replaceable(target: Path) -> None:
    """Raise :class:`BundleError` where ``target`` holds anything but the files of a bundle of ours."""
    found = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_symlink() or not p.is_dir()}
    if found and (strange := sorted(found - _named_files(target / MANIFEST))):
        raise BundleError(f"{target} exists and is no bundle (holds {strange[0]}); "
                          "name another folder, or remove it first")


def _named_files(file: Path) -> set[str]:
    """The manifest and the files that it names; empty where it is no manifest of ours, of whatever version."""
    try:
        raw = json.loads(file.read_bytes())
        versions = raw["schema_version"], raw["opset_version"], raw["bit_order"]
        names = {MANIFEST, raw["weights"], raw["test_vectors"]["file"], *(a["file"] for a in raw["artefacts"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
    return names if all(isinstance(v, int) for v in versions) and all(isinstance(n, str) for n in names) else set()


def _swap(staging: Path, target: Path) -> None:
    """Put ``staging`` in the place of ``target``, which is put back when that fails or is interrupted."""
    if not os.path.lexists(target):
        os.replace(staging, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    kept = old / "bundle"
    try:
        os.replace(target, kept)
        os.replace(staging, target)
    except BaseException:
        if os.path.lexists(kept) and not os.path.lexists(target):
            try:
                os.replace(kept, target)
            except OSError as e:
                raise BundleError(f"{target}: cannot be put back ({e.strerror or e}); it is now {kept}") from e
        shutil.rmtree(old, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


class Bundle:
    """An opened bundle; ``path / manifest.json`` is read and checked, artefacts are checked when asked for."""

    def __init__(self, path: Path, manifest: Manifest):
        self.path = Path(path)
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Read and validate the manifest. Raises :class:`BundleError`."""
        from irstd_edge.opspec import BIT_ORDER_LSB_PLUS_ONE, OPSET_VERSION

        file = Path(path) / MANIFEST
        if Path(path).is_file():
            raise BundleError(f"{path}: a file of a bundle; give its folder, {Path(path).parent}")
        try:
            raw = json.loads(file.read_text())
        except FileNotFoundError as e:
            raise BundleError(
                f"{path}: no {MANIFEST}; write a bundle with: irstd-edge export NETWORK --out {path}"
            ) from e
        except (OSError, ValueError, RecursionError) as e:
            raise BundleError(f"{file}: cannot be read ({e})") from e
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise BundleError(f"{file}: schema version {version}, this release reads {SCHEMA_VERSION}; export again")
        try:
            manifest = _decode(Manifest, raw)
        except ValueError as e:
            raise BundleError(f"{file}: malformed ({e}); export again") from e
        if manifest.opset_version != OPSET_VERSION or manifest.bit_order != BIT_ORDER_LSB_PLUS_ONE:
            raise BundleError(
                f"{file}: operator set {manifest.opset_version}, bit order {manifest.bit_order}; "
                f"this release runs {OPSET_VERSION} and {BIT_ORDER_LSB_PLUS_ONE}; export again"
            )
        return cls(Path(path), manifest)

    @property
    def kinds(self) -> list[str]:
        return [a.kind for a in self.manifest.artefacts]

    def artefact(self, kind: str) -> tuple[Artefact, Path]:
        """The entry and the verified file of one kind. Raises :class:`BundleError`."""
        for artefact in self.manifest.artefacts:
            if artefact.kind == kind:
                return artefact, self.file(artefact.file, artefact.sha256)
        raise BundleError(f"{self.path}: has no {kind} artefact (has {', '.join(self.kinds)}); export with --to {kind}")

    def weights(self) -> Path:
        return self.file(self.manifest.weights, self.manifest.weights_sha256)

    def test_vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and PyTorch's outputs, both float32 ``[N, 1, H, W]``."""
        return tuple(self._vectors("input", "probability"))

    def expected_outputs(self) -> list[np.ndarray]:
        """PyTorch's outputs for the test vectors, ``[N, ...]``: the probability and those kept besides."""
        return self._vectors("probability", *map(output_name, self.manifest.outputs[1:]))

    def _vectors(self, *names: str) -> list[np.ndarray]:
        vectors = self.manifest.test_vectors
        path = self.file(vectors.file, vectors.sha256)
        try:
            with np.load(path, allow_pickle=False) as data:
                return [data[name] for name in names]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as e:
            raise BundleError(f"{path}: holds no test vectors ({e}); export again") from e

    def file(self, name: str, digest: str) -> Path:
        """A file of the bundle, its hash checked; names must stay inside the folder."""
        path = self.path / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{self.path / MANIFEST}: names a file outside the bundle: {name}")
        if not path.is_file():
            raise BundleError(f"{path}: missing; export again")
        if sha256(path) != digest:
            raise BundleError(f"{path}: differs from its SHA-256 in {MANIFEST}; export again")
        return path


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into a (staged) folder."""
    write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")


#: Record and field -> what holds of its value besides its type, as a test and in words.
_RULES = {
    (Preprocessing, "std"): (lambda v: v > 0, "positive"),
    (Preprocessing, "size_multiple"): (lambda v: 1 <= v <= 4096, "between 1 and 4096"),
    (LayerPrecision, "bytes"): (lambda v: v >= 0, "not negative"),
    (LayerPrecision, "macs"): (lambda v: v is None or v >= 0, "not negative"),
    (Artefact, "kind"): (lambda v: v in ARTEFACTS, f"one of {', '.join(ARTEFACTS)}"),
    (Artefact, "bytes"): (lambda v: v >= 0, "not negative"),
    (Artefact, "layout"): (lambda v: v in ("NCHW", "NHWC"), "NCHW or NHWC"),
    (Artefact, "input"): (lambda v: v is None or min(v) > 0, "two positive numbers"),
    (TestVectors, "images"): (lambda v: v >= 0, "not negative"),
    (Manifest, "threshold"): (lambda v: 0 <= v <= 1, "between 0 and 1"),
    (Manifest, "reference_input"): (lambda v: min(v) > 0, "two positive numbers"),
    (Manifest, "outputs"): (lambda v: v and min(v) >= 0 and len(set(v)) == len(v), "different places"),
    (Manifest, "artefacts"): (lambda v: len({a.kind for a in v}) == len(v), "of different kinds"),
}
_WORDS = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


def _decode(record: type, raw: object, where: str = ""):
    """A dataclass from JSON, each field checked against its annotation. Raises ``ValueError`` naming the field."""
    if not isinstance(raw, dict):
        raise ValueError(f"{where or 'the manifest'} must be an object, got {_shorten(raw)}")
    hints, prefix, values = typing.get_type_hints(record), f"{where}." if where else "", {}
    if unknown := sorted(set(raw) - set(hints)):
        raise ValueError(f"unknown field {prefix}{_shorten(unknown[0])[1:-1]}")
    for f in fields(record):
        name = prefix + f.name
        if f.name not in raw:
            if f.default is MISSING and f.default_factory is MISSING:
                raise ValueError(f"{name} is missing")
            continue
        value = values[f.name] = _value(hints[f.name], raw[f.name], name)
        holds, words = _RULES.get((record, f.name), (None, ""))
        if holds and not holds(value):
            raise ValueError(f"{name} must be {words}, got {_shorten(raw[f.name])}")
    return record(**values)


def _value(hint, raw: object, name: str):
    """A value of a field's type: text, a number, a record, a tuple of these, or None."""
    if is_dataclass(hint):
        return _decode(hint, raw, name)
    parts = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return None if raw is None else _value(next(p for p in parts if p is not types.NoneType), raw, name)
    if parts:
        if not isinstance(raw, list):
            raise ValueError(f"{name} must be a list, got {_shorten(raw)}")
        if parts[-1] is Ellipsis:
            parts = parts[:1] * len(raw)
        if len(raw) != len(parts):
            raise ValueError(f"{name} must hold {len(parts)} values, got {_shorten(raw)}")
        return tuple(_value(p, r, f"{name}[{i}]") for i, (p, r) in enumerate(zip(parts, raw, strict=True)))
    # JSON writes a float without a fraction as a whole number; true and false are ints to Python, not to us.
    accepted = (int, float) if hint is float else hint
    right = isinstance(raw, accepted) and (hint is bool or not isinstance(raw, bool))
    if not right or (hint is float and not abs(raw) <= sys.float_info.max):
        raise ValueError(f"{name} must be {_WORDS[hint]}, got {_shorten(raw)}")
    return raw


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""The bundle: a folder of artefacts with one ``manifest.json``, written by export and opened by the runtimes.

The manifest holds what an artefact needs to be run and trusted: inputs and outputs, preprocessing, the precision
of every layer requested and realised, the SHA-256 of every file, and test vectors (an input and PyTorch's output).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
#: Artefact kinds in the order in which tables list them.
ARTEFACTS = ("onnx", "tflite", "portable")


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
    macs: int  # at the bundle's reference input
    reason: str = ""

    @property
    def downgraded(self) -> bool:
        return self.requested != self.realised


@dataclass(frozen=True)
class Artefact:
    """One exported file. ``input`` is [H, W] where the file has a fixed size, None where it is dynamic."""

    kind: str
    file: str
    sha256: str
    bytes: int
    layout: str  # NCHW or NHWC
    input: tuple[int, int] | None
    layers: tuple[LayerPrecision, ...]


@dataclass(frozen=True)
class TestVectors:
    """An npz of ``input`` (normalised, float32 [N, 1, H, W]) and ``probability`` (PyTorch's output)."""

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
    schema_version: int = SCHEMA_VERSION
    created: str = field(default="")


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

    Nothing is left behind on an error, and an existing bundle is replaced only with ``overwrite`` or where it
    is one of ours. Raises :class:`BundleError`.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise BundleError(f"{target} is a file; name a folder")
    if target.exists() and any(target.iterdir()) and not (overwrite or (target / MANIFEST).is_file()):
        raise BundleError(f"{target} exists and is no bundle; name another folder, or remove it first")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as e:
        raise BundleError(f"{target}: cannot be written ({e.strerror})") from e
    try:
        yield staging
        staging.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            os.replace(target, old / "bundle")
            os.replace(staging, target)
            shutil.rmtree(old)
        else:
            os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


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
        try:
            raw = json.loads(file.read_text())
        except FileNotFoundError as e:
            raise BundleError(
                f"{path}: no {MANIFEST}; write a bundle with: irstd-edge export NETWORK --out {path}"
            ) from e
        except (OSError, ValueError) as e:
            raise BundleError(f"{file}: cannot be read ({e})") from e
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise BundleError(f"{file}: schema version {version}, this release reads {SCHEMA_VERSION}; export again")
        try:
            manifest = _decode(Manifest, raw)
        except (TypeError, KeyError, ValueError) as e:
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
        vectors = self.manifest.test_vectors
        with np.load(self.file(vectors.file, vectors.sha256), allow_pickle=False) as data:
            return data["input"], data["probability"]

    def file(self, name: str, digest: str) -> Path:
        """A file of the bundle, its hash checked; names must stay inside the folder."""
        if not isinstance(name, str) or not isinstance(digest, str):
            raise BundleError(f"{self.path / MANIFEST}: a file and its SHA-256 must be text, got {name!r}, {digest!r}")
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
    temporary = folder / (MANIFEST + ".part")
    temporary.write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    os.replace(temporary, folder / MANIFEST)


_NESTED = {
    "preprocessing": Preprocessing,
    "test_vectors": TestVectors,
}


def _decode(kind: type, raw: dict):
    known = {f.name for f in fields(kind)}
    if not isinstance(raw, dict):
        raise ValueError(f"{kind.__name__} must be an object, got {raw!r}")
    if unknown := sorted(set(raw) - known):
        raise ValueError(f"unknown field {', '.join(unknown)}")
    values = dict(raw)
    for name, nested in _NESTED.items():
        if name in values:
            values[name] = _decode(nested, values[name])
    if kind is Manifest:
        values["artefacts"] = tuple(_decode(Artefact, a) for a in raw["artefacts"])
        values["reference_input"] = tuple(raw["reference_input"])
    if kind is Artefact:
        values["layers"] = tuple(LayerPrecision(**layer) for layer in raw["layers"])
        values["input"] = None if raw["input"] is None else tuple(raw["input"])
    return kind(**values)

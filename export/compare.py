"""Two files side by side, tensor by tensor, on one image."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from irstd_edge.bundle import MANIFEST, Bundle, Manifest
from irstd_edge.data import DataError, normalise, pad_to_multiple
from irstd_edge.errors import UnsupportedError
from irstd_edge.export.inspect import DEFAULT_SIZE, Inspection, inspect_path, kind_of
from irstd_edge.export.tensors import inner_tensors
from irstd_edge.runtimes.parity import Parity, compare
from irstd_edge.runtimes.session import Session

THRESHOLD = 0.5


@dataclass(frozen=True)
class TensorComparison:
    """One tensor that both files have; shape ``[C, H, W]`` or that of the file. See :class:`Parity`."""

    name: str
    shape: tuple[int, ...]
    max_abs: float
    cosine: float


@dataclass(frozen=True)
class Comparison:
    """``output``: of an ordinary run of both files. ``tensors``: inner ones of one name and shape, in the order of the
    first file; ``only``: how many other inner tensors each file has."""

    files: tuple[Inspection, Inspection]
    input: str
    threshold: float
    output: Parity
    tensors: tuple[TensorComparison, ...]
    only: tuple[int, int]

    def as_dict(self) -> dict:
        """For JSON: a difference that is not finite is null."""
        def finite(record) -> dict:
            return {k: None if v == np.inf else v for k, v in asdict(record).items()}

        return {"input": self.input, "threshold": self.threshold, "output": finite(self.output),
                "tensors": [finite(t) for t in self.tensors], "only": list(self.only),
                "files": [f.as_dict() for f in self.files]}


def compare_files(paths: tuple[Path, Path], image: Path | None = None, size: tuple[int, int] | None = None,
                  seed: int = 0) -> Comparison:
    """Run two files on one input, normalised as a bundle's manifest beside one of them says.

    Args:
        paths: ``.irstd``, ``.onnx`` or ``.tflite`` each.
        image: an image, zero-padded to the network's multiple; its own mean and deviation are taken without a manifest.
            Default: normal noise.
        size: (H, W) of the noise; default that of a file that has one, else the manifest's, else 256 x 256.
        seed: of the noise.

    Raises :class:`~irstd_edge.errors.UnsupportedError` (a file, or outputs of different shapes), and what opening
    and running a file raises.
    """
    kinds = tuple(kind_of(path) for path in paths)
    manifest = next(filter(None, map(_manifest_beside, paths)), None)
    if image is None:
        size = size or _size(paths, kinds, manifest)
        x = np.random.default_rng(seed).standard_normal((1, 1, *size)).astype(np.float32)
        source = f"normal noise of seed {seed}, {size[0]}x{size[1]}"
    else:
        x, source = _read(image, manifest)
    inspections = tuple(inspect_path(path, x.shape[2:])[0] for path in paths)
    outputs = [_open(path, kind, x.shape[2:]).run(x) for path, kind in zip(paths, kinds, strict=True)]
    if outputs[0].shape != outputs[1].shape:
        raise UnsupportedError(f"{paths[0]} gives {list(outputs[0].shape)}, {paths[1]} {list(outputs[1].shape)}: "
                               "outputs of different shapes cannot be compared")
    threshold = THRESHOLD if manifest is None else manifest.threshold
    first, second = (inner_tensors(path, kind, x) for path, kind in zip(paths, kinds, strict=True))
    common = [name for name in first if name in second and first[name].shape == second[name].shape]
    tensors = []
    for name in common:
        parity = compare(first[name], second[name], threshold)
        shape = first[name].shape
        tensors.append(TensorComparison(name, shape[1:] if len(shape) == 4 else shape, parity.max_abs, parity.cosine))
    return Comparison(inspections, source, threshold, compare(*outputs, threshold), tuple(tensors),
                      (len(first) - len(common), len(second) - len(common)))


def _manifest_beside(path: Path) -> Manifest | None:
    return Bundle.open(path.parent).manifest if (path.parent / MANIFEST).is_file() else None


def _size(paths: tuple[Path, Path], kinds: tuple[str, ...], manifest: Manifest | None) -> tuple[int, int]:
    """The size of noise that both files run."""
    for path, kind in zip(paths, kinds, strict=True):
        if kind == "tflite":
            from irstd_edge.export.inspect_tflite import inspect_tflite

            return inspect_tflite(path).input
        if kind == "onnx":
            from irstd_edge.export.inspect_onnx import fixed_size, load_onnx

            if (size := fixed_size(load_onnx(path))) is not None:
                return size
    return DEFAULT_SIZE if manifest is None else tuple(manifest.reference_input)


def _read(path: Path, manifest: Manifest | None) -> tuple[np.ndarray, str]:
    from irstd_edge.runtimes.video import is_video, read_all

    if not path.is_file() or is_video(path):
        raise DataError(f"{path}: is no image; name one")
    image = next(iter(read_all(path, 1))).image
    if manifest is None:
        deviation = float(image.std()) or 1.0
        x, how, multiple = (image - image.mean()) / deviation, "its own mean and deviation", 32
    else:
        preprocessing = manifest.preprocessing
        x, multiple = normalise(image, preprocessing), preprocessing.size_multiple
        how = f"mean {preprocessing.mean:g} and deviation {preprocessing.std:g}"
    x = np.ascontiguousarray(pad_to_multiple(x, multiple), np.float32)[None, None]
    return x, f"{path.name} by {how}, {x.shape[2]}x{x.shape[3]}"


def _open(path: Path, kind: str, size: tuple[int, int]) -> Session:
    if kind == "native":
        from irstd_edge.runtimes.native import NativeSession

        return NativeSession(path, size)
    if kind == "onnx":
        from irstd_edge.runtimes.ort import OrtSession

        return OrtSession("onnx", path, 1, custom_operators=True)
    from irstd_edge.runtimes.tflite import TfliteSession

    return TfliteSession("tflite", path, 1, resizable=True)

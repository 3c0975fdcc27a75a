"""Bundles, data and workers to benchmark without a runtime; their sessions are in :mod:`fake_sessions`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from irstd_edge.benchmarks import worker
from irstd_edge.benchmarks.measure import Candidate
from irstd_edge.bundle import Artefact, LayerPrecision, Manifest, Preprocessing, TestVectors, sha256, write_manifest

OPENER = "fake_sessions:open_fake"


def make_bundle(folder: Path, network: str, kinds: tuple[str, ...], trained: bool) -> Path:
    """A bundle whose artefacts are empty files; :mod:`fake_sessions` opens it."""
    folder.mkdir(parents=True)
    compressed = "W1A1" if network == "tiny" else "float32"
    layers = (
        LayerPrecision("stem", "Conv", "float32", "float32", 640, 589824),
        LayerPrecision("encoder.0", "irstd.BinaryConv2d" if compressed == "W1A1" else "Conv", compressed, compressed,
                       72, 9437184),
        LayerPrecision("<script>alert(1)</script>", "Conv", "W4A8", "float32", 68, 65536, "no 4-bit kernel here"),
    )  # fmt: skip
    x = np.zeros((2, 1, 64, 64), np.float32)
    x[:, :, 20:23, 30:33] = 3
    np.savez(folder / "vectors.npz", input=x, probability=(1 / (1 + np.exp(4 - 3 * x))).astype(np.float32))
    (folder / "weights.bin").write_bytes(b"weights")
    artefacts = []
    for kind in kinds:
        file = folder / f"model.{kind}"
        file.write_bytes(kind.encode() * 100)
        fixed = (64, 64) if kind == "tflite" else None
        artefacts.append(Artefact(kind, file.name, sha256(file), file.stat().st_size, "NCHW", fixed, layers))
    write_manifest(folder, Manifest(
        network=network, tool_version="0", opset_version=1, bit_order=1, checkpoint_sha256="0" if trained else None,
        weights="weights.bin", weights_sha256=sha256(folder / "weights.bin"), factory=network,
        preprocessing=Preprocessing(100.0, 30.0, 32), threshold=0.5, reference_input=(64, 64),
        artefacts=tuple(artefacts), test_vectors=TestVectors("vectors.npz", sha256(folder / "vectors.npz"), 2),
    ))  # fmt: skip
    return folder


def make_dataset(root: Path) -> Path:
    """Two images of one target each, in the BasicIRSTD layout."""
    for kind in ("images", "masks", "img_idx"):
        (root / "toy" / kind).mkdir(parents=True)
    for i, size in enumerate(((64, 64), (50, 60))):
        image, mask = np.full(size, 90, np.uint8), np.zeros(size, np.uint8)
        image[10:14, 20:24], mask[10:14, 20:24] = 220, 255
        Image.fromarray(image).save(root / "toy/images" / f"{i}.png")
        Image.fromarray(mask).save(root / "toy/masks" / f"{i}.png")
    (root / "toy/img_idx/test_toy.txt").write_text("0\n1\n")
    return root


class FakeClock:
    """A clock that only runs move."""

    def __init__(self):
        self.now = 0

    def tick(self, milliseconds: float) -> None:
        self.now += round(milliseconds * 1e6)


class FakeWorker:
    """In this process: the real burst over a call that takes ``milliseconds`` of the clock; requests are logged."""

    def __init__(self, network: str, clock: FakeClock, milliseconds: float, log: list):
        self.candidate = Candidate(network, "onnx", 1, "bundle")
        self.runs, self.log = 0, log
        self._state = worker.Candidate()

        def call() -> None:
            self.runs += 1
            clock.tick(milliseconds)

        self._state.call = call

    def ask(self, do: str, **request) -> dict:
        self.log.append((self.candidate.network, request))
        return getattr(self._state, do)(request)

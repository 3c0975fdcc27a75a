"""Sessions without a runtime, for workers in tests: they sleep as long as their artefact says."""

from __future__ import annotations

import os
import time

import numpy as np

from irstd_edge.bundle import Bundle
from irstd_edge.errors import MissingError, UnsupportedError
from irstd_edge.runtimes.session import Session

#: (network, artefact) -> milliseconds of one run, long against the wake-ups of a busy machine.
MILLISECONDS = {("tiny", "torch"): 8.0, ("tiny", "onnx"): 2.0, ("tiny", "tflite"): 2.8, ("tiny", "portable"): 6.0}


class FakeSession(Session):
    """The probability is a logistic curve over the image."""

    def __init__(self, network: str, artefact: str):
        self.artefact, self.runtime = artefact, f"fake-{artefact} 1.0"
        self.isa = "avx2" if network == "tiny" and artefact in ("onnx", "tflite") else None
        self.seconds = MILLISECONDS.get((network, artefact), 8.0) / 1e3
        self.offset = np.float32(1e-7 if artefact == "tflite" else 0)

    def run(self, x: np.ndarray) -> np.ndarray:
        if self.artefact == "tflite" and x.shape[-1] > 64:
            raise UnsupportedError("written for 64x64 images")
        return (1 / (1 + np.exp(4 - 3 * x)) + self.offset).astype(np.float32)

    def prepare(self, x: np.ndarray):
        return lambda: time.sleep(self.seconds)


def open_fake(bundle: str, artefact: str, threads: int) -> Session:
    """``FAKE_FAULT=<artefact>:<crash|missing|raise>`` makes one artefact fail."""
    victim, _, fault = os.environ.get("FAKE_FAULT", "").partition(":")
    if artefact == victim:
        if fault == "crash":
            os.abort()
        raise MissingError("no such runtime; get it") if fault == "missing" else RuntimeError("two\nlines")
    print("chatter on standard output")
    return FakeSession(Bundle.open(bundle).manifest.network, artefact)

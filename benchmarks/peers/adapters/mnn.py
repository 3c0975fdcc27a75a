"""MNN: the ONNX file through its converter, float32."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

# Importing this part of the package runs pip and sends usage data; the converter itself is another module.
sys.modules["MNN.tools"] = None


def preload(artefact: str) -> None:
    import MNN  # noqa: F401


def convert(work: Path, out: Path, precision: str) -> None:
    import _tools

    _tools.mnnconvert([
        "mnnconvert", "-f", "ONNX", "--modelFile", str(work / "model.onnx"), "--MNNModel", str(out / "model.mnn"),
        "--bizCode", "peers",
    ])  # fmt: skip
    if not (out / "model.mnn").exists():
        raise RuntimeError("the converter wrote no model")


class Session:
    """One MNN file; the input is copied into MNN's own layout outside the timed call."""

    isa = None

    def __init__(self, path: Path, threads: int):
        import MNN

        self.mnn, self.runtime = MNN, f"MNN {MNN.version()}"
        self.interpreter = MNN.Interpreter(str(path))
        settings = {"backend": "CPU", "numThread": threads, "precision": "high"}
        self.session = self.interpreter.createSession(settings)

    def run(self, x: np.ndarray) -> np.ndarray:
        self.prepare(x)()
        source = self.interpreter.getSessionOutput(self.session)
        plain = np.empty(source.getShape(), np.float32)
        host = self.mnn.Tensor(
            source.getShape(), self.mnn.Halide_Type_Float, plain, self.mnn.Tensor_DimensionType_Caffe
        )
        source.copyToHostTensor(host)
        return np.array(host.getNumpyData(), np.float32).reshape(plain.shape)

    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        plain = np.ascontiguousarray(x)
        host = self.mnn.Tensor(x.shape, self.mnn.Halide_Type_Float, plain, self.mnn.Tensor_DimensionType_Caffe)
        self.interpreter.getSessionInput(self.session).copyFrom(host)
        return lambda: self.interpreter.runSession(self.session)


def open_session(bundle: str, artefact: str, threads: int) -> Session:
    return Session(Path(bundle) / "model.mnn", threads)

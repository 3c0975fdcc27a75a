"""ncnn: the TorchScript file through pnnx, float32."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np


def preload(artefact: str) -> None:
    import ncnn  # noqa: F401


def convert(work: Path, out: Path, precision: str) -> None:
    import importlib.util

    # The program inside the package: importing the package needs torch.
    program = Path(importlib.util.find_spec("pnnx").submodule_search_locations[0]) / "pnnx"
    shutil.copy(work / "model.pt", out / "model.pt")
    shape = [1, *np.load(work / "inputs.npz")["check"].shape[1:]]
    command = [program, "model.pt", f"inputshape=[{','.join(map(str, shape))}]", "fp16=0"]
    subprocess.run(command, cwd=out, check=True)


class Session:
    """One network; reading the input and copying the output are part of ncnn's only way to run it."""

    isa = None

    def __init__(self, folder: Path, threads: int):
        import ncnn

        self.ncnn, self.runtime = ncnn, f"ncnn {ncnn.__version__}"
        self.net = ncnn.Net()
        options = self.net.opt
        options.num_threads, options.use_vulkan_compute = threads, False
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_storage = False
        if self.net.load_param(str(folder / "model.ncnn.param")) or self.net.load_model(str(folder / "model.ncnn.bin")):
            raise RuntimeError("cannot load the model")

    def run(self, x: np.ndarray) -> np.ndarray:
        return np.array(self._extract(self._matrix(x)))[None]

    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        matrix = self._matrix(x)
        return lambda: self._extract(matrix)

    def _matrix(self, x: np.ndarray):
        return self.ncnn.Mat(np.ascontiguousarray(x[0])).clone()

    def _extract(self, matrix):
        extractor = self.net.create_extractor()
        extractor.input("in0", matrix)
        code, result = extractor.extract("out0")
        if code:
            raise RuntimeError(f"extract returned {code}")
        return result


def open_session(bundle: str, artefact: str, threads: int) -> Session:
    return Session(Path(bundle), threads)

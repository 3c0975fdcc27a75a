"""OpenVINO: the ONNX file in float32, or quantised by NNCF's post-training quantisation."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np


def preload(artefact: str) -> None:
    import openvino  # noqa: F401


def convert(work: Path, out: Path, precision: str) -> None:
    import openvino

    model = openvino.Core().read_model(work / "model.onnx")
    if precision == "int8":
        import nncf

        images = np.load(work / "inputs.npz")["calibration"]
        model = nncf.quantize(model, nncf.Dataset([image[None] for image in images]), subset_size=len(images))
    # Channels last outside, as inside: a layer alone would spend most of its time on reordering.
    steps = openvino.preprocess.PrePostProcessor(model)
    for side in (steps.input(), steps.output()):
        side.tensor().set_layout(openvino.Layout("NHWC"))
        side.model().set_layout(openvino.Layout("NCHW"))
    model = steps.build()
    openvino.save_model(model, out / "model.xml", compress_to_fp16=False)


class Session:
    """One compiled model; float32 wherever the file says so (no bfloat16). ``isa``: of the kernels it chose."""

    def __init__(self, path: Path, threads: int):
        import openvino

        self.runtime = f"openvino {openvino.__version__.split('-')[0]}"
        settings = {
            "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False, "CPU_DENORMALS_OPTIMIZATION": True,
        }  # fmt: skip
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
        nodes = compiled.get_runtime_model().get_ops()
        kernels = " ".join(node.get_rt_info()["primitiveType"].astype(str) for node in nodes)
        self.isa = "+".join(sorted(set(re.findall(r"(?<=_)(?:avx2|avx512|amx)", kernels)))) or None
        self.request = compiled.create_infer_request()

    def run(self, x: np.ndarray) -> np.ndarray:
        self.prepare(x)()
        return self.request.get_output_tensor().data.transpose(0, 3, 1, 2).copy()

    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        self.request.get_input_tensor().data[:] = x.transpose(0, 2, 3, 1)
        return self.request.infer


def open_session(bundle: str, artefact: str, threads: int) -> Session:
    return Session(Path(bundle) / "model.xml", threads)

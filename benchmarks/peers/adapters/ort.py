"""ONNX Runtime: the ONNX file as it is, or quantised to QDQ int8 (per channel, static)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np


def preload(artefact: str) -> None:
    import onnxruntime  # noqa: F401


def convert(work: Path, out: Path, precision: str) -> None:
    source = work / "model.onnx"
    if precision == "fp32":
        (out / "model.onnx").write_bytes(source.read_bytes())
        return
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.images = iter(np.load(work / "inputs.npz")["calibration"])

        def get_next(self) -> dict | None:
            image = next(self.images, None)
            return None if image is None else {"input": image[None]}

    quant_pre_process(source, out / "prepared.onnx", skip_symbolic_shape=True)
    quantize_static(
        out / "prepared.onnx", out / "model.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


class Session:
    """One ONNX file, input and output bound once."""

    isa = None

    def __init__(self, path: Path, threads: int):
        import onnxruntime

        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.session.get_inputs()[0].name: x})[0]

    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        from onnxruntime import OrtValue

        binding = self.session.io_binding()
        keep = OrtValue.ortvalue_from_numpy(x.copy()), OrtValue.ortvalue_from_numpy(self.run(x))
        binding.bind_ortvalue_input(self.session.get_inputs()[0].name, keep[0])
        binding.bind_ortvalue_output(self.session.get_outputs()[0].name, keep[1])
        return lambda keep=keep: self.session.run_with_iobinding(binding)


def open_session(bundle: str, artefact: str, threads: int) -> Session:
    return Session(Path(bundle) / "model.onnx", threads)

"""Runs every NAME.onnx of a folder on NAME-x.npy in OpenVINO and writes NAME-y.npy: ``FOLDER``."""

import sys
from pathlib import Path

import numpy as np
import openvino

core = openvino.Core()
for file in sorted(Path(sys.argv[1]).glob("*.onnx")):
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = core.compile_model(core.read_model(file), "CPU", settings)
    np.save(file.with_name(f"{file.stem}-y.npy"), model(np.load(file.with_name(f"{file.stem}-x.npy")))[0])

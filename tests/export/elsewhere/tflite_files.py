"""Runs every NAME.tflite of a folder on NAME-x.npy (NHWC) and writes NAME-y.npy: ``FOLDER MODULE [DELEGATE]``.

MODULE: ``tensorflow`` or ``tflite_runtime.interpreter``.
"""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np

folder, name, *delegate = sys.argv[1:]
module = import_module(name)
interpreters, load = ((module.lite, module.lite.experimental.load_delegate) if name == "tensorflow"
                      else (module, module.load_delegate))
for file in sorted(Path(folder).glob("*.tflite")):
    ours = b"irstd." in file.read_bytes()
    interpreter = interpreters.Interpreter(
        model_path=str(file), num_threads=1, experimental_delegates=[load(delegate[0])] if ours else None)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.load(file.with_name(f"{file.stem}-x.npy")))
    interpreter.invoke()
    np.save(file.with_name(f"{file.stem}-y.npy"), interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))

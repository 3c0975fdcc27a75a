"""One inference of a real runtime with our library; runs in this machine's Python and in the emulated one.

Writes every map that the runtime lets one read, by name, the output as ``probability``.
"""

import sys
from contextlib import suppress

import numpy as np


def onnx(path, library, x):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))


def tflite(path, library, x):
    from ai_edge_litert.interpreter import Interpreter, load_delegate

    interpreter = Interpreter(path, experimental_delegates=[load_delegate(library)], num_threads=1,
                              experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
    interpreter.invoke()
    maps = {}
    for detail in interpreter.get_tensor_details():
        with suppress(ValueError):  # what a delegate keeps to itself
            maps[detail["name"]] = interpreter.get_tensor(detail["index"])
    return maps


_, runtime, path, library, inputs, output = sys.argv
np.savez(output, **{"onnx": onnx, "tflite": tflite}[runtime](path, library, np.load(inputs)))

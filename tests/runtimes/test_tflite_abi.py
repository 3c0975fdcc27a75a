"""tflite_abi.h against TFLite's own header (2.14): every field, size and constant."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ADAPTER = Path(__file__).resolve().parents[2] / "runtimes" / "native" / "adapters" / "tflite"

#: Ours -> TFLite's, and whether ours is the whole struct (a context's tail is left out).
STRUCTS = {
    "tfl_int_array": ("TfLiteIntArray", True),
    "tfl_quantization_params": ("TfLiteQuantizationParams", True),
    "tfl_quantization": ("TfLiteQuantization", True),
    "tfl_tensor": ("TfLiteTensor", True),
    "tfl_node": ("TfLiteNode", True),
    "tfl_registration": ("TfLiteRegistration", True),
    "tfl_delegate": ("TfLiteDelegate", True),
    "tfl_delegate_params": ("TfLiteDelegateParams", True),
    "tfl_context": ("TfLiteContext", False),
}
CONSTANTS = {
    "TFL_OK": "kTfLiteOk", "TFL_ERROR": "kTfLiteError", "TFL_DELEGATE_ERROR": "kTfLiteDelegateError",
    "TFL_FLOAT32": "kTfLiteFloat32", "TFL_INT32": "kTfLiteInt32", "TFL_UINT8": "kTfLiteUInt8",
    "TFL_MEM_NONE": "kTfLiteMemNone", "TFL_MMAP_RO": "kTfLiteMmapRo", "TFL_DYNAMIC": "kTfLiteDynamic",
    "TFL_PERSISTENT_RO": "kTfLitePersistentRo",
    "TFL_OPTIONAL_TENSOR": "kTfLiteOptionalTensor", "TFL_NULL_BUFFER_HANDLE": "kTfLiteNullBufferHandle",
    "TFL_DELEGATE_ALLOW_DYNAMIC_TENSORS": "kTfLiteDelegateFlagsAllowDynamicTensors",
}


def fields(name: str) -> list[str]:
    """Field names of one of our structs, from the text of the header."""
    text = re.sub(r"/\*.*?\*/", "", (ADAPTER / "tflite_abi.h").read_text(), flags=re.S)
    for body, alias in re.findall(r"typedef struct (?:\w+ )?\{(.*?)\} (\w+);", text, flags=re.S):
        if alias == name:
            found = [re.search(r"\(\*(\w+)\)", d) or re.search(r"(\w+)(?:\[\])?$", d.strip())
                     for d in body.split(";") if d.strip()]
            return [m.group(1) for m in found]
    raise AssertionError(name)


def test_every_struct_is_covered():
    text = (ADAPTER / "tflite_abi.h").read_text()
    assert set(re.findall(r"^\} (tfl_\w+);", text, flags=re.M)) == set(STRUCTS)
    used = set(re.findall(r"\bTFL_[A-Z0-9_]+\b", text))
    assert used == set(CONSTANTS)
    assert fields("tfl_context")[-1] == "recommended_num_threads"
    assert len(fields("tfl_tensor")) == 15


@pytest.mark.slow
def test_matches_the_real_header(compiler, tflite_headers, tmp_path):
    lines = ['#include "tensorflow/lite/core/c/common.h"', '#include "tflite_abi.h"']
    for ours, (theirs, whole) in STRUCTS.items():
        for field in fields(ours):
            a, b = f"(({ours} *)0)->{field}", f"(({theirs} *)0)->{field}"
            lines.append(f'_Static_assert(offsetof({ours}, {field}) == offsetof({theirs}, {field}), "{ours}.{field}");')
            if field != "data" or ours != "tfl_int_array":
                lines.append(f'_Static_assert(sizeof({a}) == sizeof({b}), "size of {ours}.{field}");')
        if whole:
            lines.append(f'_Static_assert(sizeof({ours}) == sizeof({theirs}), "size of {ours}");')
    lines += [f'_Static_assert((int){ours} == (int){theirs}, "{ours}");' for ours, theirs in CONSTANTS.items()]
    lines.append('_Static_assert(sizeof(tfl_status) == sizeof(TfLiteStatus), "tfl_status");')
    source = tmp_path / "abi.c"
    source.write_text("\n".join(lines) + "\n")
    done = subprocess.run([compiler, "-std=gnu11", "-c", "-o", tmp_path / "abi.o", f"-I{tflite_headers}",
                           f"-I{ADAPTER}", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

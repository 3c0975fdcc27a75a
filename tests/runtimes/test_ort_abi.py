"""ort_abi.h against ONNX Runtime's own header: every slot, function type, field and constant."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ADAPTER = Path(__file__).resolve().parents[2] / "runtimes" / "native" / "adapters" / "ort"

CONSTANTS = [
    "ORT_OK", "ORT_FAIL", "ORT_INVALID_ARGUMENT", "ORT_NOT_IMPLEMENTED", "ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED",
    "ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT", "ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32",
    "ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8", "INPUT_OUTPUT_REQUIRED",
    "INPUT_OUTPUT_OPTIONAL", "INPUT_OUTPUT_VARIADIC", "OrtMemTypeCPUInput", "OrtMemTypeDefault",
]

AGAINST_REAL = """
#include "onnxruntime_c_api.h"
#include "ort_abi.h"
#define SAME(a, b) __builtin_types_compatible_p(a, b)
#define CHECK(slot, result, name, arguments) \\
    _Static_assert(offsetof(OrtApi, name) == slot * sizeof(void *), "slot of " #name); \\
    _Static_assert(SAME(__typeof__(((OrtApi *)0)->name), irstd_ort_##name), "type of " #name);
IRSTD_ORT_FUNCTIONS(CHECK)
#define FIELD(result, name, arguments) \\
    _Static_assert(offsetof(OrtCustomOp, name) == offsetof(irstd_ort_custom_op, name), "offset of " #name); \\
    _Static_assert(SAME(__typeof__(((OrtCustomOp *)0)->name), __typeof__(((irstd_ort_custom_op *)0)->name)), \\
                   "type of " #name);
IRSTD_ORT_CUSTOM_OP_FIELDS(FIELD)
_Static_assert(offsetof(OrtCustomOp, version) == 0 && offsetof(irstd_ort_custom_op, version) == 0, "version");
_Static_assert(sizeof(irstd_ort_custom_op) >= sizeof(OrtCustomOp), "size of OrtCustomOp");
_Static_assert(offsetof(OrtApiBase, GetApi) == 0 && offsetof(OrtApiBase, GetVersionString) == sizeof(void *), "base");
_Static_assert(IRSTD_ORT_API_LEVEL <= ORT_API_VERSION, "level");
"""


def compile_text(compiler: str, text: str, tmp_path: Path, *include: Path) -> None:
    source = tmp_path / "abi.c"
    source.write_text(text)
    done = subprocess.run([compiler, "-std=gnu11", "-Wall", "-c", "-o", tmp_path / "abi.o",
                           *(f"-I{i}" for i in include), source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_matches_the_real_header(compiler, ort_headers, tmp_path):
    compile_text(compiler, AGAINST_REAL, tmp_path, ort_headers, ADAPTER)


@pytest.mark.slow
def test_constants_match(compiler, ort_headers, tmp_path):
    """Enumerators cannot be declared twice in one file, so both values are printed and compared."""
    values = []
    for header, include in (("onnxruntime_c_api.h", ort_headers), ("ort_abi.h", ADAPTER)):
        source, program = tmp_path / "values.c", tmp_path / "values"
        source.write_text(f'#include "{header}"\n#include <stdio.h>\nint main(void) {{\n'
                          + "".join(f'    printf("{name} %d\\n", (int){name});\n' for name in CONSTANTS) + "}\n")
        subprocess.run([compiler, f"-I{include}", source, "-o", program], check=True)
        values.append(subprocess.run([program], capture_output=True, text=True, check=True).stdout)
    assert values[0] == values[1]
    assert len(values[0].splitlines()) == len(CONSTANTS)


def test_the_check_sees_a_wrong_slot(compiler, tmp_path):
    """The method itself: a struct whose second function moved is caught."""
    fake = "typedef struct { int (*a)(void); int (*b)(void); } Api;\n"
    good = fake + "#include <stddef.h>\n_Static_assert(offsetof(Api, b) == 1 * sizeof(void *), \"slot\");\n"
    compile_text(compiler, good, tmp_path)
    with pytest.raises(AssertionError, match="slot"):
        compile_text(compiler, good.replace("== 1", "== 2"), tmp_path)

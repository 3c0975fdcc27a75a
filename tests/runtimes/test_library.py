"""Finding the native libraries, and what they tell about instruction sets."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from irstd_edge.errors import MissingError, UnsupportedError
from irstd_edge.runtimes import library


@pytest.mark.parametrize("runtime", library.LIBRARIES)
def test_isas(libraries, runtime, monkeypatch):
    isas = library.available_isas(runtime)
    assert isas[0] == "ref"
    monkeypatch.delenv("IRSTD_ISA", raising=False)
    assert library.selected_isa(runtime) == isas[-1]
    monkeypatch.setenv("IRSTD_ISA", "ref")
    assert library.selected_isa(runtime) == "ref"
    monkeypatch.setenv("IRSTD_ISA", "abacus")
    with pytest.raises(UnsupportedError, match=r"IRSTD_ISA=abacus: not in this build.*available here: ref"):
        library.selected_isa(runtime)


def test_a_missing_library(monkeypatch, tmp_path):
    monkeypatch.setenv(library.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(MissingError, match=r"libirstd_ort.so: missing; IRSTD_LIBRARY_DIR must name"):
        library.find("ort")
    monkeypatch.delenv(library.FOLDER_VARIABLE)
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    with pytest.raises(MissingError, match=r"make build.*pip install --force-reinstall irstd-edge"):
        library.find("tflite")


def test_a_library_that_does_not_load(monkeypatch, tmp_path):
    (tmp_path / "libirstd_ort.so").write_bytes(b"no library")
    monkeypatch.setenv(library.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(MissingError, match=r"cannot be loaded"):
        library.available_isas()


@pytest.mark.parametrize("runtime, entries", [
    ("ort", {"RegisterCustomOps"}),
    ("tflite", {"tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate"}),
])
def test_exports_and_dependencies(libraries, runtime, entries):
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    symbols = subprocess.run(["nm", "-D", library.find(runtime)], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in symbols.splitlines()]
    defined = {row[-1] for row in rows if row[-2] in "TDBR"}
    assert {name for name in defined if not name.startswith("irstd_library_")} == entries
    assert not [row[-1] for row in rows if row[-2] == "U" and row[-1].startswith(("Ort", "TfLite", "_Z"))]

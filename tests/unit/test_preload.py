"""A benchmark's worker imports the runtime before the clock of its loading time starts."""

import sys

import pytest

from irstd_edge.benchmarks.worker import preload


@pytest.fixture
def interpreters(tmp_path, monkeypatch):
    """Neither interpreter of TFLite can be imported; yields a folder on Python's path to put one into."""
    for name in ("ai_edge_litert", "tflite_runtime"):
        for module in [m for m in sys.modules if m.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for module in [m for m in sys.modules if m.split(".")[0] == "tflite_runtime"]:
        del sys.modules[module]


def test_either_tflite_interpreter_is_preloaded(interpreters):
    package = interpreters / "tflite_runtime"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "interpreter.py").touch()
    record = interpreters / "tflite_runtime-2.14.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Name: tflite-runtime\nVersion: 2.14.0\n")
    preload("tflite")
    assert "tflite_runtime.interpreter" in sys.modules


def test_what_is_missing_is_told_later(interpreters, monkeypatch):
    monkeypatch.setitem(sys.modules, "tflite_runtime", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for artefact in ("tflite", "onnx", "portable", "of another kind"):
        preload(artefact)

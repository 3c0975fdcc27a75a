import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from irstd_edge import errors
from irstd_edge.cli import main
from irstd_edge.runtimes import environment, library


@pytest.fixture
def libraries(monkeypatch):
    """Native libraries that are there and load (Python's own sqlite extension stands for them)."""
    import _sqlite3

    monkeypatch.setattr(library, "find", lambda name: Path(_sqlite3.__file__))
    monkeypatch.setattr(library, "available_isas", lambda: ["ref", "avx2"])
    monkeypatch.setattr(library, "selected_isa", lambda: "avx2")


def by_name(found):
    return {c["name"]: c for c in found["checks"]}


def test_json_of_a_complete_machine(libraries, tmp_path, capsys):
    assert main(["doctor", "--json", str(tmp_path / "d.json")]) == errors.OK
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["ok"] and found["isas"] == ["ref", "avx2"]
    assert found["selected_isa"] == "avx2" and found["cores"] >= 1 and found["cpu"]
    checks = by_name(found)
    assert {"python", "torch", "onnx", "onnxruntime", "ai-edge-litert", "tflite-runtime", "tensorflow", "cc", "cmake",
            "ffmpeg", "adb", "trtexec", "atc", "libirstd_ort.so", "libirstd_tflite.so", "libirstd.so"} <= set(checks)
    assert checks["torch"]["version"] == metadata.version("torch")
    assert all(c["fix"] for c in checks.values() if not c["found"])
    assert all(c["group"] in environment.GROUPS for c in checks.values())
    out = capsys.readouterr().out
    assert "selected: avx2" in out and "kernels: ref, avx2" in out


def test_a_missing_library_is_exit_5_with_the_way_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(library.FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / "libirstd_tflite.so").write_bytes(b"no library")
    assert main(["doctor", "--json", str(tmp_path / "d.json")]) == errors.MISSING
    found = json.loads((tmp_path / "d.json").read_text())
    assert not found["ok"] and found["isas"] == [] and found["selected_isa"] is None
    assert not any(by_name(found)[name]["found"] for name in library.LIBRARIES.values())
    assert "pip install" in capsys.readouterr().err


def test_a_package_that_is_absent_or_broken(monkeypatch):
    absent = environment._package(environment.Package("nowhere", "no-such-distribution", "runtimes", False, "get it"))
    assert not absent.found and absent.fix == "get it" and absent.detail == ""
    monkeypatch.setitem(sys.modules, "onnx", None)
    broken = environment._package(environment.Package("onnx", "onnx", "core", True, "get it"))
    assert not broken.found and "fails to import" in broken.detail


def test_an_isa_that_cannot_be_had_is_exit_5_with_the_way_out(libraries, monkeypatch, tmp_path, capsys):
    def fail():
        raise errors.UnsupportedError("IRSTD_ISA=x: unknown")

    monkeypatch.setattr(library, "selected_isa", fail)
    assert main(["doctor", "--json", str(tmp_path / "d.json")]) == errors.MISSING
    found = json.loads((tmp_path / "d.json").read_text())
    assert not found["ok"] and found["isas"] == ["ref", "avx2"] and found["selected_isa"] is None
    assert by_name(found)["IRSTD_ISA"]["detail"] == "IRSTD_ISA=x: unknown"
    assert "unset IRSTD_ISA, or set it to one of ref, avx2" in capsys.readouterr().err


def test_a_tool_that_is_absent(monkeypatch):
    monkeypatch.setenv("PATH", "")
    check = environment._tool("adb", "devices", ("version",), "apt install adb")
    assert not check.found and check.fix == "apt install adb"

"""`irstd-edge inspect` on every kind of file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from program_cases import SIZE, Builder, small, write_bundle
from test_sessions import NODE, make_case, onnx_file, tflite_file

from irstd_edge import errors
from irstd_edge.cli import main
from irstd_edge.program import write
from irstd_edge.runtimes import library

pytestmark = pytest.mark.usefixtures("libraries")


def inspect(path, *options):
    return main(["inspect", str(path), *map(str, options)])


def result(path, tmp_path, *options):
    assert inspect(path, "--json", tmp_path / "i.json", *options) == errors.OK
    return json.loads((tmp_path / "i.json").read_text())


def test_a_native_file(tmp_path, capsys):
    (tmp_path / "model.irstd").write_bytes(write(small()))
    found = result(tmp_path / "model.irstd", tmp_path, "--input-size", "16x24")
    assert (found["file"], found["kind"], found["input"]) == ("model.irstd", "native", list(SIZE))
    assert found["isa"] == library.selected_isa("native") and found["file_bytes"] == len(write(small()))
    assert found["arena_bytes"] >= found["arena_lower_bound_bytes"] > 0
    layers = found["layers"]
    assert [layer["name"] for layer in layers] == [node.name for node in small().nodes]
    assert [layer["precision"] for layer in layers] == ["float32", "", "W1A1", "", "float32"]
    assert layers[2]["bytes"] == 4 * (4 * 9 + 3 * 4 + 3 * 4) and layers[2]["macs"] == 4 * 4 * 9 * SIZE[0] * SIZE[1] // 4
    assert all(layer["kernel"] for layer in layers)
    printed = capsys.readouterr().out
    assert "BinaryConv2d_2" in printed and "between layers" in printed and layers[2]["kernel"] in printed


def test_memory_follows_the_size(tmp_path):
    (tmp_path / "model.irstd").write_bytes(write(small()))
    small_one, large = (result(tmp_path / "model.irstd", tmp_path, "--input-size", s) for s in ("16", "64x512"))
    assert small_one["arena_bytes"] < large["arena_bytes"]


def test_an_onnx_file(tmp_path, capsys):
    (tmp_path / "model.onnx").write_bytes(onnx_file(make_case(4, size=SIZE, batch=1, **NODE)))
    found = result(tmp_path / "model.onnx", tmp_path, "--input-size", "32x48")
    assert [(x["op"], x["precision"]) for x in found["layers"]] == [("irstd.BinaryConv2d", "W1A1"), ("Sigmoid", "")]
    assert found["layers"][0]["macs"] == 9 * 32 * 48 and found["arena_bytes"] is None
    assert "kernel" not in capsys.readouterr().out


def test_a_tflite_file(tmp_path):
    (tmp_path / "model.tflite").write_bytes(tflite_file(make_case(4, size=(32, 48), batch=1, **NODE)))
    found = result(tmp_path / "model.tflite", tmp_path)
    assert [(x["op"], x["precision"]) for x in found["layers"]] == [("irstd.BinaryConv2d", "W1A1"), ("LOGISTIC", "")]
    assert found["input"] == [32, 48] and found["layers"][0]["bytes"] > 0


def test_a_tflite_file_says_that_it_stays_at_its_size(tmp_path, capsys):
    (tmp_path / "model.tflite").write_bytes(tflite_file(make_case(4, size=(32, 48), batch=1, **NODE)))
    for size, told in (("32x48", ""), ("64", "note: model.tflite is counted at 32x48, for which it is written\n")):
        assert result(tmp_path / "model.tflite", tmp_path, "--input-size", size)["input"] == [32, 48]
        assert capsys.readouterr().err == told


def test_a_bundle(tmp_path):
    bundle = write_bundle(tmp_path / "b", write(small()))
    found = result(bundle.path, tmp_path)
    assert [a["kind"] for a in found["artefacts"]] == ["native"]
    assert found["artefacts"][0]["input"] == list(SIZE) and len(found["artefacts"][0]["layers"]) == 5


@pytest.mark.parametrize("name, data, code, message", [
    ("model.irstd", b"no model", errors.USAGE, "less than a header"),
    ("model.onnx", b"no model", errors.USAGE, "cannot be read as an ONNX file"),
    ("model.tflite", b"no model at all", errors.USAGE, "cannot be read as a TFLite file"),
    ("model.txt", b"", errors.UNSUPPORTED, "known: .irstd, .onnx, .tflite"),
    ("missing.onnx", None, errors.USAGE, "missing; write one with"),
])
def test_what_cannot_be_inspected(tmp_path, capsys, name, data, code, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert inspect(tmp_path / name) == code
    assert message in capsys.readouterr().err


def test_a_size_that_does_not_fit(tmp_path, capsys):
    b = Builder(1)
    (tmp_path / "model.irstd").write_bytes(write(b.finish(b.conv(0, 1, (9, 9)))))
    assert inspect(tmp_path / "model.irstd", "--input-size", "8") == errors.UNSUPPORTED
    assert "leaves nothing" in capsys.readouterr().err


def test_names_are_shown_as_they_are(tmp_path, capsys):
    b = Builder(1)
    x = b.add("Activation", 0, 1, activation=1)
    b.nodes[0] = type(b.nodes[0])("Activation", "[red]a[/] \N{GREEK SMALL LETTER ALPHA}", (0,), x, {"activation": 1})
    (tmp_path / "model.irstd").write_bytes(write(b.finish(x)))
    found = result(tmp_path / "model.irstd", tmp_path)
    assert found["layers"][0]["name"] == "[red]a[/] \N{GREEK SMALL LETTER ALPHA}"
    assert "[red]a[/]" in capsys.readouterr().out and np.isfinite(found["arena_bytes"])

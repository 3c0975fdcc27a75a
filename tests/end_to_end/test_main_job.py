"""Export, verify, detect, evaluate and benchmark through the command line, on real infrared frames."""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from irstd_edge import errors
from irstd_edge.bundle import ARTEFACTS, Bundle, sha256
from irstd_edge.cli import main
from irstd_edge.errors import MissingError
from irstd_edge.program import read, write
from irstd_edge.runtimes import library
from irstd_edge.zoo import zoo_weights

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


def run(*arguments):
    return main([str(a) for a in arguments])


def need_native_libraries():
    """`make test` builds them: without them the main job is broken, unless the variable says that it is meant."""
    try:
        for runtime in library.LIBRARIES:
            library.find(runtime)
    except MissingError as e:
        if os.environ.get("IRSTD_ALLOW_NO_NATIVE") == "1":
            pytest.skip(f"native libraries are not built: {e}")
        pytest.fail(f"native libraries are not built: {e} (IRSTD_ALLOW_NO_NATIVE=1 skips what needs them)")


def test_missing_libraries_are_no_reason_to_skip(monkeypatch, tmp_path):
    monkeypatch.setenv(library.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.delenv("IRSTD_ALLOW_NO_NATIVE", raising=False)
    with pytest.raises(pytest.fail.Exception, match="IRSTD_ALLOW_NO_NATIVE=1"):
        need_native_libraries()
    monkeypatch.setenv("IRSTD_ALLOW_NO_NATIVE", "1")
    with pytest.raises(pytest.skip.Exception):
        need_native_libraries()


def export(folder, network, *options):
    need_native_libraries()
    assert run("export", network, "--out", folder, *options) == errors.OK
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """BiisNet with random weights, as a bundle for small images."""
    return export(tmp_path_factory.mktemp("export") / "bundle", "biisnet", "--untrained", "--to", ",".join(ARTEFACTS),
                  "--input-size", "64x96")


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return export(tmp_path_factory.mktemp("export") / "twin", "biisnet-float", "--untrained", "--to", "onnx,tflite",
                  "--input-size", "64x96")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Real frames of three sizes, one of them odd and one of 16 bits."""
    folder = tmp_path_factory.mktemp("frames")
    shutil.copy(SAMPLES / "frames" / "bird_073_063.png", folder)
    with Image.open(SAMPLES / "frames" / "drone_142_100.png") as image:
        image.crop((3, 100, 104, 199)).save(folder / "odd.png")
        Image.fromarray(np.asarray(image.crop((0, 120, 64, 184)), np.uint16) * 57).save(folder / "deep.png")
    return folder


def test_the_bundle_is_complete(bundle):
    opened = Bundle.open(bundle)
    assert opened.kinds == list(ARTEFACTS)
    for kind in opened.kinds:
        entry, file = opened.artefact(kind)
        assert entry.bytes == file.stat().st_size and entry.sha256 == sha256(file)
    binary = [layer for layer in opened.artefact("onnx")[0].layers if layer.requested == "W1A1"]
    assert binary and not any(layer.downgraded for layer in binary)
    assert sorted(bundle.parent.iterdir()) == [bundle]


def test_every_artefact_equals_pytorch_on_real_frames(bundle, frames, tmp_path):
    assert run("verify", bundle, "--images", frames, "--json", tmp_path / "v.json") == errors.OK
    found = json.loads((tmp_path / "v.json").read_text())
    assert [r["artefact"] for r in found["results"]] == ["torch", *ARTEFACTS]
    for result in found["results"][1:]:
        assert result["parity"]["images"] == 3 and result["parity"]["flipped_pixels"] == 0
        assert result["parity"]["max_abs"] <= 1e-5 and result["test_vectors"]["max_abs"] <= 1e-5


def test_the_float_twin_equals_pytorch(twin, frames):
    assert run("verify", twin, "--images", frames) == errors.OK


def with_other_signs(data: np.ndarray) -> np.ndarray:
    """The bytes of a program, the weights of its widest binary layer inverted."""
    program = read(data.tobytes())
    widest = max((n for n in program.nodes if n.operator == "BinaryConv2d"), key=lambda n: n.constants["weight"].size)
    other = replace(widest, constants={**widest.constants, "weight": ~widest.constants["weight"]})
    nodes = tuple(other if node is widest else node for node in program.nodes)
    return np.frombuffer(write(replace(program, nodes=nodes)), np.uint8)


@pytest.mark.parametrize("kind", ["onnx", "portable"])
def test_changed_weights_are_caught_and_named(bundle, tmp_path, capsys, kind):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((copy / "manifest.json").read_text())
    entry = next(a for a in manifest["artefacts"] if a["kind"] == kind)
    model = onnx.load(copy / entry["file"])
    # The largest constant: a program with packed signs in the one file, +1 and -1 in the other.
    weight = max((t for t in model.graph.initializer), key=lambda t: np.prod(t.dims))
    values = onnx.numpy_helper.to_array(weight)
    values = with_other_signs(values) if values.dtype == np.uint8 else -values
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, copy / entry["file"])
    assert run("verify", copy) == errors.USAGE  # its hash is another one
    assert "SHA-256" in capsys.readouterr().err
    entry["sha256"] = sha256(copy / entry["file"])
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert run("verify", copy) == errors.PARITY
    err = capsys.readouterr().err
    assert f"{kind}: max-abs" in err and "exceeds 0.0001" in err
    others = [k for k in ARTEFACTS if k != kind]
    assert not any(f"{k}: " in err for k in others)
    assert run("verify", copy, *(a for k in others for a in ("--artefact", k))) == errors.OK


def test_only_the_pytorch_side_imports_what_a_bundle_names(bundle, frames, tmp_path, monkeypatch, capsys):
    """As docs/verify.md says: a bundle whose PyTorch side is opened must be trusted like code."""
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"factory": "planted_in_the_folder:make"}))
    (tmp_path / "planted_in_the_folder.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    for kind in ARTEFACTS:
        assert run("detect", copy, frames / "odd.png", "--artefact", kind) == errors.OK
    assert not (tmp_path / "ran").exists()
    assert run("detect", copy, frames / "odd.png", "--artefact", "torch") == errors.USAGE
    assert (tmp_path / "ran").exists() and "has no 'make'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """Two sample frames as a data set; a mask is the brightest pixels within the annotated box."""
    root = tmp_path_factory.mktemp("data")
    for folder in ("images", "masks", "img_idx"):
        (root / "SAMPLES" / folder).mkdir(parents=True)
    boxes = {row["file"]: row for row in csv.DictReader((SAMPLES / "boxes.csv").open())}
    names = ("bird_073_063.png", "drone_142_100.png")
    for name in names:
        shutil.copy(SAMPLES / "frames" / name, root / "SAMPLES" / "images")
        image = np.asarray(Image.open(SAMPLES / "frames" / name)).astype(int)
        x, y, w, h = (round(float(boxes[name][k])) for k in ("x", "y", "width", "height"))
        mask = np.zeros_like(image)
        inside = image[y:y + h, x:x + w]
        mask[y:y + h, x:x + w] = (inside > (inside.max() + np.median(inside)) / 2) * 255
        Image.fromarray(mask.astype(np.uint8)).save(root / "SAMPLES" / "masks" / name)
    (root / "SAMPLES" / "img_idx" / "test_SAMPLES.txt").write_text("\n".join(Path(n).stem for n in names))
    return root


def test_the_metrics_are_the_same_everywhere(bundle, data_set, tmp_path):
    assert run("verify", bundle, "--dataset", "SAMPLES", "--root", data_set, "--json", tmp_path / "v.json") == 0
    results = json.loads((tmp_path / "v.json").read_text())["results"]
    assert all(r["accuracy"] == results[0]["accuracy"] for r in results)
    assert run("evaluate", bundle, "--dataset", "SAMPLES", "--root", data_set, "--json", tmp_path / "e.json") == 0
    assert json.loads((tmp_path / "e.json").read_text())["accuracy"] == results[0]["accuracy"]


def test_every_artefact_detects_the_same_targets(bundle, frames, tmp_path):
    found = {}
    for kind in ("torch", *ARTEFACTS):
        # Random weights give probabilities near 0.02: a threshold among them gives targets to compare.
        assert run("detect", bundle, frames, "--artefact", kind, "--threshold", "0.02", "--json",
                   tmp_path / f"{kind}.json") == errors.OK
        found[kind] = [
            {**frame, "targets": sorted((t["box"], t["area"]) for t in frame["targets"])}
            for frame in json.loads((tmp_path / f"{kind}.json").read_text())["frames"]
        ]
    assert [f["file"] for f in found["torch"]] == ["bird_073_063.png", "deep.png", "odd.png"]
    assert all(f == found["torch"] for f in found.values())


def test_benchmark_report_holds_the_fixed_fields(bundle, twin, frames, tmp_path):
    assert run("benchmark", bundle, "--twin", twin, "--images", frames / "odd.png", "--min-runs", 3, "--min-seconds", 0,
               "--input-size", "64x96", "--json", tmp_path / "r.json") == errors.OK
    results = json.loads((tmp_path / "r.json").read_text())["results"]
    expected = {("biisnet", kind) for kind in ("torch", *ARTEFACTS)}
    expected |= {("biisnet-float", kind) for kind in ("torch", "onnx", "tflite")}
    assert expected <= {(r["network"], r["artefact"]) for r in results}
    for result in results:
        assert result["threads"] == 1 and result["input"] == [64, 96]
        assert {"p50", "p90", "p99", "mean", "n"} <= set(result["latency_ms"]) and result["latency_ms"]["n"] >= 3
        assert {"max_abs", "flipped_pixels", "images"} <= set(result["parity"])
        assert result["accuracy"] is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    if zoo_weights("biisnet") is None:
        pytest.skip("the package holds no trained biisnet")
    return export(tmp_path_factory.mktemp("export") / "trained", "biisnet")


def test_the_trained_network_finds_the_sample_targets(trained, tmp_path):
    """Frames of at least four of the six clips have a target whose centroid lies within the annotated box."""
    out = tmp_path / "out"
    assert run("detect", trained, SAMPLES / "frames", "--out", out, "--sheet", tmp_path / "sheet.png") == errors.OK
    boxes = {row["file"]: [float(row[k]) for k in ("x", "y", "width", "height")]
             for row in csv.DictReader((SAMPLES / "boxes.csv").open())}
    frames = json.loads((out / "detections.json").read_text())["frames"]
    clips = set()
    for frame in frames:
        x, y, w, h = boxes[frame["file"]]
        if any(x <= t["x"] + 0.5 <= x + w and y <= t["y"] + 0.5 <= y + h for t in frame["targets"]):
            clips.add(frame["file"].rpartition("_")[0])
    assert len(frames) == len(boxes) == 12 and len(list(out.glob("*.png"))) == 12
    assert len(clips) >= 4


def test_the_trained_network_finds_the_target_in_most_frames_of_the_sample_clip(trained, tmp_path):
    report = tmp_path / "clips.json"
    assert run("evaluate", trained, "--artefact", "onnx", "--clips", SAMPLES / "clips", "--every", "10",
               "--json", report) == errors.OK
    (clip,) = json.loads(report.read_text())["clips"]
    assert clip["found"] > 0.5 * clip["frames"]


def test_the_trained_network_is_equal_everywhere_on_real_frames(trained):
    assert run("verify", trained, "--images", SAMPLES / "frames") == errors.OK

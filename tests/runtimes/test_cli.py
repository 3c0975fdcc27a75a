import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from irstd_edge import bundle as b
from irstd_edge import errors
from irstd_edge.cli import main
from irstd_edge.runtimes import parity
from irstd_edge.runtimes import session as sessions
from irstd_edge.runtimes.session import Session
from irstd_edge.runtimes.video import read_frames, writing


class Brightness(Session):
    """Probability = grey / 255: bright blobs are targets."""

    runtime = "fake 1"

    def __init__(self, artefact, shift=0.0):
        self.artefact, self.shift = artefact, np.float32(shift)

    def run(self, x):
        return x + self.shift

    def prepare(self, x):
        return lambda: None


@pytest.fixture
def shifts(monkeypatch):
    """Artefact kind -> what its session adds to every probability."""
    table = dict.fromkeys(("torch", *b.ARTEFACTS), 0.0)

    def open_session(bundle, kind, threads=1):
        if kind not in sessions.OPENERS:
            raise errors.UnsupportedError(f"no runtime for {kind!r}; known: {', '.join(sessions.OPENERS)}")
        if kind != "torch":
            bundle.artefact(kind)
        return Brightness(kind, table[kind])

    monkeypatch.setattr(sessions, "open_session", open_session)
    monkeypatch.setattr(parity, "open_session", open_session)
    return table


@pytest.fixture
def bundle(tmp_path, shifts):
    folder = tmp_path / "bundle"
    folder.mkdir()
    vectors = np.linspace(0, 1, 2 * 16, dtype=np.float32).reshape(2, 1, 4, 4)
    np.savez(folder / "v.npz", input=vectors, probability=vectors)
    (folder / "w").write_bytes(b"w")
    digest = b.sha256(folder / "w")
    layer = b.LayerPrecision("c", "irstd.BinaryConv2d", "W1A1", "W1A1", 8, 9)
    artefacts = tuple(b.Artefact(k, "w", digest, 1, "NCHW", None, (layer,)) for k in ("onnx", "portable"))
    b.write_manifest(folder, b.Manifest(
        "brightness", "0", 1, 1, None, "w", digest, "brightness", b.Preprocessing(0.0, 255.0, 32), 0.5, (32, 32),
        artefacts, b.TestVectors("v.npz", b.sha256(folder / "v.npz"), 2)))
    return folder


def picture(path, size=(50, 70), blob=(20, 30), dtype=np.uint8, peak=250):
    """A dark image with one bright 3 x 3 blob, its corner at (x, y)."""
    image = np.zeros(size, dtype)
    x, y = blob
    image[y:y + 3, x:x + 3] = peak
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


@pytest.fixture
def images(tmp_path):
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "deep.png", (33, 65), (40, 5), np.uint16, 30000)
    return tmp_path / "in"


def run(*arguments):
    return main([str(a) for a in arguments])


# detect

def test_detect_a_folder(bundle, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("detect", bundle, images, "--out", out, "--sheet", tmp_path / "sheet.png") == errors.OK
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "deep.png", "detections.csv", "detections.json"]
    found = json.loads((out / "detections.json").read_text())
    assert (found["network"], found["artefact"], found["threshold"], found["failed"]) == ("brightness", "onnx", 0.5, [])
    assert found["frames_per_second"] > 0
    first, deep = found["frames"]
    assert first == {"file": "a.png", "frame": None, "width": 70, "height": 50, "targets": [
        {"x": 21.0, "y": 31.0, "box": [20, 30, 3, 3], "area": 9, "score": round(250 / 255, 4)}]}
    assert deep["targets"][0]["box"] == [40, 5, 3, 3] and (deep["width"], deep["height"]) == (65, 33)
    rows = list(csv.DictReader((out / "detections.csv").open()))
    assert [(r["file"], r["x"], r["box_width"], r["area"]) for r in rows] == [
        ("a.png", "21.00", "3", "9"), ("deep.png", "41.00", "3", "9")]
    assert Image.open(out / "a.png").size == (70 * 14, 50 * 14)
    assert Image.open(tmp_path / "sheet.png").size[0] > 900
    assert "2 targets in 2 frames" in capsys.readouterr().out


def test_detect_one_image_without_writing(bundle, images, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert run("detect", bundle, images / "a.png", "--threshold", "0.99") == errors.OK
    assert "0 targets in 1 frame," in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_detect_without_overlays(bundle, images, tmp_path):
    assert run("detect", bundle, images, "--no-overlay", "--out", tmp_path / "out", "--json", tmp_path / "x.json") == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["detections.csv"]
    assert len(json.loads((tmp_path / "x.json").read_text())["frames"]) == 2


def test_detect_a_video_gives_a_video(bundle, tmp_path):
    with writing(tmp_path / "clip.mp4", 12) as write:
        for i in range(5):
            image = np.zeros((64, 96, 3), np.uint8)
            image[20:24, 10 + 4 * i:14 + 4 * i] = 255
            write(image)
    assert run("detect", bundle, tmp_path / "clip.mp4", "--out", tmp_path / "out") == errors.OK
    found = json.loads((tmp_path / "out" / "detections.json").read_text())["frames"]
    assert [f["frame"] for f in found] == list(range(5))
    assert [round(f["targets"][0]["x"]) for f in found] == [round(11.5 + 4 * i) for i in range(5)]
    drawn = list(read_frames(tmp_path / "out" / "clip.mp4"))
    assert len(drawn) == 5 and drawn[0].image.shape == (640, 960)


def test_detect_goes_on_after_a_corrupt_image(bundle, images, tmp_path, capsys):
    (images / "bad.png").write_bytes((images / "a.png").read_bytes()[:60])
    assert run("detect", bundle, images, "--out", tmp_path / "out") == errors.USAGE
    err = capsys.readouterr().err
    assert "bad.png" in err and "1 of 3 files failed" in err
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(found["frames"]) == 2 and [f["file"] for f in found["failed"]] == ["bad.png"]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["a.png", "deep.png"]


def test_detect_two_inputs_of_one_stem(bundle, tmp_path):
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "a.bmp")
    assert run("detect", bundle, tmp_path / "in", "--out", tmp_path / "out") == errors.OK
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["a.bmp.png", "a.png.png"]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("bad.png", b"\x89PNG\r\n\x1a\nbroken", "cannot be read as an image"),
    ("notes.txt", b"hello", "cannot be read as an image"),
    ("bad.mp4", b"hello", "cannot be read as a video"),
])
def test_detect_one_unreadable_file_writes_nothing(bundle, tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert run("detect", bundle, tmp_path / name, "--out", tmp_path / "out") == errors.USAGE
    err = capsys.readouterr().err
    assert name in err and message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_detect_wrong_inputs(bundle, images, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ((bundle, tmp_path / "empty"), "holds no image or video"),
        ((bundle, tmp_path / "nothing"), "no such file or folder"),
        ((tmp_path / "nothing", images), "irstd-edge export"),
        ((bundle, images, "--out", tmp_path / "file" / "out"), "cannot be written"),
        ((bundle, images, "--json", tmp_path), "name a file"),
        ((bundle, images, "--out", images), "folder of the input"),
        ((bundle, images, "--sheet", tmp_path / "s.xyz"), "no picture format"),
        ((bundle, images, "--artefact", "tflite"), "has no tflite artefact"),
        ((bundle, images, "--threshold", "2"), "threshold"),
    ):
        assert run("detect", *arguments) == errors.USAGE, arguments
        assert message in capsys.readouterr().err
    assert run("detect", bundle, images, "--artefact", "coreml") == errors.UNSUPPORTED
    assert "torch, onnx" in capsys.readouterr().err


# verify

def test_verify_equal_artefacts(bundle, images, tmp_path, capsys):
    assert run("verify", bundle, "--images", images, "--json", tmp_path / "v.json") == errors.OK
    found = json.loads((tmp_path / "v.json").read_text())
    assert found["ok"] and [r["artefact"] for r in found["results"]] == ["torch", "onnx", "portable"]
    onnx = found["results"][1]
    assert onnx["parity"]["images"] == 2 and onnx["parity"]["max_abs"] == 0.0 and onnx["parity"]["flipped_pixels"] == 0
    assert onnx["test_vectors"]["images"] == 2 and onnx["accuracy"] is None
    assert found["tolerances"]["onnx"]["reason"]
    assert "equal" in capsys.readouterr().out


def test_verify_a_violation_is_exit_4_and_named(bundle, images, shifts, tmp_path, capsys):
    shifts["portable"] = 0.002
    assert run("verify", bundle, "--images", images, "--json", tmp_path / "v.json") == errors.PARITY
    captured = capsys.readouterr()
    assert "differs" in captured.out and "portable: max-abs 0.002" in captured.err and "exceeds 0.0001" in captured.err
    assert not json.loads((tmp_path / "v.json").read_text())["ok"]
    assert run("verify", bundle, "--artefact", "onnx") == errors.OK  # the vectors alone, one artefact alone


def data_set(root):
    for name, blob in (("x", (10, 12)), ("y", (40, 20))):
        picture(root / "SET" / "images" / f"{name}.png", blob=blob)
        picture(root / "SET" / "masks" / f"{name}.png", blob=blob, peak=255)
    index = root / "SET" / "img_idx" / "test_SET.txt"
    index.parent.mkdir()
    index.write_text("x\ny\n")
    return root


def test_verify_with_a_data_set(bundle, tmp_path, capsys):
    root = data_set(tmp_path / "data")
    assert run("verify", bundle, "--dataset", "SET", "--root", root, "--json", tmp_path / "v.json") == errors.OK
    for result in json.loads((tmp_path / "v.json").read_text())["results"]:
        assert result["accuracy"]["pd"] == 1.0 and result["accuracy"]["images"] == 2
    assert "nIoU" in capsys.readouterr().out


def test_verify_wrong_inputs(bundle, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (("--images", tmp_path / "empty"), "holds no image"),
        (("--dataset", "SET"), "--root"),
        (("--dataset", "SET", "--root", tmp_path), "no such file"),
    ):
        assert run("verify", bundle, *arguments) == errors.USAGE
        assert message in capsys.readouterr().err


def test_verify_a_damaged_file_names_it(bundle, capsys):
    (bundle / "w").write_bytes(b"x")
    assert run("verify", bundle) == errors.USAGE
    assert "SHA-256" in capsys.readouterr().err


# evaluate

def test_evaluate_a_bundle(bundle, tmp_path, capsys):
    root = data_set(tmp_path / "data")
    for protocol in ("basicirstd", "resize256"):
        assert run("evaluate", bundle, "--dataset", "SET", "--root", root, "--artefact", "onnx", "--protocol", protocol,
                   "--json", tmp_path / "e.json") == errors.OK
        found = json.loads((tmp_path / "e.json").read_text())
        assert (found["network"], found["artefact"], found["protocol"]) == ("brightness", "onnx", protocol)
        assert found["metric"] and found["threshold"] == 0.5 and found["clips"] is None
        assert {"iou", "niou", "pd", "fa", "images", "targets"} <= set(found["accuracy"])
        assert found["accuracy"]["pd"] == 1.0 and found["accuracy"]["images"] == 2
        assert found["union"]["hit"] == pytest.approx(found["accuracy"]["iou"])
    out = capsys.readouterr().out
    lost = f"Lost of the IoU: 0.0% by targets missed wholly, {found['union']['missed_partly']:.1%} partly;"
    assert "1.0000" in out and lost in out


@pytest.mark.parametrize("kinds, chosen", [
    ((("tflite", True), ("native", True), ("onnx", True)), "onnx"),
    ((("portable", True), ("tflite", True), ("native", True)), "native"),
    ((("onnx", False), ("tflite", True)), "tflite"),
    ((("portable", False), ("onnx", False)), "onnx"),
])
def test_a_bundle_runs_what_takes_any_size_unless_told(bundle, images, tmp_path, kinds, chosen):
    manifest = b.Bundle.open(bundle).manifest
    like = manifest.artefacts[0]
    b.write_manifest(bundle, replace(manifest, artefacts=tuple(
        replace(like, kind=kind, resizable=resizable) for kind, resizable in kinds)))
    root = data_set(tmp_path / "data")
    assert run("evaluate", bundle, "--dataset", "SET", "--root", root, "--json", tmp_path / "e.json") == errors.OK
    assert run("detect", bundle, images, "--json", tmp_path / "d.json") == errors.OK
    assert [json.loads((tmp_path / f"{name}.json").read_text())["artefact"] for name in "ed"] == [chosen, chosen]


def test_pytorch_never_runs_unasked(bundle, images, capsys):
    b.write_manifest(bundle, replace(b.Bundle.open(bundle).manifest, artefacts=()))
    for arguments in (("detect", bundle, images), ("evaluate", bundle, "--clips", images)):
        assert run(*arguments) == errors.USAGE
    assert "holds no exported file" in capsys.readouterr().err
    assert run("detect", bundle, images, "--artefact", "torch") == errors.OK


def test_evaluate_over_thresholds_and_the_worst_images(bundle, tmp_path):
    root = data_set(tmp_path / "data")
    (tmp_path / "one.txt").write_text("x\n")
    call = ("evaluate", bundle, "--dataset", "SET", "--root", root, "--artefact", "onnx", "--roc", tmp_path / "roc.csv",
            "--worst", tmp_path / "worst.png", "--json", tmp_path / "e.json", "--threshold", 0.42)
    assert run(*call) == errors.OK
    rows = {float(r["threshold"]): r for r in csv.DictReader((tmp_path / "roc.csv").open())}
    assert {0.001, 0.42, 0.5, 0.999} <= rows.keys()
    found = json.loads((tmp_path / "e.json").read_text())
    assert float(rows[0.42]["iou"]) == found["accuracy"]["iou"] and float(rows[0.999]["pd"]) == 0
    assert [c["iou"] for c in found["worst"]] == sorted(c["iou"] for c in found["worst"]) and len(found["worst"]) == 2
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")
    assert Image.open(tmp_path / "worst.png").width > 900
    assert run(*call, "--split", tmp_path / "one.txt", "--worst-count", 1) == errors.OK
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["accuracy"]["images"] == 1 and found["worst"][0]["image"] == "x"


def test_evaluate_clips(bundle, tmp_path):
    with writing(tmp_path / "CLIP.mp4", 12) as write:
        for _ in range(4):
            image = np.zeros((64, 64, 3), np.uint8)
            image[20:24, 30:34] = 255
            write(image)
    (tmp_path / "CLIP.csv").write_text("frame,x,y,width,height\n" + "".join(f"{i},28,18,8,8\n" for i in range(4)))
    assert run("evaluate", bundle, "--clips", tmp_path, "--json", tmp_path / "e.json") == errors.OK
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["accuracy"] is None and found["union"] is None
    assert found["clips"] == [{"clip": "CLIP.mp4", "frames": 4, "found": 4, "false_targets": 0, "share": 1.0,
                               "false_targets_per_frame": 0.0}]


def test_evaluate_a_network_of_the_registry(tmp_path):
    from safetensors.torch import save_file

    from irstd_edge.checkpoints import build_network

    root = data_set(tmp_path / "data")
    tensors = {k: v.contiguous() for k, v in build_network("biisnet").state_dict().items()}
    save_file(tensors, tmp_path / "w.safetensors")
    common = ("evaluate", "biisnet", "--dataset", "SET", "--root", root, "--json", tmp_path / "e.json")
    assert run(*common, "--checkpoint", tmp_path / "w.safetensors", "--mean", 100, "--std", 30) == errors.OK
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["network"] == "biisnet" and found["artefact"] == "torch" and found["accuracy"]["images"] == 2
    assert found["normalisation"] == {"mean": 100.0, "std": 30.0}
    assert (found["dataset"], found["split"], found["trained_on"]) == ("SET", "test", None)


def test_evaluate_warns_of_images_that_were_trained_on(tmp_path, capsys):
    from safetensors.torch import save_file

    from irstd_edge.checkpoints import build_network

    root = data_set(tmp_path / "data")
    folder = root / "SET" / "img_idx"
    names = (folder / "test_SET.txt").read_text().split()
    (folder / "train_SET.txt").write_text(f"{names[0]}\n")
    (folder / "other.txt").write_text(f"{names[1]}\n")
    tensors = {k: v.contiguous() for k, v in build_network("biisnet").state_dict().items()}
    save_file(tensors, tmp_path / "best.safetensors")
    (tmp_path / "recipe.json").write_text(json.dumps(
        {"dataset": "SET", "validation": 0.1, "normalisation": {"mean": 100, "std": 30}}))
    common = ("evaluate", "biisnet", "--checkpoint", tmp_path / "best.safetensors", "--root", root, "--json",
              tmp_path / "e.json")
    assert run(*common, "--dataset", "SET") == errors.OK
    assert "warning: biisnet was trained on 1 of these 2 images" in capsys.readouterr().err
    assert json.loads((tmp_path / "e.json").read_text())["trained_on"] == 1
    assert run(*common, "--dataset", "SET:other") == errors.OK
    assert "warning" not in capsys.readouterr().err
    found = json.loads((tmp_path / "e.json").read_text())
    assert (found["dataset"], found["split"], found["trained_on"]) == ("SET", "other", 0)


def test_evaluate_wrong_arguments(bundle, tmp_path, capsys):
    named = ("--dataset", "SET", "--root", data_set(tmp_path / "d"))
    for arguments, message in (
        ((bundle,), "--dataset NAME --root DIR, or --clips DIR"),
        ((bundle, "--clips", tmp_path), "holds no clip"),
        ((bundle, "--checkpoint", "x", *named), "leave out --checkpoint"),
        (("biisnet", "--artefact", "onnx", *named), "needs a bundle"),
        (("biisnett", *named), "did you mean 'biisnet'"),
        ((bundle, *named, "--split", "absent/val"), "absent/val.txt: no such file"),
        ((bundle, *named, "--roc", tmp_path / "roc.png"), "name the CSV"),
        ((bundle, *named, "--worst", tmp_path / "worst.xyz"), "no picture format"),
        ((bundle, *named, "--roc", tmp_path / "a.csv", "--worst", tmp_path / "a.png"), "give --worst another name"),
        ((bundle, "--clips", tmp_path, "--roc", tmp_path / "roc.csv"), "--roc, --worst and --split need --dataset"),
        ((bundle, "--clips", tmp_path, "--split", "test"), "--roc, --worst and --split need --dataset"),
        ((bundle, "--dataset", "SET:test", "--root", named[-1], "--split", "train"),
         "--dataset SET:test names a split already: leave out --split train"),
    ):
        assert run("evaluate", *arguments) == errors.USAGE, arguments
        assert message in capsys.readouterr().err


NETWORKS = """from torch import nn
from irstd_edge.nn.binary import BinaryConv2d

class Two(nn.Module):
    def forward(self, x):
        return x.repeat(1, 2, 1, 1)

class Logits(nn.Module):
    def forward(self, x):
        return x

class Nothing(nn.Module):
    def forward(self, x):
        return [None]

def colour():
    return nn.Conv2d(3, 1, 3, padding=1)

def smaller():
    return nn.Conv2d(1, 1, 3)

def broken():
    class Broken(nn.Module):
        def forward(self, x):
            raise AttributeError("no such\\nattribute")
    return Broken()

def large():
    return BinaryConv2d(1, 1, 33)
"""


@pytest.mark.parametrize("factory, message", [
    ("colour", "does not run on an input [1, 1, 64, 96]: Given groups=1"),
    ("broken", "does not run on an input [1, 1, 64, 96]: no such; "),
    ("smaller", "returns [1, 1, 62, 94]"),
    ("Two", "returns [1, 2, 64, 96]"),
    ("Nothing", "returns NoneType"),
    ("Logits", "no probabilities; end forward() with torch.sigmoid"),
    ("large", "kernel_h must be at most 31, got 33"),
])
def test_evaluate_a_network_that_cannot_run(tmp_path, monkeypatch, capsys, factory, message):
    root = data_set(tmp_path / "data")
    (tmp_path / "networks_of_a_user.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "networks_of_a_user", raising=False)
    assert run("evaluate", "--model", f"networks_of_a_user:{factory}", "--mean", 100, "--std", 30, "--dataset", "SET",
               "--root", root) == errors.UNSUPPORTED
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) == 1, err

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from irstd_edge.bundle import (
    MANIFEST,
    Artefact,
    Bundle,
    BundleError,
    LayerPrecision,
    Manifest,
    Preprocessing,
    TestVectors,
    sha256,
    staged_folder,
    write_manifest,
)


@pytest.fixture
def bundle(tmp_path):
    """A small but valid bundle; the manifest is returned beside its folder."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "network.onnx").write_bytes(b"onnx")
    (folder / "weights.safetensors").write_bytes(b"weights")
    x = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    np.savez(folder / "vectors.npz", input=x, probability=x / 6)
    layers = (LayerPrecision("stem", "Conv", "float32", "float32", 40, 100),
              LayerPrecision("unit", "BinaryConv2d", "W1A1", "W8A8", 80, 900, "no kernel"))
    manifest = Manifest(
        network="biisnet", tool_version="0.1.0", opset_version=1, bit_order=1, checkpoint_sha256=None,
        weights="weights.safetensors", weights_sha256=sha256(folder / "weights.safetensors"), factory="biisnet",
        preprocessing=Preprocessing(1.0, 2.0), threshold=0.5, reference_input=(256, 256),
        artefacts=(Artefact("onnx", "network.onnx", sha256(folder / "network.onnx"), 4, "NCHW", None, layers),),
        test_vectors=TestVectors("vectors.npz", sha256(folder / "vectors.npz"), 1),
    )
    write_manifest(folder, manifest)
    return folder, manifest


def edit(folder, **changes):
    raw = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(raw | changes))


def test_a_bundle_round_trips(bundle):
    folder, manifest = bundle
    opened = Bundle.open(folder)
    assert opened.manifest == manifest and opened.kinds == ["onnx"]
    artefact, path = opened.artefact("onnx")
    assert path.read_bytes() == b"onnx" and [layer.downgraded for layer in artefact.layers] == [False, True]
    assert opened.weights().read_bytes() == b"weights"
    x, probability = opened.test_vectors()
    assert x.shape == (1, 1, 2, 3) and np.array_equal(probability, x / 6)
    with pytest.raises(BundleError, match="export with --to tflite"):
        opened.artefact("tflite")


def test_a_changed_or_absent_file_is_named(bundle):
    folder, _ = bundle
    (folder / "network.onnx").write_bytes(b"0nnx")
    (folder / "weights.safetensors").unlink()
    with pytest.raises(BundleError, match=r"network\.onnx: differs from its SHA-256"):
        Bundle.open(folder).artefact("onnx")
    with pytest.raises(BundleError, match=r"weights\.safetensors: missing"):
        Bundle.open(folder).weights()


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/etc/hostname"])
def test_names_cannot_leave_the_folder(bundle, name):
    folder, _ = bundle
    (folder.parent / "outside").write_bytes(b"weights")
    edit(folder, weights=name)
    with pytest.raises(BundleError, match="outside the bundle"):
        Bundle.open(folder).weights()


@pytest.mark.parametrize("changes, message", [
    ({"schema_version": 2}, "schema version 2"),
    ({"schema_version": None}, "schema version None"),
    ({"opset_version": 2}, "operator set 2"),
    ({"bit_order": 0}, "bit order 0"),
    ({"surprise": 1}, "unknown field surprise"),
    ({"preprocessing": {"mean": 1}}, "malformed"),
    ({"preprocessing": 3}, "malformed"),
    ({"artefacts": [{"kind": "onnx"}]}, "malformed"),
    ({"artefacts": None}, "malformed"),
])
def test_other_versions_and_malformed_manifests_are_refused(bundle, changes, message):
    folder, _ = bundle
    edit(folder, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle.open(folder)


@pytest.mark.parametrize("text", ["{", "[]", "3", "\xff"])
def test_manifests_that_are_no_object_are_refused(bundle, text):
    folder, _ = bundle
    (folder / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(BundleError, match=r"export again|cannot be read"):
        Bundle.open(folder)


def test_a_missing_field_is_malformed(bundle):
    folder, manifest = bundle
    raw = asdict(manifest)
    del raw["threshold"]
    (folder / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="threshold"):
        Bundle.open(folder)


def test_no_bundle_there(tmp_path):
    with pytest.raises(BundleError, match="irstd-edge export"):
        Bundle.open(tmp_path)


def test_staging_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "bundle"
    with pytest.raises(RuntimeError), staged_folder(target) as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with staged_folder(target) as folder:
        (folder / MANIFEST).write_text("1")
    assert [p.name for p in target.iterdir()] == [MANIFEST]
    assert [p.name for p in target.parent.iterdir()] == ["bundle"]
    # Another bundle replaces it whole; an error keeps the old one.
    with pytest.raises(RuntimeError), staged_folder(target) as folder:
        raise RuntimeError
    assert (target / MANIFEST).read_text() == "1"
    with staged_folder(target) as folder:
        (folder / MANIFEST).write_text("2")
    assert (target / MANIFEST).read_text() == "2"
    assert [p.name for p in target.parent.iterdir()] == ["bundle"]


def test_staging_spares_what_is_no_bundle(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").touch()
    with pytest.raises(BundleError, match="is no bundle"), staged_folder(precious):
        pass
    with pytest.raises(BundleError, match="is a file"), staged_folder(precious / "thesis.tex"):
        pass
    with pytest.raises(BundleError, match="cannot be written"), staged_folder(precious / "thesis.tex" / "a"):
        pass
    assert [p.name for p in precious.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    with staged_folder(tmp_path / "empty") as folder:
        (folder / "a").touch()
    assert (tmp_path / "empty" / "a").exists()


def test_manifest_is_plain_data(bundle):
    _, manifest = bundle
    assert json.loads(json.dumps(asdict(replace(manifest, created="2025")))) ["created"] == "2025"

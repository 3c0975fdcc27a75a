import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path

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


def write_minimal(folder, network):
    """A manifest without artefacts, of another version: what staging takes for a bundle of ours."""
    (folder / MANIFEST).write_text(json.dumps({
        "schema_version": 0, "opset_version": 1, "bit_order": 1, "network": network, "weights": "w", "artefacts": [],
        "test_vectors": {"file": "v"}}))


def network(folder):
    return json.loads((folder / MANIFEST).read_text())["network"]


def test_staging_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "bundle"
    with pytest.raises(RuntimeError), staged_folder(target) as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with staged_folder(target) as folder:
        write_minimal(folder, "1")
    assert [p.name for p in target.iterdir()] == [MANIFEST]
    assert [p.name for p in target.parent.iterdir()] == ["bundle"]
    # Another bundle replaces it whole; an error keeps the old one.
    with pytest.raises(RuntimeError), staged_folder(target) as folder:
        raise RuntimeError
    assert network(target) == "1"
    with staged_folder(target) as folder:
        write_minimal(folder, "2")
    assert network(target) == "2"
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


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("text", [
    "{}", "[]", "3", "no JSON", "\xff", '{"name": "My extension", "manifest_version": 3}',
    '{"schema_version": 1, "opset_version": 1, "bit_order": 1}',
    '{"schema_version": 1, "opset_version": 1, "bit_order": 1, "weights": 1, "test_vectors": {"file": []},'
    ' "artefacts": {}}',
])
@pytest.mark.parametrize("other", [True, False])
def test_staging_spares_the_manifest_of_another_program(tmp_path, text, other):
    target = tmp_path / "extension"
    target.mkdir()
    (target / MANIFEST).write_text(text, encoding="latin-1")
    if other:
        (target / "work.js").write_text("years")
    before = contents(target)
    with pytest.raises(BundleError, match=r"exists and is no bundle .*name another folder, or remove it first"), \
            staged_folder(target):
        pytest.fail("entered")
    assert contents(target) == before and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["notes.txt", "deep/notes.txt", "link"])
def test_staging_spares_a_file_that_the_manifest_does_not_name(bundle, name):
    folder, _ = bundle
    (folder / name).parent.mkdir(exist_ok=True)
    if name == "link":
        (folder / name).symlink_to(folder.parent)
    else:
        (folder / name).write_text("mine")
    before = contents(folder)
    with pytest.raises(BundleError, match=f"is no bundle.*{name}"), staged_folder(folder):
        pytest.fail("entered")
    (folder / name).unlink()
    # One that comes while the new bundle is made is kept as well.
    with pytest.raises(BundleError, match="is no bundle"), staged_folder(folder):
        (folder / "late").touch()
    assert contents(folder) == {k: v for k, v in before.items() if k != name} | {"late": b""}
    with staged_folder(folder, overwrite=True) as staging:
        write_minimal(staging, "new")
    assert list(contents(folder)) == [MANIFEST] and [p.name for p in folder.parent.iterdir()] == ["bundle"]


def test_a_damaged_bundle_of_ours_is_replaced(bundle):
    folder, _ = bundle
    (folder / "network.onnx").unlink()
    edit(folder, threshold="0.5", schema_version=7)
    with staged_folder(folder) as staging:
        write_minimal(staging, "new")
    assert network(folder) == "new" and [p.name for p in folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error, raised", [
    (OSError(5, "broken"), BundleError), (KeyboardInterrupt(), KeyboardInterrupt)])
@pytest.mark.parametrize("failing", [1, 2])
def test_the_old_bundle_is_put_back(bundle, monkeypatch, error, raised, failing):
    folder, _ = bundle
    before, calls, replace_really = contents(folder), [], os.replace

    def replace_or_fail(source, destination):
        calls.append(source)
        if len(calls) == failing:
            raise error
        replace_really(source, destination)

    with pytest.raises(raised), staged_folder(folder) as staging:
        write_minimal(staging, "new")
        monkeypatch.setattr(os, "replace", replace_or_fail)
    assert contents(folder) == before and [p.name for p in folder.parent.iterdir()] == ["bundle"]


def test_where_it_cannot_be_put_back_it_is_told_where_the_old_bundle_is(bundle, monkeypatch):
    folder, _ = bundle
    before, calls, replace_really = contents(folder), [], os.replace

    def replace_once(source, destination):
        calls.append(source)
        if len(calls) > 1:
            raise OSError(5, "broken")
        replace_really(source, destination)

    with pytest.raises(BundleError, match="it is now ") as caught, staged_folder(folder) as staging:
        write_minimal(staging, "new")
        monkeypatch.setattr(os, "replace", replace_once)
    assert contents(Path(str(caught.value).partition("it is now ")[2])) == before


WRONG = [
    (("threshold",), "0.5"), (("threshold",), 1.5), (("threshold",), -0.1), (("threshold",), float("nan")),
    (("threshold",), True), (("threshold",), None), (("network",), 5), (("factory",), 7), (("weights",), None),
    (("weights_sha256",), 3), (("checkpoint_sha256",), 3), (("created",), 2025), (("bit_order",), True),
    (("opset_version",), "1"), (("opset_version",), 1.0),
    (("reference_input",), [256]), (("reference_input",), [256, 256, 1]), (("reference_input",), [256, 0]),
    (("reference_input",), ["256", "256"]), (("reference_input",), 256), (("reference_input",), [256.0, 256]),
    (("preprocessing", "mean"), "a"), (("preprocessing", "mean"), float("inf")), (("preprocessing", "mean"), 10**400),
    (("preprocessing", "std"), 0), (("preprocessing", "std"), -1.0), (("preprocessing", "std"), float("nan")),
    (("preprocessing", "size_multiple"), 0), (("preprocessing", "size_multiple"), 10**7),
    (("preprocessing", "size_multiple"), 32.0),
    (("test_vectors", "file"), 1), (("test_vectors", "images"), "1"), (("test_vectors", "images"), -1),
    (("artefacts",), {}), (("artefacts", 0), None),
    (("artefacts", 0, "kind"), 3), (("artefacts", 0, "kind"), "exe"), (("artefacts", 0, "file"), []),
    (("artefacts", 0, "bytes"), False), (("artefacts", 0, "layout"), "CHWN"), (("artefacts", 0, "input"), "ab"),
    (("artefacts", 0, "input"), [1]), (("artefacts", 0, "input"), [-1, 2]), (("artefacts", 0, "layers"), 3),
    (("artefacts", 0, "layers", 0, "operator"), 3), (("artefacts", 0, "layers", 0, "macs"), "many"),
    (("artefacts", 0, "layers", 0, "bytes"), -1), (("artefacts", 0, "layers", 1, "reason"), None),
]


@pytest.mark.parametrize("place, value", WRONG, ids=[f"{'.'.join(map(str, p))}={str(v)[:12]}" for p, v in WRONG])
def test_a_value_of_the_wrong_type_or_range_is_named(bundle, place, value):
    folder, _ = bundle
    raw = record = json.loads((folder / MANIFEST).read_text())
    for key in place[:-1]:
        record = record[key]
    record[place[-1]] = value
    (folder / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    named = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).lstrip(".")
    message = str(caught.value)
    assert f"malformed ({named} must" in message or f"malformed ({named}[" in message, message
    assert "\n" not in message and len(message) < 400


def test_two_artefacts_of_one_kind_are_refused(bundle):
    folder, manifest = bundle
    edit(folder, artefacts=2 * json.loads(json.dumps(asdict(manifest)))["artefacts"])
    with pytest.raises(BundleError, match="artefacts must be of different kinds"):
        Bundle.open(folder)


def test_a_deeply_nested_manifest_is_refused(bundle):
    folder, _ = bundle
    (folder / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.open(folder)


def test_test_vectors_that_are_none_are_named(bundle):
    folder, _ = bundle
    for write in (lambda p: np.savez(p, other=np.zeros(1)), lambda p: p.write_bytes(b"PK\x03\x04"),
                  lambda p: p.write_text("text"), lambda p: np.save(p.open("wb"), np.zeros(1))):
        write(folder / "vectors.npz")
        edit(folder, test_vectors={"file": "vectors.npz", "sha256": sha256(folder / "vectors.npz"), "images": 1})
        with pytest.raises(BundleError, match=r"vectors\.npz: holds no test vectors"):
            Bundle.open(folder).test_vectors()


def test_manifest_is_plain_data(bundle):
    _, manifest = bundle
    assert json.loads(json.dumps(asdict(replace(manifest, created="2025")))) ["created"] == "2025"


def test_a_file_of_a_bundle_is_no_bundle(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=f"give its folder, {re.escape(str(tmp_path))}"):
        Bundle.open(tmp_path / "model.onnx")

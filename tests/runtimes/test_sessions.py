"""The session classes on bundles: every runtime gives the same map, and every failure says what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from runtime_cases import TfliteBuilder, at_size, make_case, nhwc_shape, onnx_model, onnx_node
from safetensors.torch import save_file

from irstd_edge import bundle as bundles
from irstd_edge.bundle import Artefact, Bundle, BundleError, Manifest, Preprocessing, TestVectors
from irstd_edge.errors import MissingError, UnsupportedError
from irstd_edge.program import FloatActivation, Node, Program, Tensor, write
from irstd_edge.runtimes import library
from irstd_edge.runtimes.session import OPENERS, open_session

pytestmark = pytest.mark.usefixtures("libraries")

NODE = {"groups": 1, "in_channels": 1, "out_channels": 1, "kernel_h": 3, "kernel_w": 3, "stride_h": 1, "stride_w": 1,
        "dilation_h": 1, "dilation_w": 1, "pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1, "residual": 0,
        "activation": 0, "fraction_bits": -1, "pad_value": 0}
SIZE = (32, 48)
LOGISTIC, RESIZE_NEAREST = 14, 97  # of the schema's BuiltinOperator


def small_network() -> torch.nn.Module:
    """A factory of a bundle: one convolution and a sigmoid."""
    return torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.Sigmoid())


def onnx_file(case) -> bytes:
    nodes, weights = [helper.make_node("Sigmoid", ["m" if case else "x"], ["y"])], []
    if case:
        node, weights = onnx_node(case, "x", "m", None, "conv")
        nodes.insert(0, node)
    shape = ("n", 1, "h", "w")
    return onnx_model(nodes, weights, {"x": shape}, {"y": shape})


def tflite_file(case, fixed: bool = False, marked: tuple[int, int] | None = None) -> bytes:
    """``fixed``: a RESHAPE to a constant size makes the file refuse every other. ``marked``: a last RESIZE to it."""
    b = TfliteBuilder()
    shape = nhwc_shape((1, 1, *SIZE))
    x, y = b.tensor("x", shape), b.tensor("y", shape)
    last = x
    if case:
        last = b.tensor("m", shape)
        b.conv(case, x, last)
    if fixed:
        size, reshaped = b.tensor("size", (4,), np.array(shape, np.int32)), b.tensor("r", shape)
        b.operator([last, size], [reshaped], 22)
        last = reshaped
    if marked:
        size, resized = b.tensor("s:image_size", (2,), np.array(marked, np.int32)), b.tensor("z", shape)
        b.operator([last, size], [resized], RESIZE_NEAREST)
        last = resized
    b.operator([last], [y], LOGISTIC)
    return b.finish([x], [y])


def native_file(case) -> bytes:
    """A network of one binary layer and a sigmoid."""
    constants = {name: array for name, array in case.constants.items() if array is not None}
    nodes = (Node("BinaryConv2d", "m", (0,), 1, case.spec.attributes(), constants),
             Node("Activation", "y", (1,), 2, {"activation": int(FloatActivation.SIGMOID)}))
    return write(Program((Tensor("x", 1), Tensor("m", 1), Tensor("y", 1)), nodes, 1, (2,)))


def write_bundle(folder: Path, resizable: bool = True, **files: bytes) -> Bundle:
    folder.mkdir(parents=True, exist_ok=True)
    artefacts = []
    for kind, data in files.items():
        name = f"model.{kind}"
        (folder / name).write_bytes(data)
        artefacts.append(Artefact(kind, name, bundles.sha256(folder / name), len(data),
                                  "NHWC" if kind == "tflite" else "NCHW", SIZE if kind == "tflite" else None, (),
                                  resizable))
    torch.manual_seed(0)
    save_file(small_network().state_dict(), folder / "weights.safetensors")
    blank = np.zeros((1, 1, *SIZE), np.float32)
    np.savez(folder / "vectors.npz", input=blank, probability=blank)
    bundles.write_manifest(folder, Manifest(
        "small", "0", 1, 1, None, "weights.safetensors", bundles.sha256(folder / "weights.safetensors"),
        f"{Path(__file__).stem}:small_network", Preprocessing(0.0, 1.0), 0.5, SIZE, tuple(artefacts),
        TestVectors("vectors.npz", bundles.sha256(folder / "vectors.npz"), 1)))
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def case():
    return make_case(4, size=SIZE, batch=1, **NODE)


@pytest.fixture
def bundle(case, tmp_path):
    sys.path.insert(0, str(Path(__file__).parent))
    yield write_bundle(tmp_path / "b", onnx=onnx_file(case), tflite=tflite_file(case), native=native_file(case),
                       portable=onnx_file(None))
    sys.path.remove(str(Path(__file__).parent))


def expected(kind: str, case, x: np.ndarray) -> np.ndarray:
    if kind == "torch":
        torch.manual_seed(0)
        with torch.inference_mode():
            return small_network()(torch.from_numpy(x)).numpy()
    if kind == "portable":
        logits = x
    else:
        other = at_size(case, *x.shape[2:])
        other.x = x
        logits = other.truth()
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", OPENERS)
def test_every_runtime(bundle, case, kind, threads):
    session = open_session(bundle, kind, threads)
    assert session.artefact == kind
    assert session.runtime.split()[0] == {"torch": "torch", "onnx": "onnxruntime", "portable": "onnxruntime",
                                          "tflite": "ai-edge-litert", "native": "irstd"}[kind]
    assert session.isa == (library.selected_isa() if kind in ("onnx", "tflite", "native") else None)
    for size in (SIZE, (64, 32), SIZE):
        x = np.random.default_rng(size[0]).standard_normal((1, 1, *size)).astype(np.float32)
        y = session.run(x)
        assert y.shape == x.shape and y.dtype == np.float32
        np.testing.assert_allclose(y, expected(kind, case, x), atol=2e-6)
        before = y.copy()
        call = session.prepare(x)
        assert call() is None and call() is None
        np.testing.assert_array_equal(y, before)
        np.testing.assert_array_equal(session.run(x), before)


@pytest.mark.parametrize("kind", OPENERS)
def test_a_prepared_input_is_a_copy_of_its_own(bundle, kind):
    """The caller may reuse its array; the result of `run` is the caller's."""
    session = open_session(bundle, kind)
    x = np.random.default_rng(0).standard_normal((1, 1, *SIZE)).astype(np.float32)
    y = session.run(x)
    call = session.prepare(x)
    other = session.run(np.zeros_like(x))
    x[:] = np.nan
    call()
    assert np.isfinite(y).all() and np.isfinite(other).all() and not np.array_equal(y, other)


@pytest.mark.parametrize("kind", OPENERS)
def test_any_memory_order_and_type(bundle, kind):
    session = open_session(bundle, kind)
    x = np.random.default_rng(0).standard_normal((1, 1, SIZE[1], SIZE[0])).transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(session.run(x), session.run(np.ascontiguousarray(x, np.float32)))


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_a_float_twin_needs_no_library(tmp_path, monkeypatch, kind):
    bundle = write_bundle(tmp_path / "twin", onnx=onnx_file(None), tflite=tflite_file(None))
    monkeypatch.setenv(library.FOLDER_VARIABLE, str(tmp_path))
    session = open_session(bundle, kind)
    assert session.isa is None
    x = np.random.default_rng(0).standard_normal((1, 1, *SIZE)).astype(np.float32)
    np.testing.assert_allclose(session.run(x), 1 / (1 + np.exp(-x.astype(np.float64))), atol=2e-6)


def test_the_thread_count_of_torch_follows_the_session(bundle):
    x = np.zeros((1, 1, *SIZE), np.float32)
    one, two = open_session(bundle, "torch", 1), open_session(bundle, "torch", 2)
    before = torch.get_num_threads()
    try:
        one.run(x)
        assert torch.get_num_threads() == 1
        two.prepare(x)()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_denormals_are_flushed_and_come_back(bundle):
    session = open_session(bundle, "torch")
    session.run(np.zeros((1, 1, *SIZE), np.float32))
    assert float(torch.tensor(1e-38) * 1e-3) > 0


# ---- errors ----


@pytest.mark.parametrize("kind", ["onnx", "tflite", "native"])
def test_a_missing_library(bundle, kind, monkeypatch, tmp_path):
    monkeypatch.setenv(library.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(MissingError, match="missing; IRSTD_LIBRARY_DIR"):
        open_session(bundle, kind)


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_an_isa_that_cannot_be_had(bundle, kind, monkeypatch):
    monkeypatch.setenv("IRSTD_ISA", "abacus")
    with pytest.raises(UnsupportedError, match=r"IRSTD_ISA=abacus.*available here: ref"):
        open_session(bundle, kind)


@pytest.mark.parametrize("kind, data, message", [
    ("onnx", b"no model", "model.onnx: onnxruntime .* cannot load it"),
    ("tflite", b"no model", "model.tflite: ai-edge-litert .* cannot load it"),
    ("tflite", tflite_file(make_case(4, size=SIZE, batch=1, **NODE)).replace(b"pad_value", b"pad_vblue"),
     "cannot load it: .*node 'm'.*unknown option pad_vblue"),
])
def test_a_damaged_artefact(tmp_path, kind, data, message):
    with pytest.raises(BundleError, match=message.replace(" .* ", " .*")):
        open_session(write_bundle(tmp_path / "b", **{kind: data}), kind)


def test_an_onnx_file_of_another_version(tmp_path, case):
    node, weights = onnx_node(case, "x", "y", None, "stem", version=2)
    shape = ("n", 1, "h", "w")
    model = onnx_model([node], weights, {"x": shape}, {"y": shape})
    with pytest.raises(BundleError, match=r"node 'stem': version must be in 1..1, got 2"):
        open_session(write_bundle(tmp_path / "b", onnx=model), "onnx")


def test_a_portable_file_with_our_operators_is_refused(tmp_path, case):
    with pytest.raises(BundleError, match="irstd"):
        open_session(write_bundle(tmp_path / "b", portable=onnx_file(case)), "portable")


def test_a_tflite_file_of_a_fixed_size(tmp_path, case):
    session = open_session(write_bundle(tmp_path / "b", tflite=tflite_file(case, fixed=True)), "tflite")
    x = np.random.default_rng(0).standard_normal((1, 1, *SIZE)).astype(np.float32)
    first = session.run(x)
    with pytest.raises(UnsupportedError, match=r"written for 32x48 images, cannot run 64x64 .*export again"):
        session.run(np.zeros((1, 1, 64, 64), np.float32))
    np.testing.assert_array_equal(session.run(x), first)
    with pytest.raises(ValueError, match="images must have 1 channel, got 3"):
        session.run(np.zeros((1, 3, *SIZE), np.float32))


def test_a_tflite_file_that_export_found_fixed(tmp_path, case):
    session = open_session(write_bundle(tmp_path / "b", resizable=False, tflite=tflite_file(case)), "tflite")
    x = np.random.default_rng(0).standard_normal((1, 1, *SIZE)).astype(np.float32)
    first = session.run(x)
    with pytest.raises(UnsupportedError, match=r"written for 32x48 images, cannot run 64x40.*--input-size 64x40"):
        session.run(np.zeros((1, 1, 64, 40), np.float32))
    np.testing.assert_array_equal(session.run(x), first)


def test_a_bundle_of_before_the_flag_is_fixed(tmp_path):
    import json

    bundle = write_bundle(tmp_path / "b", tflite=tflite_file(None))
    raw = json.loads((bundle.path / bundles.MANIFEST).read_text())
    del raw["artefacts"][0]["resizable"]
    (bundle.path / bundles.MANIFEST).write_text(json.dumps(raw))
    session = open_session(Bundle.open(bundle.path), "tflite")
    session.run(np.zeros((1, 1, *SIZE), np.float32))
    with pytest.raises(UnsupportedError, match="--input-size"):
        session.run(np.zeros((1, 1, 64, 64), np.float32))


def test_only_marked_sizes_follow_the_image(tmp_path):
    session = open_session(write_bundle(tmp_path / "b", tflite=tflite_file(None, marked=SIZE)), "tflite")
    for size in (SIZE, (64, 80), (33, 47)):
        x = np.random.default_rng(0).standard_normal((1, 1, *size)).astype(np.float32)
        np.testing.assert_allclose(session.run(x), 1 / (1 + np.exp(-x.astype(np.float64))), atol=2e-6)
    session = open_session(write_bundle(tmp_path / "c", tflite=tflite_file(None, marked=(16, 24))), "tflite")
    assert session.run(np.zeros((1, 1, 64, 48), np.float32)).shape == (1, 1, 32, 24)
    with pytest.raises(UnsupportedError, match=r"cannot run 33x48 .*multiples"):
        session.run(np.zeros((1, 1, 33, 48), np.float32))


def test_several_images_in_tflite(tmp_path, case):
    session = open_session(write_bundle(tmp_path / "b", tflite=tflite_file(case)), "tflite")
    x = np.random.default_rng(0).standard_normal((3, 1, *SIZE)).astype(np.float32)
    np.testing.assert_array_equal(session.run(x), np.concatenate([session.run(image[None]) for image in x]))
    with pytest.raises(ValueError, match="one by one"):
        session.prepare(x)


def test_no_interpreter(bundle, monkeypatch):
    for name in ("ai_edge_litert.interpreter", "ai_edge_litert", "tflite_runtime", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingError, match=r"pip install 'irstd-edge\[tflite\]'"):
        open_session(bundle, "tflite")


def test_no_onnxruntime(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingError, match="pip install onnxruntime"):
        open_session(bundle, "onnx")

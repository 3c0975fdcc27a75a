"""The slow tests on emulated ARM cores; each skips with the name of what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from irstd_edge.benchmarks.arm.emulate import NATIVE, MissingError, find, run


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    try:
        return (yield)
    except MissingError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def qemu() -> str:
    """qemu-aarch64 with plugins."""
    try:
        program = find("qemu-aarch64", "qemu-user")
        find("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")
        find("setarch", "util-linux")
    except MissingError as e:
        pytest.skip(str(e))
    if "-plugin" not in subprocess.run([program, "-h"], capture_output=True, text=True, check=False).stdout:
        pytest.skip("this qemu-aarch64 was built without plugins")
    return program


@pytest.fixture(scope="session")
def host(tmp_path_factory, qemu) -> Path:
    """A build of this tree for this machine, whatever is installed."""
    folder = tmp_path_factory.mktemp("host")
    run(["cmake", "--preset", "release", "-B", folder], cwd=NATIVE)
    run(["cmake", "--build", folder, "--target", "irstd", "irstd_core", "irstd_ort", "irstd_tflite"])
    return folder


def export_biisnet(out: Path, libraries: Path, *options: str) -> Path:
    """BiisNet for 64x64, with input.npy; in the ONNX file the maps of binary nodes are outputs too."""
    import onnx

    run([sys.executable, "-c", "from irstd_edge.cli import entry_point; entry_point()", "export", "biisnet", "--to",
         "onnx,tflite,native", "--input-size", "64", "--out", out, *options], env={"IRSTD_LIBRARY_DIR": str(libraries)})
    model = onnx.load(out / "model.onnx")
    maps = [name for node in model.graph.node if node.op_type == "BinaryConv2d" for name in node.output]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in maps)
    onnx.save(model, out / "model.onnx")
    np.save(out / "input.npy", np.load(out / "test_vectors.npz")["input"][2:3])
    return out


@pytest.fixture(scope="session")
def host_libraries(tmp_path_factory, host) -> Path:
    folder = tmp_path_factory.mktemp("libraries")
    for name in ("libirstd.so", "adapters/ort/libirstd_ort.so", "adapters/tflite/libirstd_tflite.so"):
        (folder / Path(name).name).symlink_to(host / name)
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory, host_libraries) -> Path:
    """One fused program."""
    return export_biisnet(tmp_path_factory.mktemp("bundle") / "out", host_libraries)


@pytest.fixture(scope="session")
def layers(tmp_path_factory, host_libraries) -> Path:
    """One node per layer."""
    return export_biisnet(tmp_path_factory.mktemp("layers") / "out", host_libraries, "--per-layer")

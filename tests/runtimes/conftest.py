"""The native libraries, built once if they are not installed, and headers of the real runtimes for the slow tests."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

# pytest's importlib mode does not: runtime_cases, environments
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import environments

from irstd_edge.runtimes import library

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "runtimes" / "native"


@pytest.fixture(scope="session")
def libraries() -> Path:
    """The folder of the libraries under test: built from this tree, whatever is installed."""
    if os.environ.get(library.FOLDER_VARIABLE):
        yield library.folder()
        return
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None:
        if all((library.folder() / name).is_file() for name in library.LIBRARIES.values()):
            yield library.folder()
            return
        pytest.skip("cmake is not installed, and neither are the libraries")
    build = ROOT / "build" / "native-runtimes"
    for command in ([cmake, "-S", NATIVE, "-B", build, "-DCMAKE_BUILD_TYPE=Release"],
                    [cmake, "--build", build, "--target", "irstd_ort", "irstd_tflite", "irstd"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    folder = build / "lib"
    folder.mkdir(exist_ok=True)
    for name in library.LIBRARIES.values():
        (built,) = (p for p in build.rglob(name) if p.parent != folder)
        # Another run of the tests may have the old file open.
        shutil.copy2(built, folder / f"{name}.part")
        os.replace(folder / f"{name}.part", folder / name)
    os.environ[library.FOLDER_VARIABLE] = str(folder)
    yield folder
    del os.environ[library.FOLDER_VARIABLE]


@pytest.fixture(scope="session")
def compiler() -> str:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return name
    pytest.skip("no C compiler")


def npm_headers(package: str, integrity: str, member: str, variable: str, folder: Path) -> Path:
    """The folder ``member`` of an npm package, its archive checked against ``integrity``; or the one that the
    environment names. Skips where neither can be had."""
    if os.environ.get(variable):
        return Path(os.environ[variable])
    target = folder / hashlib.sha256(package.encode()).hexdigest()[:12]
    if not target.is_dir():
        if shutil.which("npm") is None:
            pytest.skip(f"npm is not installed, and {variable} does not name a folder of headers")
        scratch = target.with_suffix(".part")
        scratch.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["npm", "pack", "--silent", package], cwd=scratch,
                              capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot fetch {package}: {done.stderr.strip()[-200:]}")
        archive = next(scratch.glob("*.tgz"))
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        assert f"sha512-{digest}" == integrity, f"{package} is not the package that was reviewed"
        with tarfile.open(archive) as tar:
            tar.extractall(scratch / "out", [m for m in tar if m.name.startswith(f"package/{member}/")], filter="data")
        archive.unlink()
        scratch.rename(target)
    return target / "out" / "package" / member


@pytest.fixture(scope="session")
def downloads() -> Path:
    folder = ROOT / "build" / "headers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def ort_headers(downloads) -> Path:
    return npm_headers(
        "@siteed/sherpa-onnx.rn@1.3.1",
        "sha512-dez/tSd+2JzEOw67OHuHc0tIKI84UPvJYv4OiYBVhpwwvdOgEm1dHlXMx/DQYAjvdP3dQ7vC0++YDMtjwQqD1w==",
        "prebuilt/include/onnxruntime", "IRSTD_ORT_HEADERS", downloads)


@pytest.fixture(scope="session")
def tflite_headers(downloads) -> Path:
    return npm_headers(
        "react-native-fast-tflite@1.3.0",
        "sha512-Zqt2lDYGc0Jc6Q1zt1+Kdg9I5aMYkxgmU9g5njHPI8N4nteJTQFPDs073yHJO8ooDO9JZ8zdR8Jl2oaoMiPrFA==",
        "android/src/main/cpp/lib/tensorflow/headers", "IRSTD_TFLITE_HEADERS", downloads)


@pytest.fixture(scope="session")
def ort118() -> Path:
    return environments.environment("venv-ort118", "onnxruntime==1.18.1", "numpy<2")


@pytest.fixture(scope="session")
def tflite214() -> Path:
    return environments.tflite214()

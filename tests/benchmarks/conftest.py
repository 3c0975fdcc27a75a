from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the helpers beside the tests

from fake_benchmark import OPENER, make_bundle, make_dataset  # noqa: E402

from irstd_edge.benchmarks.measure import Preset  # noqa: E402
from irstd_edge.benchmarks.run import Options, run  # noqa: E402


@pytest.fixture(autouse=True)
def fake_sessions_are_importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")])))


@pytest.fixture(scope="session")
def bundles(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return (
        make_bundle(root / "bundle", "tiny", ("onnx", "tflite", "portable"), trained=True),
        make_bundle(root / "twin", "tiny-float", ("onnx", "tflite"), trained=False),
    )


@pytest.fixture(scope="session")
def dataset_root(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def report(bundles, dataset_root) -> dict:
    """One whole run over fake sessions; do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")])))
        return run(Options(
            bundle=bundles[0], twin=bundles[1], preset_name="custom", preset=Preset(20, 0.1), dataset="toy",
            root=dataset_root, images=dataset_root / "toy/images", opener=OPENER,
        ))  # fmt: skip


@pytest.fixture
def report_copy(report) -> dict:
    return json.loads(json.dumps(report))

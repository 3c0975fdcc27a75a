"""Shared fixtures of the export tests."""

import os
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not: export_truth


@pytest.fixture(scope="session")
def biisnet():
    """The BiisNet with random weights and random shifts, so that no threshold sits at its initial zero."""
    from irstd_edge.models.registry import get_model

    torch.manual_seed(7)
    network = get_model("biisnet").factory().eval()
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "shift" in name or name.endswith("norm.bias"):
                value.normal_(0, 0.3)
        network.head.bias.fill_(0.0)
    return network


@pytest.fixture(scope="session")
def biisnet_capture(biisnet):
    """The captured BiisNet; clone its model before changing it."""
    from irstd_edge.export.capture import capture

    return capture(biisnet, (64, 96))


@pytest.fixture(scope="session")
def biisnet_compressed(biisnet_capture):
    from irstd_edge.export.passes import compress

    return compress(biisnet_capture.model.clone())


@pytest.fixture(scope="session")
def native_library():
    """Fails where the native libraries are not built; skips there with IRSTD_ALLOW_NO_NATIVE=1."""
    from irstd_edge.errors import MissingError
    from irstd_edge.runtimes import library

    try:
        ort, tflite, _ = map(library.find, ("ort", "tflite", "native"))
        return ort, tflite
    except MissingError as e:
        if os.environ.get("IRSTD_ALLOW_NO_NATIVE") == "1":
            pytest.skip(str(e))
        pytest.fail(f"{e} (IRSTD_ALLOW_NO_NATIVE=1 skips these tests)")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A current directory for a user's own network modules."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) and os.path.dirname(module.__file__) == str(tmp_path):
            del sys.modules[name]

"""A small synthetic data set, and the way to the public ones."""

import os
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not: unit_truth

from synthetic_data import write_dataset  # noqa: E402


@pytest.fixture
def synthetic(tmp_path) -> Path:
    """Root folder of a synthetic data set named ``Synthetic``."""
    return write_dataset(tmp_path / "data")


@pytest.fixture(scope="session")
def public_data() -> Path:
    """Root folder of the public data sets; skips where they are not."""
    root = Path(os.environ.get("IRSTD_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
    if not (root / "NUAA-SIRST").is_dir():
        pytest.skip("needs the public data sets: set IRSTD_DATA to the folder that holds NUAA-SIRST")
    return root

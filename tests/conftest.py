from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    """Side by side (``-n``), the tests of a folder stay in one process: they share what their fixtures build."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.relative_to(Path(__file__).parent).parts[0]))

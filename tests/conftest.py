from __future__ import annotations

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Side by side (``-n``), tests that share what their fixtures build stay in one process: those of a folder, but
    in ``unit``, where nothing is built, those of a file."""
    from xdist.scheduler import LoadScopeScheduling

    class WholeFolders(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder, name = nodeid.split("::")[0].split("/")[1:3]
            return name if folder == "unit" else folder

    return WholeFolders(config, log)

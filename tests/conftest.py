from __future__ import annotations

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Side by side (``-n``), the tests of a folder stay in one process: they share what their fixtures build."""
    from xdist.scheduler import LoadScopeScheduling

    class WholeFolders(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "/".join(nodeid.split("::")[0].split("/")[:2])

    return WholeFolders(config, log)

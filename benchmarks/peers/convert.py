"""In an engine's environment: turns the files of a work into the engine's own model.

``convert MODULE WORK OUT PRECISION``, where MODULE is one of :mod:`irstd_edge.benchmarks.peers.adapters`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    _, module, work, out, precision = sys.argv
    Path(out).mkdir(parents=True, exist_ok=True)
    import_module(module).convert(Path(work), Path(out), precision)


if __name__ == "__main__":
    main()

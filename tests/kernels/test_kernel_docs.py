"""The table of kernels in docs/kernels.md names exactly the kernels of the sources."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_documented_kernels_are_those_of_the_sources():
    sources = [ROOT / "runtimes/native/kernels/sets.c", *(ROOT / "runtimes/native/kernels").glob("*/engine.c")]
    defined = {name for file in sources for name in re.findall(r'\.name = "(\w+)"', file.read_text())}
    documented = set(re.findall(r"^\| `(bconv2d\w+)` \|", (ROOT / "docs" / "kernels.md").read_text(), re.MULTILINE))
    assert defined and documented == defined

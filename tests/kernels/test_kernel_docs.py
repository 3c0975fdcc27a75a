"""The table of variants in docs/kernels.md names exactly the variants of the sources."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_documented_variants_are_those_of_the_sources():
    sources = (ROOT / "runtimes" / "native" / "kernels").glob("*/*.c")
    row = re.compile(r'irstd_bconv2d_kernel \w+ = \{"(\w+)"')
    defined = {name for file in sources for name in row.findall(file.read_text())}
    documented = set(re.findall(r"^\| `(\w+__\w+)` \|", (ROOT / "docs" / "kernels.md").read_text(), re.MULTILINE))
    assert defined and documented == defined

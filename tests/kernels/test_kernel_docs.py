"""The tables of kernels in docs/kernels.md name exactly the kernels of the sources; docs/arm.md shows the budgets."""

import json
import re
from pathlib import Path

from irstd_edge.benchmarks.arm.kernels import LAYERS

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "runtimes/native"


def binary() -> list[str]:
    sources = [NATIVE / "kernels/sets.c", *(NATIVE / "kernels").glob("*/engine.c")]
    return [name for file in sources for name in re.findall(r'\.name = "(bconv2d\w+)"', file.read_text())]


def forms() -> list[str]:
    table = re.search(r"forms\[\] = \{(.*?)\n\};", (NATIVE / "kernels/rows/conv.c").read_text(), re.DOTALL)[1]
    return re.findall(r'\{"(\w+)"', table)


def quantised() -> list[tuple[str, ...]]:
    """Kernel, picoseconds of a step on bytes and on narrower fields, and of a fold."""
    rows = re.findall(r'irstd_quant\((\w+?)(?:_\d+)? \w+ "[^"]*" (\d+) (\d+) (\d+)\)', without_emulation())
    return [(f"qconv2d_{name}", *costs) for name, *costs in rows]


def without_emulation() -> str:
    return re.sub(r"if\(IRSTD_SIMDE\).*?else\(\)", "", (NATIVE / "CMakeLists.txt").read_text(), flags=re.DOTALL)


def documented(pattern: str) -> list:
    return re.findall(pattern, (ROOT / "docs/kernels.md").read_text(), re.MULTILINE)


def test_binary_kernels():
    assert binary() and sorted(documented(r"^\| `(bconv2d\w+)` \|")) == sorted(binary())


def test_float_forms():
    """In the order in which they are tried."""
    section = (ROOT / "docs/kernels.md").read_text().split("## Float convolutions")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", section, re.MULTILINE)
    assert forms() and re.findall(r"\w+", " ".join(rows)) == forms()


def test_quantised_variants():
    """With the costs on x86 that the choice follows."""
    rows = documented(r"^\| `(qconv2d_\w+)` \| ([^|]*)\|.*\| ([^|]*)\|$")
    assert {name for name, _, _ in rows} == {name for name, *_ in quantised()}
    pattern = re.compile(r"(\d+), narrow (\d+)(?:, fold (\d+))?")
    x86 = [(name, *pattern.match(cost).groups("0")) for name, isa, cost in rows if "AVX" in isa]
    assert x86 and set(x86) <= set(quantised())


def test_budgets_of_arm():
    budgets = json.loads((ROOT / "benchmarks/arm/budgets.json").read_text())
    page = (ROOT / "docs/arm.md").read_text()
    rows = re.findall(r"^\| (\w+ [-\w@/*]+) \| ([\d.]+) \| ([\d.]+) \|", page, re.MULTILINE)
    shown = {name: [f"{budgets[name][core]['instructions'] / 1e6:.2f}" for core in ("cortex-a53", "cortex-a76")]
             for name in LAYERS}
    assert {name: list(counts) for name, *counts in rows} == shown
    assert {layer.kernel for layer in LAYERS.values()} == {*forms(), "qconv2d"}

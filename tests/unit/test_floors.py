"""The floors of the package: what is below imports nothing of what is above."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Floor -> the floors that its modules may import. Each upper floor lies in a folder of its name beside irstd_edge.
ALLOWED = {
    "ground": {"ground"},
    "runtimes": {"ground", "runtimes"},
    "export": {"ground", "runtimes", "export"},
    "benchmarks": {"ground", "runtimes", "benchmarks"},
}
#: A module or "module:attribute" as text, imported later by import_module.
REFERENCE = re.compile(r"irstd_edge(\.\w+)*(:[\w.]+)?")


def floor(module: str) -> str | None:
    """The floor of a module's full name; None where it is not ours."""
    package, *rest = module.split(".")
    if package != "irstd_edge":
        return None
    return rest[0] if rest and rest[0] in ALLOWED else "ground"


def references(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that the source imports, at its top, within functions, or names as text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[:len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            # The name itself can be a module: from irstd_edge import export.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and REFERENCE.fullmatch(node.value):
            yield node.lineno, node.value.partition(":")[0]


def without_command_table(tree: ast.Module) -> ast.Module:
    """``irstd_edge/cli.py`` names the commands of every floor in ``COMMANDS``, as text, and nowhere else."""
    def is_table(node: ast.stmt) -> bool:
        return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "COMMANDS"

    assert sum(map(is_table, tree.body)) == 1
    tree.body = [node for node in tree.body if not is_table(node)]
    return tree


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    tree = ast.parse(source)
    if module == "irstd_edge.cli":
        tree = without_command_table(tree)
    allowed = ALLOWED[floor(module)]
    return [f"{module}:{line} imports {name}" for line, name in references(tree, module, is_package)
            if floor(name) is not None and floor(name) not in allowed]


def sources() -> Iterator[tuple[Path, str]]:
    for folder, package in (("irstd_edge", "irstd_edge"), *((f, f"irstd_edge.{f}") for f in ALLOWED if f != "ground")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield path, ".".join([package, *(p for p in parts if p != "__init__")])


def test_no_floor_imports_one_above_it():
    found, seen = [], set()
    for path, module in sources():
        seen.add(floor(module))
        found += violations(path.read_text(), module, path.name == "__init__.py")
    assert seen == set(ALLOWED)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("module, line", [
    ("irstd_edge.data", "import irstd_edge.runtimes.video"),
    ("irstd_edge.data", "from irstd_edge.export.capture import capture"),
    ("irstd_edge.data", "from irstd_edge import benchmarks"),
    ("irstd_edge.data", "from .runtimes import video"),
    ("irstd_edge.training.cli", "from ..runtimes import video"),
    ("irstd_edge.cli", "COMMANDS: dict = {}\nimport irstd_edge.runtimes"),
    ("irstd_edge.zoo.card", "x = 'irstd_edge.runtimes.video:read_all'"),
    ("irstd_edge.runtimes.cli", "def f():\n    from irstd_edge.export import pipeline"),
    ("irstd_edge.runtimes.cli", "import_module('irstd_edge.benchmarks.run')"),
    ("irstd_edge.export.cli", "from ..benchmarks.run import run"),
    ("irstd_edge.benchmarks.run", "if TYPE_CHECKING:\n    import irstd_edge.export.pipeline as p"),
])
def test_a_violation_is_found(module, line):
    assert len(violations(line, module)) == 1


@pytest.mark.parametrize("module, line", [
    ("irstd_edge.cli", "COMMANDS: dict = {'export': 'irstd_edge.export.cli:export'}"),
    ("irstd_edge.runtimes.cli", "from irstd_edge.data import DataError\nfrom . import video\nimport export"),
    ("irstd_edge.export.cli", "from irstd_edge.runtimes import parity"),
    ("irstd_edge.benchmarks.run", "from irstd_edge.runtimes.session import open_session"),
    ("irstd_edge.data", "'Of irstd_edge.runtimes.video.'"),
])
def test_what_is_allowed_is_not(module, line):
    assert violations(line, module) == []

"""What setup.cfg, MANIFEST.in and constraints.txt say, held to the files and to each other."""

import configparser
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT / "setup.cfg")
#: Folder of each package that does not lie below the folder of its parent.
FOLDERS = dict(re.split(r"\s*=\s*", line) for line in SETTINGS["options"]["package_dir"].split("\n") if line)
PACKAGES = SETTINGS["options"]["packages"].split()
EXTRAS = {name: [line for line in text.splitlines() if line] for name, text in
          SETTINGS["options.extras_require"].items()}
#: Files that are not installed: what the native build and the benchmarks of the kernels need.
NOT_INSTALLED = ("runtimes/native", "runtimes/lib", "benchmarks/kernels", "benchmarks/arm", "benchmarks/peers")


def folder(package: str) -> Path:
    if package in FOLDERS:
        return ROOT / FOLDERS[package]
    parent, _, name = package.rpartition(".")
    return folder(parent) / name


def installed(path: Path) -> bool:
    relative = path.relative_to(ROOT).as_posix()
    return "__pycache__" not in relative and not relative.startswith(NOT_INSTALLED)


def requirements():
    lines = SETTINGS["options"]["install_requires"].split() + [r for name in EXTRAS for r in EXTRAS[name]]
    return {r.name: r for r in map(Requirement, lines) if r.name != "irstd-edge"}


@pytest.mark.parametrize("root", sorted(FOLDERS.values()))
def test_every_package_is_listed(root):
    there = {p.parent for p in (ROOT / root).rglob("__init__.py") if installed(p)}
    assert there == {folder(p) for p in PACKAGES if folder(p).is_relative_to(ROOT / root)}


def test_every_data_file_is_packed():
    """A file beside the modules that no pattern names would be missing from the wheel."""
    patterns = {package: re.split(r"[,\s]+", text) for package, text in SETTINGS["options.package_data"].items()}
    packed = {f for package, globs in patterns.items() for glob in globs for f in folder(package).glob(glob)}
    for package in PACKAGES:
        there = {f for f in folder(package).rglob("*") if f.is_file() and f.suffix != ".py" and installed(f)}
        assert there <= packed, package
    without = [glob for package, globs in patterns.items() for glob in globs
               if glob != "lib/*" and not list(folder(package).glob(glob))]
    assert not without


def test_the_source_archive_has_the_native_sources_and_no_libraries():
    lines = (ROOT / "MANIFEST.in").read_text().splitlines()
    assert lines.index("graft runtimes/native") < lines.index("prune runtimes/lib")


def test_constraints_satisfy_the_bounds():
    wanted = requirements()
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()
            if line and not line.startswith("#")]
    for pin in pins:
        (version,) = [s.version for s in pin.specifier]
        assert wanted[pin.name].specifier.contains(version), pin


def test_every_bound_has_a_lower_end():
    assert not [str(r) for r in requirements().values() if not any(s.operator == ">=" for s in r.specifier)]


def test_the_extras_that_messages_and_docs_name_exist():
    files = [*ROOT.glob("docs/*.md"), ROOT / "README.md"]
    files += [p for package in PACKAGES for p in folder(package).glob("*.py")]
    named = {name.strip() for f in files for group in re.findall(r"irstd-edge\[([\w, ]+)\]", f.read_text())
             for name in group.split(",")}
    assert named and named <= set(EXTRAS)


def test_the_table_of_extras_is_complete():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(EXTRAS)

"""``report.json``: read, validate, write. The schema lies beside this file and in ``docs/report.schema.json``."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from irstd_edge.benchmarks.errors import BenchmarkError
from irstd_edge.errors import MissingError
from irstd_edge.files import write_text

SCHEMA_VERSION = 1


def schema() -> dict:
    """The JSON schema of a report."""
    return json.loads(resources.files(__package__).joinpath("report.schema.json").read_text())


def validate(report: object, source: str = "report") -> None:
    """Raise :class:`BenchmarkError` naming the first field that breaks the schema, or a version not ours."""
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match
    except ImportError as e:
        raise MissingError("jsonschema is missing; get it with: pip install 'irstd-edge[report]'") from e

    version = report.get("schema_version") if isinstance(report, dict) else None
    if version != SCHEMA_VERSION:
        raise BenchmarkError(f"{source}: schema version {version}, this release reads {SCHEMA_VERSION}; measure again")
    if error := best_match(Draft202012Validator(schema()).iter_errors(report)):
        where = "/".join(str(p) for p in error.absolute_path) or "the top level"
        raise BenchmarkError(f"{source}: not a report: {where}: {error.message[:200]}; measure again")


def read(path: Path) -> dict:
    """Read and validate a report. Raises :class:`BenchmarkError`."""
    try:
        report = json.loads(Path(path).read_text())
    except FileNotFoundError as e:
        raise BenchmarkError(f"{path}: no such file; write one with: irstd-edge benchmark DIR --json {path}") from e
    except (OSError, ValueError) as e:
        raise BenchmarkError(f"{path}: cannot be read as JSON ({e})") from e
    validate(report, str(path))
    return report


def write(report: dict, path: Path) -> None:
    """Validate and write a report, whole or not at all, its folder made.

    Raises :class:`BenchmarkError`, :class:`~irstd_edge.data.DataError`.
    """
    validate(report)
    write_text(path, encode(report))


def encode(report: dict) -> str:
    """Indented JSON with every list of numbers, the raw samples above all, on one line."""
    tokens: dict[str, str] = {}

    def shorten(value: object) -> object:
        if isinstance(value, dict):
            return {key: shorten(item) for key, item in value.items()}
        if not isinstance(value, list):
            return value
        if all(not isinstance(item, dict) for item in value):
            token = f"@list{len(tokens)}@"
            tokens[f'"{token}"'] = json.dumps(value, separators=(",", ":"), allow_nan=False)
            return token
        return [shorten(item) for item in value]

    lines = json.dumps(shorten(report), indent=2, allow_nan=False).split("\n")
    for i, line in enumerate(lines):
        if (start := line.find('"@list')) >= 0:
            token = line[start:].rstrip(",")
            lines[i] = line[:start] + tokens.get(token, token) + line[start + len(token) :]
    return "\n".join(lines) + "\n"

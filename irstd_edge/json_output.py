"""The option ``--json FILE`` of the commands; ``--json -`` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import wraps
from pathlib import Path
from typing import TextIO

import click


class JsonFile:
    """Where a result goes: a file, whole or not at all, or a stream.

    Raises :class:`~irstd_edge.data.DataError` at once for a file that cannot be written.
    """

    def __init__(self, target: Path | TextIO):
        from irstd_edge.files import check_writable

        if isinstance(target, Path):
            check_writable(target)
        self._target = target

    def write(self, value: object) -> None:
        """Write ``value``, which holds no number that JSON does not have."""
        from irstd_edge.files import write_text

        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
        if isinstance(self._target, Path):
            write_text(self._target, text)
        else:
            self._target.write(text)


def json_option(what: str) -> Callable:
    """Gives a command the option ``--json``, as its parameter ``json_file``: a :class:`JsonFile` or None.

    With ``-`` the JSON alone goes to standard output, and what the command prints to standard error.
    """
    def decorate(command: Callable) -> Callable:
        @click.option("--json", "json_file", metavar="FILE|-",
                      help=f"Write {what} as JSON; - prints it, and the rest on standard error.")
        @wraps(command)
        def run(*arguments, json_file: str | None, **options):
            if json_file == "-":
                printed = sys.stdout
                with redirect_stdout(sys.stderr):
                    return command(*arguments, json_file=JsonFile(printed), **options)
            return command(*arguments, json_file=json_file and JsonFile(Path(json_file)), **options)

        return run

    return decorate

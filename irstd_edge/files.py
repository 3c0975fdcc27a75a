"""Files that appear whole or not at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from irstd_edge.data import DataError


def check_writable(path: Path) -> None:
    """Fail before a long run, not after it: raises :class:`~irstd_edge.data.DataError` where ``path`` could not be
    written.

    Makes nothing.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name a file")
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is a device or pipe, which cannot be replaced; name a file")
    folder = next(p for p in path.absolute().parents if p.exists())
    if not folder.is_dir():
        raise DataError(f"{path}: cannot be written ({folder} is a file); name another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{path}: cannot be written (no permission for {folder}); name another place")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, of the same suffix, that becomes ``path`` when the block ends without an error.

    Makes the folder; leaves nothing half-written. Raises :class:`~irstd_edge.data.DataError` where ``path`` cannot be
    written; what the block itself raises passes unchanged.
    """
    path = Path(path)
    check_writable(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _unwritable(path, e) from e
    try:
        yield temporary
        try:
            os.replace(temporary, path)
        except OSError as e:
            raise _unwritable(path, e) from e
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, whole or not at all, its folder made. Raises :class:`~irstd_edge.data.DataError`."""
    with _writing(path) as file:
        file.write(text)


def write_csv(path: Path, rows: Sequence[dict], fields: Sequence[str] | None = None) -> None:
    """Write rows as CSV, whole or not at all, its folder made. Raises :class:`~irstd_edge.data.DataError`.

    ``fields`` are the columns, by default the keys of the first row; what a row lacks is empty.
    """
    with _writing(path) as file:
        writer = csv.DictWriter(file, list(rows[0]) if fields is None else fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@contextmanager
def _writing(path: Path) -> Iterator[TextIO]:
    """:func:`replacing` for text, UTF-8 and lines as they are; what the disk refuses is the same error."""
    try:
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as e:
        raise _unwritable(path, e) from e


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be written ({error.strerror or error}); name another place")

"""Curves as pictures; matplotlib is loaded only here, and only when one is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from irstd_edge.errors import MissingError
from irstd_edge.files import replacing


def require_matplotlib() -> None:
    """Raise :class:`~irstd_edge.errors.MissingError` where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as e:
        raise MissingError("curves need matplotlib: pip install irstd-edge[train]") from e


@contextmanager
def plotting(path: Path, title: str | None = None, columns: int = 2, rows: int | None = None,
             size: tuple[float, float] = (5, 4)) -> Iterator:
    """Yields matplotlib axes side by side to draw on (with ``rows``: a list of them for each row), each of ``size`` in
    inches; the picture is written when the block ends, whole or not at all: SVG where the name says so, else PNG.

    Raises :class:`~irstd_edge.errors.MissingError`, :class:`~irstd_edge.data.DataError`.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * (rows or 1)), layout="constrained")
    if title:
        figure.suptitle(title)
    axes = figure.subplots(rows or 1, columns, squeeze=rows is None)
    yield axes
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg" if path.suffix.lower() == ".svg" else "png", dpi=100)

"""Exit codes of the command line, and the errors that carry them."""

from __future__ import annotations

OK = 0
USAGE = 2
UNSUPPORTED = 3
PARITY = 4
MISSING = 5
REGRESSION = 6


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def details(error: BaseException | None) -> list[str]:
    """The notes (PEP 678) of an error and of those that led to it: what is too long for its line."""
    return [] if error is None else [*getattr(error, "__notes__", ()), *details(error.__cause__)]


class UnsupportedError(ValueError):
    """A layer, operator or target that is not supported; the message names it and the nearest that is. Exit 3."""


class ParityError(RuntimeError):
    """An artefact differs from PyTorch beyond its tolerance. Exit 4."""


class MissingError(RuntimeError):
    """A runtime, library, device or tool is missing; the message says how to get it. Exit 5."""

"""The native libraries: where they are, and which instruction sets they can use here."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from irstd_edge.errors import MissingError, UnsupportedError

#: Runtime -> file in :func:`folder`.
LIBRARIES = {"ort": "libirstd_ort.so", "tflite": "libirstd_tflite.so", "native": "libirstd.so"}
#: Names another folder to take the libraries from.
FOLDER_VARIABLE = "IRSTD_LIBRARY_DIR"


class _Error(ctypes.Structure):
    _fields_ = [("message", ctypes.c_char * 256)]


def folder() -> Path:
    """Where the libraries are looked for."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path(__file__).resolve().parent / "lib")


def find(runtime: str) -> Path:
    """The library of one of :data:`LIBRARIES`. Raises :class:`MissingError`."""
    path = folder() / LIBRARIES[runtime]
    if path.is_file():
        return path
    if os.environ.get(FOLDER_VARIABLE):
        raise MissingError(
            f"{path}: missing; {FOLDER_VARIABLE} must name the folder of the native libraries, or be unset"
        )
    raise MissingError(
        f"{path}: missing; build it with `make build` in a checkout, or `pip install --force-reinstall irstd-edge`"
    )


@dataclass(frozen=True)
class _Isas:
    """The functions of one library that tell about instruction sets, as ``irstd.h`` has them."""

    isa: Callable
    count: Callable
    name: Callable
    available: Callable


@cache
def _load(path: Path) -> _Isas:
    # The adapters hold the core, whose own names they do not show.
    prefix = "irstd_isa" if path.name == LIBRARIES["native"] else "irstd_library_isa"
    try:
        library = ctypes.CDLL(str(path))
        found = _Isas(*(getattr(library, prefix + end) for end in ("", "_count", "_name", "_available")))
    except (OSError, AttributeError) as e:
        raise MissingError(f"{path}: cannot be loaded ({e}); build it again with `make build`") from e
    found.isa.restype, found.isa.argtypes = ctypes.c_char_p, [ctypes.POINTER(_Error)]
    found.name.restype = ctypes.c_char_p
    return found


def available_isas(runtime: str = "ort") -> list[str]:
    """The instruction sets of the build that this CPU has, best last. Raises :class:`MissingError`."""
    library = _load(find(runtime))
    return [library.name(i).decode() for i in range(library.count()) if library.available(i)]


def selected_isa(runtime: str = "ort") -> str:
    """The instruction set that operators made now will use: ``IRSTD_ISA``, or the best.

    Raises :class:`MissingError`, and :class:`UnsupportedError` where ``IRSTD_ISA`` cannot be had.
    """
    error = _Error()
    name = _load(find(runtime)).isa(ctypes.byref(error))
    if name is None:
        raise UnsupportedError(
            f"{error.message.decode(errors='replace')}; available here: {', '.join(available_isas(runtime))}"
        )
    return name.decode()

"""The native libraries: where they are, and which instruction sets they can use here."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

from irstd_edge.errors import MissingError, UnsupportedError

#: Runtime -> file in :func:`folder`.
LIBRARIES = {"ort": "libirstd_ort.so", "tflite": "libirstd_tflite.so"}
#: Names another folder to take the libraries from.
FOLDER_VARIABLE = "IRSTD_LIBRARY_DIR"


class _Error(ctypes.Structure):
    _fields_ = [("message", ctypes.c_char * 256)]


def folder() -> Path:
    """Where the libraries are looked for."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path(__file__).resolve().parent / "lib")


def find(runtime: str) -> Path:
    """The library for ``ort`` or ``tflite``. Raises :class:`MissingError`."""
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


@cache
def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        library.irstd_library_isa.restype = ctypes.c_char_p
        library.irstd_library_isa.argtypes = [ctypes.POINTER(_Error)]
        library.irstd_library_isa_name.restype = ctypes.c_char_p
    except (OSError, AttributeError) as e:
        raise MissingError(f"{path}: cannot be loaded ({e}); build it again with `make build`") from e
    return library


def available_isas(runtime: str = "ort") -> list[str]:
    """The instruction sets of the build that this CPU has, best last. Raises :class:`MissingError`."""
    library = _load(find(runtime))
    count = library.irstd_library_isa_count()
    return [library.irstd_library_isa_name(i).decode() for i in range(count) if library.irstd_library_isa_available(i)]


def selected_isa(runtime: str = "ort") -> str:
    """The instruction set that operators made now will use: ``IRSTD_ISA``, or the best.

    Raises :class:`MissingError`, and :class:`UnsupportedError` where ``IRSTD_ISA`` cannot be had.
    """
    error = _Error()
    name = _load(find(runtime)).irstd_library_isa(ctypes.byref(error))
    if name is None:
        raise UnsupportedError(
            f"{error.message.decode(errors='replace')}; available here: {', '.join(available_isas(runtime))}"
        )
    return name.decode()

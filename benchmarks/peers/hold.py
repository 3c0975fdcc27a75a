"""Holds engines to AVX2 that choose their kernels by what the processor says of itself.

Few engines have a switch for it. A virtual environment is copied (hard links), every ``cpuid`` instruction of its
libraries becomes one that does not exist, and a preloaded library answers in its place, without AVX-512, AMX and
AVX-VNNI (hold.c). Where the processor and the kernel offer CPUID faulting, ``arch_prctl(ARCH_SET_CPUID)``, copies would
not be needed; many virtual machines do not.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from irstd_edge.benchmarks.peers.compiler import CompilerError, compile_c

CPUID, HELD = b"\x0f\xa2", b"\x0e\xa2"
#: glibc asks within ld.so, before anything is preloaded: its copies of memory must not use AVX-512 either.
GLIBC = "glibc.cpu.hwcaps=" + ",".join(f"-AVX512{part}" for part in ("F", "BW", "CD", "DQ", "VL"))


class HoldError(RuntimeError):
    """Engines cannot be held here; one line."""


def held(python: Path, environ: Mapping[str, str]) -> tuple[Path, dict[str, str]]:
    """The Python and the variables of a held copy of an environment, made where it is missing: ``../held/NAME``.

    Raises :class:`HoldError`.
    """
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        raise HoldError("only on Linux on x86-64")
    if shutil.which("objdump") is None:
        raise HoldError("objdump is missing; install binutils")
    folder = python.parent.parent
    root = folder.parent.parent / "held"
    copy, stamp = root / folder.name, root / f"{folder.name}.txt"
    key = hashlib.sha256((folder / "freeze.txt").read_bytes() + Path(__file__).read_bytes()).hexdigest()
    try:
        library = compile_c("hold.c", root / "hold.so", "-shared", "-fPIC")
        if not (stamp.is_file() and stamp.read_text() == key):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy, symlinks=True, copy_function=os.link)
            for file in libraries(copy):
                patch(file)
            stamp.write_text(key)
    except (OSError, CompilerError, subprocess.SubprocessError) as e:
        raise HoldError(str(e)) from e
    path = environ["PATH"].replace(str(python.parent), str(copy / "bin"))
    return copy / "bin" / python.name, {**environ, "PATH": path, "LD_PRELOAD": str(library), "GLIBC_TUNABLES": GLIBC}


def libraries(folder: Path) -> Iterator[Path]:
    """The 64-bit ELF files in which the bytes of ``cpuid`` occur, as an instruction or by chance."""
    for file in sorted(folder.rglob("*")):
        if file.is_symlink() or not file.is_file() or file.stat().st_size < 64:
            continue
        with file.open("rb") as handle:
            if handle.read(5) == b"\x7fELF\x02":
                with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    if data.find(CPUID) >= 0:
                        yield file


def patch(file: Path) -> int:
    """Replace the ``cpuid`` instructions of a library, in a file of its own (others may be linked to it); how many.

    Where they are is what objdump says: the two bytes also occur within other instructions.
    """
    with subprocess.Popen(["objdump", "-d", "--no-show-raw-insn", "-w", file], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as process:  # fmt: skip
        addresses = [int(line.split(b":")[0], 16) for line in process.stdout if line.rstrip().endswith(b"\tcpuid")]
    if process.returncode:
        raise HoldError(f"objdump cannot read {file}")
    if addresses:
        data = bytearray(file.read_bytes())
        for at in offsets(data, addresses):
            if data[at : at + 2] != CPUID:
                raise HoldError(f"{file}: no cpuid at {at:#x}, where objdump names one")
            data[at : at + 2] = HELD
        part = file.with_name(f"{file.name}.part")
        part.write_bytes(data)
        shutil.copymode(file, part)
        part.replace(file)
    return len(addresses)


def offsets(elf: bytes, addresses: Iterable[int]) -> Iterator[int]:
    """Where in the file the addresses are, by its loaded segments."""
    table, size, count = struct.unpack_from("<Q", elf, 0x20)[0], *struct.unpack_from("<HH", elf, 0x36)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    loaded = [(address, address + length, at) for kind, _, at, address, _, length in headers if kind == 1]
    for wanted in addresses:
        yield next(wanted - low + at for low, high, at in loaded if low <= wanted < high)


def used_avx512(pid: int, seconds: float) -> bool | None:
    """Whether a thread of a process had AVX-512 state within the last ``seconds``, as the kernel saw when it was
    switched out; None where the kernel does not tell."""
    try:
        found = [int(Path(f"/proc/{task}/arch_status").read_text().split()[1]) for task in os.listdir(
            f"/proc/{pid}/task")]  # fmt: skip
    except (OSError, ValueError, IndexError):
        return None
    return any(0 <= elapsed < seconds * 1000 for elapsed in found)

"""Files that are wrong in one place or several, with a checksum that fits, and a process that opens them."""

from __future__ import annotations

import os
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
from engine_cases import SAME, Builder

from irstd_edge.program import (
    HEADER,
    HEADER_FIELDS,
    NODE,
    NODE_FIELDS,
    OPERATORS,
    TENSOR,
    TENSOR_FIELDS,
    Program,
    write,
)


def everything() -> Program:
    """Every operator, every constant; small."""
    rng = np.random.default_rng(4)
    b = Builder(3, 3)
    total = b.add("Add", (0, 1), 3, 8, {"slope": np.ones(3, np.float32)}, activation=2)
    x = b.conv(rng, total, 6, grid=8, activation=2, **SAME)
    y = b.binary(rng, b.binary(rng, x, 6, groups=2, **SAME), 12, x, **SAME)
    down = b.add("AveragePool", y, 12, 8, kernel_h=2, kernel_w=2, stride_h=2, stride_w=2)
    down = b.add("Concat", (down, b.add("MaxPool", y, 12, 8, kernel_h=2, kernel_w=2, stride_h=2, stride_w=2)), 24, 8)
    low = b.binary(rng, down, 12, down, pad_value=1, **SAME)
    up = b.add("Resize", (low, y), 12, 8, scale_h=2, scale_w=2, mode=1)
    gate = b.add("Activation", b.add("GlobalAveragePool", up, 12), 12, activation=4)
    head = b.conv(rng, b.add("Multiply", (up, gate), 12), 1, (1, 1), activation=3, clamp_max=1.0)
    back = b.conv(rng, b.fixed(0, 4), 2, (2, 2), operator="ConvTranspose2d", activation=2, stride_h=2, output_pad_h=1)
    quantised = b.quant(rng, (0, total), 3, bits=(3, 4), **SAME)
    sliced = b.add("Slice", y, 5, 8, first=7)
    pooled = b.add("MaxPool", quantised, 3, kernel_h=3, kernel_w=3, stride_h=2, stride_w=2, ceil_mode=1, **SAME)
    pooled = b.add("Resize", (pooled, quantised), 3, mode=1, size=1)
    gates = [b.add(kind, pooled, 1) for kind in ("ChannelAveragePool", "ChannelMaxPool")]
    pooled = b.add("Add", (b.add("Multiply", (pooled, gates[0]), 3), b.add("GlobalMaxPool", gates[1], 1)), 3)
    pooled = b.add("Resize", pooled, 3, mode=2, scale_h=2, scale_w=3, divisor_h=3)
    return b.finish(head, back, sliced, quantised, b.add("Resize", pooled, 3, mode=0, size=2, height=7, width=9))


FILE, SIZE = write(everything()), (8, 20)
#: Words that numbers, offsets, sizes and floats go wrong with.
VALUES = [0, 1, 2, 3, 7, 63, 64, 4096, 65536, 65537, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC, 0xFFFFFFFF, 0x7F800000,
          0x7FC00000, len(FILE), len(FILE) - 4]


def sealed(data: bytes) -> bytes:
    """With the size and the checksum of what is there."""
    if len(data) < HEADER.size:
        return data
    data = data[:16] + struct.pack("<Q", len(data)) + data[24:]
    return data[:24] + struct.pack("<I", zlib.crc32(data[HEADER.size:])) + data[28:]


def patched(data: bytes, *changes: tuple[int, int]) -> bytes:
    """u32 words at byte offsets."""
    data = bytearray(data)
    for offset, value in changes:
        struct.pack_into("<I", data, offset, value & 0xFFFFFFFF)
    return sealed(bytes(data))


def _places(fields, start: int) -> dict[str, int]:
    places = {}
    for name, code in fields:
        places[name] = start
        start += struct.calcsize("<" + code)
    return places


def header_place(field: str) -> int:
    return _places(HEADER_FIELDS, 0)[field]


def tensor_place(index: int, field: str) -> int:
    return _places(TENSOR_FIELDS, word(header_place("tensors_offset")) + TENSOR.size * index)[field]


def node_place(index: int, field: str, slot: int = 0, data: bytes | None = None) -> int:
    """Of a field of the fixed part, or of a word of `inputs`, `i`, `f` or `constant` behind it."""
    start = word(header_place("nodes_offset"), data)
    for _ in range(index):
        start = _node_places(start, data)["end"]
    return _node_places(start, data)[field] + 4 * slot


def _node_places(start: int, data: bytes | None) -> dict[str, int]:
    places, at = _places(NODE_FIELDS, start), start + NODE.size
    (kind,) = (k for k in OPERATORS.values() if k.number == word(places["op"], data))
    for name, words in (("inputs", word(places["input_count"], data)), ("i", len(kind.integers)),
                        ("f", len(kind.floats)), ("constant", 2 * len(kind.constants))):
        places[name], at = at, at + 4 * words
    return places | {"end": at}


def word(offset: int, data: bytes | None = None) -> int:
    return struct.unpack_from("<I", FILE if data is None else data, offset)[0]


def changed_words() -> list[bytes]:
    """Every word of the header, and of every record, each with many values."""
    end = word(header_place("strings_offset"))
    return [patched(FILE, (offset, value)) for offset in [8, 12, *range(28, end, 4)] for value in VALUES]


def stream(files: list[tuple[bytes, tuple[int, int]]], threads: int = 1) -> bytes:
    """Files and sizes of images as open_programs.c reads them."""
    return b"".join(struct.pack("<4I", *size, threads, len(data)) + data for data, size in files)


def given_images(program: Program, size: tuple[int, int]) -> list[np.ndarray]:
    """float32 ``[C, H, W]``: what open_programs.c runs a program on."""
    shapes = [(tensor.channels, *size) for tensor in program.tensors[:program.inputs]]
    return [((np.arange(np.prod(shape), dtype=np.uint32) * np.uint32(2654435761) >> 26) / 16 - 2).astype(np.float32)
            .reshape(shape) for shape in shapes]


def open_all(program: Path, files: list[bytes], size=SIZE, threads: int = 1, isa: str | None = None):
    """Status and message of each; a crash fails with the number of the file."""
    environment = os.environ | {"ASAN_OPTIONS": "allocator_may_return_null=1:max_allocation_size_mb=2000"}
    if isa:
        environment["IRSTD_ISA"] = isa
    run = subprocess.run([program], input=stream([(data, size) for data in files], threads), capture_output=True,
                         env=environment, timeout=600)
    lines = run.stdout.decode(errors="replace").split("\n")[:-1]
    assert run.returncode == 0, f"file {len(lines)} of {len(files)}: {run.returncode}\n{run.stderr.decode()[-6000:]}"
    assert len(lines) == len(files)
    return [(int(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in lines]

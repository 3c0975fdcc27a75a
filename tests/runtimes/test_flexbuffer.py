"""The reader of custom options: every scalar of the format, refusals, and damaged buffers under AddressSanitizer."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irstd_edge.opspec import BinaryConv2dSpec

flexbuffers = pytest.importorskip("flatbuffers.flexbuffers")

HERE = Path(__file__).parent
READER = HERE.parents[1] / "runtimes" / "native" / "adapters" / "tflite"
OPTIONS = BinaryConv2dSpec(16, 8, 3, 3, 0).attributes()


def build(compiler: str, name: str, folder: Path, *flags: str) -> Path:
    program = folder / name
    done = subprocess.run([compiler, "-std=c11", "-g", "-O1", *flags, f"-I{READER}", HERE / f"{name}.c",
                           READER / "flexbuffer.c", "-o", program, "-lm"], capture_output=True, text=True, check=False)
    if done.returncode and any("sanitize" in f for f in flags):
        pytest.skip(f"{compiler} has no AddressSanitizer")
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def read(compiler, tmp_path_factory):
    folder = tmp_path_factory.mktemp("print")
    program = build(compiler, "flexbuffer_print", folder)

    def call(data: bytes):
        (folder / "data").write_bytes(data)
        done = subprocess.run([program, folder / "data"], capture_output=True, text=True, check=True)
        lines = done.stdout.splitlines()
        if lines and lines[-1].startswith("error: "):
            return lines[-1]
        rows = [line.split() for line in lines]
        return {key: float.fromhex(real) if kind == "1" else int(integer) for key, kind, integer, real in rows}

    return call


def unsigned_map(value: int) -> bytes:
    b = flexbuffers.Builder()
    with b.Map():
        b.UInt("a", value)
    return bytes(b.Finish())


def same(a, b) -> bool:
    return a == b or (a != a and b != b)


def test_the_options_of_a_node(read):
    assert read(flexbuffers.Dumps(OPTIONS)) == OPTIONS


KEYS = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=12)
VALUES = st.one_of(st.integers(-2**63, 2**63 - 1), st.integers(-300, 300), st.booleans(),
                   st.floats(width=32), st.floats(-1e38, 1e38))  # the Python writer fails on larger doubles


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(KEYS, VALUES, max_size=12))
def test_every_scalar(read, values):
    found = read(flexbuffers.Dumps(values))
    assert set(found) == set(values)
    assert all(same(float(found[k]), float(v)) for k, v in values.items()), (found, values)
    assert all(isinstance(found[k], float) == isinstance(v, float) for k, v in values.items())


def test_indirect_scalars_and_shared_keys(read):
    b = flexbuffers.Builder()
    with b.Map():
        b.IndirectInt("a", -70000)
        b.IndirectUInt("b", 255)
        b.IndirectFloat("c", 0.25)
        b.Int("d", -1)
        b.UInt("e", 2**63 - 1)
    assert read(bytes(b.Finish())) == {"a": -70000, "b": 255, "c": 0.25, "d": -1, "e": 2**63 - 1}


def test_half_floats(read):
    """The only width that the Python writer does not make: a map of one 2-byte float, by hand."""
    for bits, value in ((0x3C00, 1.0), (0xC000, -2.0), (0x0001, 2.0**-24), (0x7C00, math.inf), (0x7BFF, 65504.0)):
        data = b"k\0" + b"\x03\0"  # key at 0; an odd start keeps offsets small
        keys_count = len(data)
        data += (1).to_bytes(2, "little")
        keys = len(data)
        data += (keys - 0).to_bytes(2, "little")
        header = len(data)
        data += (header - keys).to_bytes(2, "little") + (2).to_bytes(2, "little") + (1).to_bytes(2, "little")
        start = len(data)
        data += bits.to_bytes(2, "little") + bytes([3 << 2 | 1])
        data += (len(data) - start).to_bytes(1, "little") + bytes([9 << 2 | 1, 1])
        assert keys_count == 4 and read(data) == {"k": value}


@pytest.mark.parametrize("data, message", [
    (b"", "shorter"),
    (b"\0\0", "shorter"),
    (flexbuffers.Dumps(3), "no map"),
    (flexbuffers.Dumps([1, 2]), "no map"),
    (flexbuffers.Dumps({"a": "text"}), "no scalar"),
    (flexbuffers.Dumps({"a": [1, 2]}), "no scalar"),
    (flexbuffers.Dumps({"a": {"b": 1}}), "no scalar"),
    (unsigned_map(2**63), "63 bits"),
    (flexbuffers.Dumps({"a": 1})[:-1] + b"\x03", "invalid width"),
    (flexbuffers.Dumps({"a": 1})[3:], "leaves the buffer"),
])
def test_refusals(read, data, message):
    assert message in read(bytes(data))


def fuzz(compiler: str, folder: Path, rounds: int) -> tuple[int, int]:
    program = build(compiler, "flexbuffer_fuzz", folder, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    seeds = [OPTIONS, {"a": 1}, {"big": 2**60, "neg": -5, "f": 1e30, "b": True}, {}]
    for i, seed in enumerate(seeds):
        (folder / f"{i}.bin").write_bytes(flexbuffers.Dumps(seed))
    done = subprocess.run([program, str(rounds), *sorted(folder.glob("*.bin"))],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    tried, accepted = map(int, done.stdout.split())
    return tried, accepted


def test_damaged_buffers(compiler, tmp_path):
    tried, accepted = fuzz(compiler, tmp_path, 2000)
    assert tried > 50_000 and 0 < accepted < tried


@pytest.mark.slow
def test_many_damaged_buffers(compiler, tmp_path):
    assert fuzz(compiler, tmp_path, 500_000)[0] > 4_000_000

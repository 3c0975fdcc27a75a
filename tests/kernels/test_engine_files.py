"""Files that are not as the format says: a status and a message that names the place, never a crash."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_build import build
from kernel_library import INVALID, OK, OUT_OF_MEMORY, UNSUPPORTED
from program_files import (
    FILE,
    VALUES,
    changed_words,
    everything,
    header_place,
    node_place,
    open_all,
    patched,
    sealed,
    tensor_place,
    word,
)

NODES = {node.name: i for i, node in enumerate(everything().nodes)}


@pytest.fixture(scope="module")
def opener():
    return build("kernel-tests", targets=("irstd", "open_programs")) / "open_programs"


def test_every_word(opener):
    results = open_all(opener, [FILE, *changed_words()])
    assert results[0] == (OK, "")
    refused = [message for status, message in results if status != OK]
    assert len(refused) > 1000 and all(refused)
    assert {status for status, _ in results} <= {OK, INVALID, UNSUPPORTED, OUT_OF_MEMORY}


def named(node, slot=None, **fields):
    """A change of a node by its name: `field=value`, or attribute slot i."""
    at = NODES[node]
    changes = [(node_place(at, field), value) for field, value in fields.items()]
    return patched(FILE, *changes, *([(node_place(at, "i", slot[0]), slot[1])] if slot else []))


BINARY, CONV, POOL, RESIZE = "BinaryConv2d_3", "Conv2d_1", "AveragePool_4", "Resize_8"
(SLICE,) = (name for name in NODES if name.startswith("Slice"))
LIKE, _, GIVEN = (name for name in NODES if name.startswith("Resize") and name != RESIZE)
(CHANNELS,) = (name for name in NODES if name.startswith("ChannelMaxPool"))


@pytest.mark.parametrize(("data", "status", "message"), [
    (b"", INVALID, "0 bytes are too few"),
    (FILE[:63], INVALID, "63 bytes are too few"),
    (b"x" + FILE[1:], INVALID, "the first bytes differ"),
    (patched(FILE, (header_place("version"), 1)), UNSUPPORTED, "file version 1, this library reads 2"),
    (patched(FILE, (header_place("opset"), 9)), UNSUPPORTED, "operator version 9"),
    (FILE[:-1], INVALID, "its header says"),
    (FILE + b"\0", INVALID, "its header says"),
    (FILE[:-1] + bytes([FILE[-1] ^ 1]), INVALID, "the checksum does not match"),
    (sealed(FILE[: word(header_place("nodes_offset")) + 8]), INVALID, "outputs_offset"),
    (patched(FILE, (header_place("tensor_count"), 0)), INVALID, "0 tensors"),
    (patched(FILE, (header_place("node_count"), 4097)), INVALID, "4097 nodes"),
    (patched(FILE, (header_place("input_count"), 60)), INVALID, "60 inputs"),
    (patched(FILE, (header_place("output_count"), 0)), INVALID, "0 outputs"),
    (patched(FILE, (header_place("outputs_offset"), 0xFFFFFFFC)), INVALID, "outputs_offset 4294967292"),
    (patched(FILE, (header_place("tensors_offset"), 66)), INVALID, "tensors_offset 66"),
    (patched(FILE, (header_place("nodes_offset"), len(FILE) + 4)), INVALID, "nodes_offset"),
    (patched(FILE, (header_place("nodes_offset"), len(FILE) - 6)), INVALID, "nodes_offset"),
    (patched(FILE, (header_place("nodes_offset"), len(FILE) - 8)), INVALID, "node 0: its record lies outside"),
    (patched(sealed(FILE + struct.pack("<4I", 14, 0, 1, 2)), (header_place("nodes_offset"), len(FILE))), INVALID,
     "x0: its record lies outside the file"),
    (patched(FILE, (header_place("strings_bytes"), 0xFFFFFFFF)), INVALID, "strings_offset"),
    (patched(FILE, (header_place("strings_bytes"), 1)), INVALID, "strings_bytes"),
    (patched(FILE, (tensor_place(2, "name"), 1 << 20)), INVALID, "tensor 2: its name"),
    (patched(FILE, (tensor_place(2, "fraction_bits"), 16)), INVALID, "tensor t2: fraction_bits 16"),
    (patched(FILE, (tensor_place(2, "fraction_bits"), -2)), INVALID, "tensor t2: fraction_bits -2"),
    (patched(FILE, (tensor_place(2, "channels"), 0)), INVALID, "tensor t2: 0 channels"),
    (patched(FILE, (tensor_place(0, "fraction_bits"), 8)), INVALID, "input x0: must be float32"),
    (named(CONV, op=0), UNSUPPORTED, "Conv2d_1: operator 0"),
    (named(CONV, op=99), UNSUPPORTED, "Conv2d_1: operator 99"),
    (named(CONV, name=1 << 30), INVALID, "node 1: its name"),
    (named(CONV, input_count=9), INVALID, "Conv2d_1: 9 inputs"),
    (named(CONV, input_count=2), INVALID, "Conv2d_1: 2 inputs, 1 to 1"),
    (named(CONV, inputs=3), INVALID, "Conv2d_1: input 0 is tensor 3, which nothing before it writes"),  # its own
    (named(CONV, inputs=9), INVALID, "Conv2d_1: input 0 is tensor 9, which nothing before it writes"),  # a cycle
    (named(CONV, inputs=0xFFFFFFFF), INVALID, "Conv2d_1: input 0 is tensor 4294967295"),
    (named(CONV, output=0), INVALID, "Conv2d_1: output is tensor 0"),
    (named(CONV, output=999), INVALID, "Conv2d_1: output is tensor 999"),
    (named(CONV, constant=0xFFFFFFC0), INVALID, "Conv2d_1: constant 0 lies outside"),
    (named(CONV, constant=word(node_place(1, "constant")) + 2), INVALID, "Conv2d_1: constant 0"),
    (named(CONV, slot=(0, 4)), INVALID, "Conv2d_1: 4 to 6 channels"),
    (named(CONV, slot=(2, 0)), INVALID, "Conv2d_1: kernel_h must be in 1..31, got 0"),
    (named(CONV, slot=(2, 5)), INVALID, "Conv2d_1: weight must have"),
    (named(CONV, slot=(12, 0)), INVALID, "Conv2d_1: groups"),
    (named(CONV, slot=(12, 4)), INVALID, "Conv2d_1: .* 4 groups"),
    (named(CONV, slot=(13, 6)), INVALID, "Conv2d_1: activation must be in 0..5, got 6"),
    (patched(FILE, (node_place(1, "constant", 5), 20)), INVALID, "Conv2d_1: slope must have 24 bytes, got 20"),
    (patched(FILE, (node_place(1, "constant", 3), 20)), INVALID, "Conv2d_1: bias must have 24 bytes, got 20"),
    (named(BINARY, slot=(0, 2)), INVALID, "BinaryConv2d_3: version"),
    (named(BINARY, slot=(1, 0)), INVALID, "BinaryConv2d_3: bit_order"),
    (named(BINARY, slot=(15, 2)), INVALID, "BinaryConv2d_3: pad_value"),
    (named(BINARY, slot=(16, 0)), INVALID, "BinaryConv2d_3: residual 0 does not go with 2 inputs"),
    (named(BINARY, slot=(19, 7)), INVALID, "BinaryConv2d_3: fraction_bits 7 does not go with its output's 8"),
    (named(BINARY, slot=(6, 3)), INVALID, "BinaryConv2d_3: residual and result differ in size"),
    (patched(FILE, (word(node_place(NODES[BINARY], "constant")), 0xFFFFFFFF)), INVALID,
     "BinaryConv2d_3: weight .* tail bits"),
    (named(POOL, slot=(0, 9)), INVALID, "AveragePool_4: a 8x20 image leaves nothing or too much"),
    (named(POOL, slot=(2, 5000)), INVALID, "AveragePool_4: stride_h must be in 1..4096, got 5000"),
    (named(RESIZE, slot=(0, 4096)), INVALID, r"Resize_8: \[12, 16384, 20\] and"),
    (named(POOL, slot=(4, 2)), INVALID, "AveragePool_4: padding of 2 and 0 must be below the window's 2"),
    (named(POOL, slot=(8, 2)), INVALID, r"AveragePool_4: ceil_mode must be in 0..1, got 2"),
    (named(RESIZE, slot=(3, 0)), INVALID, "Resize_8: divisor_h must be in 1..4096, got 0"),
    (named(RESIZE, slot=(3, 40)), INVALID, r"Resize_8: \[12, 0, 20\] and"),
    (named(RESIZE, slot=(5, 1)), INVALID, "Resize_8: scale 2 / 1 and side 0 do not go with size 1"),
    (named(RESIZE, slot=(6, 8)), INVALID, "Resize_8: scale 2 / 1 and side 8 do not go with size 0"),
    (named(LIKE, slot=(0, 2)), INVALID, f"{LIKE}: scale 2 / 1"),
    (named(LIKE, input_count=1), INVALID, f"{LIKE}: its size is that of a second input, which it has not"),
    (named(GIVEN, slot=(6, 0)), INVALID, f"{GIVEN}: scale 1 / 1 and side 0 do not go with size 2"),
    (named(CHANNELS, op=15), INVALID, f"{CHANNELS}: gives 3 channels, its output has 1"),
    (named(SLICE, slot=(0, 8)), INVALID, f"{SLICE}: takes channels 8 to 12 of 12"),
    (named(SLICE, slot=(0, 65537)), INVALID, f"{SLICE}: first must be in 0..65536, got 65537"),
    (named(SLICE, inputs=0), INVALID, f"{SLICE}: its tensors differ in type"),
    (named(RESIZE, slot=(2, 3)), INVALID, "Resize_8: mode must be in 0..2, got 3"),
    (patched(FILE, (node_place(0, "constant", 1), 0)), INVALID, "Add_0: constant 0 has an offset and no bytes"),
    (patched(FILE, (word(header_place("outputs_offset")), 2)), INVALID, "output 0: tensor 2"),
    (patched(FILE, (word(header_place("outputs_offset")), 999)), INVALID, "output 0: tensor 999"),
    (patched(FILE, (word(header_place("outputs_offset")), 0)), INVALID, "output x0 is an input"),
])
def test_the_message_names_the_place(opener, data, status, message):
    ((found, text),) = open_all(opener, [data])
    assert found == status, text
    assert re.search(message, text), text


@pytest.mark.parametrize(("size", "threads", "message"), [
    ((0, 20), 1, "height and width must be in 1..32768, got 0 and 20"), ((8, 40000), 1, "got 8 and 40000"),
    ((8, 20), 0, "threads must be in 1..1024, got 0"), ((7, 20), 1, "Resize_8: .* do not go together"),
    ((1, 20), 1, "AveragePool_4: a 1x20 image leaves nothing"),
])
def test_sizes_that_cannot_be(opener, size, threads, message):
    ((status, text),) = open_all(opener, [FILE], size, threads)
    assert status == INVALID
    assert re.search(message, text), text


WORDS = st.one_of(st.sampled_from(VALUES), st.integers(0, 300), st.integers(0, 0xFFFFFFFF))
CHANGES = st.lists(st.tuples(st.integers(7, len(FILE) // 4 - 1), WORDS), min_size=1, max_size=4)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(CHANGES, min_size=20, max_size=20))
def test_any_words(opener, files):
    """Constants too: NaN, infinities, tail bits."""
    results = open_all(opener, [patched(FILE, *((4 * i, v) for i, v in changes)) for changes in files])
    assert all(message for status, message in results if status != OK)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=300), min_size=20, max_size=20))
def test_any_bytes(opener, tails):
    results = open_all(opener, [sealed(FILE[:64] + tail) for tail in tails])
    assert all(status != OK and message for status, message in results)

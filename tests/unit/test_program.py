"""The file format of the native engine: what is written is read, and everything else is refused by name."""

import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irstd_edge import program, program_c, program_docs
from irstd_edge.program import HEADER, NODE, OPERATORS, TENSOR, Node, Program, ProgramError, Tensor, read, write


def f32(*shape):
    return np.random.default_rng(prod(shape)).standard_normal(shape).astype(np.float32)


def prod(shape):
    return int(np.prod(shape))


BINARY = {"version": 1, "bit_order": 1, "in_channels": 4, "out_channels": 4, "kernel_h": 3, "kernel_w": 3,
          "pad_value": 0, "pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1, "residual": 1, "activation": 1,
          "fraction_bits": 8}
BINARY_CONSTANTS = {"weight": np.full((4, 3, 3, 1), 5, np.int32), "threshold": f32(4), "scale": f32(4), "bias": f32(4),
                    "activation_parameters": f32(3, 4)}
QUANT = {"version": 1, "in_channels": 8, "out_channels": 5, "kernel_h": 1, "kernel_w": 1, "weight_bits": 3,
         "activation_bits": 4, "inverse_step": 2.5}
CONV = {"in_channels": 4, "out_channels": 6, "kernel_h": 3, "kernel_w": 1, "groups": 2}


def everything() -> Program:
    """Every operator once, on small images."""
    tensors, nodes = [Tensor("x", 1), Tensor("a", 4, 8)], []
    stem = {"in_channels": 1, "out_channels": 4, "kernel_h": 3, "kernel_w": 3, "activation": 2}
    nodes.append(Node("Conv2d", "stem", (0,), 1, stem, {"weight": f32(4, 1, 3, 3), "slope": f32(4)}))

    def add(operator, inputs, channels, attributes=None, constants=None, bits=-1):
        tensors.append(Tensor(f"t{len(tensors)}", channels, bits))
        nodes.append(Node(operator, operator, inputs, len(tensors) - 1, attributes or {}, constants or {}))
        return len(tensors) - 1

    window = {"kernel_h": 2, "kernel_w": 2, "stride_h": 2, "stride_w": 2}
    y = add("BinaryConv2d", (1, 1), 4, BINARY, BINARY_CONSTANTS, 8)
    pooled = add("AveragePool", (y,), 4, window, bits=8)
    add("MaxPool", (y,), 4, window, bits=8)
    resized = add("Resize", (pooled, y), 4, {"scale_h": 2, "scale_w": 2, "mode": 1}, bits=8)
    total = add("Add", (resized, y), 4, {"activation": 3, "clamp_min": -1.0, "clamp_max": 2.0})
    mean = add("GlobalAveragePool", (total,), 4)
    gate = add("Activation", (mean,), 4, {"activation": 4})
    scaled = add("Multiply", (total, gate), 4)
    grid = add("FixedPoint", (scaled,), 4, {"fraction_bits": 8, "bits": 12}, bits=8)
    joined = add("Concat", (grid, y), 8, bits=8)
    add("Slice", (joined,), 3, {"first": 5}, bits=8)
    up = {**CONV, "stride_h": 2, "stride_w": 2, "output_pad_h": 1, "activation": 5}
    last = add("ConvTranspose2d", (scaled,), 6, up, {"weight": f32(4, 3, 3, 1), "bias": f32(6)})
    packed = {"weight": np.full((5, 3), 6, np.uint8), "scale": f32(5), "bias": f32(5)}
    add("QuantConv2d", (scaled, grid), 5, QUANT, packed)
    add("GlobalMaxPool", (total,), 4)
    for kind in ("ChannelAveragePool", "ChannelMaxPool"):
        add(kind, (total,), 1)
    assert {n.operator for n in nodes} == set(OPERATORS)
    return Program(tuple(tensors), tuple(nodes), 1, (last, total))


def tiny() -> Program:
    bias = np.array([0.5], np.float32)
    values = {"in_channels": 1, "out_channels": 1, "kernel_h": 1, "kernel_w": 1, "activation": 4}
    node = Node("Conv2d", "head", (0,), 1, values, {"weight": np.full((1, 1, 1, 1), 2, np.float32), "bias": bias})
    return Program((Tensor("x", 1), Tensor("y", 1)), (node,), 1, (1,))


def test_weights_of_float_convolutions_may_be_halves():
    program = everything()
    halved = [Node(n.operator, n.name, n.inputs, n.output, n.attributes,
                   {k: v.astype(np.float16) if k == "weight" and v.dtype == np.float32 else v
                    for k, v in n.constants.items()}) for n in program.nodes]
    data = write(Program(program.tensors, tuple(halved), program.inputs, program.outputs))
    found = {n.name: n.constants for n in read(data).nodes if "weight" in n.constants}
    assert {k: c["weight"].dtype.name for k, c in found.items()} == {
        "stem": "float16", "ConvTranspose2d": "float16", "BinaryConv2d": "int32", "QuantConv2d": "uint8"}
    for node in halved:
        if "weight" in node.constants:
            np.testing.assert_array_equal(found[node.name]["weight"], node.constants["weight"])
    assert len(data) < len(write(program)) and write(read(data)) == data


def test_the_bytes_of_a_tiny_program():
    """By hand, from the tables of docs/native.md."""
    u32 = lambda *v: struct.pack(f"<{len(v)}I", *v)  # noqa: E731
    tensors = u32(0, 0xFFFFFFFF, 1) + u32(2, 0xFFFFFFFF, 1)
    integers = struct.pack("<14i", 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 4)
    floats = struct.pack("<2f", -np.inf, np.inf)
    strings = b"x\0y\0head\0"
    nodes_at, outputs_at, strings_at = 88, 88 + 108, 88 + 108 + 4
    weight_at = -(-(strings_at + len(strings)) // 64) * 64
    node = u32(2, 4, 1, 1) + u32(0) + integers + floats + u32(weight_at, 4, weight_at + 64, 4, 0, 0)
    body = (tensors + node + u32(1) + strings).ljust(weight_at - 64, b"\0")
    body += struct.pack("<f", 2).ljust(64, b"\0") + struct.pack("<f", 0.5)
    header = b"\x89IRSTD\r\n" + u32(2, 1) + struct.pack("<Q", 64 + len(body))
    header += u32(zlib.crc32(body), 2, 1, 1, 1, outputs_at, 64, nodes_at, strings_at, len(strings))
    assert write(tiny()) == header + body


def test_a_program_survives_the_file():
    original = everything()
    data = write(original)
    found = read(data)
    assert write(found) == data and found.tensors == original.tensors and found.outputs == original.outputs
    for a, b in zip(original.nodes, found.nodes, strict=True):
        assert (a.operator, a.name, a.inputs, a.output) == (b.operator, b.name, b.inputs, b.output)
        assert {k: np.float32(v) for k, v in a.attributes.items()} == {k: np.float32(v)
                                                                       for k, v in b.attributes.items()}
        assert a.constants.keys() == b.constants.keys()
        for name, array in a.constants.items():
            np.testing.assert_array_equal(array, b.constants[name])
            assert not b.constants[name].flags.writeable


def test_constants_are_aligned_and_stored_once():
    data = write(everything())
    end, places = struct.unpack_from("<I", data, 52)[0], []
    for node in everything().nodes:
        words = 2 * len(node.type.constants)
        end += 16 + 4 * (len(node.inputs) + len(node.type.attributes) + words)
        raw = struct.unpack_from(f"<{words}I", data, end - 4 * words)
        places += [p for p in zip(raw[::2], raw[1::2], strict=True) if p != (0, 0)]
    assert places and all(offset % 64 == 0 for offset, _ in places)
    # The float arrays of one size are the same: scale, bias, threshold and slope, two weights, and scale and bias.
    assert len(set(places)) == len(places) - 5


# What is refused -----------------------------------------------------------------------------------------------------


def patched(data: bytes, offset: int, raw: bytes) -> bytes:
    """The file with other bytes and a checksum that fits."""
    data = data[:offset] + raw + data[offset + len(raw):]
    return data[:24] + struct.pack("<I", zlib.crc32(data[HEADER.size:])) + data[28:]


def word(value):
    return struct.pack("<I", value & 0xFFFFFFFF)


SIZE = len(write(tiny()))
HEADER_DAMAGE = [
    (0, b"\x88", "magic"), (8, word(1), "version is 1.*export again"), (12, word(9), "opset is 9.*export again"),
    (16, word(SIZE + 1), "file_bytes"), (28, word(0), "tensor_count"), (28, word(1 << 30), "tensor_count"),
    (28, word(60), "tensors_offset"), (32, word(0), "node_count"), (32, word(2), "node 1: name"),
    (36, word(0), "input_count"), (36, word(3), "input_count"), (40, word(0), "output_count"),
    (44, word(SIZE), "outputs_offset"), (44, word(63), "outputs_offset"), (44, word(197), "outputs_offset"),
    (48, word(0), "tensors_offset"), (48, word(66), "tensors_offset"), (52, word(0xFFFFFFFF), "nodes_offset"),
    (52, word(130), "nodes_offset"), (56, word(0), "strings_offset"), (56, word(SIZE), "strings_offset"),
    (60, word(3), "end with NUL"), (60, word(1 << 31), "strings_offset"),
]
TENSORS, RECORD = 64, 88
INPUTS, INTEGERS, FLOATS, CONSTANTS, END = (RECORD + n for n in (16, 20, 76, 84, 108))
RECORD_DAMAGE = [
    (TENSORS, word(9), "tensor 0: name 9"), (TENSORS + 4, word(4), "tensor 0 'x': an input is float32"),
    (TENSORS + 4, word(-2), "tensor 0 'x': fraction_bits"), (TENSORS + 8, word(0), "tensor 0 'x': channels"),
    (TENSORS + 8, word(1 << 20), "tensor 0 'x': channels"), (TENSORS + 16, word(1), "output 1 is int16"),
    (RECORD, word(0), "node 0: op is 0"), (RECORD, word(99), "node 0: op is 99"),
    (RECORD, word(3), "node 0: bits must be at least 2"),
    (RECORD + 4, word(77), "node 0: name 77"), (RECORD + 8, word(0), "node 0: in_channels"),
    (RECORD + 8, word(2), "node 0: dilation_w"), (RECORD + 8, word(200), "input_count"),
    (RECORD + 12, word(0), "output 0 is written before"), (RECORD + 12, word(7), "output 7 is not a tensor"),
    (INPUTS, word(1), "input 1 is not computed"), (INTEGERS, word(0), "in_channels"),
    (INTEGERS + 4 * 12, word(2), "groups"), (INTEGERS + 4 * 13, word(6), "activation"),
    (FLOATS, struct.pack("<f", np.nan), "clamp_min"), (CONSTANTS, word(0), "weight 0 with 4"),
    (CONSTANTS, word(SIZE), "weight"), (CONSTANTS, word(260), "multiple of 64"), (CONSTANTS + 4, word(8), "weight"),
    (CONSTANTS + 4, word(0), "weight"), (CONSTANTS + 16, word(256), "slope"),
    (END, word(2), "output 2 is not a tensor"), (END + 4, b"\xff", "no UTF-8"),
]


@pytest.mark.parametrize("offset, raw, message", HEADER_DAMAGE + RECORD_DAMAGE)
def test_damage_is_named(offset, raw, message):
    with pytest.raises(ProgramError, match=message):
        read(patched(write(tiny()), offset, raw))


def test_a_changed_byte_and_a_cut_file_are_refused():
    data = write(everything())
    with pytest.raises(ProgramError, match="crc32"):
        read(data[:-1] + bytes([data[-1] ^ 1]))
    for size in (0, 1, 63, 64, len(data) - 1):
        with pytest.raises(ProgramError):
            read(data[:size])
    with pytest.raises(ProgramError, match="file_bytes"):
        read(data + b"\0")


FILE = write(everything())
#: Words that hold structure, so that a change is more than another weight.
STRUCTURE = struct.unpack_from("<I", FILE, 56)[0] // 4


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(3, STRUCTURE + 20), st.one_of(
    st.sampled_from([0, 1, 2, 63, 64, 65, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(FILE), len(FILE) - 4]),
    st.integers(0, 0xFFFFFFFF), st.integers(0, 300))), min_size=1, max_size=3))
def test_no_change_gets_through_unnoticed(changes):
    """Whatever the words: a ProgramError, or a program that survives its own file."""
    data = FILE
    for index, value in changes:
        data = patched(data, 4 * index, word(value))
    try:
        found = read(data)
    except ProgramError:
        return
    again = write(found)
    assert write(read(again)) == again


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes(tail, whole_header):
    data = (FILE[:HEADER.size] if whole_header else program.MAGIC) + tail
    with pytest.raises(ProgramError):
        read(patched(data, 16, struct.pack("<Q", len(data))) if whole_header else data)


def conv(**changes):
    constants = {"weight": f32(6, 2, 3, 1), **changes.pop("constants", {})}
    return Node("Conv2d", "c", (0,), 1, {**CONV, **changes}, {k: v for k, v in constants.items() if v is not None})


@pytest.mark.parametrize("make, message", [
    (lambda: Node("Abacus", "n", (0,), 1), "node 'n': unknown operator 'Abacus'"),
    (lambda: conv(strid=1), "has no attribute strid"),
    (lambda: conv(groups=4), "groups is 4"),
    (lambda: conv(activation=9), "activation must be one of"),
    (lambda: conv(stride_h=0), "stride_h must be at least 1"),
    (lambda: conv(clamp_min=2.0, clamp_max=1.0), "clamp_min 2.0 exceeds"),
    (lambda: conv(constants={"weight": None}), "weight is missing"),
    (lambda: conv(constants={"weight": f32(6, 4, 3, 1)}), r"weight has shape \[6, 4, 3, 1\], not .* = \[6, 2, 3, 1\]"),
    (lambda: conv(constants={"bias": np.zeros(6)}), "bias is float64"),
    (lambda: conv(constants={"bias": np.zeros(6, np.float16)}), "bias is float16, not float32"),
    (lambda: conv(constants={"weight": np.zeros((6, 2, 3, 1))}), "weight is float64, not float32 or float16"),
    (lambda: conv(constants={"slope": f32(6)}), "slope is given"),
    (lambda: conv(activation=2), "slope is missing"),
    (lambda: conv(constants={"bais": f32(6)}), "has no constant bais"),
    (lambda: Node("Conv2d", "c", (0,), 1, {}), "in_channels is missing"),
    (lambda: Node("BinaryConv2d", "b", (0, 0), 1, BINARY, {**BINARY_CONSTANTS, "weight": np.full((4, 3, 3, 1), 16,
                                                                                                np.int32)}), "beyond"),
])
def test_a_bad_node_is_named(make, message):
    with pytest.raises(ProgramError, match=message):
        make()


def one(node, *tensors, inputs=1, outputs=None):
    return Program(tensors, (node,), inputs, (len(tensors) - 1,) if outputs is None else outputs)


def pool(**attributes):
    a = {"kernel_h": 2, "kernel_w": 2, "stride_h": 2, "stride_w": 2, **attributes}
    return one(Node("MaxPool", "a", (0,), 1, a), Tensor("x", 4), Tensor("y", 4))


def resize(**attributes):
    return one(Node("Resize", "a", (0,), 1, {"mode": 1, **attributes}), Tensor("x", 4), Tensor("y", 4))


@pytest.mark.parametrize("make, message", [
    (lambda: one(conv(), Tensor("x", 3), Tensor("y", 6)), "node 0 'c': in_channels is 4, its input has 3"),
    (lambda: one(conv(), Tensor("x", 4), Tensor("y", 5)), "out_channels is 6, its output has 5"),
    (lambda: one(conv(), Tensor("x", 4, 3), Tensor("y", 6)), "tensor 0 'x': an input is float32"),
    (lambda: one(conv(), Tensor("x", 4), Tensor("y", 6, 3)), "output 1 is int16"),
    (lambda: one(conv(), Tensor("x", 4), Tensor("y", 6, 16)), "tensor 1 'y': fraction_bits"),
    (lambda: one(conv(), Tensor("x", 4), Tensor("y", 6), inputs=2), "output 1 is written before"),
    (lambda: one(conv(), Tensor("x", 4), Tensor("y", 6), Tensor("z", 1)), "no node writes tensor 2"),
    (lambda: one(conv(), Tensor("x", 4), Tensor("y", 6), outputs=()), "output_count"),
    (lambda: one(Node("Add", "a", (0,), 1), Tensor("x", 4), Tensor("y", 4)), "input_count is 1, not 2 to 2"),
    (lambda: one(Node("Add", "a", (0, 0), 1), Tensor("x", 4), Tensor("y", 5)), "input 'x' has 4 channels"),
    (lambda: one(Node("Multiply", "a", (1, 0), 2), Tensor("x", 2), Tensor("v", 4), Tensor("y", 4), inputs=2),
     "input 'x' has 2 channels, its output 4"),
    (lambda: pool(pad_left=2), "pad_left is 2, not below kernel_w, 2"),
    (lambda: one(Node("ChannelMaxPool", "a", (0,), 1), Tensor("x", 4), Tensor("y", 4)), "4 channels, not 1"),
    (lambda: resize(size=1), "its size is that of a second input"),
    (lambda: resize(size=1, scale_w=2), "scale_w is 2, and means nothing where size is 1"),
    (lambda: resize(size=2, height=3), "width is 0 where size is 2"),
    (lambda: resize(scale_h=2, height=3), "height is 3 where size is 0"),
    (lambda: one(Node("Concat", "a", (0, 0), 1), Tensor("x", 4), Tensor("y", 7)), "8 channels together"),
    (lambda: one(Node("Slice", "a", (0,), 1, {"first": 2}), Tensor("x", 4), Tensor("y", 3)),
     "takes channels 2 to 4 of 4"),
    (lambda: one(Node("Slice", "a", (0,), 1, {"first": 2}), Tensor("x", 4), Tensor("y", 2, 8)),
     "fraction_bits -1, its output 8"),
    (lambda: one(Node("Activation", "a", (0,), 1, {"activation": 2}, {"slope": f32(3)}), Tensor("x", 4),
                 Tensor("y", 4)), "slope has 3 values"),
    (lambda: one(Node("FixedPoint", "a", (0,), 1, {"fraction_bits": 4, "bits": 8}), Tensor("x", 4),
                 Tensor("y", 4)), "fraction_bits is 4, its output's -1"),
    (lambda: one(Node("ConvTranspose2d", "a", (0,), 1, {**CONV, "output_pad_w": 1}, {"weight": f32(4, 3, 3, 1)}),
                 Tensor("x", 4), Tensor("y", 6)), "output_pad_w is 1, not below stride_w"),
    (lambda: one(Node("BinaryConv2d", "b", (0, 0), 1, BINARY, BINARY_CONSTANTS), Tensor("x", 4), Tensor("y", 4, 7)),
     "fraction_bits is 8, its output's 7"),
    (lambda: one(Node("BinaryConv2d", "b", (0, 0), 1, {**BINARY, "fraction_bits": -1}, BINARY_CONSTANTS),
                 Tensor("x", 4), Tensor("y", 4, 7)), "fraction_bits is -1, its output's 7"),
    (lambda: one(Node("BinaryConv2d", "b", (0,), 1, BINARY, BINARY_CONSTANTS), Tensor("x", 4), Tensor("y", 4, 8)),
     "residual is 1, with 1 inputs"),
    (lambda: Program((Tensor("x", 4),), (), 1, (0,)), "node_count"),
    (lambda: one(conv(), Tensor("x", 4), Tensor("y", 6), outputs=(1, 1)), "output 1 is named twice"),
    (lambda: one(conv(), Tensor("x", 4), Tensor("y", 6), outputs=(1, 0)), "output 0 is an input"),
])
def test_a_bad_program_is_named(make, message):
    with pytest.raises(ProgramError, match=message):
        make()


# The views of the table ----------------------------------------------------------------------------------------------


def test_the_c_header_is_up_to_date():
    assert program_c.HEADER.read_text(encoding="utf-8") == program_c.header(), "run python -m irstd_edge.program_c"


def test_every_slot_has_one_number_in_c():
    names = re.findall(r"^#define (\w+) \d+ /\* (?:i|f|constant)\[\] \*/$", program_c.header(), re.MULTILINE)
    assert len(names) == len(set(names)) == sum(len(k.attributes) + len(k.constants) for k in OPERATORS.values())
    assert {"IRSTD_CONV2D_STRIDE_H", "IRSTD_BINARY_CONV2D_THRESHOLD", "IRSTD_RESIZE_MODE"} <= set(names)


def test_the_page_is_up_to_date():
    text = program_docs.PAGE.read_text(encoding="utf-8")
    assert program_docs.page(text) == text, "run python -m irstd_edge.program_docs"
    fields = re.findall(r"^\| \d+(?:-\d+|, \d+)? \| (?:u\d+ )?([\w, ]+) \|", text, re.MULTILINE)
    assert [n for group in fields for n in group.split(", ")] == [name for name, _ in program.HEADER_FIELDS]
    for record in (program.TENSOR_FIELDS, program.NODE_FIELDS):
        assert all(re.search(rf"\b{name}\b", text) for name, _ in record)


def test_the_records_have_room_for_every_operator():
    assert (HEADER.size, TENSOR.size, NODE.size) == (64, 12, 16)
    for kind in OPERATORS.values():
        assert kind.max_inputs <= program.NODE_INPUTS and len(kind.constants) <= program.NODE_CONSTANTS
    assert sorted(k.number for k in OPERATORS.values()) == list(range(1, len(OPERATORS) + 1))

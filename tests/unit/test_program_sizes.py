import sys
from pathlib import Path

import numpy as np
import pytest

from irstd_edge.program import Node, Program, ProgramError, Tensor
from irstd_edge.program_sizes import node_macs, tensor_sizes

sys.path.insert(0, str(Path(__file__).parents[1] / "runtimes"))
from program_truth import run_program

CONV = {"in_channels": 1, "out_channels": 1}


def chain(*steps):
    """A program of one channel: each step is an operator and its attributes, on the result of the one before."""
    nodes = []
    for i, (operator, attributes) in enumerate(steps):
        shape = (1, 1, attributes.get("kernel_h", 1), attributes.get("kernel_w", 1))
        constants = {"weight": np.ones(shape, np.float32)} if "in_channels" in attributes else {}
        nodes.append(Node(operator, f"n{i}", (i,), i + 1, attributes, constants))
    return Program(tuple(Tensor(f"t{i}", 1) for i in range(len(steps) + 1)), tuple(nodes), 1, (len(steps),))


STEPS = {
    "conv": ("Conv2d", CONV | {"kernel_h": 3, "kernel_w": 5, "stride_h": 2, "dilation_w": 2, "pad_top": 1,
                               "pad_right": 3}),
    "transposed": ("ConvTranspose2d", CONV | {"kernel_h": 4, "kernel_w": 3, "stride_h": 2, "stride_w": 3, "pad_left": 1,
                                              "pad_bottom": 2, "output_pad_h": 1}),
    "pool": ("MaxPool", {"kernel_h": 3, "kernel_w": 2, "stride_h": 2, "stride_w": 2}),
    "average": ("AveragePool", {"kernel_h": 2, "kernel_w": 2, "stride_h": 1, "stride_w": 2}),
    "resize": ("Resize", {"scale_h": 2, "scale_w": 3, "mode": 1}),
    "padded pool": ("MaxPool", {"kernel_h": 3, "kernel_w": 4, "stride_h": 2, "stride_w": 3, "pad_top": 1, "pad_left": 2,
                                "pad_right": 3}),
    "ceil mode": ("AveragePool", {"kernel_h": 3, "kernel_w": 5, "stride_h": 2, "stride_w": 4, "pad_left": 4,
                                  "pad_bottom": 1, "ceil_mode": 1}),
    "resize by a fraction": ("Resize", {"scale_h": 2, "scale_w": 3, "divisor_h": 3, "divisor_w": 2, "mode": 1}),
    "resize to a size": ("Resize", {"size": 2, "height": 5, "width": 31, "mode": 2}),
    "channels": ("ChannelMaxPool", {}),
    "global": ("GlobalAveragePool", {}),
    "global maximum": ("GlobalMaxPool", {}),
    "sigmoid": ("Activation", {"activation": 4}),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("size", [(12, 16), (13, 17)])
def test_sizes_are_those_of_pytorch(name, size):
    program = chain(STEPS[name])
    y = run_program(program, np.zeros((1, *size), np.float32))[0]
    assert tensor_sizes(program, *size) == [size, y.shape[1:]]


def test_a_chain_and_its_partners():
    program = chain(STEPS["pool"], STEPS["resize"])
    assert tensor_sizes(program, 13, 16) == [(13, 16), (6, 8), (12, 24)]
    joined = Program((*program.tensors, Tensor("t", 1)), (*program.nodes, Node("Add", "sum", (0, 2), 3)), 1, (3,))
    with pytest.raises(ProgramError, match="node 'sum': 13x16 and 12x24 do not go together"):
        tensor_sizes(joined, 13, 16)
    like = Program((*program.tensors, Tensor("t", 1)), (*program.nodes, Node(
        "Resize", "up", (1, 0), 3, {"size": 1, "mode": 0})), 1, (3,))
    assert tensor_sizes(like, 13, 16)[3] == (13, 16)
    gate = Program((*[Tensor(f"t{i}", 1) for i in range(3)],),
                   (Node("GlobalAveragePool", "mean", (0,), 1), Node("Multiply", "gate", (0, 1), 2)), 1, (2,))
    assert tensor_sizes(gate, 5, 7) == [(5, 7), (1, 1), (5, 7)]


def test_nothing_is_left():
    with pytest.raises(ProgramError, match="node 'n1': a 4x4 image leaves nothing here"):
        tensor_sizes(chain(STEPS["pool"], STEPS["pool"]), 4, 4)


def test_operations():
    program = chain(STEPS["conv"], STEPS["transposed"], STEPS["sigmoid"])
    _, middle, _, _ = tensor_sizes(program, 12, 16)
    assert node_macs(program, 12, 16) == [15 * middle[0] * middle[1], 12 * middle[0] * middle[1], 0]

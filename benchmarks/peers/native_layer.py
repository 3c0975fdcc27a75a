"""Our single binary layers, packed in and packed out: timed inside a network of three.

Only the middle layer is timed. Its input and its output are read as signs alone, so what it reads and writes are packed
maps, in the rings of rows that the engine keeps of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from irstd_edge import __version__
from irstd_edge.benchmarks.peers.works import Work
from irstd_edge.program import Node, Program, Tensor, read, write

NOTE = "packed in and out, the threshold folded into the sums"
MODEL, TIMED = "layer.irstd", "timed"


def layer_program(channels: int) -> bytes:
    """model.irstd of three binary 3x3 layers, ``channels`` wide, RPReLU, random weights; the second is `timed`."""
    rng = np.random.default_rng(channels)
    tensors, nodes = [Tensor("x", channels)], []
    for i, name in enumerate(("first", TIMED, "last")):
        grid = -1 if name == "last" else 8
        words = rng.integers(0, 2**32, (channels, 3, 3, -(-channels // 32)), dtype=np.uint64).astype(np.uint32)
        if channels < 32:
            words &= np.uint32((1 << channels) - 1)
        constants = {
            "weight": words.view(np.int32),
            "threshold": rng.integers(-64, 65, channels).astype(np.float32) / 256,
            "scale": rng.integers(256, 1024, channels).astype(np.float32) / 2**14,
            "bias": rng.integers(-128, 129, channels).astype(np.float32) / 256,
            "activation_parameters": np.array([[0.0], [0.25], [0.0]], np.float32).repeat(channels, 1),
        }
        attributes = {"version": 1, "bit_order": 1, "in_channels": channels, "out_channels": channels, "kernel_h": 3,
                      "kernel_w": 3, "pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1, "pad_value": 0,
                      "activation": 1, "fraction_bits": grid}
        tensors.append(Tensor(f"{name}.y", channels, grid))
        nodes.append(Node("BinaryConv2d", name, (i,), i + 1, attributes, constants))
    return write(Program(tuple(tensors), tuple(nodes), 1, (len(nodes),)))


def prepare(work: Work, check: np.ndarray, folder: Path) -> None:
    """Write the program and ``reference.npy``, what it gives for ``check [N, C, H, W]`` by the reference arithmetic."""
    folder.mkdir(parents=True, exist_ok=True)
    data = layer_program(work.shape[0])
    (folder / MODEL).write_bytes(data)
    np.save(folder / "reference.npy", _reference(read(data), check))


def _reference(program: Program, x: np.ndarray) -> np.ndarray:
    import torch

    from irstd_edge.nn.functional import binary_conv2d
    from irstd_edge.opspec import BinaryConv2dSpec

    y = torch.from_numpy(x)
    for node in program.nodes:
        c = {name: torch.from_numpy(value.copy()) for name, value in node.constants.items()}
        y = binary_conv2d(y, c["weight"], c["threshold"], c["scale"], c["bias"],
                          BinaryConv2dSpec.from_attributes(dict(node.attributes)), c["activation_parameters"])
    return y.numpy()


class Session:
    """The three layers; ``prepare`` times the middle one."""

    artefact, runtime = "native", f"irstd {__version__}"

    def __init__(self, path: Path, threads: int):
        self._path, self._threads, self._engine = path, threads, None

    @property
    def isa(self) -> str:
        from irstd_edge.runtimes import library

        return library.selected_isa("native")

    def run(self, x: np.ndarray) -> np.ndarray:
        from irstd_edge.runtimes.native import Engine

        if self._engine is None or self._engine.size != x.shape[2:]:
            self._engine = Engine(self._path, tuple(x.shape[2:]), self._threads)
        results = np.empty((len(x), *self._engine.output_shapes[0]), np.float32)
        for image, result in zip(np.ascontiguousarray(x, np.float32), results, strict=True):
            self._engine.bind([image], [result])()
        return results

    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        self.run(x[:1])  # fills what the layer reads
        return self._engine.layer(TIMED)


def open_session(folder: str, artefact: str, threads: int) -> Session:
    return Session(Path(folder) / MODEL, threads)

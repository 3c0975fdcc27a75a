"""ExecuTorch with XNNPACK: the network of :mod:`irstd_edge.benchmarks.peers.models`, float32 or int8 (PT2E)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np


def preload(artefact: str) -> None:
    import torch
    from executorch.runtime import Runtime

    torch.set_num_threads(1)
    Runtime.get()


def convert(work: Path, out: Path, precision: str) -> None:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    images = torch.from_numpy(np.load(work / "inputs.npz")["calibration"]).split(1)
    program = torch.export.load(work / "model.pt2")
    if precision == "int8":
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        quantiser = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        model = prepare_pt2e(program.module(), quantiser)
        for image in images:
            model(image)
        program = torch.export.export(convert_pt2e(model), (images[0],))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    (out / "model.pte").write_bytes(lowered.buffer)


class Session:
    """One program; copying the outputs to tensors is part of its only way to run."""

    isa = None

    def __init__(self, path: Path, threads: int):
        from importlib.metadata import version

        from executorch.runtime import Runtime

        self.runtime = f"executorch {version('executorch')}"
        self.method = Runtime.get().load_program(path).load_method("forward")

    def run(self, x: np.ndarray) -> np.ndarray:
        import torch

        return self.method.execute([torch.from_numpy(np.ascontiguousarray(x))])[0].numpy().copy()

    def prepare(self, x: np.ndarray) -> Callable[[], None]:
        import torch

        inputs = [torch.from_numpy(x.copy())]
        return lambda: self.method.execute(inputs)


def open_session(bundle: str, artefact: str, threads: int) -> Session:
    return Session(Path(bundle) / "model.pte", threads)

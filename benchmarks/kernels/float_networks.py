"""Float networks in the native engine and in ONNX Runtime, one thread each, interleaved run by run.

``python benchmarks/kernels/float_networks.py NETWORK[:SIZE]...``: registered names, and ``pyramid``, a network of
depth-wise separable dilated pyramids of 0.23 M parameters in the manner of MDPNet. Random weights; medians in
milliseconds, the engine once for every instruction set.
"""

from __future__ import annotations

import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ISAS = ("avx2", "avx512", "neon")
SIZES = {"pyramid": 320}


def unit(inside: int, outside: int, kernel: int = 1, dilation: int = 1, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inside, outside, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=groups,
                      bias=False), nn.BatchNorm2d(outside)]


class Block(nn.Module):
    """1x1; dilations 1, 2, 4, 8 of depth-wise and point-wise convolutions, each plus the one before; 1x1; shortcut."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.reduce = nn.Sequential(*unit(inside, outside), nn.ReLU())
        self.branches = nn.ModuleList(
            nn.Sequential(*unit(outside, outside, 3, d, outside), *unit(outside, outside)) for d in (1, 2, 4, 8))
        self.fuse = nn.Sequential(*unit(4 * outside, outside))
        self.shortcut = nn.Identity() if inside == outside else nn.Sequential(*unit(inside, outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        reduced, levels = self.reduce(x), []
        for branch in self.branches:
            levels.append(branch(reduced) + levels[-1] if levels else branch(reduced))
        return F.relu(self.fuse(torch.cat(levels, 1)) + self.shortcut(x))


class Pyramid(nn.Module):
    """Three stages of four blocks, max-pooled between; the decoder adds the skips after bilinear x2."""

    size_multiple = 4
    channels = (16, 32, 64)

    def __init__(self):
        super().__init__()
        c = self.channels
        self.stem = nn.Sequential(*unit(1, c[0], 3), nn.ReLU(), *unit(c[0], c[0], 3), nn.ReLU())
        self.stages = nn.ModuleList(nn.Sequential(Block(before, width), *(Block(width, width) for _ in range(3)))
                                    for before, width in pairwise((c[0], *c)))
        self.lateral = nn.ModuleList(nn.Sequential(*unit(deep, width)) for width, deep in pairwise(c))
        self.refine = nn.ModuleList(
            nn.Sequential(*unit(w, w, 3, 1, w), nn.ReLU(), *unit(w, w), nn.ReLU()) for w in c[:-1])
        self.head = nn.Sequential(*unit(c[0], c[0] // 4, 3), nn.ReLU(), nn.Conv2d(c[0] // 4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, skips = self.stem(x), []
        for i, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for level in (1, 0):
            up = F.interpolate(self.lateral[level](x), scale_factor=2, mode="bilinear", align_corners=False)
            x = self.refine[level](up + skips[level])
        return torch.sigmoid(self.head(x))


def network(name: str) -> nn.Module:
    from irstd_edge.models.registry import get_model

    torch.manual_seed(0)
    made = Pyramid() if name == "pyramid" else get_model(name).factory()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return made.eval()


def runs(name: str, size: int, folder: Path) -> dict[str, callable]:
    """Engine -> a call that runs the network once and returns its output, float32 ``[1, H, W]``."""
    import onnxruntime

    from irstd_edge.export.capture import capture
    from irstd_edge.export.passes import compress
    from irstd_edge.export.targets.native import to_native
    from irstd_edge.export.targets.onnx import to_onnx
    from irstd_edge.runtimes.native import Engine, EngineError

    graph = compress(capture(network(name), (size, size)).model)
    file = folder / f"{name}.irstd"
    file.write_bytes(to_native(graph, (size, size)).data)
    x = np.random.default_rng(0).standard_normal((1, size, size)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = onnxruntime.InferenceSession(to_onnx(graph), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x[None]}
    made = {"onnxruntime": lambda: session.run(None, feed)[0][0]}
    for isa in ISAS:
        os.environ["IRSTD_ISA"] = isa
        try:
            engine = Engine(file, (size, size))
        except EngineError:
            continue  # not on this machine
        finally:
            del os.environ["IRSTD_ISA"]
        y = np.empty_like(x)
        run = engine.bind([x], [y])
        made[isa] = lambda run=run, y=y: (run(), y)[1]
    return made


@click.command()
@click.argument("networks", nargs=-1, required=True)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True)
def main(networks: tuple[str, ...], rounds: int) -> None:
    for text in networks:
        name, _, size = text.partition(":")
        side = int(size or SIZES.get(name, 256))
        with tempfile.TemporaryDirectory() as folder:
            jobs = runs(name, side, Path(folder))
            expected = jobs["onnxruntime"]()
            for engine, job in jobs.items():
                np.testing.assert_allclose(job(), expected, atol=1e-5, err_msg=engine)
            taken = {engine: [] for engine in jobs}
            for _ in range(rounds):
                for engine, job in jobs.items():
                    start = time.perf_counter()
                    job()
                    taken[engine].append(1e3 * (time.perf_counter() - start))
        medians = {engine: float(np.median(t)) for engine, t in taken.items()}
        against = medians["onnxruntime"]
        click.echo(" ".join([f"{name}:{side}", *(f"{e} {m:.2f} ms ({against / m:.2f}x)" for e, m in medians.items())]))


if __name__ == "__main__":
    main()

"""Networks in the native engine and, in float, in ONNX Runtime: one thread each, interleaved run by run.

``python -m irstd_edge.benchmarks.kernels.networks NETWORK[-wKaM][:SIZE]...``: registered names; ``resunet-w4a4`` is
``resunet`` with weights and inputs of 4 bits. Random weights; medians in milliseconds, the engine once for every
instruction set, and how many times faster than ONNX Runtime on the float network. Each line ends with the bytes of the
file and of the arena.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn

from irstd_edge.benchmarks.peers.models import quantised
from irstd_edge.benchmarks.peers.works import export

ISAS = ("avx2", "avx512", "neon")
MODULE = "irstd_edge.benchmarks.kernels.networks"


def parse(name: str) -> tuple[str, tuple[int, int] | None]:
    """``resunet-w4a4`` as ``resunet`` and bits of weights and inputs, (4, 4); None where the network stays float."""
    plain, *bits = re.fullmatch(r"(.*?)(?:-w(\d)a(\d))?", name).groups()
    return plain, None if bits[0] is None else (int(bits[0]), int(bits[1]))


def network(name: str) -> nn.Module:
    """A registered network with random weights and statistics; ``-wKaM``: quantised, steps from one random image."""
    from irstd_edge.models.registry import get_model

    plain, bits = parse(name)
    torch.manual_seed(0)
    made = get_model(plain).factory()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    made.eval()
    if bits is None:
        return made
    return quantised(made, bits, torch.randn(1, 1, 64, 64))


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """``resunet_w4a4`` makes ``resunet-w4a4``: what ``irstd-edge export --model`` asks for."""
    if name.startswith("_"):
        raise AttributeError(name)
    return lambda: network(name.replace("_", "-"))


def runs(name: str, size: int, folder: Path) -> tuple[dict[str, Callable], str]:
    """Engine -> a call that runs the network once and returns its output, float32 ``[1, H, W]``; and bytes."""
    import onnxruntime

    from irstd_edge.runtimes.native import Engine, EngineError

    plain, bits = parse(name)
    for label, targets in {plain: "portable", name: "native"}.items() if bits else [(name, "native,portable")]:
        export(f"{MODULE}:{label.replace('-', '_')}", targets, folder / label, size=size)
    file = folder / name / "model.irstd"
    x = np.random.default_rng(0).standard_normal((1, size, size)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = onnxruntime.InferenceSession(folder / plain / "model_portable.onnx", options,
                                           providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x[None]}
    made: dict[str, Callable] = {"onnxruntime": lambda: session.run(None, feed)[0][0]}
    arena = 0
    for isa in ISAS:
        os.environ["IRSTD_ISA"] = isa
        try:
            engine = Engine(file, (size, size))
        except EngineError:
            continue  # not on this machine
        finally:
            del os.environ["IRSTD_ISA"]
        arena = engine.description["arena_bytes"]
        y = np.empty_like(x)
        run = engine.bind([x], [y])
        made[isa] = lambda run=run, y=y: (run(), y)[1]
    return made, f"file {file.stat().st_size:,} arena {arena:,}"


@click.command()
@click.argument("networks", nargs=-1, required=True)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True)
def main(networks: tuple[str, ...], rounds: int) -> None:
    for text in networks:
        name, _, size = text.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            jobs, facts = runs(name, int(size or 256), Path(folder))
            if parse(name)[1] is None:
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
        figures = [f"{engine} {ms:.2f} ms ({against / ms:.2f}x)" for engine, ms in medians.items()]
        click.echo(" ".join([text, *figures, facts]))


if __name__ == "__main__":
    main()

"""The models of benchmarks/peers, converted on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

from irstd_edge.benchmarks.peers import works

from .emulate import BUILD, ROOT, run
from .machine import made

PEERS = ("mnn-fp32", "ncnn-fp32", "ort-fp32", "ort-int8", "litert-fp32", "litert-int8")
WORKS = tuple(name for name, work in works.WORKS.items() if work.factory)
ADAPTERS = "irstd_edge.benchmarks.peers.adapters"
CONVERTERS = ("MNN==3.6.1", "ncnn==1.0.20261020", "ai-edge-quantizer==0.10.0", "onnx", "onnxruntime==1.31.1", "numpy",
              "sympy")


def module(name: str, *arguments) -> list[str]:
    """Arguments that make a Python which has not installed the project run a module of it."""
    packages = {"irstd_edge": ROOT / "irstd_edge", "irstd_edge.benchmarks": ROOT / "benchmarks"}
    return [str(ROOT / "benchmarks/peers/bootstrap.py"), *(f"{k}={v}" for k, v in packages.items()), name,
            *map(str, arguments)]


def converters() -> Path:
    """A Python with the converters, which this project's own environment does without."""

    def make(part):
        run([sys.executable, "-m", "venv", part])
        pip = [part / "bin/python", "-m", "pip", "install", "--quiet", "--only-binary=:all:"]
        run([*pip, *CONVERTERS])
        run([*pip, "--no-deps", "pnnx==20261020"])  # its dependencies are all of PyTorch with CUDA

    return made(BUILD / "converters", make) / "bin/python"


def work_folder(name: str) -> Path:
    """What :func:`irstd_edge.benchmarks.peers.works.prepare` writes of a work."""
    folder = BUILD / "works" / name.replace(" ", "-")
    return made(folder, lambda part: works.prepare(works.WORKS[name], part, ROOT / "samples" / "frames"))


def model(name: str, peer: str) -> Path:
    """The folder of a peer's model."""
    adapter, _, precision = peer.partition("-")
    source = work_folder(name)

    def make(part):
        arguments = (f"{ADAPTERS}.{adapter}", source, part, precision)
        run([converters(), *module("irstd_edge.benchmarks.peers.convert", *arguments)])

    return made(BUILD / "models" / source.name / peer, make)

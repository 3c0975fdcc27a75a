"""What the engines run: networks and layers, written as files that every engine's converter can read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from irstd_edge import data

SIZE = 256
#: Calibration inputs of the int8 engines, and further ones that their outputs are compared on.
CALIBRATION, CHECKS = 8, 4


class WorkError(RuntimeError):
    """A work or a model of it cannot be made; one line."""


@dataclass(frozen=True)
class Work:
    """One thing to run.

    ``family``: works that are measured in one interleaving and compared with the same row; ``factory``: its name in
    :mod:`irstd_edge.benchmarks.peers.models`, None where only the registry's network exists; ``shape``: ``[C, H, W]``.
    """

    name: str
    family: str
    shape: tuple[int, int, int]
    factory: str | None = None

    @property
    def is_layer(self) -> bool:
        return self.shape[0] > 1


def _layer(channels: int, size: int) -> Work:
    name = f"conv {channels}-{channels}@{size}"
    return Work(name, name, (channels, size, size), "convolution")


WORKS: dict[str, Work] = {
    w.name: w
    for w in (
        Work("biisnet", "biisnet-float", (1, SIZE, SIZE)),
        Work("biisnet-float", "biisnet-float", (1, SIZE, SIZE), "biisnet_float"),
        Work("unet", "unet", (1, SIZE, SIZE), "unet"),
        Work("resunet", "resunet", (1, SIZE, SIZE), "resunet"),
        Work("mdpnet@320", "mdpnet@320", (1, 320, 320), "mdpnet"),
        _layer(16, 256),
        _layer(32, 128),
        _layer(64, 64),
    )
}


def network(work: Work):
    """The work in PyTorch, in evaluation."""
    if work.factory is None:
        from irstd_edge.checkpoints import load_network

        return load_network(work.name).network.eval()
    from irstd_edge.benchmarks.peers import models

    make: Callable = getattr(models, work.factory)
    return make(work.shape[0]) if work.is_layer else make()


def prepare(work: Work, folder: Path, frames: Path) -> None:
    """Write ``inputs.npz`` and, of float works, the models that converters read.

    These are ``model.onnx`` (static, opset 18), ``model.pt`` (TorchScript), ``model.pt2`` (torch.export),
    ``weights.npz`` and, of networks, a bundle with a float ``.tflite``.

    ``inputs.npz`` holds float32 ``calibration [N, C, H, W]``, ``check [M, C, H, W]`` and ``reference``, PyTorch's
    output of ``check``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    x = _activations(work.shape) if work.is_layer else read_frames(frames, work.shape[1:])
    calibration, check = x[:CALIBRATION], x[CALIBRATION:]
    inputs = {"calibration": calibration, "check": check}
    import torch

    torch.set_num_threads(1)
    model = network(work)
    with torch.no_grad():
        inputs["reference"] = torch.cat([model(torch.from_numpy(image[None])) for image in check]).numpy()
    if work.factory is not None:
        _write_models(model, torch.zeros(1, *work.shape), folder)
        if not work.is_layer:
            export(f"{__package__}.models:{work.factory}", "tflite", folder / "bundle", size=work.shape[1])
    np.savez(folder / "inputs.npz", **inputs)


def export(network_name: str, target: str, out: Path, *, size: int = SIZE) -> None:
    """``irstd-edge export`` of a name or ``module:factory`` in a process of its own. Raises :class:`WorkError`."""
    name = ["--model", network_name, "--mean", "101", "--std", "35"] if ":" in network_name else [network_name]
    command = [sys.executable, "-c", "import sys; from irstd_edge.cli import main; sys.exit(main())",
               "export", *name, "--to", target, "--out", str(out), "--input-size", str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkError(last_line(done.stderr) or f"irstd-edge export ended with {done.returncode}")


def reference_of(form: str, check: np.ndarray) -> np.ndarray:
    """PyTorch's output of a network, by name or ``module:factory``, for ``check [N, C, H, W]``."""
    import torch

    from irstd_edge.checkpoints import load_network
    from irstd_edge.nn.inference import freeze

    loaded = load_network(None, model=form, mean=101.0, std=35.0) if ":" in form else load_network(form)
    with torch.no_grad():
        frozen = freeze(loaded.network)
        return torch.cat([frozen(image[None]) for image in torch.from_numpy(check)]).numpy()


def last_line(text: str) -> str:
    """The last line that says something, at most 300 characters."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip(" ^~")]
    return lines[-1][:300] if lines else ""


def _write_models(model, example, folder: Path) -> None:
    import contextlib
    import io
    import logging
    import warnings

    import torch

    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (example,), folder / "model.onnx", dynamo=True, opset_version=18, optimize=True,
                          external_data=False, verbose=False, input_names=["input"], output_names=["output"])
        torch.jit.trace(model, example).save(folder / "model.pt")
        torch.export.save(torch.export.export(model, (example,)), folder / "model.pt2")
    logging.disable(logging.NOTSET)
    np.savez(folder / "weights.npz", **{k: v.numpy() for k, v in model.state_dict().items()})


def read_frames(folder: Path, size: tuple[int, int]) -> np.ndarray:
    """float32 ``[12, 1, H, W]``: infrared frames, normalised, cropped to the middle or tiled up to the size."""
    found = []
    for path in sorted(folder.glob("*.png"))[: CALIBRATION + CHECKS]:
        image = data.normalise(data.read_image(path), data.Normalisation(101.0, 35.0))
        image = np.tile(image, [-(-wanted // side) for wanted, side in zip(size, image.shape, strict=True)])
        top, left = ((side - wanted) // 2 for wanted, side in zip(size, image.shape, strict=True))
        found.append(image[top : top + size[0], left : left + size[1]])
    if len(found) < CALIBRATION + CHECKS:
        raise WorkError(f"{folder}: holds {len(found)} frames, {CALIBRATION + CHECKS} are needed")
    # Files of one clip are neighbours: calibrate on and compare with frames of all clips.
    return np.ascontiguousarray(np.stack(found[::3] + found[1::3] + found[2::3])[:, None], dtype=np.float32)


def _activations(shape: tuple[int, int, int]) -> np.ndarray:
    """float32 ``[12, C, H, W]`` as activations between layers: normally distributed."""
    return np.random.default_rng(0).standard_normal((CALIBRATION + CHECKS, *shape), dtype=np.float32)

"""The commands ``data`` and ``train``."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from irstd_edge.data import DATASETS, DataError, check_dataset

_PATH = click.Path(path_type=Path)
_SHOWN_PROBLEMS = 10


@click.command(help="Show the public data sets, where to get them and how to lay them out; check a local copy.")
@click.option("--root", type=_PATH, help="Folder that holds the data sets' folders: check what is there.")
def data(root: Path | None) -> None:
    console = Console()
    table = Table(title="Public data sets (none is part of this package)")
    for name in ("data set", "train", "test", "mean", "std", "get it from"):
        table.add_column(name, justify="right" if name in ("train", "test", "mean", "std") else "left",
                         overflow="fold")
    for d in DATASETS.values():
        table.add_row(d.name, str(d.train), str(d.test), f"{d.normalisation.mean:.4f}", f"{d.normalisation.std:.4f}",
                      d.source)
    console.print(table)
    console.print("Layout (BasicIRSTD): ROOT/NAME/images/X.png, ROOT/NAME/masks/X.png, "
                  "ROOT/NAME/img_idx/{train,test}_NAME.txt\nSplits: https://github.com/XinyiYing/BasicIRSTD. "
                  "Any folder of this layout can be used by its name.", highlight=False, soft_wrap=True)
    if root is None:
        return
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    names = sorted(p.parent.name for p in root.glob("*/img_idx"))
    if not names:
        raise DataError(f"{root}: holds no data set; expected ROOT/NAME/img_idx/train_NAME.txt, "
                        f"with NAME one of {', '.join(DATASETS)} or your own")
    checks = [check_dataset(root, name) for name in names]
    for check in checks:
        state = f"{len(check.problems)} problems" if check.problems else "ok"
        click.echo(f"{check.name}: train {check.train}, test {check.test}: {state}")
        for problem in check.problems[:_SHOWN_PROBLEMS]:
            click.echo(f"  {problem}")
        if len(check.problems) > _SHOWN_PROBLEMS:
            click.echo(f"  ... and {len(check.problems) - _SHOWN_PROBLEMS} more")
    if bad := [c.name for c in checks if c.problems]:
        raise DataError(f"{root}: problems in {', '.join(bad)}, listed above")


@click.command(help="Train by RECIPE: a TOML file, or the name of a shipped one (biisnet-nuaa).")
@click.argument("recipe")
@click.option("--root", type=_PATH, required=True, help="Folder that holds the data sets' folders.")
@click.option("--out", type=_PATH, required=True, help="Folder of the run: weights, curves, state.")
@click.option("--resume", is_flag=True, help="Go on after the last validation of the run in --out.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="Default bf16 on CUDA, else fp32.")
@click.option("--compile", "compile_network", is_flag=True, help="Train through torch.compile (needs a C++ compiler).")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default torch's own choice.")
@click.option("--epochs", type=click.IntRange(1), help="Epochs in place of the recipe's.")
@click.option("--init", "initial", type=_PATH, help="Weights to start from.")
@click.option("--allow-pickle", is_flag=True, help="Let --init be a pickled checkpoint, which can run code.")
def train(recipe, root, out, resume, device, precision, compile_network, threads, epochs, initial,
          allow_pickle) -> None:
    from dataclasses import replace

    import torch

    from irstd_edge.checkpoints import read_checkpoint
    from irstd_edge.errors import MissingError
    from irstd_edge.training.curves import plot_curves, require_matplotlib
    from irstd_edge.training.loop import Epoch
    from irstd_edge.training.loop import train as run_training
    from irstd_edge.training.recipe import Recipe

    settings = Recipe.find(recipe)
    if epochs:
        settings = replace(settings, epochs=epochs)
    require_matplotlib()
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingError("no CUDA device that this torch can use: train with --device cpu, or install a CUDA build "
                           "(https://pytorch.org/get-started)")
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    weights = read_checkpoint(initial, allow_pickle) if initial else None

    with _progress() as progress:
        task = progress.add_task(settings.network, total=settings.epochs, loss="", accuracy="")

        def on_epoch(epoch: Epoch) -> None:
            progress.update(task, completed=epoch.epoch, loss=f"loss {epoch.loss:.4f}")
            if epoch.accuracy is None:
                return
            a = epoch.accuracy
            text = f"IoU {a.iou:.3f} nIoU {a.niou:.3f} Pd {a.pd:.3f} Fa {a.fa * 1e6:.1f}e-6"
            progress.update(task, accuracy=text)
            if not progress.console.is_terminal:
                print(f"epoch {epoch.epoch}/{settings.epochs} loss {epoch.loss:.4f} {text}", flush=True)
            plot_curves(out / "curves.csv", out / "curves.png")

        run_training(settings, root, out, device=device, precision=precision, compile_network=compile_network,
                     resume=resume, initial=weights, on_epoch=on_epoch)
    plot_curves(out / "curves.csv", out / "curves.png")
    best = out / "best.safetensors"
    click.echo(f"{best if best.exists() else out / 'last.safetensors'}")


def _progress():
    from rich import progress as p

    columns = (p.TextColumn("{task.description}"), p.BarColumn(20), p.MofNCompleteColumn(),
               p.TextColumn("{task.fields[loss]}"), p.TextColumn("{task.fields[accuracy]}"), p.TimeElapsedColumn(),
               p.TextColumn("ETA"), p.TimeRemainingColumn())
    # The estimate looks back over 10 minutes: a validation every few epochs does not make it jump.
    return p.Progress(*columns, console=Console(file=sys.stderr), speed_estimate_period=600)

"""The commands ``models``, ``data`` and ``train``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from irstd_edge.data import DATASETS, DataError, check_dataset
from irstd_edge.files import check_writable, write_text

_PATH = click.Path(path_type=Path)
_SHOWN_PROBLEMS = 10
_OPERATIONS = ("macs", "bops", "ops")


@click.command(help="List the networks: size, operations at 256 x 256, measured accuracy.")
@click.option("--json", "json_file", type=_PATH, help="Write the list to this file too.")
def models(json_file: Path | None) -> None:
    if json_file:
        check_writable(json_file)
    entries = describe_models()
    table = Table(title="Networks at 256 x 256")
    table.add_column("network", no_wrap=True)
    for name in ("raw", "bin/32+conv", "bin/32+all", "MACs", "BOPs", "OPs"):
        table.add_column(name, justify="right", no_wrap=True)
    for e in entries:
        table.add_row(e["name"], *(f"{v:,}" for v in e["params"].values()), *(_short(e[k]) for k in _OPERATIONS))
    console = Console()
    console.print(table)
    notes = ["Parameters: raw = all learned values; bin/32+conv = binary weights / 32 + full-precision convolutions",
             "(the field's count); bin/32+all = binary weights / 32 + all else. OPs = MACs + BOPs / 64.", ""]
    for e in entries:
        notes.append(f"{e['name']}: {e['summary']}; {e['source']}")
        notes += [f"  {name} ({m['protocol']}): IoU {m['iou']:.4f}  nIoU {m['niou']:.4f}  Pd {m['pd']:.4f}  "
                  f"Fa {m['fa'] * 1e6:.2f}e-6" for name, m in e["metrics"].items()] or ["  no trained weights here"]
    console.print("\n".join(notes), highlight=False, soft_wrap=True)
    if json_file:
        write_text(json_file, json.dumps(entries, indent=2) + "\n")


def describe_models() -> list[dict]:
    """Every network of the registry: name, summary, source, params, macs, bops, ops, input, metrics by data set."""
    from irstd_edge.checkpoints import build_network
    from irstd_edge.complexity import measure_complexity
    from irstd_edge.models.registry import MODELS
    from irstd_edge.zoo import zoo_card

    return [
        {"name": m.name, "summary": m.summary, "source": m.source, "float_twin": m.float_twin,
         **measure_complexity(build_network(m.name)).as_dict(), "metrics": (zoo_card(m.name) or {}).get("metrics", {})}
        for m in MODELS.values()
    ]


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


def _short(count: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if count >= limit:
            return f"{count / limit:.3g}{unit}"
    return f"{count:.0f}"
